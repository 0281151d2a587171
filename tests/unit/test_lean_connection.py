"""The lean carrier over real sockets: what one peer may do to another, and what it may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, replication_pb2, replication_pb2_grpc
from fencepost_proto.transport.lean import frames, link, server
from fencepost_proto.transport.lean.client import LeanChannel
from fencepost_proto.transport.lean.frames import Frame, Hello, Start
from fencepost_proto.transport.lean.server import LeanServer
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous, run

Handler = Callable[[Any, Any], Awaitable[None]]
REPLICATE = "/fencepost.v1.Replication/Replicate"


class Replication(replication_pb2_grpc.ReplicationServicer):
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def Replicate(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._handler(request_iterator, context)


class Broker(broker_pb2_grpc.BrokerServicer):
    """Answers, with what it was called with."""

    async def Metadata(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("asked-by", dict(context.invocation_metadata()).get("name", "no one")),))
        return broker_pb2.MetadataResponse(answering_broker_id=len(request.topic_names))


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[LeanServer, str]]:
    """A server, and its address."""
    lean = LeanServer()
    replication_pb2_grpc.add_ReplicationServicer_to_server(Replication(handler), lean)  # type: ignore[arg-type]
    broker_pb2_grpc.add_BrokerServicer_to_server(Broker(), lean)  # type: ignore[arg-type, abstract]
    port = await lean.listen("127.0.0.1:0")
    try:
        yield lean, f"127.0.0.1:{port}"
    finally:
        await lean.stop(0)


def replicate(channel: LeanChannel) -> Any:
    stub: Any = replication_pb2_grpc.ReplicationStub
    return stub(channel).Replicate()


def metadata(channel: LeanChannel, *names: str, **options: Any) -> Any:
    stub: Any = broker_pb2_grpc.BrokerStub
    return stub(channel).Metadata(broker_pb2.MetadataRequest(topic_names=names), **options)


async def echo(requests: Any, context: Any) -> None:
    async for request in requests:
        push = replication_pb2.PartitionPush(base_offset=request.broker_id)
        await context.write(replication_pb2.ReplicateResponse(pushes=[push]))


async def ignore(requests: Any, context: Any) -> None:
    await asyncio.sleep(60)


class RawClient:
    """Says any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._frames = frames.FrameReader()
        self._magic = b""

    async def next_frame(self) -> Frame | None:
        """None: the server has closed."""
        while not (found := self._frames.take(1)):
            data = await self._reader.read(65_536)
            if not data:
                return None
            if len(self._magic) < len(frames.MAGIC):
                self._magic += data
                data = self._magic[len(frames.MAGIC) :]
            self._frames.feed(data)
        return found[0]

    async def closed(self) -> bool:
        """Reads until the server closes."""
        try:
            while await self.next_frame() is not None:
                pass
        except ConnectionError:
            return True
        return True


@asynccontextmanager
async def raw(address: str, *, greets: bool = True) -> AsyncIterator[RawClient]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = RawClient(reader, writer)
    if greets:
        writer.write(frames.hello(Hello(1_000_000, 1_000_000)))
        first = await client.next_frame()
        assert first is not None
        assert first.kind == frames.HELLO
    try:
        yield client
    finally:
        writer.close()


@asynchronous
async def test_metadata_goes_both_ways_and_a_deadline_arrives() -> None:
    async with serving(echo) as (_, address), LeanChannel(address) as channel:
        call = metadata(channel, "a", "b", metadata=(("name", "x"),), timeout=5)
        assert (await call).answering_broker_id == 2
        assert dict(await call.trailing_metadata()) == {"asked-by": "x"}
        with pytest.raises(ValueError, match="more than 8192 bytes"):
            metadata(channel, metadata=(("name", "x" * 9_000),))


@asynchronous
async def test_many_calls_share_a_connection_and_each_keeps_its_order() -> None:
    async with serving(echo) as (lean, address), LeanChannel(address) as channel:

        async def talk(first: int) -> list[int]:
            call = replicate(channel)
            got = []
            for number in range(first, first + 20):
                await call.write(replication_pb2.ReplicateRequest(broker_id=number))
                got.append((await call.read()).pushes[0].base_offset)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            return got

        talks = await asyncio.gather(*(talk(100 * number) for number in range(50)))
        assert talks == [list(range(100 * number, 100 * number + 20)) for number in range(50)]
        assert len(lean._links) == 1


