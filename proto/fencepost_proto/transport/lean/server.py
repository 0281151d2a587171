"""The server's side: services behind generated code, with the surface of grpc.aio.Server that it uses.

A handler runs in a task of its own, which the server owns. It gets a `Context`, with the surface of
grpc.aio.ServicerContext, and requests that `malformed.refusing` has checked, as on the other wires. When the client is
gone (`link.py`) its task is cancelled, once; whatever it writes after that raises CallIsOver. An exception is a status
UNKNOWN and a traceback in the log.

Bounds: MAX_CONNECTIONS; MAX_CALLS of one; MAX_UNREAD_BYTES of requests that have come, or have begun to, and were not read
by handlers, of all connections: beyond it the connection that holds most is ended.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import grpc

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.transport import streams
from fencepost_proto.transport.client_ids import client_id_in
from fencepost_proto.transport.latencies import CARRIER, LEAN
from fencepost_proto.transport.lean import frames
from fencepost_proto.transport.lean.frames import EndOfCall, Frame, MalformedFrame, Start
from fencepost_proto.transport.lean.link import MAX_CALLS, CallEnd, Link, OtherProtocol
from fencepost_proto.transport.malformed import refusing

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 4_000
MAX_UNREAD_BYTES: Final = 256 * 1024 * 1024
CLOSE_WITHIN_S: Final = 0.2  # for what is written to be taken, when a server stops

_CANCELLED: Final = EndOfCall(grpc.StatusCode.CANCELLED.value[0], "the handler was cancelled")


class CallIsOver(grpc.aio.BaseError):
    """Nothing more can be read or written: the client is gone, or the call was answered."""


class Aborted(grpc.aio.AbortError):
    """Raised by `Context.abort`: ends the handler."""


class ServerCall(CallEnd):
    """One call at the server."""

    def __init__(self, start: Start, deadline: float | None) -> None:
        super().__init__()
        self.start = start
        self.deadline = deadline
        self.gone = False  # the client
        self.answered = False  # a status was sent
        self.half_closed = False
        self.task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self.give_up)

    @property
    def is_over(self) -> bool:
        return self.gone or self.answered

    @property
    def no_more_messages(self) -> bool:
        return self.gone or self.answered or self.half_closed

    def over_error(self) -> BaseException:
        return CallIsOver("the client is gone" if self.gone else "the call was answered")

    def lost(self, reason: str) -> None:
        self.give_up()

    def half_close(self) -> None:
        self.half_closed = True
        self.wake_reader()

    def answer(self, end: EndOfCall) -> None:
        """Send the status. Nothing where the client is gone."""
        if self.is_over:
            return
        self.answered = True
        assert self.link is not None
        self.link.send(frames.status(self.number, end))
        self._leave()

    def give_up(self) -> None:
        """The client is gone: cancel the handler."""
        if self.is_over:
            return
        self.gone = True
        self._leave()
        if self.task is not None:
            self.task.cancel()

    def break_off(self, end: EndOfCall) -> None:
        """The server stops: the client gets a status, the handler ends as if the client were gone."""
        if not self.is_over:
            assert self.link is not None
            self.link.send(frames.status(self.number, end))
            self.give_up()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.leave()


class Context:
    """What a handler is given."""

    def __init__(self, call: ServerCall, handler: Any) -> None:
        self.abort_error: Aborted | None = None
        self._call = call
        self._deserialize = handler.request_deserializer
        self._serialize = handler.response_serializer
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: frames.Metadata = frames.NO_METADATA

    def check(self) -> None:
        """Raises where nothing more may be said."""
        if self.abort_error is not None:
            raise self.abort_error
        if self._call.answered:
            raise CallIsOver("the call was answered")

    async def read(self) -> Any:
        """The next request; grpc.aio.EOF: none comes."""
        self.check()
        data = await self._call.next_message()
        if data is None:
            return grpc.aio.EOF
        return data if self._deserialize is None else self._deserialize(data)

    async def write(self, message: Any) -> None:
        """Returns when the message is on its way. Raises CallIsOver."""
        self.check()
        data = message if self._serialize is None else self._serialize(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise CallIsOver(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are sent")
        await self._call.send_message(data)

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.check()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self.check()
        if code is grpc.StatusCode.OK:
            raise grpc.aio.UsageError("abort() with the status OK")
        trailing = frames.check_metadata(trailing_metadata)
        self.abort_error = Aborted(f"aborted with {code.name}")
        self._call.answer(EndOfCall(code.value[0], details, trailing))
        raise self.abort_error

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._trailing = frames.check_metadata(metadata)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> frames.Metadata:
        return self._trailing

    def invocation_metadata(self) -> frames.Metadata:
        return self._call.start.metadata

    def peer(self) -> str:
        assert self._call.link is not None
        return self._call.link.peer_name

    def time_remaining(self) -> float | None:
        deadline = self._call.deadline
        return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())

    def cancelled(self) -> bool:
        return self._call.gone

    def done(self) -> bool:
        return self._call.is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        assert self._call.task is not None
        self._call.task.add_done_callback(lambda _: callback(self))

    def end_of_call(self) -> EndOfCall:
        return EndOfCall(self._code.value[0], self._details, self._trailing)


class _Requests:
    """The request iterator of a handler that streams requests."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class ServerLink(Link):
    """One client's connection."""

    def __init__(self, server: LeanServer) -> None:
        super().__init__()
        self.unread_bytes = 0
        self.running = 0  # handlers that have not ended
        self.client = ""  # what it calls itself
        self._server = server
        self._last_number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.link_made(self)

    def take(self, frame: Frame) -> None:
        kind, number, payload = frame
        if kind == frames.START:
            if number <= self._last_number:
                raise MalformedFrame(f"call {number} begins after call {self._last_number}")
            self._last_number = number
            self.check_unwritten()
            start = frames.read_start(payload)
            if start.metadata:
                self.client = client_id_in(start.metadata)
            self._server.begin(self, number, start)
        elif kind == frames.HALF_CLOSE:
            if isinstance(call := self.calls.get(number), ServerCall):
                call.half_close()
        elif kind == frames.CANCEL:
            if isinstance(call := self.calls.get(number), ServerCall):
                call.give_up()
        else:
            raise MalformedFrame(f"a frame of kind {kind} from a client")

    def came(self, cost: int) -> None:
        super().came(cost)
        self.unread_bytes += cost
        self._server.unread(self, cost)

    def consumed(self, cost: int) -> None:
        super().consumed(cost)
        self.unread_bytes -= cost
        self._server.unread(self, -cost)

    def held(self, change: int) -> None:
        self.unread_bytes += change
        self._server.unread(self, change)

    def ended(self, error: Exception) -> None:
        self._server.link_ended(self)
        if isinstance(error, (MalformedFrame, OtherProtocol)):
            log.warning("connection ended peer=%s client=%r reason=%s", self.peer_name, self.client, error)


