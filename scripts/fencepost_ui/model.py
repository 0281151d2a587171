"""What the page shows, as plain values: built from what brokers say, told to browsers as snapshots and patches. Pure.

A partition is named by its topic and index. Of each of its replicas there is what its own broker said last; what a broker
said stays when it is gone, marked by the state of its process. What holds for the partition as a whole (leader, epoch,
in-sync set) is what the replica with the newest leader epoch says, a leader before a follower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_ui.timeline import Timeline

MAX_PRODUCERS: Final = 8  # shown of one partition
MAX_FENCES: Final = 1_000  # of producers, remembered to notice that one has risen
MAX_ISR_LINES: Final = 5  # in one observation


@dataclass(slots=True)
class ReplicaView:
    """One replica, as its broker said last."""

    leads: bool = False
    leader_epoch: int = -1
    end: int = 0
    high_watermark: int = 0
    failure: str = ""

    def told(self) -> list[Any]:
        return [self.end, self.high_watermark, self.leads, self.leader_epoch, self.failure]


@dataclass(slots=True)
class ProducerView:
    """One producer in one partition: its epoch and last batches on each replica, by broker."""

    epoch: dict[str, int] = field(default_factory=dict)
    fence: int = 0
    batches: dict[str, list[list[int]]] = field(default_factory=dict)  # [first, last, offset], oldest first

    @property
    def newest_offset(self) -> int:
        return max((batches[-1][2] for batches in self.batches.values() if batches), default=-1)

    def told(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "fence": self.fence, "batches": self.batches}


@dataclass(slots=True)
class PartitionView:
    topic: str
    index: int
    leader: int = -1
    leader_epoch: int = -1
    replicas: list[int] = field(default_factory=list)
    isr: list[int] = field(default_factory=list)
    size_bytes: int = 0
    start: int = 0
    of_broker: dict[str, ReplicaView] = field(default_factory=dict)
    producers: dict[str, ProducerView] = field(default_factory=dict)
    producer_count: int = 0
    told_by_leader: bool = False

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.index}"

    def told(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "index": self.index,
            "leader": self.leader,
            "epoch": self.leader_epoch,
            "replicas": self.replicas,
            "isr": self.isr,
            "size": self.size_bytes,
            "start": self.start,
            "of": {broker: replica.told() for broker, replica in self.of_broker.items()},
            "producers": {producer: view.told() for producer, view in self.producers.items()},
            "producerCount": self.producer_count,
        }


class Model:
    """All that the page shows but the processes, the story and the load."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """`now_ms`: the wall clock."""
        self.timeline = Timeline()
        self._now_ms = now_ms
        self.cluster_id = ""
        self.partitions: dict[str, PartitionView] = {}
        self.changed: dict[str, None] = {}  # partitions, since the last patch
        self.gone: dict[str, None] = {}
        self._names: dict[tuple[str, int], str] = {}
        self._fences: dict[int, int] = {}
        self._isr_lines = 0

    def observe(self, observation: broker_pb2.Observation) -> None:
        """Take what a broker said."""
        self.cluster_id = observation.cluster_id or self.cluster_id
        broker = str(observation.broker_id)
        self._isr_lines = 0
        self.timeline.add_events(observation.broker_id, observation.events)
        for replica in observation.replicas:
            self._observe_replica(broker, replica)
        for gone in observation.gone:
            self._remove(broker, (gone.topic_id, gone.partition))

    def forget_broker(self, broker: int) -> None:
        """Its process has begun again, and says everything once more."""
        for name, partition in self.partitions.items():
            if partition.of_broker.pop(str(broker), None) is not None:
                self.changed[name] = None

    def _observe_replica(self, broker: str, said: broker_pb2.ObservedReplica) -> None:
        name = f"{said.topic}-{said.partition}"
        known = self.partitions.get(name)
        key = (said.topic_id, said.partition)
        if known is None or self._names.get(key) != name:  # new, or another topic of that name
            known = self.partitions[name] = PartitionView(said.topic, said.partition)
            self._names[key] = name
            self.gone.pop(name, None)
        known.of_broker[broker] = ReplicaView(
            said.is_leader, said.leader_epoch, said.log_end_offset, said.high_watermark, said.failure
        )
        if said.leader_epoch > known.leader_epoch or (
            said.leader_epoch == known.leader_epoch and (said.is_leader or not known.told_by_leader)
        ):
            self._take_partition(known, said)
        self._take_producers(known, broker, said)
        self.changed[name] = None

    def _take_partition(self, known: PartitionView, said: broker_pb2.ObservedReplica) -> None:
        isr = list(said.isr)
        if known.isr and set(isr) != set(known.isr):  # also where a follower is the first to tell of an election
            self._isr_lines += 1
            if self._isr_lines <= MAX_ISR_LINES:
                self.timeline.add(
                    self._now_ms(), "isr", f"In sync in {known.name}: {_listed(isr)} (before: {_listed(known.isr)})",
                    node=str(said.leader), partition=known.name,
                )  # fmt: skip
        known.leader, known.leader_epoch, known.isr = said.leader, said.leader_epoch, isr
        known.replicas, known.told_by_leader = list(said.replicas), said.is_leader
        known.size_bytes, known.start = said.size_bytes, said.log_start_offset
        known.producer_count = said.producer_count

    def _take_producers(self, known: PartitionView, broker: str, said: broker_pb2.ObservedReplica) -> None:
        for producer in said.producers:
            state = producer.state
            view = known.producers.setdefault(str(state.producer_id), ProducerView())
            view.batches[broker] = [
                [batch.first_sequence, batch.last_sequence, batch.base_offset] for batch in state.batches
            ]
            view.epoch[broker] = state.producer_epoch
            view.fence = max(view.fence, producer.fence_epoch)
            self._note_fence(state.producer_id, producer.fence_epoch, known.name)
        if len(known.producers) > MAX_PRODUCERS:
            newest = sorted(known.producers, key=lambda each: known.producers[each].newest_offset)[-MAX_PRODUCERS:]
            known.producers = {each: known.producers[each] for each in newest}

    def _note_fence(self, producer_id: int, epoch: int, partition: str) -> None:
        before = self._fences.get(producer_id)
        if epoch and before is not None and epoch > before:
            text = f"Producer {producer_id}: only epoch {epoch} and later may write now"
            self.timeline.add(self._now_ms(), "fence", text, partition=partition)
        if before is None or epoch > before:
            self._fences[producer_id] = epoch
            if len(self._fences) > MAX_FENCES:
                del self._fences[next(iter(self._fences))]

    def _remove(self, broker: str, key: tuple[str, int]) -> None:
        name = self._names.get(key)
        partition = self.partitions.get(name or "")
        if partition is None or name is None:
            return
        partition.of_broker.pop(broker, None)
        self.changed[name] = None
        if not partition.of_broker:
            del self.partitions[name], self._names[key]
            self.changed.pop(name, None)
            self.gone[name] = None

    # ---- For browsers ----

    def patch(self) -> dict[str, Any]:
        """What has changed since the last patch; empty: nothing has."""
        patch: dict[str, Any] = {}
        if self.changed:
            patch["partitions"] = {name: self.partitions[name].told() for name in self.changed}
            self.changed = {}
        if self.gone:
            patch["gone"] = list(self.gone)
            self.gone = {}
        if events := self.timeline.take_new():
            patch["events"] = events
        return patch

    def snapshot(self) -> dict[str, Any]:
        return {
            "clusterId": self.cluster_id,
            "partitions": {name: partition.told() for name, partition in self.partitions.items()},
            "events": self.timeline.all(),
        }


def _listed(brokers: list[int]) -> str:
    return ", ".join(map(str, brokers)) or "none"