@asynchronous
async def test_a_message_of_the_largest_size_goes_through_and_a_larger_one_ends_its_call_only() -> None:
    async def count(requests: Any, context: Any) -> None:
        async for request in requests:
            push = replication_pb2.PartitionPush(base_offset=len(request.cluster_id))
            await context.write(replication_pb2.ReplicateResponse(pushes=[push]))

    generic = grpc.method_handlers_generic_handler("t.S", {"Size": grpc.stream_stream_rpc_method_handler(sizes)})
    async with serving(count) as (lean, address), LeanChannel(address) as channel:
        lean.add_generic_rpc_handlers([generic])
        for size in (16 * 1024 * 1024, 3, 5_000_000):
            call = channel.stream_stream("/t.S/Size")()
            await call.write(bytes(size))
            assert int(await call.read()) == size
        call = channel.stream_stream("/t.S/Size")()
        with pytest.raises(grpc.aio.AioRpcError, match="16777217 bytes; at most 16777216 are sent"):
            await call.write(bytes(16 * 1024 * 1024 + 1))
        assert (await metadata(channel)).answering_broker_id == 0


async def sizes(requests: Any, context: Any) -> None:
    async for request in requests:
        await context.write(str(len(request)).encode())


@asynchronous
async def test_calls_that_no_one_reads_do_not_hold_up_one_that_is_read() -> None:
    """The application waits for the answer of one call before it reads the others: gRPC's windows allow that too."""

    async def pour(requests: Any, context: Any) -> None:
        first = await anext(requests)
        push = replication_pb2.PartitionPush(records=bytes(1_000_000))
        while first.broker_id == 1:
            await context.write(replication_pb2.ReplicateResponse(pushes=[push]))
        async for _ in requests:
            await context.write(replication_pb2.ReplicateResponse())

    async with serving(pour) as (lean, address), LeanChannel(address) as channel:
        unread = [replicate(channel) for _ in range(8)]
        for call in unread:
            await call.write(replication_pb2.ReplicateRequest(broker_id=1))
        (peer,) = lean._links
        await until(lambda: peer.credit, "the connection's credit is used up", holds=lambda credit: credit <= 0)
        spoken = replicate(channel)
        await spoken.write(replication_pb2.ReplicateRequest(broker_id=2))
        for _ in range(200):
            await spoken.write(replication_pb2.ReplicateRequest())
            assert not (await spoken.read()).pushes
        held = sum(len(data) for end in channel._links.copy().popitem()[0].calls.values() for data in end.arrived)
        assert held < link.CONNECTION_WINDOW_BYTES + 8 * (link.CALL_WINDOW_BYTES // 4 + 1_100_000)
        for call in unread:
            call.cancel()
        await until(lambda: peer.credit, "what was dropped is credit again", holds=lambda credit: credit > 0)


@asynchronous
async def test_a_handler_that_does_not_read_stops_its_client_at_the_calls_window() -> None:
    async with serving(ignore) as (lean, address), LeanChannel(address) as channel:
        call = replicate(channel)

        async def fill() -> None:
            while True:
                await call.write(replication_pb2.ReplicateRequest(cluster_id="x" * 100_000))

        filling = asyncio.create_task(fill())
        await until(lambda: lean._unread_bytes, "the window is full", holds=lambda held: held >= link.CALL_WINDOW_BYTES)
        await asyncio.sleep(0.05)
        assert lean._unread_bytes <= link.CALL_WINDOW_BYTES + 100_200
        assert not filling.done()
        filling.cancel()
        await asyncio.wait([filling])
        assert filling.cancelled()
        assert call.cancelled()
        await until(lambda: lean._unread_bytes, "the server holds nothing", holds=lambda held: held == 0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (frames.frame(99, 0), "a frame of kind 99"),
        (frames.header(frames.MESSAGE, 1, 2**31), "at most 1048576 are taken"),
        (frames.frame(frames.STATUS, 1, b"\0\0\0\0"), "a frame of kind 6 from a client"),
        (frames.frame(frames.START, 1, b"\0"), "a START of 1 bytes"),
        (
            frames.start(2, Start(REPLICATE, None, ())) + frames.start(1, Start(REPLICATE, None, ())),
            "call 1 begins after",
        ),
        (frames.window(0, 2**31), "bytes of credit"),
        (frames.start(1, Start(REPLICATE, None, ())) + frames.frame(frames.PART, 1), "an empty part"),
        (
            frames.start(1, Start(REPLICATE, None, ())) + frames.frame(frames.PART, 1, bytes(2**20)) * 17,
            "a message of more than 16777216 bytes",
        ),
        (
            frames.start(1, Start(REPLICATE, None, ())) + frames.frame(frames.MESSAGE, 1, bytes(2**20)) * 5,
            "bytes are not consumed",
        ),
    ],
)
def test_a_peer_that_breaks_the_rules_loses_its_connection_and_nothing_else_happens(
    said: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with serving(ignore) as (lean, address), LeanChannel(address) as channel, raw(address) as client:
            assert (await metadata(channel)).answering_broker_id == 0
            client.writer.write(said)
            assert await client.closed()
            assert reason in caplog.text
            await until(lambda: len(lean._running), "its handlers have ended", holds=lambda count: count == 0)
            assert lean._unread_bytes == 0
            assert (await metadata(channel)).answering_broker_id == 0
            assert len(lean._links) == 1

    run(story())


@asynchronous
async def test_a_connection_that_does_not_greet_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HELLO_TIMEOUT_S", 0.1)
    async with serving(echo) as (_, address), raw(address, greets=False) as client:
        assert await client.closed()


@pytest.mark.parametrize("half_closes", [False, True])
@asynchronous
async def test_a_stream_that_ends_in_the_middle_of_a_frame_ends_its_calls_without_what_was_cut_off(
    half_closes: bool,
) -> None:
    seen: list[object] = []

    async def handler(requests: Any, context: Any) -> None:
        try:
            async for request in requests:
                seen.append(request.broker_id)
            seen.append("end")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with serving(handler) as (lean, address), raw(address) as client:
        whole = frames.frame(frames.MESSAGE, 1, replication_pb2.ReplicateRequest(broker_id=5).SerializeToString())
        client.writer.write(frames.start(1, Start(REPLICATE, None, ())) + whole + whole[:-1])
        await until(lambda: seen, "the whole message is read", holds=bool)
        if half_closes:
            client.writer.write_eof()
        else:
            client.writer.transport.abort()
        await until(lambda: len(lean._running), "the handler has ended", holds=lambda count: count == 0)
        assert seen == [5, "cancelled"]
        assert lean._unread_bytes == 0


@asynchronous
async def test_a_stream_that_stalls_in_the_middle_of_a_frame_holds_up_no_one_else() -> None:
    async with serving(echo) as (lean, address), LeanChannel(address) as channel, raw(address) as client:
        client.writer.write(frames.start(1, Start(REPLICATE, None, ())))
        client.writer.write(frames.header(frames.MESSAGE, 1, 1_000_000) + bytes(500_000))
        call = replicate(channel)
        for number in range(20):
            await call.write(replication_pb2.ReplicateRequest(broker_id=number))
            assert (await call.read()).pushes[0].base_offset == number
        assert len(lean._links) == 2


@asynchronous
async def test_a_client_whose_server_vanishes_in_the_middle_of_an_answer_knows_only_that_it_is_gone() -> None:
    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(frames.hello(Hello(1, 1))))
        answer = replication_pb2.ReplicateResponse(pushes=[replication_pb2.PartitionPush(base_offset=1)])
        whole = frames.frame(frames.MESSAGE, 1, answer.SerializeToString())
        writer.write(frames.hello(Hello(100_000, 100_000)) + whole + whole[:-1])
        await reader.read(1)  # the call has begun
        await asyncio.sleep(0.05)
        writer.transport.abort()

    listening = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with LeanChannel(f"127.0.0.1:{port}") as channel:
        call = replicate(channel)
        await call.write(replication_pb2.ReplicateRequest())
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await call.read()
    listening.close()


