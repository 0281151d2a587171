"""The client's side of gRPC over the simulated network: what grpc.aio.Channel offers to generated stubs.

It behaves as grpcio 1.85 was seen to behave (tests/simulation/test_harness_rpc.py runs one test over both):

- a refused or timed-out connection fails every waiting call with UNAVAILABLE, and further calls at once until a backoff
  has passed; a connection that breaks is made again by the next call;
- a broken connection ends a call with UNAVAILABLE, and messages that have arrived but were not read are lost; a status
  from the server comes after all its messages;
- a write under which the call breaks raises AioRpcError with INTERNAL; a write after the end raises InvalidStateError;
- cancelling a task that waits in `read`, `write` or for the response cancels the call; reads after that raise
  CancelledError; a call that no one holds any more is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from tests.simulation.network import Connection, End, Network, Pipe, Status
from tests.simulation.process import SimProcess

INITIAL_BACKOFF_S = 0.05
MAX_BACKOFF_S = 0.5
BACKOFF_FACTOR = 1.6
BACKOFF_JITTER = 0.2

_CANCELLED = Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!", local_cancel=True)
_CANCELLED_BY_COLLECTION = Status(grpc.StatusCode.CANCELLED, "Cancelled upon garbage collection!", local_cancel=True)

HALF_CLOSE = object()
CANCEL = object()


class Start:
    """The first item of a stream: what the server learns before any message."""

    __slots__ = ("deadline", "metadata", "method", "stream")

    def __init__(self, method: str, deadline: float | None, metadata: tuple[Any, ...], stream: ClientStream) -> None:
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.stream = stream


class ClientStream(End):
    """The state of one call at the client. Lives in the network; the application holds a SimCall."""

    def __init__(self, channel: SimChannel, method: str, deadline: float | None, metadata: tuple[Any, ...]) -> None:
        self.channel = channel
        self.network = channel.network
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.status: Status | None = None
        self.number = 0
        self.connection: Connection | None = None
        self.to_server: Pipe | None = None
        self.to_client: Pipe | None = None  # the server's end puts it here
        self.arrived: deque[bytes] = deque()
        self.on_done: list[Callable[[], None]] = []
        self._begun: list[asyncio.Future[None]] = []
        self._reader: asyncio.Future[bytes | None] | None = None
        self._final: Status | None = None  # came from the server; takes hold when all messages are read
        self._early: list[Any] = []  # put before the connection was there
        if deadline is not None:
            self.network.loop.call_at(deadline, self._expire, context=self.network.context)

    def _expire(self) -> None:
        self.end(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), tell=True)

    # ---- From the channel ----

    def begin(self, connection: Connection) -> None:
        if self.status is not None:
            return
        self.connection = connection
        self.number = connection.next_stream()
        connection.client_ends[self.number] = self
        self.to_server = Pipe(
            connection, connection.to_server, self.network.window_bytes, connection.server.receiver(connection)
        )
        self.to_server.put(Start(self.method, self.deadline, self.metadata, self))
        for item in self._early:
            self.to_server.put(item)
        self._wake_begun()

    def fail_to_connect(self, reason: str) -> None:
        self.end(Status(grpc.StatusCode.UNAVAILABLE, f"failed to connect to all addresses; last error: {reason}"))

    # ---- From the network ----

    def connection_lost(self, details: str) -> None:
        self.end(Status(grpc.StatusCode.UNAVAILABLE, details))

    def receive(self, item: bytes | Status) -> None:
        if self.status is not None:
            return
        if isinstance(item, Status):
            self._final = item
            if not self.arrived:
                self.end(item)
        elif self._reader is not None and not self._reader.done():
            self._consumed(item)
            self._reader.set_result(item)
        else:
            self.arrived.append(item)

    def _consumed(self, data: bytes) -> None:
        if self.to_client is not None:
            self.to_client.consumed(data)

    def end(self, status: Status, *, tell: bool = False) -> None:
        """The call is over. `tell`: the server does not know yet."""
        if self.status is not None:
            return
        self.status = status
        self.arrived.clear()
        connection = self.connection
        if connection is not None:
            connection.client_ends.pop(self.number, None)
            if tell and connection.client_open and self.to_server is not None:
                self.to_server.put(CANCEL)
        if self.to_server is not None:
            self.to_server.break_off_writer()
        if self.to_client is not None:
            self.to_client.break_off()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._wake_begun()
        callbacks, self.on_done = self.on_done, []
        for callback in callbacks:
            callback()

    def _wake_begun(self) -> None:
        waiting, self._begun = self._begun, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # ---- From the application, in its own tasks ----

    async def begun(self) -> None:
        """Returns when the call has a connection, or is over."""
        if self.connection is None and self.status is None:
            future: asyncio.Future[None] = self.network.loop.create_future()
            self._begun.append(future)
            await future

    async def done(self) -> Status:
        if self.status is None:
            future: asyncio.Future[None] = self.network.loop.create_future()
            self.on_done.append(lambda: None if future.done() else future.set_result(None))
            await future
        assert self.status is not None
        return self.status

    def send_early(self, item: Any) -> None:
        """Put an item that needs no room: now, or as soon as there is a connection."""
        if self.to_server is None:
            self._early.append(item)
        elif self.status is None:
            self.to_server.put(item)

    async def next_message(self) -> bytes | None:
        """None: the call is over."""
        if self.arrived:
            data = self.arrived.popleft()
            self._consumed(data)
            if not self.arrived and self._final is not None:
                self.end(self._final)
            return data
        if self.status is not None:
            return None
        if self._reader is not None:
            raise cygrpc.UsageError("the simulation allows one reader at a time on a call")
        self._reader = self.network.loop.create_future()
        try:
            return await self._reader
        finally:
            self._reader = None


class SimCall:
    """The call object that a stub's method returns, of any of the four shapes."""

    def __init__(
        self,
        stream: ClientStream,
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
        request: Any = None,
        request_iterator: Any = None,
    ) -> None:
        self._stream = stream
        self._serialize = serialize
        self._deserialize = deserialize
        self._half_closed = False
        self._poller: asyncio.Task[None] | None = None
        self._iterating = False
        self._reading = False
        self._writes_itself = request_iterator is not None or request is not None
        if request is not None:
            self._half_closed = True
            stream.send_early(serialize(request))
            stream.send_early(HALF_CLOSE)
        elif request_iterator is not None:
            self._poller = stream.network.loop.create_task(self._consume(request_iterator))

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None and stream.status is None and stream.channel.process.running:
            stream.end(_CANCELLED_BY_COLLECTION, tell=True)

    # ---- State ----

    def done(self) -> bool:
        return self._stream.status is not None

    def cancelled(self) -> bool:
        status = self._stream.status
        return status is not None and status.code is grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        self._stream.channel.process.check_alive()
        if self._stream.status is not None:
            return False
        self._stream.end(_CANCELLED, tell=True)
        if self._poller is not None:
            self._poller.cancel()
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.done():
            callback(self)
            return
        loop, context = self._stream.network.loop, self._stream.channel.process.context()

        def schedule() -> None:
            loop.call_soon(callback, self, context=context)

        self._stream.on_done.append(schedule)

    def time_remaining(self) -> float | None:
        deadline = self._stream.deadline
        return None if deadline is None else max(0.0, deadline - self._stream.network.loop.time())

    async def code(self) -> grpc.StatusCode:
        return (await self._stream.done()).code

    async def details(self) -> str:
        return (await self._stream.done()).details

    async def debug_error_string(self) -> str:
        return (await self._stream.done()).details

    async def initial_metadata(self) -> grpc.aio.Metadata:
        await self._stream.begun()
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await self._stream.done()).trailing)

    async def wait_for_connection(self) -> None:
        await self._stream.begun()
        if self.done():
            self._raise_for_status()

    def _raise_for_status(self) -> None:
        status = self._stream.status
        assert status is not None
        if status.local_cancel:
            raise asyncio.CancelledError
        if status.code is not grpc.StatusCode.OK:
            raise _error(status)

    # ---- The response, or responses ----

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        try:
            data = await self._stream.next_message()
            status = await self._stream.done()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        if data is None:
            raise _error(Status(grpc.StatusCode.INTERNAL, f"no response, and status {status.code}"))
        return self._deserialize(data)

    async def read(self) -> Any:
        if self._iterating:
            raise cygrpc.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")
        self._reading = True
        message = await self._read()
        if message is grpc.aio.EOF:
            await self._stream.done()
            self._raise_for_status()
        return message

    async def _read(self) -> Any:
        try:
            data = await self._stream.next_message()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return grpc.aio.EOF if data is None else self._deserialize(data)

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not grpc.aio.EOF:
            yield message
        self._raise_for_status()

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._reading:
            raise cygrpc.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")
        self._iterating = True
        return self._messages()

    # ---- Requests ----

    async def write(self, request: Any) -> None:
        if self._writes_itself:
            raise cygrpc.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")
        await self._write(request)

    async def _write(self, request: Any) -> None:
        stream = self._stream
        stream.channel.process.check_alive()
        if self.done():
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._half_closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        if stream.connection is None:
            await stream.begun()
            if self.done():
                self._raise_for_status()
        data = self._serialize(request)
        try:
            if len(data) > MAX_MESSAGE_BYTES:
                raise cygrpc.ExecuteBatchError(
                    f"message of {len(data)} bytes is above the limit of {MAX_MESSAGE_BYTES}"
                )
            assert stream.to_server is not None
            await stream.to_server.write(data)
        except cygrpc.InternalError as error:
            internal = Status(grpc.StatusCode.INTERNAL, "Internal error from Core")
            stream.end(internal, tell=True)
            raise _error(internal) from error
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def done_writing(self) -> None:
        if self._writes_itself:
            raise cygrpc.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")
        self._stream.channel.process.check_alive()
        if not self.done() and not self._half_closed:
            self._half_closed = True
            self._stream.send_early(HALF_CLOSE)

    async def _consume(self, requests: Any) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    await self._write(request)
            else:
                for request in requests:
                    await self._write(request)
            if not self.done() and not self._half_closed:
                self._half_closed = True
                self._stream.send_early(HALF_CLOSE)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
        except BaseException:
            self.cancel()
            raise


