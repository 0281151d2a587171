"""A cluster of decisions only: events in words go in, what every part decides comes out as text.

The controller is its decisions (`fencepost_controller.decisions`). A broker is what it has heard of the metadata and, for
each partition, a log of batch headers with the rules of the node about it: `ProducerState`, `lowest_epoch`, `LeaderState`,
`answer_subscribe` and `cut_for`. There is no network, no disk and no time but what a transcript says. The words of the
events are in `transcript_events.py`; `tests/unit/transcripts/*.txt` are what they make.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.replication.leader_state import LeaderState
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.record_batch import BatchHeader
from tests.unit.controller_story import Story


@dataclass
class Replica:
    """One broker's copy of a partition: the headers of its batches and what follows from them."""

    headers: list[BatchHeader] = field(default_factory=list)
    epochs: LeaderEpochs = field(default_factory=LeaderEpochs)
    producers: ProducerState = field(default_factory=ProducerState)
    high_watermark: int = 0
    leads: LeaderState | None = None

    @property
    def end_offset(self) -> int:
        return self.headers[-1].end_offset if self.headers else 0

    def append(self, headers: Iterable[BatchHeader]) -> None:
        for one in headers:
            self.producers.record(one, one.base_offset)
            self.epochs.record(one.leader_epoch, one.base_offset)
            self.headers.append(one)

    def cut_to(self, offset: int) -> None:
        """Keep whole batches below `offset`, and derive everything else from them again."""
        kept = [one for one in self.headers if one.end_offset <= offset]
        self.headers, self.epochs, self.producers = [], LeaderEpochs(), ProducerState()
        self.append(kept)
        self.high_watermark = min(self.high_watermark, self.end_offset)


@dataclass
class Node:
    """One broker's process and disk."""

    id: int
    image: MetadataImage = field(default_factory=MetadataImage)  # as far as it has heard
    cut_off: bool = False  # from the controller
    replicas: dict[PartitionKey, Replica] = field(default_factory=dict)


@dataclass
class World:
    story: Story = field(default_factory=Story)
    nodes: dict[int, Node] = field(default_factory=dict)
    now_s: float = 0.0

    # ---- The parts ----

    def tell(self, line: str) -> None:
        self.story.lines.append(line)

    def decides(self, command: object) -> None:
        """The controller decides; what changes, or the refusal, is told without the event."""
        self.story.tell("", command)  # type: ignore[arg-type]
        self.story.lines.remove("")

    def node(self, broker_id: str | int) -> Node:
        return self.nodes.setdefault(int(broker_id), Node(int(broker_id)))

    def replica(self, node: Node, name: str) -> Replica:
        return node.replicas.setdefault(self.key(name), Replica())

    def key(self, name: str) -> PartitionKey:
        topic, _, index = name.rpartition("-")
        return (f"{topic}-id", int(index))

    def leader(self, name: str) -> int:
        return self.story.image.partitions[self.key(name)].leader

    def is_running(self, node: Node) -> bool:
        known = self.story.image.brokers.get(node.id)
        return known is not None and not known.fenced

    def brokers_hear(self) -> None:
        """Each broker that the controller reaches applies the metadata, and takes up or puts down what it leads."""
        image = self.story.image
        for node in self.nodes.values():
            if node.cut_off or not self.is_running(node):
                continue
            node.image = image
            for key, partition in image.partitions.items():
                if node.id not in partition.replicas:
                    node.replicas.pop(key, None)
                    continue
                replica = node.replicas.setdefault(key, Replica())
                state = replica.leads
                needed = image.topics[key[0]].config.min_insync_replicas
                if partition.leader != node.id:
                    replica.leads = None
                elif state is None or state.partition.leader_epoch != partition.leader_epoch:
                    replica.leads = LeaderState(
                        node.id,
                        partition,
                        replica.end_offset,
                        replica.high_watermark,
                        self.now_s,
                        min_insync_replicas=needed,
                    )
                else:
                    state.settings_changed(needed)
                    if state.partition != partition:
                        state.partition_changed(partition, self.now_s)
                self.commit(node, key)

    def commit(self, node: Node, key: PartitionKey) -> None:
        """The leader's high watermark, told where it has moved."""
        replica = node.replicas[key]
        if replica.leads is not None and replica.leads.high_watermark > replica.high_watermark:
            replica.high_watermark = replica.leads.high_watermark
            self.tell(f"broker {node.id}: committed below offset {replica.high_watermark}")
