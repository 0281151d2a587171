"""A scripted controller over real gRPC: tests see every message of every session, and say what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import ClusterIdentity, Entity, NextProducerId, delta_to_proto
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2, controller_pb2, controller_pb2_grpc
from fencepost_proto.transport.wire import GrpcWire, serve
from fencepost_testing.waiting import until
from tests import asynchronous

TEST_TIMEOUT_S = 40.0
CLUSTER_ID = "cluster-of-the-test"
HEARTBEAT_INTERVAL_MS = 50

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


def run(test: Awaitable[T]) -> T:
    return asynchronous.run(test, TEST_TIMEOUT_S)


class SessionStream:
    """One Session stream as the controller sees it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.requests: list[controller_pb2.SessionRequest] = []
        self.ended = asyncio.Event()  # set it to end the stream from here

    @property
    def registration(self) -> controller_pb2.Register:
        return self.requests[0].register

    @property
    def heartbeats(self) -> list[controller_pb2.Heartbeat]:
        return [request.heartbeat for request in self.requests if request.HasField("heartbeat")]

    @property
    def said_goodbye(self) -> bool:
        return bool(self.requests) and self.requests[-1].HasField("goodbye")

    async def registered(self, broker_epoch: int, cluster_id: str = CLUSTER_ID) -> None:
        answer = controller_pb2.Registered(
            broker_epoch=broker_epoch,
            cluster_id=cluster_id,
            session_timeout_ms=3_000,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            metadata_version=self.registration.known_version,
        )
        await self._context.write(controller_pb2.SessionResponse(registered=answer))

    async def metadata(self, version: int, *entities: Entity, image: bool = False) -> None:
        delta = delta_to_proto(version, entities, image=image)
        await self._context.write(controller_pb2.SessionResponse(metadata=delta))

    async def image(self, version: int, *entities: Entity) -> None:
        await self.metadata(version, ClusterIdentity(CLUSTER_ID), NextProducerId(1_000), *entities, image=True)

    async def shutdown_allowed(self) -> None:
        await self._context.write(controller_pb2.SessionResponse(shutdown_allowed=controller_pb2.ShutdownAllowed()))

    async def error(self, error: errors.FencepostError) -> None:
        await self._context.write(controller_pb2.SessionResponse(error=errors.to_proto(error)))
        self.ended.set()

    async def acknowledged(self, version: int) -> controller_pb2.Heartbeat:
        """The first heartbeat with this version or a later one."""
        return await until(
            lambda: next((beat for beat in self.heartbeats if beat.applied_version >= version), None),
            f"a heartbeat with applied version {version}",
        )


