"""The image while one command is being decided: reads see what the command has changed so far.

Commands that are committed together are decided as a `Group`, each on the image that the ones before it have left. Their
changes are one metadata version: no one can see the image between two commands of a group, so it needs no version. A
command that is refused leaves nothing behind: its draft lies over the image, and the `ImageBuilder`, which copies every
mapping that changes, gets only the changes of commands that went through.

**A broker serves a replica** when it is registered, not fenced, not shutting down, and has not reported that it cannot
write that replica. Only who serves may join an in-sync set or become leader. Failed replicas are no metadata: each broker
repeats its own in every heartbeat, so they are handed to the decision beside the image, under the broker epoch that
reported them; a new incarnation begins without any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from fencepost_controller.decisions.invariants import check_invariants
from fencepost_proto.protocol.errors import BrokerIdNotRegistered, StaleBrokerEpoch, UnknownTopicOrPartition
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    Changes,
    Entity,
    ImageBuilder,
    MetadataImage,
    NamedProducer,
    Partition,
    PartitionKey,
    Topic,
)

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)

FailedByBroker = Mapping[tuple[int, int], frozenset[PartitionKey]]  # by (broker id, broker epoch)


class _Standing(NamedTuple):
    """What one broker may do."""

    goes_on: bool  # it is live
    serves: bool  # and not shutting down
    refused: frozenset[PartitionKey]  # by its disk


class Draft:
    """What one command changes."""

    def __init__(self, image: MetadataImage, failed: FailedByBroker) -> None:
        self.image = image  # as it was before
        self.version = image.version + 1  # what this will be, if it changes anything
        self._failed = failed
        self._changes: dict[str, Entity | None] = {}
        self._brokers: dict[int, BrokerRegistration] = {}
        self._partitions: dict[PartitionKey, Partition] = {}
        self._topics: dict[str, Topic] = {}
        self._standings: dict[int, _Standing] = {}  # of brokers asked for: a death asks thousands of times

    @property
    def changes(self) -> Changes:
        return self._changes

    # ---- Reading ----

    def broker(self, broker_id: int) -> BrokerRegistration | None:
        return self._brokers.get(broker_id) or self.image.brokers.get(broker_id)

    def partition(self, key: PartitionKey) -> Partition | None:
        return self._partitions.get(key) or self.image.partitions.get(key)

    def topic(self, topic_id: str) -> Topic:
        """One that exists."""
        return self._topics.get(topic_id) or self.image.topics[topic_id]

    def topic_named(self, name: str) -> Topic | None:
        topic_id = self.image.topic_ids.get(name)
        return None if topic_id is None else self.image.topics[topic_id]

    def partition_of(self, topic_name: str, index: int) -> Partition:
        """Raises UnknownTopicOrPartition."""
        topic = self.topic_named(topic_name)
        if topic is None:
            raise UnknownTopicOrPartition(f"topic {topic_name!r} does not exist")
        partition = self.partition((topic.topic_id, index))
        if partition is None:
            raise UnknownTopicOrPartition(f"topic {topic_name!r} has no partition {index}")
        return partition

    def check_broker_epoch(self, broker_id: int, broker_epoch: int) -> BrokerRegistration:
        """The broker that makes a request. Raises StaleBrokerEpoch or BrokerIdNotRegistered."""
        broker = self.broker(broker_id)
        if broker is None:
            raise BrokerIdNotRegistered(f"broker {broker_id} is not registered")
        if broker.broker_epoch != broker_epoch:
            raise StaleBrokerEpoch(
                f"broker {broker_id} asks with broker epoch {broker_epoch}; it is registered with {broker.broker_epoch}"
            )
        return broker

    def partitions_electing(self, broker_id: int) -> list[Partition]:
        """Those that this broker is in sync or eligible for, whoever leads them."""
        return [p for p in self.partitions_on(broker_id) if broker_id in p.isr or broker_id in p.eligible]

    def partitions_on(self, broker_id: int) -> list[Partition]:
        """Those of which this broker had a replica before the command."""
        return [self._partitions.get(key) or self.image.partitions[key] for key in self.image.hosted_by(broker_id)]

    def serving_brokers(self) -> list[int]:
        """Those that may get replicas, in order."""
        brokers = {**self.image.brokers, **self._brokers}
        return sorted(b.id for b in brokers.values() if not b.fenced and not b.shutting_down)

    def other_brokers(self) -> list[int]:
        """Those that are registered but do not serve now, in order."""
        return sorted({*self.image.brokers, *self._brokers} - set(self.serving_brokers()))

    def serves(self, broker_id: int, key: PartitionKey) -> bool:
        """May it lead this partition, or join its in-sync set?"""
        standing = self._standings.get(broker_id) or self._look_at(broker_id)
        return standing.serves and key not in standing.refused

    def can_go_on(self, broker_id: int, key: PartitionKey) -> bool:
        """May it go on leading this partition where no one else can? In a controlled shutdown it may."""
        standing = self._standings.get(broker_id) or self._look_at(broker_id)
        return standing.goes_on and key not in standing.refused

    def _look_at(self, broker_id: int) -> _Standing:
        broker = self.broker(broker_id)
        if broker is None or broker.fenced:
            standing = _Standing(goes_on=False, serves=False, refused=frozenset())
        else:
            refused = self._failed.get((broker_id, broker.broker_epoch), frozenset())
            standing = _Standing(goes_on=True, serves=not broker.shutting_down, refused=refused)
        self._standings[broker_id] = standing
        return standing

    # ---- Changing ----

    def put(self, entity: Entity) -> None:
        self._changes[entity.key] = entity
        if isinstance(entity, BrokerRegistration):
            self._brokers[entity.id] = entity
            self._standings.pop(entity.id, None)
        elif isinstance(entity, Partition):
            self._partitions[entity.id] = entity
        elif isinstance(entity, Topic):
            self._topics[entity.topic_id] = entity

    def delete(self, entity: BrokerRegistration | Topic | Partition | NamedProducer) -> None:
        self._changes[entity.key] = None


class Command(ABC, Generic[A_co]):
    """Something asked for, or something that happened."""

    __slots__ = ()

    @abstractmethod
    def decide(self, draft: Draft) -> A_co:
        """Change the draft and give the answer, or raise the FencepostError that is the answer."""


class Group:
    """Commands decided one after the other; all that they change is one version."""

    def __init__(self, image: MetadataImage, failed: FailedByBroker) -> None:
        self.changes: dict[str, Entity | None] = {}  # of all commands so far; empty: the image is as it was
        self._before = image
        self._failed = failed
        self._builder = ImageBuilder(image)

    @property
    def version(self) -> int:
        """At which everything holds that the commands so far have made so, or found so."""
        return self._before.version + bool(self.changes)

    def decide(self, command: Command[A]) -> A:
        """The command's answer. Raises the FencepostError that refuses it, or InvariantBroken for a decision that must
        not be; after the latter the group is not to be committed."""
        draft = Draft(self._builder.image, self._failed)
        answer = command.decide(draft)
        if draft.changes:
            before = self._builder.change(draft.changes)
            check_invariants(before, self._builder.image, draft.version, draft.changes)
            self.changes.update(draft.changes)
        return answer

    def image(self) -> MetadataImage:
        """After all commands. The group is complete with that."""
        return self._builder.at(self.version)


@dataclass(frozen=True, slots=True)
class Decision(Generic[A_co]):
    """What came of one command."""

    answer: A_co
    changes: Changes  # empty: it was so already
    image: MetadataImage  # after it: the next version, or the same image where nothing changes


def decide(image: MetadataImage, command: Command[A], failed: FailedByBroker) -> Decision[A]:
    """One command alone. Raises the FencepostError that refuses it, or InvariantBroken."""
    group = Group(image, failed)
    answer = group.decide(command)
    return Decision(answer, group.changes, group.image() if group.changes else image)
