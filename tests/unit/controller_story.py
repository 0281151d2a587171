"""A story of commands and what the controller decides, told as text and compared whole.

Each event is a line; what it changes stands below it, indented: brokers with their standing, partitions by name with
everything that elections are about. A refusal is one line with its error's name. Nothing below an event: nothing changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent
from typing import TypeVar

from fencepost_controller.decisions.brokers import (
    NO_EPOCH,
    BeginShutdown,
    FailReplicas,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
)
from fencepost_controller.decisions.cluster import FormCluster
from fencepost_controller.decisions.draft import Command, decide
from fencepost_controller.decisions.isr import AlterPartition
from fencepost_controller.decisions.topics import CreateTopic
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.features import NEWEST
from fencepost_proto.protocol.metadata import (
    NO_LEADER,
    BrokerRegistration,
    Changes,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    PartitionKey,
    TopicConfig,
)

A = TypeVar("A")

CLUSTER_ID = "the-cluster"


@dataclass
class Story:
    """The image as it stands, and what has been told."""

    image: MetadataImage = field(default_factory=MetadataImage)
    failed: dict[tuple[int, int], frozenset[PartitionKey]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    lives: dict[int, int] = field(default_factory=dict)  # incarnations so far, by broker

    def __post_init__(self) -> None:
        self.does(FormCluster(CLUSTER_ID))

    # ---- Deciding ----

    def does(self, command: Command[A]) -> A:
        """Without telling of it."""
        decision = decide(self.image, command, self.failed)
        self.image = decision.image
        return decision.answer

    def tell(self, event: str, command: Command[object]) -> None:
        self.lines.append(event)
        before = self.image
        try:
            decision = decide(before, command, self.failed)
        except FencepostError as error:
            self.lines.append(f"    {error.code.name}")
            return
        self.image = decision.image
        self.lines.extend(f"    {line}" for line in _changed(self.image, decision.changes))

    def reads(self, expected: str) -> None:
        assert "\n".join(self.lines) + "\n" == dedent(expected).lstrip("\n")

    # ---- What often happens ----

    def cluster(self, *broker_ids: int) -> Story:
        """These brokers are live; not told."""
        for broker_id in broker_ids:
            self.does(self.registration(broker_id))
            self.does(UnfenceBroker(broker_id, self.epoch(broker_id)))
        return self

    def topic(self, name: str, *assignments: tuple[int, ...], config: TopicConfig | None = None) -> Story:
        """The topic exists; not told. Its id is `name`-id."""
        self.does(CreateTopic(name, f"{name}-id", assignments=assignments, config=config or TopicConfig()))
        return self

    def registration(
        self,
        broker_id: int,
        *,
        lost_tail: bool = False,
        new_folder: bool = False,
        damaged: tuple[PartitionKey, ...] = (),
        folder_epoch: int | None = None,
        copy: bool = False,
        feature_level: int = NEWEST,
    ) -> RegisterBroker:
        """Of a new incarnation, after the one before it was found dead. `folder_epoch` None: of the last registration."""
        self.lives[broker_id] = self.lives.get(broker_id, 0) + 1
        known = self.image.brokers.get(broker_id)
        return RegisterBroker(
            broker_id=broker_id,
            incarnation=f"life {self.lives[broker_id]}",
            cluster_id="" if new_folder or known is None else CLUSTER_ID,
            address=f"host-{broker_id}:1",
            replaces=known.broker_epoch if known else NO_EPOCH,
            may_have_lost_tail=lost_tail,
            damaged=damaged,
            folder_epoch=(known.broker_epoch if known else NO_EPOCH) if folder_epoch is None else folder_epoch,
            folder_is_copy=copy,
            feature_level=feature_level,
        )

    def starts(
        self,
        broker_id: int,
        *,
        lost_tail: bool = False,
        new_folder: bool = False,
        older_folder: bool = False,
        damaged: tuple[PartitionKey, ...] = (),
        feature_level: int = NEWEST,
    ) -> None:
        how = " without its last writes" * lost_tail + " with an empty folder" * new_folder
        how += " with an older folder" * older_folder
        how += " of an older version" * (feature_level < NEWEST)
        how += f" with damage in {_names(self.image, damaged)}" if damaged else ""
        registration = self.registration(
            broker_id,
            lost_tail=lost_tail,
            new_folder=new_folder,
            folder_epoch=NO_EPOCH if older_folder else None,
            damaged=damaged,
            feature_level=feature_level,
        )
        self.tell(f"broker {broker_id} starts{how}", registration)

    def is_ready(self, broker_id: int) -> None:
        self.tell(f"broker {broker_id} is ready", UnfenceBroker(broker_id, self.epoch(broker_id)))

    def dies(self, broker_id: int) -> None:
        self.tell(f"broker {broker_id} dies", FenceBroker(broker_id, self.epoch(broker_id)))

    def shuts_down(self, broker_id: int) -> None:
        self.tell(f"broker {broker_id} wants to shut down", BeginShutdown(broker_id, self.epoch(broker_id)))

    def disk_fails(self, broker_id: int, *keys: PartitionKey) -> None:
        who = (broker_id, self.epoch(broker_id))
        self.failed[who] = self.failed.get(who, frozenset()) | set(keys)
        self.tell(f"broker {broker_id} cannot write {_names(self.image, keys)}", FailReplicas(*who))

    def proposes(self, leader: int, key: PartitionKey, *isr: int, partition_epoch: int | None = None) -> None:
        members = " ".join(map(str, isr))
        self.tell(
            f"broker {leader} proposes {members} in sync for {_name(self.image, key)}",
            self.proposal(leader, key, *isr, partition_epoch=partition_epoch),
        )

    def proposal(self, leader: int, key: PartitionKey, *isr: int, partition_epoch: int | None = None) -> AlterPartition:
        partition = self.image.partitions[key]
        return AlterPartition(
            broker_id=leader,
            broker_epoch=self.epoch(leader),
            partition=key,
            leader_epoch=partition.leader_epoch,
            partition_epoch=partition.partition_epoch if partition_epoch is None else partition_epoch,
            new_isr=tuple((member, self.epoch(member)) for member in isr),
        )

    def epoch(self, broker_id: int) -> int:
        broker = self.image.brokers.get(broker_id)
        return broker.broker_epoch if broker else NO_EPOCH


def _name(image: MetadataImage, key: PartitionKey) -> str:
    topic = image.topics.get(key[0])
    return f"{topic.name if topic else key[0]}-{key[1]}"


def _names(image: MetadataImage, keys: tuple[PartitionKey, ...]) -> str:
    return " ".join(_name(image, key) for key in keys)


def _changed(after: MetadataImage, changes: Changes) -> list[str]:
    lines = []
    for key, entity in changes.items():
        match entity:
            case None:
                lines.append(f"{key} deleted")
            case BrokerRegistration():
                standing = "shutting down" if entity.shutting_down else "live"
                lines.append(f"broker {entity.id}: {'fenced' if entity.fenced else standing}")
            case Partition():
                lines.append(partition_line(after, entity))
            case NamedProducer():
                retired = f", retired {list(entity.retired_ids)}" if entity.retired_ids else ""
                retired += ", expired" if entity.expired else ""
                lines.append(f"{entity.name}: id {entity.producer_id} epoch {entity.epoch}{retired}")
            case NextProducerId():
                lines.append(f"next ids {entity.next_id} and, of named producers, {entity.next_named_id}")
            case _:
                lines.append(key)
    return lines


def partition_line(image: MetadataImage, p: Partition) -> str:
    def ids(broker_ids: tuple[int, ...]) -> str:
        return " ".join(map(str, broker_ids)) or "none"

    text = f"{_name(image, p.id)}: "
    text += f"leader {p.leader}" if p.leader != NO_LEADER else "offline"
    text += f" epoch {p.leader_epoch}, in sync {ids(p.isr)} of {ids(p.replicas)}, change {p.partition_epoch}"
    if p.deleted_end_offset:
        text += f", deleted below {p.deleted_end_offset} up to epoch {p.deleted_in_epoch}"
    others = (
        ("adding", p.adding),
        ("removing", p.removing),
        ("eligible", p.eligible),
        ("last in sync", p.last_known_isr),
    )
    for label, broker_ids in others:
        if broker_ids:
            text += f", {label} {ids(broker_ids)}"
    return text
