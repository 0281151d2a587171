"""Questions about groups, to the coordinator of a group: through its failovers, with growing pauses.

The coordinator is the leader of one partition of the topic of groups. So the pushed metadata says who it is, and a client
learns of the next one as it learns of any leader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from fencepost.attempts import Attempts
from fencepost.cluster import ClusterClient
from fencepost_proto.protocol.errors import CoordinatorNotAvailable, FencepostError, raise_for
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC, group_hash
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import groups_pb2, groups_pb2_grpc
from fencepost_proto.transport.rpc_errors import Answer

ATTEMPT_S = 5.0  # for one broker's answer
SEEN_WITHIN_S = 5.0  # the topic of groups, once it is there

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Answer)


class GroupRequests:
    """Of one client."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster

    def partition_of(self, group_id: str) -> PartitionKey | None:
        """The partition whose leader coordinates the group; None: there is no group in this cluster yet."""
        image = self._cluster.image
        topic_id = image.topic_ids.get(OFFSETS_TOPIC)
        count = len(image.partitions_of(topic_id)) if topic_id is not None else 0
        return (topic_id, group_hash(group_id) % count) if topic_id is not None and count else None

    async def ensure_coordinator(self, group_id: str, timeout_s: float) -> PartitionKey:
        """`partition_of`, where the first use of groups makes their topic.

        Raises InvalidGroupId, or the last retriable error once the time is over.
        """
        key = self.partition_of(group_id)
        if key is not None:
            return key
        attempts = Attempts("FindCoordinator", timeout_s)
        request = groups_pb2.FindCoordinatorRequest(group_id=group_id)
        while attempts.left_s > 0:
            try:
                answer = await self._cluster.call(
                    lambda channel: groups_pb2_grpc.GroupsStub(channel).FindCoordinator,
                    request,
                    timeout_s=min(attempts.left_s, ATTEMPT_S),
                )
                raise_for(answer.error)
                await self._cluster.wait_until(
                    lambda _: self.partition_of(group_id) is not None, min(attempts.left_s, SEEN_WITHIN_S)
                )
            except TimeoutError:
                attempts.failed(CoordinatorNotAvailable(f"topic {OFFSETS_TOPIC} is made, but not seen here yet"))
            except FencepostError as error:
                if not error.retriable:
                    raise
                attempts.failed(error)
            if (key := self.partition_of(group_id)) is not None:
                return key
            await attempts.pause()
        raise attempts.error

    async def ask(
        self,
        group_id: str,
        method: Callable[[groups_pb2_grpc.GroupsAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Callable[[], Request],
        timeout_s: float,
    ) -> Response:
        """Ask the group's coordinator, and its successors, until one answers without a retriable error.

        `request` makes the request for each attempt: it may be carried out more than once. Raises an error that is not
        retriable at once, and after `timeout_s` the last retriable one.
        """
        key = await self.ensure_coordinator(group_id, timeout_s)
        return await self._cluster.ask_leader(
            key, lambda channel: method(groups_pb2_grpc.GroupsStub(channel)), lambda _: request(), timeout_s=timeout_s
        )