class FakeController(controller_pb2_grpc.ControllerServicer, controller_pb2_grpc.AdminServicer):
    """Sessions wait for the test's answers; the unary calls answer what the test has set."""

    def __init__(self) -> None:
        self.address = ""
        self.sessions: list[SessionStream] = []
        self.calls: list[Any] = []  # requests of the unary calls
        self.answers: dict[str, Any] = {}  # method name -> response, or a status code to abort with
        self._restarts = 0

    async def session(self, number: int) -> SessionStream:
        """The stream with this number, counted from 0, once it has registered."""
        await until(lambda: len(self.sessions) > number and self.sessions[number].requests, f"session {number}")
        return self.sessions[number]

    async def Session(self, request_iterator: AsyncIterator[controller_pb2.SessionRequest], context: Context) -> None:  # type: ignore[override]
        stream = SessionStream(context)
        self.sessions.append(stream)

        async def read() -> None:
            async for request in request_iterator:
                stream.requests.append(request)

        reader = asyncio.create_task(read())
        ended = asyncio.create_task(stream.ended.wait())
        try:
            await asyncio.wait((reader, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            ended.cancel()
            await asyncio.wait((reader, ended))

    async def _answer(self, name: str, request: Any, context: Context) -> Any:
        self.calls.append(request)
        answer = self.answers[name]
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "as the test wants it")
        return answer

    async def AlterPartition(
        self, request: controller_pb2.AlterPartitionRequest, context: Context
    ) -> controller_pb2.AlterPartitionResponse:
        answer: controller_pb2.AlterPartitionResponse = await self._answer("AlterPartition", request, context)
        return answer

    async def DeleteRecords(
        self, request: controller_pb2.DeletedRecordsRequest, context: Context
    ) -> controller_pb2.DeletedRecordsResponse:
        answer: controller_pb2.DeletedRecordsResponse = await self._answer("DeleteRecords", request, context)
        return answer

    async def StartReplicaOver(
        self, request: controller_pb2.StartReplicaOverRequest, context: Context
    ) -> controller_pb2.StartReplicaOverResponse:
        answer: controller_pb2.StartReplicaOverResponse = await self._answer("StartReplicaOver", request, context)
        return answer

    async def AllocateProducerIds(
        self, request: controller_pb2.AllocateProducerIdsRequest, context: Context
    ) -> controller_pb2.AllocateProducerIdsResponse:
        if "AllocateProducerIds" not in self.answers:  # brokers ask by themselves: no concern of a test that has none
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no ids here")
        answer: controller_pb2.AllocateProducerIdsResponse = await self._answer("AllocateProducerIds", request, context)
        return answer

    async def InitProducerId(
        self, request: broker_pb2.InitProducerIdRequest, context: Context
    ) -> broker_pb2.InitProducerIdResponse:
        answer: broker_pb2.InitProducerIdResponse = await self._answer("InitProducerId", request, context)
        return answer

    async def CreateTopic(
        self, request: controller_pb2.CreateTopicRequest, context: Context
    ) -> controller_pb2.CreateTopicResponse:
        answer: controller_pb2.CreateTopicResponse = await self._answer("CreateTopic", request, context)
        return answer

    async def DeleteTopic(
        self, request: controller_pb2.DeleteTopicRequest, context: Context
    ) -> controller_pb2.DeleteTopicResponse:
        answer: controller_pb2.DeleteTopicResponse = await self._answer("DeleteTopic", request, context)
        return answer

    async def AlterPartitionReassignments(
        self, request: controller_pb2.AlterPartitionReassignmentsRequest, context: Context
    ) -> controller_pb2.AlterPartitionReassignmentsResponse:
        name = "AlterPartitionReassignments"
        answer: controller_pb2.AlterPartitionReassignmentsResponse = await self._answer(name, request, context)
        return answer

    async def ListProducerNames(
        self, request: controller_pb2.ListProducerNamesRequest, context: Context
    ) -> controller_pb2.ListProducerNamesResponse:
        answer: controller_pb2.ListProducerNamesResponse = await self._answer("ListProducerNames", request, context)
        return answer

    async def RemoveProducerName(
        self, request: controller_pb2.RemoveProducerNameRequest, context: Context
    ) -> controller_pb2.RemoveProducerNameResponse:
        answer: controller_pb2.RemoveProducerNameResponse = await self._answer("RemoveProducerName", request, context)
        return answer

    async def ElectLeader(
        self, request: controller_pb2.ElectLeaderRequest, context: Context
    ) -> controller_pb2.ElectLeaderResponse:
        answer: controller_pb2.ElectLeaderResponse = await self._answer("ElectLeader", request, context)
        return answer

    async def CreatePartitions(
        self, request: controller_pb2.CreatePartitionsRequest, context: Context
    ) -> controller_pb2.CreatePartitionsResponse:
        answer: controller_pb2.CreatePartitionsResponse = await self._answer("CreatePartitions", request, context)
        return answer

    async def AlterTopicConfig(
        self, request: controller_pb2.AlterTopicConfigRequest, context: Context
    ) -> controller_pb2.AlterTopicConfigResponse:
        answer: controller_pb2.AlterTopicConfigResponse = await self._answer("AlterTopicConfig", request, context)
        return answer

    async def UnregisterBroker(
        self, request: controller_pb2.UnregisterBrokerRequest, context: Context
    ) -> controller_pb2.UnregisterBrokerResponse:
        answer: controller_pb2.UnregisterBrokerResponse = await self._answer("UnregisterBroker", request, context)
        return answer


@asynccontextmanager
async def fake_controller(
    listen: str = "127.0.0.1:0", fake: FakeController | None = None
) -> AsyncIterator[FakeController]:
    """Running at `listen`; pass a stopped one's address and object to start it again."""
    fake = fake or FakeController()

    def add(server: grpc.aio.Server) -> None:
        controller_pb2_grpc.add_ControllerServicer_to_server(fake, server)
        controller_pb2_grpc.add_AdminServicer_to_server(fake, server)

    running = await serve(GrpcWire(), listen, [], add)
    fake.address = running.address
    try:
        yield fake
    finally:
        await running.stop(0)


def error_of(code: errors.ErrorCode, message: str) -> common_pb2.Error:
    return common_pb2.Error(code=code, message=message)
