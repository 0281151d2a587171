"""What operators have the controller change: topics, their partitions and settings, leaders and replicas.

Any broker is asked, and asks the controller. It answers once its own metadata shows the change, or the time is up. After
RequestTimedOut and NotController the change may have been made nevertheless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from fencepost_node.controller_link import ADMIN_TIMEOUT_S, ControllerLink
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_proto.protocol.errors import raise_for
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey, TopicConfig, config_to_proto
from fencepost_proto.protocol.v1 import controller_pb2

LEAST_TIMEOUT_S = 0.1

R = TypeVar(
    "R",
    controller_pb2.CreateTopicResponse,
    controller_pb2.DeleteTopicResponse,
    controller_pb2.CreatePartitionsResponse,
    controller_pb2.AlterTopicConfigResponse,
    controller_pb2.AlterPartitionReassignmentsResponse,
    controller_pb2.ElectLeaderResponse,
)


@dataclass(frozen=True, slots=True)
class NewTopic:
    """Two counts, or an assignment for each partition."""

    name: str
    partitions: int
    replication_factor: int
    assignments: Sequence[Sequence[int]]
    config: TopicConfig


class TopicChanges:
    """Of one request of an operator, which has so much time."""

    def __init__(
        self, link: ControllerLink, feed: MetadataFeed, timeout_ms: int, *, validate_only: bool = False
    ) -> None:
        """`validate_only`: each change is checked, and not made."""
        self._link = link
        self._feed = feed
        self._validate_only = validate_only
        self._deadline = asyncio.get_running_loop().time() + min(max(timeout_ms, 0) / 1000, ADMIN_TIMEOUT_S)

    @property
    def image(self) -> MetadataImage:
        return self._feed.image

    async def create_topic(self, topic: NewTopic) -> str:
        """Its id; empty where it is only checked. Raises FencepostError."""
        request = controller_pb2.CreateTopicRequest(
            name=topic.name,
            partitions=topic.partitions,
            replication_factor=topic.replication_factor,
            config=config_to_proto(topic.config),
            assignments=_assignments(topic.assignments),
            validate_only=self._validate_only,
        )
        answer = await self._ask("CreateTopic", request, controller_pb2.CreateTopicResponse)
        if self._validate_only:
            return ""
        await self._seen(answer.version)
        return answer.topic_id

    async def delete_topic(self, name: str, topic_id: str) -> None:
        """Raises FencepostError."""
        request = controller_pb2.DeleteTopicRequest(name=name, topic_id=topic_id)
        await self._seen((await self._ask("DeleteTopic", request, controller_pb2.DeleteTopicResponse)).version)

    async def create_partitions(self, name: str, partitions: int, assignments: Sequence[Sequence[int]]) -> None:
        """`partitions`: of the topic, after the change. Raises FencepostError."""
        request = controller_pb2.CreatePartitionsRequest(
            name=name,
            partitions=partitions,
            assignments=_assignments(assignments),
            validate_only=self._validate_only,
        )
        await self._made(await self._ask("CreatePartitions", request, controller_pb2.CreatePartitionsResponse))

    async def alter_topic(self, name: str, set_to: Sequence[tuple[str, str]], reset: Sequence[str]) -> None:
        """Settings by name, values as text. Raises FencepostError."""
        request = controller_pb2.AlterTopicConfigRequest(name=name, reset=reset, validate_only=self._validate_only)
        for setting, value in set_to:
            request.set.add(name=setting, value=value)
        await self._made(await self._ask("AlterTopicConfig", request, controller_pb2.AlterTopicConfigResponse))

    async def reassign(self, topic_name: str, partition: int, replicas: Sequence[int]) -> None:
        """`replicas` empty: cancel the move under way. Raises FencepostError."""
        request = controller_pb2.AlterPartitionReassignmentsRequest(topic_name=topic_name)
        request.reassignments.add(partition=partition, replicas=replicas)
        response = controller_pb2.AlterPartitionReassignmentsResponse
        await self._made(await self._ask("AlterPartitionReassignments", request, response))

    async def elect_preferred_leader(self, topic_name: str, partition: int) -> None:
        """Raises FencepostError."""
        request = controller_pb2.ElectLeaderRequest(topic_name=topic_name, partition=partition)
        await self._made(await self._ask("ElectLeader", request, controller_pb2.ElectLeaderResponse))

    async def _ask(self, method: str, request: Message, response: type[R]) -> R:
        answer = await self._link.admin(method, request, max(LEAST_TIMEOUT_S, self._left_s()))
        if not isinstance(answer, response):
            raise TypeError(f"the controller answered {method} with a {type(answer).__name__}")
        raise_for(answer.error)
        return answer

    async def _made(
        self,
        answer: controller_pb2.CreatePartitionsResponse
        | controller_pb2.AlterTopicConfigResponse
        | controller_pb2.AlterPartitionReassignmentsResponse
        | controller_pb2.ElectLeaderResponse,
    ) -> None:
        if not self._validate_only:
            await self._seen(answer.version)

    async def _seen(self, version: int) -> None:
        """Wait until this broker shows the change. It is made, so that is no reason to refuse."""
        await self._feed.wait_until(lambda image: image.version >= version, max(0.0, self._left_s()))

    def _left_s(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()


def _assignments(replicas: Sequence[Sequence[int]]) -> list[controller_pb2.ReplicaAssignment]:
    return [controller_pb2.ReplicaAssignment(replicas=broker_ids) for broker_ids in replicas]


def under_way(image: MetadataImage) -> list[PartitionKey]:
    """The partitions that are being reassigned."""
    return [key for key, partition in image.partitions.items() if partition.adding or partition.removing]
