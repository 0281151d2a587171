"""Topics: created with all their partitions in one step, deleted in one step.

More partitions come with `partition_count`, other settings with `topic_config`.

The limits bound the metadata image, which travels in one message: all of it stays well below a message's maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.placement import MAX_REPLICATION_FACTOR, check_assignment, place
from fencepost_proto.protocol.errors import (
    InvalidConfig,
    InvalidPartitions,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    InvariantBroken,
    TopicAlreadyExists,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import APPEND_TIME, CREATE_TIME, Partition, Topic, TopicConfig, check_topic_name

MAX_TOPICS = 2_000
MAX_PARTITIONS_PER_TOPIC = 1_000
MAX_PARTITIONS = 10_000
MIN_SEGMENT_BYTES = 16 * 1024  # each costs files, descriptors and a snapshot; a controller's setting may say otherwise
MAX_SEGMENT_BYTES = 1024 * 1024 * 1024  # positions in an index are 32 bits wide
MIN_MAX_MESSAGE_BYTES = 128
MAX_MAX_MESSAGE_BYTES = 8 * 1024 * 1024 - 64 * 1024  # a batch fits one request with room for the rest of it
MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CreateTopic(Command[Topic]):
    name: str
    topic_id: str  # fresh
    partitions: int = 0  # with the replication factor: placed by the controller
    replication_factor: int = 0
    config: TopicConfig = field(default_factory=TopicConfig)
    assignments: tuple[tuple[int, ...], ...] = ()  # manual, instead of the two counts
    min_segment_bytes: int = MIN_SEGMENT_BYTES

    def decide(self, draft: Draft) -> Topic:
        check_topic_name(self.name)
        if draft.topic_named(self.name) is not None:
            raise TopicAlreadyExists(f"topic {self.name!r} exists")
        if self.topic_id in draft.image.topics:
            raise InvariantBroken(f"topic id {self.topic_id!r} is not fresh")
        if len(draft.image.topics) >= MAX_TOPICS:
            raise InvalidPartitions(f"topic {self.name!r} would be one more than {MAX_TOPICS} topics")
        assignments = self._assigned(draft) if self.assignments else self._placed(draft)
        check_config(self.config, len(assignments[0]), self.min_segment_bytes)
        topic = Topic(self.topic_id, self.name, self.config, draft.version)
        draft.put(topic)
        for index, replicas in enumerate(assignments):
            put_partition(draft, self.topic_id, index, replicas)
        return topic

    def _placed(self, draft: Draft) -> list[tuple[int, ...]]:
        check_partition_count(draft, self.name, self.partitions, self.partitions)
        if not 0 < self.replication_factor <= MAX_REPLICATION_FACTOR:
            raise InvalidReplicationFactor(
                f"topic {self.name!r}: replication factor {self.replication_factor}; "
                f"1 to {MAX_REPLICATION_FACTOR} are allowed"
            )
        return placed(draft, self.name, self.partitions, self.replication_factor)

    def _assigned(self, draft: Draft) -> list[tuple[int, ...]]:
        factor = len(self.assignments[0])
        check_partition_count(draft, self.name, len(self.assignments), len(self.assignments))
        if self.partitions not in (0, len(self.assignments)) or self.replication_factor not in (0, factor):
            raise InvalidReplicaAssignment(
                f"topic {self.name!r}: {self.partitions} partitions of {self.replication_factor} replicas "
                f"contradict the given assignment"
            )
        check_topic_assignments(draft, self.topic_id, self.name, self.assignments, factor)
        return list(self.assignments)


def placed(draft: Draft, name: str, count: int, factor: int) -> list[tuple[int, ...]]:
    """Replicas of so many new partitions: on brokers that serve, and where these are too few on others too.

    Raises InvalidReplicationFactor where no broker serves, or fewer are registered than the factor.
    """
    serving, others = draft.serving_brokers(), draft.other_brokers()
    if not serving or factor > len(serving) + len(others):
        raise InvalidReplicationFactor(
            f"topic {name!r}: replication factor {factor}, but {len(serving)} brokers are live and {len(others)} others "
            f"are registered"
        )
    return place(serving, others, count, factor, start=len(draft.image.partitions))


def check_partition_count(draft: Draft, name: str, count: int, new: int) -> None:
    """A topic is to have `count` partitions, of which `new` are not there yet. Raises InvalidPartitions."""
    if not 0 < count <= MAX_PARTITIONS_PER_TOPIC:
        raise InvalidPartitions(f"topic {name!r}: {count} partitions; 1 to {MAX_PARTITIONS_PER_TOPIC} are allowed")
    there = len(draft.image.partitions)
    if there + new > MAX_PARTITIONS:
        raise InvalidPartitions(f"topic {name!r}: {new} partitions beside {there} are more than {MAX_PARTITIONS}")


def check_topic_assignments(
    draft: Draft, topic_id: str, name: str, assignments: Sequence[tuple[int, ...]], factor: int, *, first: int = 0
) -> None:
    """Of partitions from `first` on, of a topic with that replication factor. Raises InvalidReplicaAssignment."""
    for index, replicas in enumerate(assignments, first):
        check_assignment(draft, f"{name}-{index}", replicas)
        if len(replicas) != factor:
            raise InvalidReplicaAssignment(f"{name}-{index}: {len(replicas)} replicas where {name}-0 has {factor}")
        if not any(draft.serves(b, (topic_id, index)) for b in replicas):
            raise InvalidReplicaAssignment(f"{name}-{index}: none of the brokers {replicas} is live")


def put_partition(draft: Draft, topic_id: str, index: int, replicas: tuple[int, ...]) -> None:
    """A new partition, led by the first of its live replicas, of which there is one at least."""
    isr = tuple(b for b in replicas if draft.serves(b, (topic_id, index)))
    draft.put(Partition(topic_id, index, replicas, isr, leader=isr[0], leader_epoch=0, partition_epoch=0))


UNLIMITED = -1
MAY_BE_UNLIMITED = frozenset(
    {"retention_ms", "retention_bytes", "message_timestamp_before_max_ms", "message_timestamp_after_max_ms"}
)


def limits_of_config(replication_factor: int, min_segment_bytes: int) -> dict[str, tuple[int, int]]:
    """Least and greatest value of each number in a TopicConfig; those in MAY_BE_UNLIMITED may be UNLIMITED too."""
    return {
        "min_insync_replicas": (1, replication_factor),
        "retention_ms": (1, MAX_INT64),
        "retention_bytes": (1, MAX_INT64),
        "segment_bytes": (min_segment_bytes, MAX_SEGMENT_BYTES),
        "max_message_bytes": (MIN_MAX_MESSAGE_BYTES, MAX_MAX_MESSAGE_BYTES),
        "message_timestamp_before_max_ms": (1, MAX_INT64),
        "message_timestamp_after_max_ms": (1, MAX_INT64),
    }


def check_config(config: TopicConfig, replication_factor: int, min_segment_bytes: int) -> None:
    """Raises InvalidConfig naming key and value."""
    limits = limits_of_config(replication_factor, min_segment_bytes)
    for key, (least, most) in limits.items():
        value = getattr(config, key)
        if key in MAY_BE_UNLIMITED and value == UNLIMITED:
            continue
        if not least <= value <= most:
            extra = " or -1" if key in MAY_BE_UNLIMITED else ""
            of = " (the replication factor)" if key == "min_insync_replicas" else ""
            raise InvalidConfig(f"{key}={value}: must be {least} to {most}{of}{extra}")
    if config.message_timestamp_type not in (CREATE_TIME, APPEND_TIME):
        raise InvalidConfig(
            f"message_timestamp_type={config.message_timestamp_type!r}: must be {CREATE_TIME!r} or {APPEND_TIME!r}"
        )


@dataclass(frozen=True, slots=True)
class DeleteTopic(Command[None]):
    name: str
    topic_id: str = ""  # it must have this one; empty: whichever it has

    def decide(self, draft: Draft) -> None:
        topic = draft.topic_named(self.name)
        if topic is None:
            raise UnknownTopicOrPartition(f"topic {self.name!r} does not exist")
        if self.topic_id not in ("", topic.topic_id):
            raise UnknownTopicId(f"topic {self.name!r} has id {topic.topic_id!r}, not {self.topic_id!r}")
        for partition in draft.image.partitions_of(topic.topic_id):
            draft.delete(partition)
        draft.delete(topic)
