"""A controller in this process over real gRPC, and brokers that are only their session: enough to be alive or dead."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.store import Store
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.features import NEWEST
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.v1 import common_pb2, controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.wire import GrpcWire, RunningServer, incarnation_service, serve
from fencepost_testing.waiting import until
from tests import asynchronous

T = TypeVar("T")

DEADLINE_S = 10.0
LONG_TIMEOUT_MS = 60_000  # silence decides nothing within a test
SHORT_TIMEOUT_MS = 1_000  # and no shorter: a busy machine stops for half of that now and then
HEARTBEAT_S = 0.05


def run(test: Coroutine[Any, Any, T]) -> T:
    return asynchronous.run(test, 30)


@asynccontextmanager
async def running(store: Store | None = None, **settings: int) -> AsyncIterator[Controller]:
    """A controller that listens; stopped cleanly at the end."""
    settings.setdefault("session_timeout_ms", LONG_TIMEOUT_MS)
    settings.setdefault("heartbeat_interval_ms", 50)
    config = ControllerConfig(data_dir="unused", **settings)  # type: ignore[arg-type]
    controller = Controller(config, Host(), store or in_memory())
    try:
        await controller.start()
        yield controller
        assert not controller.failure.happened
    finally:
        await controller.stop(clean=True)


def in_memory() -> SqliteStore:
    def connect(path: str) -> sqlite3.Connection:
        return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)

    return SqliteStore("memory", connect)


class FakeBroker:
    """One incarnation of a broker: its address, and its session as its own controller link would hold it."""

    def __init__(self, broker_id: int, incarnation: str = "life 1") -> None:
        self.broker_id = broker_id
        self.incarnation = incarnation
        self.address = ""
        self.image = MetadataImage()
        self.versions: list[int] = []  # of every delta, in order of arrival
        self.images = 0  # how many of them were whole images
        self.registered: controller_pb2.Registered | None = None
        self.error: errors.FencepostError | None = None  # that ended the session
        self.ended = asyncio.Event()
        self.shutdown_allowed = asyncio.Event()
        self.ready = True
        self.wants_shutdown = False
        self.applies = True  # False: it says that it has applied nothing of what comes from now on
        self.failed: list[PartitionKey] = []
        self.cluster_id = ""
        self.may_have_lost_tail = False
        self.known = (0, 0, 0)  # version, its lineage, the oldest lineage
        self._applied = 0
        self._server: RunningServer | socket.socket | None = None
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._silent = False
        self.falls_silent_at_once = False  # it registers, and sends nothing more

    @property
    def epoch(self) -> int:
        assert self.registered is not None
        return self.registered.broker_epoch

    # ---- The process ----

    async def start(self) -> FakeBroker:
        """Listen, and answer the controller's probe as this incarnation."""
        self._server = await serve(CarrierWire(), "127.0.0.1:0", [], lambda server: None)
        await self._server.health.set(incarnation_service(self.incarnation), health_pb2.HealthCheckResponse.SERVING)
        self.address = self._server.address
        return self

    def start_paused(self) -> FakeBroker:
        """What a stopped process looks like: the kernel takes connections, and no one answers."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{1}".format(*self._server.getsockname())
        return self

    async def stop_listening(self) -> None:
        server, self._server = self._server, None
        if isinstance(server, RunningServer):
            await server.server.stop(0)
        elif server is not None:
            server.close()

    async def killed(self) -> None:
        """Everything of this process ends at once: port, streams."""
        await self.stop_listening()
        await self.stream_breaks()

    # ---- The session ----

    async def connect(self, controller: Controller) -> FakeBroker:
        """Register and follow the session. Returns when there is an answer."""
        if self._channel is not None:
            await self.stream_breaks()
        self.registered, self.error, self._silent = None, None, False
        self.ended = asyncio.Event()
        self._channel = GrpcWire().connect(controller.address)
        stub: controller_pb2_grpc.ControllerAsyncStub = controller_pb2_grpc.ControllerStub(self._channel)
        self._call = stub.Session()
        known = controller.image.brokers.get(self.broker_id)
        register = controller_pb2.Register(
            broker_id=self.broker_id,
            incarnation=self.incarnation,
            cluster_id=self.cluster_id,
            address=self.address,
            may_have_lost_tail=self.may_have_lost_tail,
            folder_epoch=known.broker_epoch if known is not None else 0,
            feature_level=NEWEST,
            known_version=self.known[0],
            known_lineage_id=self.known[1],
            oldest_lineage_id=self.known[2],
        )
        request = controller_pb2.SessionRequest(register=register)
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:  # gRPC gives a connection half a second; a busy machine may need more
            if "SETTINGS" not in (error.details() or ""):
                raise
            self._call = stub.Session()
            await self._call.write(request)
        self._tasks = [asyncio.create_task(self._receive())]
        await until(lambda: self.registered or self.error or self.ended.is_set(), "an answer to the registration")
        if self.registered is not None and not self.falls_silent_at_once:
            self._tasks.append(asyncio.create_task(self._send()))
        return self

    async def stream_breaks(self) -> None:
        """The process lives on."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        if self._channel is not None:
            self._call.cancel()
            await self._channel.close()
            self._channel = None

    def falls_silent(self) -> None:
        """The stream stays; nothing more is sent."""
        self._silent = True

    async def goodbye(self) -> None:
        await self.write(controller_pb2.SessionRequest(goodbye=controller_pb2.Goodbye()))

    async def write(self, request: controller_pb2.SessionRequest) -> None:
        """This, and no heartbeat any more: one write at a time."""
        self.falls_silent()
        self.says()
        await asyncio.wait([self._tasks[1]])
        await self._call.write(request)

    def says(self) -> None:
        """A heartbeat now, not at the next interval."""
        self._news.set()

    async def _send(self) -> None:
        while not self._silent:
            self._news.clear()
            heartbeat = controller_pb2.Heartbeat(
                applied_version=self._applied,
                ready=self.ready,
                want_shutdown=self.wants_shutdown,
                failed_replicas=[common_pb2.PartitionRef(topic_id=t, partition=n) for t, n in self.failed],
            )
            await self._call.write(controller_pb2.SessionRequest(heartbeat=heartbeat))
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _receive(self) -> None:
        try:
            async for response in self._call:
                self._take(response)
        except grpc.aio.AioRpcError:
            pass  # the controller is gone
        finally:
            self.ended.set()

    def _take(self, response: controller_pb2.SessionResponse) -> None:
        match response.WhichOneof("kind"):
            case "registered":
                self.registered = response.registered
            case "metadata":
                self.image = self.image.apply(response.metadata)
                self.versions.append(response.metadata.version)
                self.images += response.metadata.image
                if self.applies:
                    self._applied = self.image.version
                self._news.set()
            case "shutdown_allowed":
                self.shutdown_allowed.set()
            case "error":
                self.error = errors.from_proto(response.error)


