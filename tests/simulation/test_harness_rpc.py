"""All carriers behave alike where production code relies on it.

Every test here runs over real gRPC and over the lean carrier, through a small TCP proxy that can break connections, and
over both as they are in the simulation. Whoever changes one of them, or the grpcio version, learns from these where
they differ. Where the lean carrier is meant to differ (it does not confuse a cancelled call with a cancelled task, and
its readers lose nothing), the test says so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Literal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, common_pb2, replication_pb2, replication_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.wire import GrpcWire, RunningServer, Wire, connection_refused, serve
from fencepost_testing.waiting import until
from tests.simulation.world import World

Handler = Callable[[Any, Any], Any]
Story = Callable[["Stage"], Coroutine[Any, Any, None]]


# The generated types are those of blocking stubs; over grpc.aio the same stubs return awaitable calls.
replication_stub: Any = replication_pb2_grpc.ReplicationStub
broker_stub: Any = broker_pb2_grpc.BrokerStub
health_stub: Any = health_pb2_grpc.HealthStub


class Replication(replication_pb2_grpc.ReplicationServicer):
    """A servicer whose one method is the test's."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def Replicate(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._handler(request_iterator, context)


class Broker(broker_pb2_grpc.BrokerServicer):
    """A unary method that waits, and a generator that streams."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def Metadata(self, request: Any, context: Any) -> Any:
        if request.topic_names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no topic {request.topic_names[0]}")
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return broker_pb2.MetadataResponse(answering_broker_id=7)

    async def WatchMetadata(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for version in range(3):
            yield common_pb2.MetadataDelta(version=version)


class Stage:
    """What a test plays on: a server, stubs on a channel to it, and a way to break the connection."""

    wire: Wire
    channel: Any
    is_lean = False

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.broker = Broker()  # type: ignore[abstract]
        self.server: RunningServer

    async def serve(self, handler: Handler) -> Any:
        raise NotImplementedError

    def break_connections(self) -> None:
        raise NotImplementedError

    def paused(self) -> str:
        """The address of a process that is paused: its kernel takes connections, and no one answers."""
        raise NotImplementedError

    def _add(self, handler: Handler) -> Callable[[Any], None]:
        def add(server: Any) -> None:
            replication_pb2_grpc.add_ReplicationServicer_to_server(Replication(handler), server)
            broker_pb2_grpc.add_BrokerServicer_to_server(self.broker, server)

        return add


class RealStage(Stage):
    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.silent: socket.socket | None = None

    async def serve(self, handler: Handler) -> Any:
        self.server = await serve(self.wire, "127.0.0.1:0", [], self._add(handler))
        proxy = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        self.channel = self.wire.connect(f"127.0.0.1:{port}")
        return replication_stub(self.channel)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.server.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        sink.close()

    def break_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def paused(self) -> str:
        self.silent = socket.create_server(("127.0.0.1", 0))
        return "127.0.0.1:{1}".format(*self.silent.getsockname())


class SimStage(Stage):
    def __init__(self, world: World, server_host: Host, client_host: Host) -> None:
        super().__init__()
        self._world = world
        self._server_wire = server_host.wire
        self.wire = client_host.wire

    async def serve(self, handler: Handler) -> Any:
        self.server = await self.serve_at("server:0", handler)
        self.channel = self.wire.connect(self.server.address)
        return replication_stub(self.channel)

    async def serve_at(self, address: str, handler: Handler) -> RunningServer:
        process = self._world.machines["server"].process
        assert process is not None
        return await process.spawn(serve(self._server_wire, address, [], self._add(handler)))

    def break_connections(self) -> None:
        self._world.network.reset("client", "server")

    def paused(self) -> str:
        self._world.pause("server")
        return self.server.address


def play_real(story: Story, carrier: Literal["grpc", "lean"] = "grpc") -> None:
    async def main() -> None:
        stage = RealStage(GrpcWire() if carrier == "grpc" else CarrierWire("lean"))
        stage.is_lean = carrier == "lean"
        async with asyncio.timeout(20):
            await story(stage)
        await stage.channel.close()
        await stage.server.server.stop(0)
        if stage.silent is not None:
            stage.silent.close()

    asyncio.run(main())


def play_simulated(story: Story, carrier: Literal["grpc", "lean"] = "grpc") -> None:
    with World(1) as world:
        hosts: dict[str, Host] = {}

        async def idle(host: Host, disk: object, name: str) -> None:
            hosts[name] = host
            await asyncio.sleep(1e6)

        async def main() -> None:
            for name in ("server", "client"):
                world.start(name, lambda host, disk, name=name: idle(host, disk, name))  # type: ignore[misc]
            await asyncio.sleep(0.001)
            process = world.machines["client"].process
            assert process is not None
            client = hosts["client"]
            client = client.with_carrier(carrier)
            stage = SimStage(world, hosts["server"], client)
            stage.is_lean = carrier == "lean"
            async with asyncio.timeout(20):
                await process.spawn(story(stage))

        world.run(main())
        assert world.loop.failures == []


@pytest.fixture(
    params=[play_real, play_simulated, partial(play_real, carrier="lean"), partial(play_simulated, carrier="lean")],
    ids=["grpc", "simulated", "lean", "lean-simulated"],
)
def play(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    return request.param  # type: ignore[no-any-return]


def request(number: int = 0, size: int = 0) -> Any:
    return replication_pb2.ReplicateRequest(broker_id=number, cluster_id="x" * size)


def response(number: int = 0, size: int = 0) -> Any:
    push = replication_pb2.PartitionPush(base_offset=number, records=b"x" * size)
    return replication_pb2.ReplicateResponse(pushes=[push])


async def outcome(operation: Awaitable[Any]) -> str:
    """What an operation came to, in a word."""
    try:
        result = await operation
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except BaseException as error:  # noqa: BLE001 - the outcome is what is compared
        return type(error).__name__
    return "EOF" if result is grpc.aio.EOF else "ok"


def test_messages_arrive_in_order_both_ways_and_half_close_ends_the_servers_reads(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(response(message.broker_id))
        await context.write(response(99))

    async def story(stage: Stage) -> None:
        call = (await stage.serve(handler)).Replicate()
        for number in range(5):
            await call.write(request(number))
        await call.done_writing()
        assert [m.pushes[0].base_offset async for m in call] == [0, 1, 2, 3, 4, 99]
        assert await call.code() is grpc.StatusCode.OK
        assert call.done()

    play(story)


def test_a_handler_that_reads_sees_end_of_stream_and_is_then_cancelled_when_the_connection_breaks(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            await context.read()
            try:
                stage.seen.append("EOF" if await context.read() is grpc.aio.EOF else "message")
            except asyncio.CancelledError:
                stage.seen.append("cancelled in its read")
                raise
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                stage.seen.append(f"cancelled {context.cancelled()}")
                raise

        call = (await stage.serve(handler)).Replicate()
        await call.write(request())
        reading = asyncio.ensure_future(outcome(call.read()))
        await asyncio.sleep(0.1)
        stage.break_connections()
        assert await reading == "UNAVAILABLE"
        expected = ["cancelled in its read"] if stage.is_lean else ["EOF", "cancelled False"]
        await until(lambda: stage.seen, "all is seen", holds=lambda seen: len(seen) == len(expected))
        assert stage.seen == expected
        assert await outcome(call.write(request())) == "InvalidStateError"
        assert await outcome(call.read()) == "UNAVAILABLE"
        assert call.done()
        assert not call.cancelled()

    play(story)


def test_a_handler_that_iterates_sees_a_plain_end_when_the_client_cancels(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            try:
                async for _ in requests:
                    stage.seen.append("message")
            except asyncio.CancelledError:
                stage.seen.append("cancelled")
                raise
            stage.seen.append("end")
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                stage.seen.append("cancelled")
                raise

        call = (await stage.serve(handler)).Replicate()
        await call.write(request())
        await until(lambda: stage.seen, "all is seen", holds=lambda seen: seen == ["message"])
        reading = asyncio.ensure_future(outcome(call.read()))
        await asyncio.sleep(0.02)
        assert call.cancel()
        cancelled = "CANCELLED" if stage.is_lean else "CancelledError"
        assert await reading == cancelled
        expected = ["message", "cancelled"] if stage.is_lean else ["message", "end", "cancelled"]
        await until(lambda: stage.seen, "all is seen", holds=lambda seen: seen == expected)
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert await outcome(call.read()) == cancelled
        assert await outcome(call.write(request())) == "InvalidStateError"

    play(story)


def test_a_blocked_write_of_a_handler_fails_before_it_is_cancelled(play: Any) -> None:
    async def story(stage: Stage) -> None:
        writes = 0

        async def handler(requests: Any, context: Any) -> None:
            nonlocal writes
            await context.read()
            try:
                while True:
                    writes += 1
                    await context.write(response(size=1_000_000))
            except BaseException as error:
                stage.seen.append(type(error).__name__)
                raise

        call = (await stage.serve(handler)).Replicate()
        await call.write(request())
        before = 0
        while not writes or before != writes:  # until it is blocked: no one reads
            before = writes
            await asyncio.sleep(0.3)
        assert stage.seen == []
        call.cancel()
        expected = ["CancelledError"] if stage.is_lean else ["ExecuteBatchError"]
        await until(lambda: stage.seen, "all is seen", holds=lambda seen: seen == expected)

    play(story)


def test_a_blocked_write_of_the_client_fails_as_internal_when_the_connection_breaks(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None:
        await asyncio.sleep(10)

    async def story(stage: Stage) -> None:
        call = (await stage.serve(handler)).Replicate()
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                await call.write(request(size=1_000_000))
                written += 1

        filling = asyncio.ensure_future(outcome(fill()))
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.2)
        assert not filling.done()
        stage.break_connections()
        assert await filling == ("InvalidStateError" if stage.is_lean else "INTERNAL")

    play(story)


def test_unread_messages_come_before_a_status_from_the_server(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None:
        for number in range(3):
            await context.write(response(number))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no more")

    async def story(stage: Stage) -> None:
        call = (await stage.serve(handler)).Replicate()
        await call.write(request())
        await asyncio.sleep(0.1)
        assert not call.done()
        assert [await outcome(call.read()) for _ in range(4)] == ["ok", "ok", "ok", "FAILED_PRECONDITION"]
        assert await call.details() == "no more"

    play(story)


def test_unread_messages_are_lost_when_the_connection_breaks(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            for number in range(3):
                await context.write(response(number))
            await context.read()
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                message = await context.read()  # the client sent two more
                stage.seen.append("EOF" if message is grpc.aio.EOF else "message")
                raise

        call = (await stage.serve(handler)).Replicate()
        for _ in range(3):
            await call.write(request())
        await asyncio.sleep(0.1)
        stage.break_connections()
        await until(lambda: call.done() and stage.seen, "the call's end on both sides")
        assert await outcome(call.read()) == "UNAVAILABLE"
        assert stage.seen == ["EOF"]

    play(story)


def test_a_cancelled_read_cancels_the_clients_call_but_only_loses_a_message_at_the_server(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            await context.read()
            reading = asyncio.ensure_future(context.read())
            await asyncio.sleep(0.05)
            reading.cancel()
            await asyncio.sleep(0.2)
            while (message := await context.read()) is not grpc.aio.EOF:
                stage.seen.append(f"read {message.broker_id}")

        call = (await stage.serve(handler)).Replicate()
        await call.write(request(1))
        await asyncio.sleep(0.15)
        for number in (2, 3, 4):
            await call.write(request(number))
        expected = [f"read {number}" for number in ((2, 3, 4) if stage.is_lean else (3, 4))]
        await until(lambda: stage.seen, "all are seen", holds=lambda seen: len(seen) == len(expected))
        assert stage.seen == expected
        reading = asyncio.ensure_future(call.read())
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        assert call.done()
        assert call.cancelled()

    play(story)


def test_a_refused_connection_is_unavailable_for_every_kind_of_call(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        host = stage.server.address.rpartition(":")[0]
        channel = stage.wire.connect(f"{host}:1")
        replication = replication_stub(channel)
        broker = broker_stub(channel)
        call = replication.Replicate()
        assert await outcome(call.write(request())) == "UNAVAILABLE"
        assert await outcome(call.read()) == "UNAVAILABLE"
        assert await outcome(replication.Replicate().read()) == "UNAVAILABLE"
        assert await outcome(replication.Replicate().wait_for_connection()) == "UNAVAILABLE"
        assert await outcome(broker.Metadata(broker_pb2.MetadataRequest())) == "UNAVAILABLE"
        assert await outcome(broker.WatchMetadata(broker_pb2.WatchMetadataRequest()).read()) == "UNAVAILABLE"
        await channel.close()

    play(story)


def test_only_a_port_without_a_process_differs_from_what_may_be_a_pause(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def unavailable(stage: Stage, address: str) -> grpc.aio.AioRpcError:
        channel = stage.wire.connect(address)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await broker_stub(channel).Metadata(broker_pb2.MetadataRequest())
        await channel.close()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        return raised.value

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        host = stage.server.address.rpartition(":")[0]
        assert connection_refused(await unavailable(stage, f"{host}:1"))
        assert not connection_refused(await unavailable(stage, stage.paused()))

    play(story)


def test_unary_calls_answer_time_out_abort_and_are_cancelled_with_their_task(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        stub = broker_stub(stage.channel)
        assert (await stub.Metadata(broker_pb2.MetadataRequest())).answering_broker_id == 7
        assert await outcome(stub.Metadata(broker_pb2.MetadataRequest(), timeout=0.02)) == "DEADLINE_EXCEEDED"
        await stage.broker.cancelled.wait()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Metadata(broker_pb2.MetadataRequest(topic_names=["t"]))
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "no topic t")
        assert await outcome(stub.ListOffsets(broker_pb2.ListOffsetsRequest())) == "UNIMPLEMENTED"
        stage.broker.cancelled.clear()
        asking = asyncio.ensure_future(_ask(stub))
        await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.wait([asking])
        await stage.broker.cancelled.wait()

    async def _ask(stub: Any) -> Any:
        return await stub.Metadata(broker_pb2.MetadataRequest())

    play(story)


def test_a_generator_streams_its_messages(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        stub = broker_stub(stage.channel)
        call = stub.WatchMetadata(broker_pb2.WatchMetadataRequest())
        assert [delta.version async for delta in call] == [0, 1, 2]

    play(story)


def test_an_exception_in_a_handler_is_unknown_with_its_text(play: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(requests: Any, context: Any) -> None:
        raise ValueError("boo")

    async def story(stage: Stage) -> None:
        call = (await stage.serve(handler)).Replicate()
        assert await outcome(call.read()) == "UNKNOWN"
        assert await call.details() == "Unexpected <class 'ValueError'>: boo"

    play(story)


def test_a_stopped_server_refuses_new_calls_and_breaks_running_ones_after_the_grace(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            await context.write(response())
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                stage.seen.append("cancelled")
                raise

        call = (await stage.serve(handler)).Replicate()
        await call.read()
        stopping = asyncio.ensure_future(stage.server.stop(1.0))  # in which a busy machine makes a connection, too
        await asyncio.sleep(0.1)
        channel = stage.wire.connect(stage.server.address)
        assert await outcome(replication_stub(channel).Replicate().read()) == "UNAVAILABLE"
        assert stage.seen == []
        await stopping
        assert stage.seen == ["cancelled"]
        assert await outcome(call.read()) == "UNAVAILABLE"
        assert await call.details() == "Cancelling all calls"
        await channel.close()

    play(story)


def test_a_second_write_while_one_is_under_way_is_refused(play: Any) -> None:
    async def story(stage: Stage) -> None:
        async def handler(requests: Any, context: Any) -> None:
            await context.read()
            big = response(size=12_000_000)
            results = await asyncio.gather(*(outcome(context.write(big)) for _ in range(2)))
            stage.seen.extend(results)

        call = (await stage.serve(handler)).Replicate()
        await call.write(request())
        while await call.read() is not grpc.aio.EOF:
            pass
        assert stage.seen[0] == "ok"
        assert stage.seen[1] in ("ExecuteBatchError", "TooManyOperations", "InvalidStateError")

    play(story)


def test_a_closed_channel_cancels_its_calls_and_takes_no_more(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None:
        await asyncio.sleep(10)

    async def story(stage: Stage) -> None:
        stub = await stage.serve(handler)
        call = stub.Replicate()
        await call.write(request())
        reading = asyncio.ensure_future(outcome(call.read()))
        await asyncio.sleep(0.02)
        await stage.channel.close()
        assert await reading == ("CANCELLED" if stage.is_lean else "CancelledError")
        assert await call.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(Exception, match="closed"):
            stub.Replicate()

    play(story)


def test_the_health_service_answers(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        stub = health_stub(stage.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await outcome(stub.Check(health_pb2.HealthCheckRequest(service="none"))) == "NOT_FOUND"

    play(story)


def test_a_channel_finds_a_server_that_came_back(play: Any) -> None:
    async def handler(requests: Any, context: Any) -> None: ...

    async def story(stage: Stage) -> None:
        await stage.serve(handler)
        address = stage.server.address
        channel = stage.wire.connect(address)
        stub = broker_stub(channel)
        assert await outcome(stub.Metadata(broker_pb2.MetadataRequest())) == "ok"
        await stage.server.server.stop(0)
        assert await outcome(stub.Metadata(broker_pb2.MetadataRequest())) == "UNAVAILABLE"
        await asyncio.sleep(0.3)
        if isinstance(stage, SimStage):
            stage.server = await stage.serve_at(address, handler)
        else:
            stage.server = await serve(stage.wire, address, [], stage._add(handler))
        loop = asyncio.get_running_loop()
        began = loop.time()
        while await outcome(stub.Metadata(broker_pb2.MetadataRequest())) != "ok":
            await asyncio.sleep(0.01)
            assert loop.time() - began < 1.5
        await channel.close()

    play(story)