@asynchronous
async def test_a_peer_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(link, "KEEPALIVE_TIMEOUT_S", 0.1)
    async with serving(ignore) as (lean, address), LeanChannel(address) as channel, raw(address) as client:
        call = replicate(channel)
        await call.write(replication_pb2.ReplicateRequest())
        began = asyncio.get_running_loop().time()
        assert await client.closed()  # it reads and answers no PING
        await until(lambda: len(lean._links), "only the channel is left", holds=lambda count: count == 1)
        await asyncio.sleep(max(0.0, 0.5 - (asyncio.get_running_loop().time() - began)))
        assert not call.done()  # it answers


@asynchronous
async def test_an_answer_within_the_clocks_own_step_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's time goes in steps of a millisecond or a turn, and a PONG of the same machine comes within one."""
    async with serving(ignore) as (lean, address), LeanChannel(address) as channel:
        call = replicate(channel)
        await call.write(replication_pb2.ReplicateRequest())
        await until(lambda: len(lean._links), "a connection", holds=lambda count: count == 1)
        (served,) = lean._links
        now = served._heard_at + link.KEEPALIVE_S
        clock = SimpleNamespace(time=lambda: now, call_at=lambda *_: None, call_soon=lambda *_, **__: None)
        monkeypatch.setattr(served, "_loop", clock)
        served._timer, served._timer_at = None, now
        served._time_is_up()
        served.data_received(frames.frame(frames.PONG, 0, bytes(8)))
        served._timer_at = now
        served._time_is_up()
        assert not served.over
        now += link.KEEPALIVE_S
        served._timer_at = now
        served._time_is_up()
        assert not served.over
        served._time_is_up()
        assert served.over, "no answer to the second one"


