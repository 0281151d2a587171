"""What the rest of a broker asks of the controller: unary calls on one channel, beside the session's stream.

Every call has a deadline. A controller that cannot be reached is a retriable FencepostError, never a gRPC exception;
an error *inside* an answer is left there for the caller to read, since what it means depends on the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message

from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import broker_pb2, controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.rpc_errors import rpc_errors

ALTER_PARTITION_TIMEOUT_S = 3.0
ALLOCATE_TIMEOUT_S = 3.0
ADMIN_TIMEOUT_S = 30.0
MAX_INIT_PRODUCER_ID_TIMEOUT_MS = 60_000
INIT_PRODUCER_ID_MARGIN_S = 1.0  # the controller answers at the caller's timeout; the answer travels after that
ADMIN_METHODS = (
    "CreateTopic",
    "DeleteTopic",
    "CreatePartitions",
    "AlterTopicConfig",
    "AlterPartitionReassignments",
    "ElectLeader",
    "UnregisterBroker",
    "ListProducerNames",
    "RemoveProducerName",
)
NO_BROKER_EPOCH = -1

R = TypeVar("R", bound=Message)


class ControllerLink:
    """The channel to the controller, and the questions that go over it."""

    def __init__(
        self,
        host: Host,
        address: str,
        broker_id: int,
        learn: Callable[[int, int], None] = lambda version, lineage_id: None,
    ) -> None:
        """`learn` is given each metadata version, and its lineage, that an answer rests on, before the answer is used."""
        self.address = address
        self.broker_epoch = NO_BROKER_EPOCH  # of the newest registration; the session sets it
        self.heartbeat_wanted = asyncio.Event()  # the session waits for it
        self.channel = host.wire.connect(address)
        self._broker_id = broker_id
        self._learn = learn
        self._controller: controller_pb2_grpc.ControllerAsyncStub = controller_pb2_grpc.ControllerStub(self.channel)
        self._admin: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(self.channel)

    def request_heartbeat(self) -> None:
        """Send the next heartbeat at once: something that it reports has changed (a replica failed, …)."""
        self.heartbeat_wanted.set()

    async def alter_partition(
        self, request: controller_pb2.AlterPartitionRequest
    ) -> controller_pb2.AlterPartitionResponse:
        """Raises NotController or RequestTimedOut where it is unknown whether the change was made."""
        return await self._call(self._controller.AlterPartition(request, timeout=ALTER_PARTITION_TIMEOUT_S))

    async def start_replica_over(
        self, request: controller_pb2.StartReplicaOverRequest
    ) -> controller_pb2.StartReplicaOverResponse:
        """Raises NotController or RequestTimedOut where it is unknown whether the change was made."""
        return await self._call(self._controller.StartReplicaOver(request, timeout=ALTER_PARTITION_TIMEOUT_S))

    async def delete_records(self, deletions: Iterable[tuple[PartitionKey, int, int]]) -> list[FencepostError | None]:
        """Of partitions that this broker leads: (which, under which leader epoch, records below which offset).

        Answers for each the error that refuses it, or None: it is in the metadata, which comes on the session.

        Raises FencepostError where the whole request was refused; NotController or RequestTimedOut where it is unknown
        whether anything was changed.
        """
        request = controller_pb2.DeletedRecordsRequest(broker_id=self._broker_id, broker_epoch=self.broker_epoch)
        for (topic_id, partition), leader_epoch, end_offset in deletions:
            request.deletions.add(
                topic_id=topic_id, partition=partition, leader_epoch=leader_epoch, end_offset=end_offset
            )
        answer = await self._call(self._controller.DeleteRecords(request, timeout=ALTER_PARTITION_TIMEOUT_S))
        errors.raise_for(answer.error)
        if len(answer.results) != len(request.deletions):
            raise errors.InvariantBroken(
                f"the controller answered {len(request.deletions)} deletions with {len(answer.results)} results"
            )
        return [errors.from_proto(result) if result.code else None for result in answer.results]

    async def allocate_producer_ids(self) -> range:
        """A block of producer ids that no one else has or will get. Raises FencepostError."""
        request = controller_pb2.AllocateProducerIdsRequest(broker_id=self._broker_id, broker_epoch=self.broker_epoch)
        answer = await self._call(self._controller.AllocateProducerIds(request, timeout=ALLOCATE_TIMEOUT_S))
        errors.raise_for(answer.error)
        if answer.count < 1 or answer.first_producer_id < 0:
            raise errors.InvariantBroken(
                f"the controller allocated {answer.count} producer ids from {answer.first_producer_id}"
            )
        self._learn(answer.metadata_version, answer.lineage_id)
        return range(answer.first_producer_id, answer.first_producer_id + answer.count)

    async def init_producer_id(self, request: broker_pb2.InitProducerIdRequest) -> broker_pb2.InitProducerIdResponse:
        """For a named producer; the controller holds the answer back for up to the request's timeout."""
        timeout_ms = min(max(request.timeout_ms, 0), MAX_INIT_PRODUCER_ID_TIMEOUT_MS)
        timeout_s = timeout_ms / 1000 + INIT_PRODUCER_ID_MARGIN_S
        return await self._call(self._controller.InitProducerId(request, timeout=timeout_s))

    async def create_topic(
        self, request: controller_pb2.CreateTopicRequest, timeout_s: float
    ) -> controller_pb2.CreateTopicResponse:
        """Raises the FencepostError that refuses it; NotController or RequestTimedOut where that is unknown."""
        answer = await self._call(self._admin.CreateTopic(request, timeout=timeout_s))
        errors.raise_for(answer.error)
        return answer

    async def admin(self, method_name: str, request: Message, timeout_s: float = ADMIN_TIMEOUT_S) -> Message:
        """One call of the Admin service, by its name there."""
        if method_name not in ADMIN_METHODS:
            raise errors.InvalidRequest(f"{method_name!r} is not a method of the Admin service")
        method: Callable[..., Awaitable[Message]] = getattr(self._admin, method_name)
        return await self._call(method(request, timeout=timeout_s))

    async def close(self) -> None:
        await self.channel.close()

    async def _call(self, call: Awaitable[R]) -> R:
        with rpc_errors(self.address, "controller", errors.NotController):
            return await call
