"""CreatePartitions: more partitions for a topic.

The new ones are behind those that are there, empty, and have as many replicas as the first one has, or will have when its
reassignment is done. Records that are there stay where they are; keys are spread over all partitions from now on, so the
records of one key may be in two partitions. A topic never gets fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.topics import (
    check_partition_count,
    check_topic_assignments,
    placed,
    put_partition,
)
from fencepost_proto.protocol.errors import (
    InvalidPartitions,
    InvalidReplicaAssignment,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS


@dataclass(frozen=True, slots=True)
class CreatePartitions(Command[None]):
    name: str
    partitions: int  # of the topic, after the change
    assignments: tuple[tuple[int, ...], ...] = ()  # manual: of the new ones; otherwise placed by the controller

    def decide(self, draft: Draft) -> None:
        topic = draft.topic_named(self.name)
        if topic is None:
            raise UnknownTopicOrPartition(f"topic {self.name!r} does not exist")
        if self.name in INTERNAL_TOPICS:
            raise InvalidPartitions(
                f"topic {self.name!r} is internal: its partitions decide who coordinates which group"
            )
        there = draft.image.partitions_of(topic.topic_id)
        if self.partitions <= len(there):
            raise InvalidPartitions(f"topic {self.name!r} has {len(there)} partitions: {self.partitions} are not more")
        new = self.partitions - len(there)
        check_partition_count(draft, self.name, self.partitions, new)
        factor = len(there[0].replicas) - len(there[0].removing)
        if self.assignments:
            if len(self.assignments) != new:
                raise InvalidReplicaAssignment(
                    f"topic {self.name!r}: an assignment of {len(self.assignments)} partitions for {new} new ones"
                )
            check_topic_assignments(draft, topic.topic_id, self.name, self.assignments, factor, first=len(there))
            assigned = list(self.assignments)
        else:
            assigned = placed(draft, self.name, new, factor)
        for index, replicas in enumerate(assigned, len(there)):
            put_partition(draft, topic.topic_id, index, replicas)