@asynchronous
async def test_a_peer_that_asks_and_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_UNWRITTEN_BYTES", 100_000)
    async with serving(echo) as (lean, address), raw(address) as client:
        ping = frames.frame(frames.PING, 0, bytes(8)) * 1_000
        while lean._links:
            client.writer.write(ping)
            await asyncio.sleep(0)


@asynchronous
async def test_calls_and_unread_bytes_of_a_server_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CALLS", 3)
    monkeypatch.setattr(server, "MAX_UNREAD_BYTES", 300_000)
    async with serving(ignore) as (_, address), LeanChannel(address) as channel, LeanChannel(address) as other:
        calls = [replicate(channel) for _ in range(4)]
        for call in calls[:3]:
            await call.write(replication_pb2.ReplicateRequest())
        assert await calls[3].code() is grpc.StatusCode.UNAVAILABLE
        assert await calls[3].details() == "3 calls of one connection are the most"
        small = replicate(other)
        await small.write(replication_pb2.ReplicateRequest(cluster_id="x" * 100_000))
        for _ in range(3):
            await calls[0].write(replication_pb2.ReplicateRequest(cluster_id="x" * 90_000))
        assert await calls[0].code() is grpc.StatusCode.UNAVAILABLE  # who holds most
        assert not small.done()


@asynchronous
async def test_requests_that_are_never_complete_count_as_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_BYTES", 300_000)
    async with serving(echo) as (lean, address), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw(address)) for _ in range(3)]
        for client, size in zip(clients, (90_000, 110_000, 95_000), strict=True):
            client.writer.write(frames.header(frames.MESSAGE, 1, 200_000) + bytes(size))
        await until(lambda: lean._unread_bytes > 295_000, "all has come")
        assert len(lean._links) == 3
        async with LeanChannel(address) as other:
            for _ in range(10):  # what is read does not add up
                assert (await metadata(other, "x" * 200)).answering_broker_id == 1
        clients[0].writer.write(bytes(10_000))
        assert await clients[1].closed()  # who holds most
        await until(lambda: lean._unread_bytes < 200_000, "its bytes do not count any more")
        for client in clients:
            client.writer.close()
        await until(lambda: not lean._links, "all are gone")
        assert lean._unread_bytes == 0


@asynchronous
async def test_a_call_that_no_one_holds_any_more_is_cancelled() -> None:
    async with serving(ignore) as (lean, address), LeanChannel(address) as channel:
        call = replicate(channel)
        await call.write(replication_pb2.ReplicateRequest())
        await until(lambda: len(lean._running), "it runs", holds=lambda count: count == 1)
        del call
        await until(lambda: len(lean._running), "it was cancelled", holds=lambda count: count == 0)


@asynchronous
async def test_a_task_that_is_cancelled_as_its_message_comes_gets_its_cancellation_and_the_next_reader_the_message() -> (
    None
):
    seen: list[int] = []

    async def handler(requests: Any, context: Any) -> None:
        reading = asyncio.ensure_future(anext(requests))
        await until(lambda: len(arrived()), "the message is there", holds=lambda count: count == 1)
        reading.cancel()  # it was woken, and did not run yet
        await asyncio.wait([reading])
        assert reading.cancelled()
        seen.append((await anext(requests)).broker_id)

    def arrived() -> list[bytes]:
        return [data for connection in lean._links for end in connection.calls.values() for data in end.arrived]

    async with serving(handler) as (lean, address), LeanChannel(address) as channel:
        call = replicate(channel)
        await call.write(replication_pb2.ReplicateRequest(broker_id=7))
        assert await call.code() is grpc.StatusCode.OK
        assert seen == [7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3), st.binary(max_size=40)), max_size=12))
def test_any_frames_leave_a_server_serving(sent: list[tuple[int, int, bytes]]) -> None:
    async def story() -> None:
        async with serving(echo) as (lean, address), raw(address) as client:
            client.writer.write(frames.start(1, Start(REPLICATE, None, ())))
            for kind, number, payload in sent:
                client.writer.write(frames.frame(kind, number, payload))
            client.writer.write(frames.frame(99, 0))
            assert await client.closed()
            async with LeanChannel(address) as channel:
                assert (await metadata(channel)).answering_broker_id == 0
            await until(lambda: len(lean._running), "its handlers have ended", holds=lambda count: count == 0)
            assert lean._unread_bytes == 0

    run(story())
