"""The client's side: a channel to one address, with the surface of grpc.aio.Channel that generated stubs use.

The channel connects at its first call. A call waits for the connection; where that cannot be made, every waiting call
ends with UNAVAILABLE, and so does each further one until a growing pause is over. A connection that is lost, or whose
server has said GOODBYE, is made again by the next call.

How a call ends: `link.py`. What differs from grpc.aio: a call that was cancelled, by this side or with its channel,
raises AioRpcError with CANCELLED, and CancelledError is raised in a cancelled task only; a write on a call that is over
raises InvalidStateError, also one that was waiting. Initial metadata from the server, compression and credentials are
not carried.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from typing import Any, Final, Generic, TypeVar

import grpc

from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.transport import streams
from fencepost_proto.transport.lean import frames
from fencepost_proto.transport.lean.frames import EndOfCall, Frame, MalformedFrame
from fencepost_proto.transport.lean.link import MAX_CALLS, CallEnd, Link, OtherProtocol

CONNECT_TIMEOUT_S: Final = 5.0
FIRST_PAUSE_S, MOST_PAUSE_S, PAUSE_FACTOR = 0.05, 0.5, 1.6  # between attempts to connect
MAX_CALL_NUMBER: Final = 2**32 - 1

Request = TypeVar("Request")
Response = TypeVar("Response")

CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_OK: Final = grpc.StatusCode.OK


class Status:
    """How a call ended."""

    __slots__ = ("code", "details", "trailing")

    def __init__(self, code: grpc.StatusCode, details: str, trailing: frames.Metadata = frames.NO_METADATA) -> None:
        self.code = code
        self.details = details
        self.trailing = trailing

    def error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            self.code, grpc.aio.Metadata(), grpc.aio.Metadata(*self.trailing), details=self.details
        )


class ClientCall(CallEnd):
    """The state of one call; the application holds a `Call`."""

    def __init__(self, start: frames.Start, deadline: float | None) -> None:
        super().__init__()
        self.start = start
        self.deadline = deadline
        self.status: Status | None = None
        self.half_closed = False
        self.early: list[bytes] | None = []  # messages given before there was a connection
        self.on_done: list[Callable[[], None]] = []
        self._final: Status | None = None  # has come; takes hold when all messages are read
        self._begun: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            self._timer = self.loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self.finish(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), tell=True)

    # ---- CallEnd ----

    @property
    def is_over(self) -> bool:
        return self.status is not None or self._final is not None

    @property
    def no_more_messages(self) -> bool:
        return self.is_over

    def over_error(self) -> BaseException:
        return asyncio.InvalidStateError("the call is over")

    def lost(self, reason: str) -> None:
        self.finish(Status(grpc.StatusCode.UNAVAILABLE, f"connection lost: {reason}"))

    # ---- From the connection ----

    def begin(self, link: Link, number: int) -> None:
        """The connection is there."""
        self.join(link, number)
        link.send(frames.start(number, self.start))
        early, self.early = self.early or [], None
        for data in early:  # of calls with one request, which is small beside a window that is not used yet
            self.spend(link, data)
            link.send(*frames.message(number, data))
        if self.half_closed:
            link.send(frames.frame(frames.HALF_CLOSE, number))
        self._wake_begun()

    def ended_by_server(self, said: EndOfCall) -> None:
        code = CODES.get(said.code, grpc.StatusCode.UNKNOWN)
        self._final = Status(code, said.details, said.metadata)
        if not self.arrived:
            self.finish(self._final)
        else:
            self.wake_writer()

    def finish(self, status: Status, *, tell: bool = False) -> None:
        """The call is over. `tell`: the server does not know yet."""
        if self.status is not None:
            return
        self.status = status
        if self._timer is not None:
            self._timer.cancel()
        link = self.link
        if tell and link is not None and self._final is None and self.number in link.calls:
            link.send(frames.frame(frames.CANCEL, self.number))
        self.early = None
        self.leave()
        if isinstance(link, ClientLink):
            link.call_left()
        self._wake_begun()
        callbacks, self.on_done = self.on_done, []
        for callback in callbacks:
            callback()

    def _wake_begun(self) -> None:
        waiting, self._begun = self._begun, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # ---- From the application ----

    async def begun(self) -> None:
        """Returns when the call has a connection, or is over."""
        while self.link is None and self.status is None:
            future: asyncio.Future[None] = self.loop.create_future()
            self._begun.append(future)
            await future

    async def done(self) -> Status:
        """Returns when the call is over."""
        if self.status is None:
            future: asyncio.Future[None] = self.loop.create_future()
            self.on_done.append(lambda: None if future.done() else future.set_result(None))
            await future
        assert self.status is not None
        return self.status

    async def read(self) -> bytes | None:
        data = await self.next_message()
        if not self.arrived and self._final is not None:
            self.finish(self._final)
        return data

    async def write(self, data: bytes) -> None:
        if self.link is None:
            await self.begun()
            if self.link is None and self.status is not None:
                raise self.status.error()
        await self.send_message(data)

    def half_close(self) -> None:
        if not self.half_closed:
            self.half_closed = True
            if self.link is not None and not self.is_over:
                self.link.send(frames.frame(frames.HALF_CLOSE, self.number))


class Call(Generic[Request, Response]):
    """What a stub's method returns, of any of the four shapes."""

    def __init__(
        self,
        end: ClientCall,
        serialize: Callable[[Any], bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
        request_iterator: Any = None,
        *,
        may_write: bool,
    ) -> None:
        self._end = end
        self._serialize = serialize
        self._deserialize = deserialize
        self._may_write = may_write
        self._sender: asyncio.Task[None] | None = None
        if request_iterator is not None:
            self._sender = asyncio.get_running_loop().create_task(self._send_all(request_iterator))
            end.on_done.append(self._stop_sending)

    def __del__(self) -> None:
        end = getattr(self, "_end", None)
        if end is not None and end.status is None and not end.loop.is_closed():
            end.finish(Status(grpc.StatusCode.CANCELLED, "no one holds the call any more"), tell=True)

    def _stop_sending(self) -> None:
        if self._sender is not None:
            self._sender.cancel()

    # ---- State ----

    def done(self) -> bool:
        return self._end.status is not None

    @property
    def has_begun(self) -> bool:
        """Something of it may have been sent."""
        return self._end.link is not None

    def cancelled(self) -> bool:
        status = self._end.status
        return status is not None and status.code is grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        if self._end.status is not None:
            return False
        self._end.finish(Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"), tell=True)
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.done():
            callback(self)
        else:
            loop = asyncio.get_running_loop()

            def schedule() -> None:
                loop.call_soon(callback, self)

            self._end.on_done.append(schedule)

    def time_remaining(self) -> float | None:
        deadline = self._end.deadline
        return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())

    async def code(self) -> grpc.StatusCode:
        return (await self._end.done()).code

    async def details(self) -> str:
        return (await self._end.done()).details

    async def debug_error_string(self) -> str:
        return (await self._end.done()).details

    async def initial_metadata(self) -> grpc.aio.Metadata:
        await self._end.begun()
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await self._end.done()).trailing)

    async def wait_for_connection(self) -> None:
        await self._end.begun()
        if self.done():
            self._raise_for_status()

    def _raise_for_status(self) -> None:
        status = self._end.status
        assert status is not None
        if status.code is not _OK:
            raise status.error()

    # ---- The response, or responses ----

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        end = self._end
        try:
            data = await end.read()
            status = end.status or await end.done()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        if data is None:
            raise Status(grpc.StatusCode.INTERNAL, f"no response, and status {status.code}").error()
        return self._message(data)

    def _message(self, data: bytes) -> Any:
        return data if self._deserialize is None else self._deserialize(data)

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF after the last one. Raises AioRpcError where the call failed."""
        try:
            data = await self._end.read()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if data is not None:
            return self._message(data)
        self._raise_for_status()
        return grpc.aio.EOF

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    # ---- Requests ----

    async def write(self, request: Any) -> None:
        """Returns when the request is on its way. Raises AioRpcError where the call never began, InvalidStateError where
        it is over."""
        if not self._may_write or self._sender is not None:
            raise grpc.aio.UsageError("this call's requests were given when it began")
        await self._write(request)

    async def _write(self, request: Any) -> None:
        end = self._end
        if end.half_closed:
            raise asyncio.InvalidStateError("a write after done_writing")
        data = request if self._serialize is None else self._serialize(request)
        if len(data) > MAX_MESSAGE_BYTES:
            reason = f"a request of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are sent"
            end.finish(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, reason), tell=True)
            self._raise_for_status()
        try:
            await end.write(data)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def done_writing(self) -> None:
        if not self.done():
            self._end.half_close()

    async def _send_all(self, requests: Any) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    await self._write(request)
            else:
                for request in requests:
                    await self._write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over, and says so to whoever reads it
        self._end.half_close()


class ClientLink(Link):
    """A channel's connection."""

    def __init__(self, on_ended: Callable[[ClientLink, Exception], None]) -> None:
        super().__init__()
        self.is_leaving = False  # no call begins on it any more
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._on_ended = on_ended
        self._last_number = 0

    def begin(self, call: ClientCall) -> None:
        self._last_number += 1
        call.begin(self, self._last_number)

    @property
    def takes_calls(self) -> bool:
        return not self.is_leaving and not self.over and self._last_number < MAX_CALL_NUMBER

    @property
    def has_calls_to_spare(self) -> bool:
        return len(self.calls) < MAX_CALLS

    def call_left(self) -> None:
        if self.is_leaving and not self.calls:
            self.close()

    def was_greeted(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    @property
    def needs_peer(self) -> bool:
        return bool(self.calls)

    def take(self, frame: Frame) -> None:
        kind, number, payload = frame
        if kind == frames.STATUS:
            call = self.calls.get(number)
            if call is None and number > self._last_number:
                raise MalformedFrame(f"the end of call {number}; {self._last_number} have begun")
            if call is not None:
                assert isinstance(call, ClientCall)
                call.ended_by_server(frames.read_status(payload))
        elif kind == frames.GOODBYE:
            self.is_leaving = True
            self.call_left()
        else:
            raise MalformedFrame(f"a frame of kind {kind} from a server")

    def ended(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error if isinstance(error, (OSError, OtherProtocol)) else OSError(str(error)))
            self.ready.exception()  # it may be that no one waits for it any more
        self._on_ended(self, error)


class LeanChannel:
    """A channel to host:port. `on_connected` is called when there is a connection, `on_other_protocol` where the peer speaks
    another protocol."""

    def __init__(
        self,
        address: str,
        on_connected: Callable[[], None] = lambda: None,
        on_other_protocol: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self._on_connected = on_connected
        self._on_other_protocol = on_other_protocol
        self._link: ClientLink | None = None
        self._links: dict[ClientLink, None] = {}  # also those that take no more calls
        self._attempt: ClientLink | None = None  # the connection that is being made
        self._waiting: dict[ClientCall, None] = {}  # for a connection
        self._connecting: asyncio.Task[None] | None = None
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._reason = ""  # why the last attempt failed
        self._closed = False

    async def __aenter__(self) -> LeanChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """End every call with CANCELLED, and the connection."""
        self._closed = True
        status = Status(grpc.StatusCode.CANCELLED, "Channel closed.")
        for call in list(self._waiting):
            call.finish(status)
        for link in list(self._links):
            for end in list(link.calls.values()):
                assert isinstance(end, ClientCall)
                end.finish(status, tell=True)
            link.close()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])

    # ---- What generated stubs call ----

    def unary_unary(self, method: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
        return self._method(method, False, *serializers, **options)

    def unary_stream(self, method: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
        return self._method(method, False, *serializers, **options)

    def stream_unary(self, method: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
        return self._method(method, True, *serializers, **options)

    def stream_stream(self, method: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
        return self._method(method, True, *serializers, **options)

    def _method(
        self,
        method: str,
        streams_requests: bool,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> Callable[..., Any]:
        def begin(
            request: Any = None,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str | bytes]] | None = None,
            **_: Any,
        ) -> Call[Any, Any]:
            entries = frames.check_metadata(metadata) if metadata else frames.NO_METADATA
            end = self._new_call(method, timeout, entries)
            if streams_requests:
                call: Call[Any, Any] = Call(end, request_serializer, response_deserializer, request, may_write=True)
            else:
                data = request if request_serializer is None else request_serializer(request)
                call = Call(end, request_serializer, response_deserializer, may_write=False)
                end.early = [data]
                end.half_closed = True
                if len(data) > MAX_MESSAGE_BYTES:
                    reason = f"a request of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are sent"
                    end.finish(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, reason))
                    return call
            self._begin(end)
            return call

        return begin

    def _new_call(self, method: str, timeout_s: float | None, metadata: frames.Metadata) -> ClientCall:
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000)
        return ClientCall(frames.Start(method, timeout_ms, metadata), deadline)

    # ---- The connection ----

    def _begin(self, call: ClientCall) -> None:
        link = self._link
        if link is not None and link.takes_calls:
            if link.has_calls_to_spare:
                link.begin(call)
            else:
                call.finish(Status(grpc.StatusCode.UNAVAILABLE, f"{MAX_CALLS} calls of one connection are the most"))
        elif self._connecting is None and asyncio.get_running_loop().time() < self._retry_at:
            call.finish(self._unavailable())
        else:
            self._waiting[call] = None
            call.on_done.append(lambda: self._waiting.pop(call, None) and None)
            if link is not None and not link.takes_calls:
                self._link = None
            self.connect()

    def _unavailable(self) -> Status:
        return Status(grpc.StatusCode.UNAVAILABLE, f"cannot connect to {self.address}: {self._reason}")

    def connect(self) -> None:
        """Make the connection, where there is none, though no call waits for it."""
        if self._connecting is None and self._link is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name=f"lean {self.address}")

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, link = await streams.connect(self.address, self._make_link)
                await link.ready
            if link.over:
                raise ConnectionError(self._reason)
        except (OSError, OtherProtocol) as error:  # TimeoutError is an OSError
            self._failed(error)
        else:
            self._link, self._pause_s, self._retry_at = link, 0.0, 0.0
            self._links[link] = None
            self._on_connected()
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                if call.status is None:
                    self._begin(call)
        finally:
            self._connecting = None
            if self._attempt is not None and self._attempt is not self._link:
                self._attempt.close()
            self._attempt = None

    def _make_link(self) -> ClientLink:
        self._attempt = ClientLink(self._link_ended)
        return self._attempt

    def _failed(self, error: Exception) -> None:
        if isinstance(error, OtherProtocol):
            self._on_other_protocol()
        self._reason = reason_of(error)
        self._pause_s = min(max(FIRST_PAUSE_S, self._pause_s * PAUSE_FACTOR), MOST_PAUSE_S)
        self._retry_at = asyncio.get_running_loop().time() + self._pause_s
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call.finish(self._unavailable())

    def _link_ended(self, link: ClientLink, error: Exception) -> None:
        self._links.pop(link, None)
        if link is self._link:
            self._link = None
            self._reason = str(error)


def reason_of(error: Exception) -> str:
    """Why no connection was made. A refused one has the system's own words, which `connection_refused` looks for."""
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return os.strerror(errno.ECONNREFUSED)
    text = str(error) or type(error).__name__
    # Of a name with several addresses asyncio raises one OSError with the texts of all of them.
    refused, tried = text.count(f"[Errno {errno.ECONNREFUSED}]"), text.count("[Errno ")
    if isinstance(error, OSError) and error.errno is None and 0 < tried == refused:
        return f"{os.strerror(errno.ECONNREFUSED)}: {text}"
    # Anything else is not certain, whatever its text is.
    return text.replace(os.strerror(errno.ECONNREFUSED), "refused")