class LeanServer:
    """Services on a port, or on connections that another listener hands over (`make_link`)."""

    def __init__(self) -> None:
        self._generic: list[Any] = []
        self._handlers: dict[str, Any] = {}  # as registered
        self._checked: dict[str, Any] = {}  # by method, wrapped; None: there is no such method
        self._links: dict[ServerLink, None] = {}
        self._running: dict[asyncio.Task[None], ServerCall] = {}
        self._unread_bytes = 0
        self._listening: streams.Listening | None = None
        self._stopping = False
        self._stopped = asyncio.Event()

    # ---- What `serve` and the generated code call ----

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        for method, handler in handlers.items():
            self._handlers[f"/{service_name}/{method}"] = handler

    async def listen(self, address: str) -> int:
        """Returns the port. Raises OSError where it is occupied, or the address is not this machine's."""
        self._listening = await streams.listen(address, self.make_link)
        return streams.split_address(self._listening.address)[1]

    def make_link(self) -> ServerLink:
        """The protocol of one connection."""
        return ServerLink(self)

    async def start(self) -> None:
        """Nothing: connections are served from `listen` on."""

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, let running ones end within `grace` seconds, then break them, and close every connection."""
        self._stopping = True
        if self._listening is not None:
            self._listening.close()
        for link in list(self._links):
            link.send(frames.frame(frames.GOODBYE, 0))
        if grace and self._running:
            await asyncio.wait(list(self._running), timeout=grace)
        end = EndOfCall(grpc.StatusCode.UNAVAILABLE.value[0], "Cancelling all calls")
        for call in list(self._running.values()):
            call.break_off(end)
        if self._running:
            await asyncio.wait(list(self._running))
        await self._close_links()
        self._stopped.set()

    async def _close_links(self) -> None:
        links = list(self._links)
        for link in links:
            link.close()
        if links:
            await asyncio.wait([link.gone for link in links], timeout=CLOSE_WITHIN_S)
        for link in links:
            link.abort()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """False: the server has stopped. True: it has not within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # ---- Connections ----

    def link_made(self, link: ServerLink) -> None:
        if self._stopping or len(self._links) >= MAX_CONNECTIONS:
            link.end(ConnectionError(f"{MAX_CONNECTIONS} connections are the most"))
        else:
            self._links[link] = None

    def link_ended(self, link: ServerLink) -> None:
        self._links.pop(link, None)

    def close_peer(self, peer: str, reason: str) -> bool:
        """End that connection, with one line in the log; False: there is none with that name."""
        for link in self._links:
            if link.peer_name == peer:
                log.warning("connection ended peer=%s reason=%s", peer, reason)
                link.end(ConnectionError(reason))
                return True
        return False

    def unread(self, link: ServerLink, change: int) -> None:
        self._unread_bytes += change
        if change > 0 and self._unread_bytes > MAX_UNREAD_BYTES:
            most = max(self._links, key=lambda other: other.unread_bytes, default=link)
            log.warning(
                "connection ended peer=%s client=%r reason=%d bytes unread",
                most.peer_name,
                most.client,
                most.unread_bytes,
            )
            most.end(ConnectionError("too many requests wait"))

    # ---- Calls ----

    def begin(self, link: ServerLink, number: int, start: Start) -> None:
        """A client begins a call."""
        refusal = self._refusal(link)
        handler = self._handler(start.method) if refusal is None else None
        if handler is None:
            unimplemented = EndOfCall(grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!")
            link.send(frames.status(number, refusal or unimplemented))
            return
        loop = asyncio.get_running_loop()
        deadline = None if start.timeout_ms is None else loop.time() + start.timeout_ms / 1000
        call = ServerCall(start, deadline)
        call.join(link, number)
        link.running += 1
        call.task = loop.create_task(self._run(call, handler), name=f"rpc {start.method}")
        self._running[call.task] = call
        call.task.add_done_callback(self._ended)

    def _refusal(self, link: ServerLink) -> EndOfCall | None:
        unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
        if self._stopping:
            return EndOfCall(unavailable, "Server is shutting down")
        if link.running >= MAX_CALLS:
            return EndOfCall(unavailable, f"{MAX_CALLS} calls of one connection are the most")
        return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        call = self._running.pop(task)
        assert isinstance(call.link, ServerLink)
        call.link.running -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a handler ended unforeseen method=%s", call.start.method, exc_info=error)

    def _handler(self, method: str) -> Any:
        if method in self._checked:
            return self._checked[method]
        handler = self._handlers.get(method)
        if handler is None:
            details = SimpleNamespace(method=method, invocation_metadata=())
            found = (generic.service(details) for generic in self._generic)
            handler = next((each for each in found if each is not None), None)
        if handler is None:
            return None  # not remembered: any number of names may be asked for
        self._checked[method] = checked = refusing(method, handler)
        return checked

    def make_context(self, call: ServerCall, handler: Any) -> Context:
        """What the handler of a call is given."""
        return Context(call, handler)

    async def _run(self, call: ServerCall, handler: Any) -> None:
        CARRIER.set(LEAN)
        context = self.make_context(call, handler)
        try:
            await self._handle(call, handler, context)
        except (Aborted, CallIsOver) as error:
            if not call.is_over:
                call.answer(EndOfCall(grpc.StatusCode.INTERNAL.value[0], str(error)))
        except asyncio.CancelledError:
            call.answer(_CANCELLED)
            raise
        except Exception as error:  # as grpc.aio: any exception of a handler becomes a status
            unimplemented = isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED
            if not unimplemented:
                log.exception("unexpected %s in servicer method %s", type(error).__name__, call.start.method)
            code = grpc.StatusCode.UNKNOWN if context.code() is grpc.StatusCode.OK else context.code()
            details = context.details() if unimplemented else f"Unexpected {type(error)}: {error}"
            call.answer(EndOfCall(code.value[0], details))
        else:
            call.answer(context.end_of_call())

    async def _handle(self, call: ServerCall, handler: Any, context: Context) -> None:
        if handler.request_streaming:
            argument: Any = _Requests(context)
            method = handler.stream_stream or handler.stream_unary
        else:
            argument = await context.read()
            method = handler.unary_stream or handler.unary_unary
            if argument is grpc.aio.EOF:
                if not call.gone:
                    await context.abort(grpc.StatusCode.INTERNAL, "the call has no request")
                return
        if not handler.response_streaming:
            response = method(argument, context)
            if inspect.isawaitable(response):
                response = await response
            await context.write(response)
        elif inspect.isasyncgenfunction(method):
            async with aclosing(method(argument, context)) as responses:
                async for response in responses:
                    await context.write(response)
        else:
            result = method(argument, context)
            if inspect.isawaitable(result):
                await result
        if context.abort_error is not None:
            raise context.abort_error
