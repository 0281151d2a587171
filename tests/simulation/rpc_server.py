"""The server's side of gRPC over the simulated network: what grpc.aio.Server offers, and the servicer's context.

It behaves as grpcio 1.85 was seen to behave (tests/simulation/test_harness_rpc.py runs one test over both):

- when the client is gone (cancelled, dead, cut off), what it had sent and no one had read is lost; a pending read gets a
  plain end of stream; a pending write raises ExecuteBatchError; and a moment later the handler's task is cancelled.
  `cancelled()` says False nevertheless;
- a read that is cancelled swallows the message that it would have got;
- stop(grace) refuses new calls at once and breaks the running ones after the grace, "Cancelling all calls".
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.transport.malformed import refusing
from tests.simulation.network import Connection, End, Network, Pipe, Status
from tests.simulation.process import SimProcess
from tests.simulation.rpc_client import CANCEL, HALF_CLOSE, Start

CANCEL_DELAY_S = 0.000_3  # at most, between a read's end of stream and the handler's cancellation

log = logging.getLogger(__name__)


class ServerStream(End):
    """The state of one call at the server."""

    def __init__(self, server: SimServer, connection: Connection, start: Start) -> None:
        self.server = server
        self.network = server.network
        self.connection = connection
        self.start = start
        self.number = start.stream.number
        self.task: asyncio.Task[None] | None = None
        self.to_client = Pipe(connection, connection.to_client, self.network.window_bytes, start.stream.receive)
        start.stream.to_client = self.to_client
        self.status_sent = False
        self._gone = False
        self._half_closed = False
        self._arrived: deque[bytes] = deque()
        self._reader: asyncio.Future[bytes | None] | None = None
        self._swallow = 0  # messages that cancelled reads will take
        connection.server_ends[self.number] = self

    # ---- From the network ----

    def receive(self, item: Any) -> None:
        if self._gone:
            return
        if item is CANCEL:
            self._break()
        elif item is HALF_CLOSE:
            self._half_closed = True
            self._wake(None)
        elif self._swallow:
            self._swallow -= 1
            self._consumed(item)
        elif self._reader is not None and not self._reader.done():
            self._consumed(item)
            self._wake(item)
        else:
            self._arrived.append(item)

    def connection_lost(self, details: str) -> None:
        self._break()

    def expire(self) -> None:
        if not self.status_sent:
            self._break()

    def break_off(self, status: Status) -> None:
        """The server stops: the client gets `status`, the handler ends as if the client were gone."""
        if not self.status_sent and not self._gone:
            self.to_client.put(status)
            self._break()

    def _break(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._arrived.clear()
        self._wake(None)
        self.to_client.break_off_writer()
        after = self.network.random.random() * CANCEL_DELAY_S
        self.network.loop.call_later(after, self._cancel_task, context=self.network.context)
        self.connection.server_ends.pop(self.number, None)

    def _cancel_task(self) -> None:
        if self.task is not None and not self.task.done() and not self.status_sent:
            self.task.cancel()

    def _wake(self, data: bytes | None) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(data)

    def _consumed(self, data: bytes) -> None:
        if self.start.stream.to_server is not None:
            self.start.stream.to_server.consumed(data)

    # ---- From the handler ----

    @property
    def gone(self) -> bool:
        return self._gone

    async def next_message(self) -> bytes | None:
        if self._arrived:
            data = self._arrived.popleft()
            self._consumed(data)
            return data
        if self._half_closed or self._gone:
            return None
        if self._reader is not None:
            raise cygrpc.UsageError("the simulation allows one reader at a time on a call")
        self._reader = self.network.loop.create_future()
        try:
            return await self._reader
        except asyncio.CancelledError:
            if self._reader.cancelled():
                self._swallow += 1
            raise
        finally:
            self._reader = None

    async def write(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise cygrpc.ExecuteBatchError(f"message of {len(data)} bytes is above the limit of {MAX_MESSAGE_BYTES}")
        if self._gone:
            raise cygrpc.ExecuteBatchError("write to a client that is gone")
        await self.to_client.write(data)

    def send_status(self, status: Status) -> None:
        if not self.status_sent:
            self.status_sent = True
            if not self._gone:
                self.to_client.put(status)
            self.connection.server_ends.pop(self.number, None)


class SimContext:
    """Stands in for grpc.aio.ServicerContext."""

    def __init__(self, stream: ServerStream, deserialize: Callable[[bytes], Any], serialize: Callable[[Any], bytes]):
        self._stream = stream
        self._deserialize = deserialize
        self._serialize = serialize
        self.abort_error: cygrpc.AbortError | None = None
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._tap = stream.network.taps.get(stream.start.method)

    def _check(self) -> None:
        self._stream.server.process.check_alive()
        if self.abort_error is not None:
            raise self.abort_error
        if self._stream.status_sent:
            raise cygrpc.UsageError("RPC already finished.")

    async def read(self) -> Any:
        self._check()
        data = await self._stream.next_message()
        self._check()
        if data is None:
            return grpc.aio.EOF
        message = self._deserialize(data)
        if self._tap is not None:
            self._tap.request(self._stream.server.process, self._stream.connection.client, self._stream, message)
        return message

    async def write(self, message: Any) -> None:
        self._check()
        if self._tap is not None:
            self._tap.response(self._stream.server.process, self._stream.connection.client, self._stream, message)
        await self._stream.write(self._serialize(message))

    async def send_initial_metadata(self, metadata: Any) -> None:
        self._check()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._check()
        if code is grpc.StatusCode.OK:
            raise cygrpc.UsageError("Abort() called with StatusCode.OK")
        self.abort_error = cygrpc.AbortError("Locally aborted.")
        self._stream.send_status(Status(code, details, tuple(trailing_metadata)))
        raise self.abort_error

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._trailing = tuple(metadata)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing

    def invocation_metadata(self) -> Any:
        return self._stream.start.metadata

    def peer(self) -> str:
        return f"sim:{self._stream.connection.client.node}"

    def time_remaining(self) -> float | None:
        deadline = self._stream.start.deadline
        return None if deadline is None else max(0.0, deadline - self._stream.network.loop.time())

    def cancelled(self) -> bool:
        return False  # as seen in grpcio, whatever happened to the client

    def done(self) -> bool:
        return self._stream.status_sent

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        task = self._stream.task
        assert task is not None
        task.add_done_callback(lambda _: callback(self))

    def final_status(self) -> Status:
        return Status(self._code, self._details, self._trailing)


class _Requests:
    """The request iterator of a handler that streams requests."""

    def __init__(self, context: SimContext) -> None:
        self._context = context
        self._messages: AsyncIterator[Any] | None = None

    async def _read(self) -> AsyncIterator[Any]:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            yield message

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._messages is None:
            self._messages = self._read()
        return self._messages

    async def __anext__(self) -> Any:
        return await self.__aiter__().__anext__()


class SimServer:
    """Stands in for grpc.aio.Server (and is none: `serve` offers reflection to real ones only)."""

    def __init__(self, network: Network, process: SimProcess) -> None:
        self.network = network
        self.process = process
        self._generic: list[Any] = []
        self._registered: dict[str, Any] = {}
        self._addresses: list[str] = []
        self._started = False
        self._streams: dict[ServerStream, None] = {}
        self._stopped: asyncio.Event = asyncio.Event()
        self._stopping = False

    # ---- What `serve` and the generated code call ----

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        for method, handler in handlers.items():
            self._registered[f"/{service_name}/{method}"] = handler

    def listen(self, address: str) -> int:
        self.process.check_alive()
        host, _, port_text = address.rpartition(":")
        port = int(port_text) or self.network.free_port(host)
        address = f"{host}:{port}"
        if address in self.network.listeners or address in self._addresses:
            raise OSError(f"cannot listen on {address}: the port is occupied")
        self._addresses.append(address)
        return port

    async def start(self) -> None:
        self.process.check_alive()
        self._started = True
        for address in self._addresses:
            if address in self.network.listeners:
                raise RuntimeError(f"address {address} is already in use")
            self.network.listeners[address] = self

    async def stop(self, grace: float | None) -> None:
        if not self.process.alive:
            return
        self._stopping = True
        for address in self._addresses:
            if self.network.listeners.get(address) is self:
                del self.network.listeners[address]
        if grace and self._streams:
            await asyncio.wait(self._tasks(), timeout=grace)
        for stream in list(self._streams):
            stream.break_off(Status(grpc.StatusCode.UNAVAILABLE, "Cancelling all calls"))
        if self._streams:
            await asyncio.wait(self._tasks())
        for connection in list(self.network.connections.values()):
            if connection.server is self:
                connection.lose_server_end("server stopped")
                self.network.tell_client_end(connection)
        self._stopped.set()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [stream.task for stream in self._streams if stream.task is not None]

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # ---- Calls ----

    def receiver(self, connection: Connection) -> Callable[[Any], None]:
        """Where the items of a new stream of this connection arrive."""
        stream: ServerStream | None = None

        def receive(item: Any) -> None:
            nonlocal stream
            if stream is not None:
                stream.receive(item)
            elif isinstance(item, Start) and connection.server_open:
                stream = self._accept(connection, item)

        return receive

    def _accept(self, connection: Connection, start: Start) -> ServerStream:
        stream = ServerStream(self, connection, start)
        if self._stopping:
            stream.send_status(Status(grpc.StatusCode.UNAVAILABLE, "Server is shutting down"))
            return stream
        handler = self._handler(start.method)
        if handler is None:
            stream.send_status(Status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
            return stream
        stream.task = self.process.spawn(self._run(stream, handler), name=f"rpc {start.method}")
        self._streams[stream] = None
        stream.task.add_done_callback(lambda _: self._streams.pop(stream, None) and None)
        if start.deadline is not None:
            self.network.loop.call_at(start.deadline, stream.expire, context=self.network.context)
        return stream

    def _handler(self, method: str) -> Any:
        if method in self._registered:
            return refusing(method, self._registered[method])
        details = SimpleNamespace(method=method, invocation_metadata=())
        for generic in self._generic:
            if (handler := generic.service(details)) is not None:
                return refusing(method, handler)
        return None

    async def _run(self, stream: ServerStream, handler: Any) -> None:
        context = SimContext(stream, handler.request_deserializer, handler.response_serializer)
        try:
            await self._handle(stream, handler, context)
        except cygrpc.AbortError:
            return
        except asyncio.CancelledError:
            stream.send_status(Status(grpc.StatusCode.CANCELLED, "handler cancelled"))
            raise
        except cygrpc.ExecuteBatchError:
            if not stream.gone:
                raise
        except Exception as error:  # as grpc.aio: any exception of a handler becomes a status
            unimplemented = isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED
            if not unimplemented:
                log.exception("unexpected %s in servicer method %s", type(error).__name__, stream.start.method)
            code = grpc.StatusCode.UNKNOWN if context.code() is grpc.StatusCode.OK else context.code()
            stream.send_status(Status(code, f"Unexpected {type(error)}: {error}"))
        else:
            stream.send_status(context.final_status())

    async def _handle(self, stream: ServerStream, handler: Any, context: SimContext) -> None:
        if handler.request_streaming:
            argument: Any = _Requests(context)
            method = handler.stream_stream or handler.stream_unary
        else:
            argument = await context.read()
            method = handler.unary_stream or handler.unary_unary
            if argument is grpc.aio.EOF:
                return
        if not handler.response_streaming:
            response = method(argument, context)
            if inspect.isawaitable(response):
                response = await response
            await context.write(response)
        elif inspect.isasyncgenfunction(method):
            async for response in method(argument, context):
                await context.write(response)
        else:
            result = method(argument, context)
            if inspect.isawaitable(result):
                await result
        if context.abort_error is not None:
            raise context.abort_error
