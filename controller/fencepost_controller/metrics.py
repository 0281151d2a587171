"""What the controller tells Prometheus: docs/OPERATIONS.md says what to watch of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fencepost_controller.commands import CommitCounts
from fencepost_controller.election_counts import ElectionCounts
from fencepost_controller.session_registry import SessionRegistry
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage
from fencepost_proto.runtime.metrics.families import Family, counter, gauge, histogram, requests
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.latencies import CallCounts


@dataclass(frozen=True, slots=True)
class ControllerStanding:
    """What the controller is at one moment."""

    image: MetadataImage
    epoch: int  # 0: the store is this controller's alone, or it is a standby
    sessions: SessionRegistry | None  # None: it is a standby
    waiting_commands: int


@dataclass(frozen=True, slots=True)
class ControllerMetrics:
    """Reads what the parts of the controller have counted, and the metadata in force. Nothing by partition: brokers have
    that."""

    standing: Callable[[], ControllerStanding]
    commits: CommitCounts
    elections: ElectionCounts
    answered: CallCounts

    async def families(self) -> AsyncIterator[Family]:
        """All of them, read in turns."""
        for family in (*await self._held(), *self._counted()):
            yield family

    async def _held(self) -> list[Family]:
        standing, turns = self.standing(), Turns()
        image, sessions = standing.image, standing.sessions
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
            gauge(
                "fencepost_controller_sessions", "Open sessions of brokers.", sessions.session_count if sessions else 0
            ),
            gauge(
                "fencepost_controller_active",
                "1: this controller decides. 0: it is a standby.",
                int(sessions is not None),
            ),
            gauge(
                "fencepost_controller_epoch",
                "Of this controller's leadership; 0: it has none, or needs none.",
                standing.epoch,
            ),
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
                sessions.failed_replica_count if sessions else 0,
            ),
            gauge("fencepost_controller_named_producers", "Names of producers.", len(image.producers)),
            gauge("fencepost_controller_waiting_commands", "Commands in the queue.", standing.waiting_commands),
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
                self.commits.failed,
            ),
            histogram(
                "fencepost_controller_commit_duration_seconds",
                "Of a group of commands: decided, and stored.",
                self.commits.times,
            ),
            *requests(self.answered.by_protocol()),
        ]