def _error(status: Status) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        status.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*status.trailing),
        details=status.details,
        debug_error_string=status.details,
    )


class MultiCallable:
    """What a stub keeps for each method."""

    def __init__(
        self,
        channel: SimChannel,
        method: str,
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
        *,
        streams_requests: bool,
    ) -> None:
        self._channel = channel
        self._method = method
        self._serialize = serialize
        self._deserialize = deserialize
        self._streams_requests = streams_requests

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: None = None,
        wait_for_ready: bool | None = None,
        compression: None = None,
        request_iterator: Any = None,
    ) -> SimCall:
        loop = self._channel.network.loop
        self._channel.network.rates.note(repr(self._channel.process), f"calls {self._method}")
        deadline = None if timeout is None else loop.time() + timeout
        stream = ClientStream(self._channel, self._method, deadline, tuple(metadata or ()))
        if self._streams_requests:
            iterator = request if request is not None else request_iterator
            call = SimCall(stream, self._serialize, self._deserialize, request_iterator=iterator)
        else:
            call = SimCall(stream, self._serialize, self._deserialize, request=request)
        self._channel.submit(stream, wait_for_ready=bool(wait_for_ready))
        return call


class SimChannel:
    """One channel. Stands in for grpc.aio.Channel."""

    def __init__(self, network: Network, process: SimProcess, address: str) -> None:
        self.network = network
        self.process = process
        self.address = address
        self._connection: Connection | None = None
        self._waiting: list[tuple[ClientStream, bool]] = []
        self._attempt = 0
        self._connecting = False
        self._backoff_s = INITIAL_BACKOFF_S
        self._next_attempt_at = 0.0
        self._last_error = ""
        self._closed = False
        self._streams: dict[ClientStream, None] = {}

    async def __aenter__(self) -> SimChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def unary_unary(self, method: str, **kwargs: Any) -> MultiCallable:
        return self._multi_callable(method, False, kwargs)

    unary_stream = unary_unary

    def stream_stream(self, method: str, **kwargs: Any) -> MultiCallable:
        return self._multi_callable(method, True, kwargs)

    stream_unary = stream_stream

    def _multi_callable(self, method: str, streams_requests: bool, kwargs: dict[str, Any]) -> MultiCallable:
        return MultiCallable(
            self,
            method,
            kwargs["request_serializer"],
            kwargs["response_deserializer"],
            streams_requests=streams_requests,
        )

    def submit(self, stream: ClientStream, *, wait_for_ready: bool) -> None:
        self.process.check_alive()
        if self._closed:
            raise cygrpc.UsageError("Channel is closed.")
        self._streams[stream] = None
        stream.on_done.append(lambda: self._streams.pop(stream, None) and None)
        if self._connection is not None and self._connection.client_open:
            stream.begin(self._connection)
            return
        self._waiting.append((stream, wait_for_ready))
        now = self.network.loop.time()
        if self._connecting:
            return
        if now >= self._next_attempt_at:
            self._connect()
        else:
            if not wait_for_ready:
                self.network.loop.call_soon(self._fail_waiting, context=self.network.context)
            self.network.loop.call_at(self._next_attempt_at, self._retry, context=self.network.context)

    def _retry(self) -> None:
        if self._waiting and not self._connecting and not self._closed:
            self._connect()

    def _connect(self) -> None:
        self._connecting = True
        self._attempt += 1
        attempt = self._attempt
        loop = self.network.loop
        jitter = 1 + BACKOFF_JITTER * (2 * self.network.random.random() - 1)
        patience = max(INITIAL_BACKOFF_S, self._backoff_s * jitter)
        self._next_attempt_at = loop.time() + patience

        def answer(result: Connection | str) -> None:
            if attempt != self._attempt or not self._connecting or self._closed or not self.process.alive:
                if isinstance(result, Connection):
                    result.lose_client_end("unused")
                    self.network.tell_server_end(result)
                return
            self._connecting = False
            if isinstance(result, str):
                self._backoff_s = min(MAX_BACKOFF_S, self._backoff_s * BACKOFF_FACTOR)
                self._last_error = result
                self._fail_waiting()
                if self._waiting:
                    loop.call_at(self._next_attempt_at, self._retry, context=self.network.context)
                return
            self._connection = result
            self._backoff_s = INITIAL_BACKOFF_S
            self._next_attempt_at = 0.0
            waiting, self._waiting = self._waiting, []
            for stream, _ in waiting:
                stream.begin(result)

        self.network.dial(self, answer)
        timed_out = "connection attempt timed out before receiving SETTINGS frame"
        loop.call_at(self._next_attempt_at, answer, timed_out, context=self.network.context)

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream, wait_for_ready in waiting:
            if wait_for_ready:
                self._waiting.append((stream, True))
            else:
                stream.fail_to_connect(self._last_error)

    async def close(self, grace: float | None = None) -> None:
        if self._closed or not self.process.alive:
            return
        if grace:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    while self._streams:
                        await next(iter(self._streams)).done()
        self._closed = True
        for stream in list(self._streams):
            stream.end(_CANCELLED, tell=True)
        self._waiting.clear()
        if self._connection is not None:
            self._connection.lose_client_end("Channel is closed.")
            self.network.tell_server_end(self._connection)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if self._connection is not None and self._connection.client_open:
            return grpc.ChannelConnectivity.READY
        if self._connecting:
            return grpc.ChannelConnectivity.CONNECTING
        if self.network.loop.time() < self._next_attempt_at:
            return grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if try_to_connect:
            self._connect()
        return grpc.ChannelConnectivity.IDLE

    async def channel_ready(self) -> None:
        while self.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:  # noqa: ASYNC110 - virtual time is free
            await asyncio.sleep(0.001)
