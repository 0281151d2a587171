"""What the controller tells Prometheus: docs/OPERATIONS.md says what to watch of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fencepost_controller.commands import Commands
from fencepost_controller.election_counts import ElectionCounts
from fencepost_controller.session_registry import SessionRegistry
from fencepost_proto.protocol.metadata import NO_LEADER
from fencepost_proto.runtime.metrics.families import Family, counter, gauge, histogram, requests
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.latencies import CallCounts


@dataclass(frozen=True, slots=True)
class ControllerMetrics:
    """Reads what the parts of the controller have counted, and the metadata in force. Nothing by partition: brokers have
    that."""

    commands: Commands
    sessions: SessionRegistry
    elections: ElectionCounts
    answered: CallCounts

    async def families(self) -> AsyncIterator[Family]:
        """All of them, read in turns."""
        for family in (*await self._held(), *self._counted()):
            yield family

    async def _held(self) -> list[Family]:
        image, turns = self.commands.image, Turns()
        offline = under_replicated = below_min = 0
        for partition in list(image.partitions.values()):
            offline += partition.leader == NO_LEADER
            under_replicated += len(partition.isr) < len(partition.replicas)
            below_min += len(partition.isr) < image.topics[partition.topic_id].config.min_insync_replicas
            await turns.step()
        brokers = gauge("fencepost_controller_brokers", "Registered brokers, by state: serving or fenced (down).")
        fenced = sum(broker.fenced for broker in image.brokers.values())
        brokers.add(len(image.brokers) - fenced, state="serving")
        brokers.add(fenced, state="fenced")
        return [
            gauge("fencepost_controller_metadata_version", "Of the metadata in force.", image.version),
            brokers,
            gauge("fencepost_controller_sessions", "Open sessions of brokers.", self.sessions.session_count),
            gauge("fencepost_controller_topics", "Topics.", len(image.topics)),
            gauge("fencepost_controller_partitions", "Partitions.", len(image.partitions)),
            gauge("fencepost_controller_offline_partitions", "Partitions without a leader.", offline),
            gauge(
                "fencepost_controller_under_replicated_partitions",
                "Partitions not every replica of which is in sync.",
                under_replicated,
            ),
            gauge(
                "fencepost_controller_under_min_insync_partitions",
                "Partitions with fewer than min.insync.replicas in sync: nothing is committed there.",
                below_min,
            ),
            gauge(
                "fencepost_controller_failed_replicas",
                "Replicas that brokers report as failed: the disk refuses, or holds what it should not.",
                self.sessions.failed_replica_count,
            ),
            gauge("fencepost_controller_named_producers", "Names of producers.", len(image.producers)),
            gauge("fencepost_controller_waiting_commands", "Commands in the queue.", self.commands.waiting),
        ]

    def _counted(self) -> list[Family]:
        counts = self.elections
        return [
            counter("fencepost_controller_elections_total", "Leaders elected in place of others.", counts.elections),
            counter(
                "fencepost_controller_unclean_elections_total",
                "Of those: leaders that were neither in sync nor eligible, which may lack acknowledged records.",
                counts.unclean_elections,
            ),
            counter(
                "fencepost_controller_eligible_elections_total",
                "Of those: leaders that had left the in-sync set with all that is committed (KIP-966).",
                counts.eligible_elections,
            ),
            counter(
                "fencepost_controller_lost_leaders_total",
                "Times that a partition had no leader any more.",
                counts.lost_leaders,
            ),
            counter("fencepost_controller_isr_shrinks_total", "In-sync sets that lost a member.", counts.isr_shrinks),
            counter("fencepost_controller_isr_expands_total", "In-sync sets that got a member.", counts.isr_expands),
            counter(
                "fencepost_controller_failed_commits_total",
                "Groups of commands that could not be stored.",
                self.commands.failed_commits,
            ),
            histogram(
                "fencepost_controller_commit_duration_seconds",
                "Of a group of commands: decided, and stored.",
                self.commands.commit_times,
            ),
            *requests(self.answered.by_protocol()),
        ]