class Brokers:
    """Makes fake brokers, and ends them all."""

    def __init__(self, controller: Controller, stack: AsyncExitStack) -> None:
        self.controller = controller
        self._stack = stack

    async def new(self, broker_id: int, incarnation: str = "life 1", *, paused: bool = False) -> FakeBroker:
        """A process that listens and has not registered."""
        broker = FakeBroker(broker_id, incarnation)
        self._stack.push_async_callback(broker.killed)
        return broker.start_paused() if paused else await broker.start()

    async def live(self, *broker_ids: int) -> list[FakeBroker]:
        """Registered and unfenced."""
        brokers = [await (await self.new(broker_id)).connect(self.controller) for broker_id in broker_ids]
        for broker in brokers:
            await self.unfenced(broker)
        return brokers

    async def unfenced(self, broker: FakeBroker) -> None:
        await until(lambda: not self.controller.image.brokers[broker.broker_id].fenced, f"{broker.broker_id} unfenced")


@asynccontextmanager
async def cluster(controller: Controller) -> AsyncIterator[Brokers]:
    async with AsyncExitStack() as stack:
        yield Brokers(controller, stack)


@asynccontextmanager
async def stubs(
    controller: Controller,
) -> AsyncIterator[tuple[controller_pb2_grpc.ControllerAsyncStub, controller_pb2_grpc.AdminAsyncStub]]:
    async with GrpcWire().connect(controller.address) as channel:
        yield controller_pb2_grpc.ControllerStub(channel), controller_pb2_grpc.AdminStub(channel)


async def create_topic(controller: Controller, name: str, *assignments: tuple[int, ...]) -> str:
    """The topic's id."""
    async with stubs(controller) as (_, admin):
        answer = await admin.CreateTopic(
            controller_pb2.CreateTopicRequest(
                name=name,
                assignments=[controller_pb2.ReplicaAssignment(replicas=replicas) for replicas in assignments],
            )
        )
        errors.raise_for(answer.error)
        return answer.topic_id
