"""The port on which a process hands out its metrics: `GET /metrics`, and nothing else.

Whoever reaches the port may be anyone, so there is a bound on everything:

- MAX_CONNECTIONS at a time; one more is closed. Each carries one request, which is there within REQUEST_WITHIN_S and has at
  most MAX_HEAD_BYTES before its empty line and no body. What is not read within ANSWER_WITHIN_S is given up.
- One exposition is made at a time. Requests that come meanwhile get the next one, together, and there is a pause of
  PAUSE_S behind each: whoever asks without end gets a small part of the process.
- On a loopback address the Host header has to name this machine: a page of another site that a browser shows cannot read
  what is here under a name of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, cast

from fencepost_proto.runtime.metrics.exposition import CONTENT_TYPE
from fencepost_proto.transport.streams import Listening, listen

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
MAX_CONNECTIONS: Final = 16
MAX_HEAD_BYTES: Final = 8 * 1024  # of the request line and the headers
REQUEST_WITHIN_S: Final = 5.0
ANSWER_WITHIN_S: Final = 30.0  # from the request, made and read
PAUSE_S: Final = 0.05  # between two expositions

_END_OF_HEAD = b"\r\n\r\n"
_TEXT = "text/plain; charset=utf-8"


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class MetricsListener:
    """Made, started and stopped once. `make` returns the text."""

    def __init__(self, listen_at: str, make: Callable[[], Awaitable[bytes]]) -> None:
        self.address = ""  # host:port, once started
        self.scrapes = 0
        self.on_first_scrape: Callable[[], None] = lambda: None
        self._listen_at = listen_at
        self._make = make
        self._listening: Listening | None = None
        self._connections: dict[_Connection, None] = {}
        self._making: asyncio.Task[bytes] | None = None
        self._next: asyncio.Task[bytes] | None = None

    async def start(self) -> None:
        """Raises OSError where the port is occupied, or the address is not this machine's."""
        self._listening = await listen(self._listen_at, lambda: _Connection(self))
        self.address = self._listening.address

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.abort()
        tasks: list[asyncio.Task[bytes] | asyncio.Task[None]] = []
        tasks += [task for task in (self._making, self._next) if task is not None]
        tasks += [connection.task for connection in self._connections if connection.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- For connections ----

    @property
    def is_loopback(self) -> bool:
        return _is_this_machine(self.address.rpartition(":")[0])

    def opened(self, connection: _Connection) -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections[connection] = None
        return True

    def closed(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    async def exposition(self) -> bytes:
        """Text that was begun after this call. Raises what making it raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._make_next(self._making), name="metrics")
        return await asyncio.shield(self._next)

    async def _make_next(self, before: asyncio.Task[bytes] | None) -> bytes:
        if before is not None:
            await asyncio.wait([before])
            await asyncio.sleep(PAUSE_S)
        self._making, self._next = self._next, None
        self.scrapes += 1
        if self.scrapes == 1:
            self.on_first_scrape()
        return await self._make()


class _Connection(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, listener: MetricsListener) -> None:
        self.task: asyncio.Task[None] | None = None
        self._listener = listener
        self._head = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=0)  # `_drained`: the system has taken all of it
        if not self._listener.opened(self):
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(REQUEST_WITHIN_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.task is not None or self._transport is None:
            return  # nothing is expected behind the request
        self._head += data[: MAX_HEAD_BYTES + 1]
        end = self._head.find(_END_OF_HEAD)
        if end < 0 and len(self._head) <= MAX_HEAD_BYTES:
            return
        self._transport.pause_reading()
        if self._timer is not None:
            self._timer.cancel()
        head = bytes(self._head[:end]) if 0 <= end <= MAX_HEAD_BYTES else None
        self.task = asyncio.get_running_loop().create_task(self._answer(head), name="metrics request")

    def eof_received(self) -> bool:
        return self.task is not None  # a client that is done with sending still reads

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.closed(self)
        self._drained.set()
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, head: bytes | None) -> None:
        transport = self._transport
        assert transport is not None
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                transport.write(await self._response(head))
                await self._drained.wait()
                transport.close()
        except TimeoutError:
            transport.abort()

    async def _response(self, head: bytes | None) -> bytes:
        method = ""
        try:
            method = check_request(head, needs_loopback=self._listener.is_loopback)
            body, status, headers = await self._listener.exposition(), HTTPStatus.OK, [f"Content-Type: {CONTENT_TYPE}"]
        except Refused as refused:
            body, status = f"{refused}\n".encode(), refused.status
            headers = [f"Content-Type: {_TEXT}", *refused.headers]
        except Exception as error:  # one scrape fails, and not the process
            log.error("metrics could not be made", exc_info=error)
            body, status = b"the metrics could not be made; the log says why\n", HTTPStatus.INTERNAL_SERVER_ERROR
            headers = [f"Content-Type: {_TEXT}"]
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            *headers,
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        return "\r\n".join(lines).encode("ascii") + _END_OF_HEAD + (b"" if method == "HEAD" else body)


def check_request(head: bytes | None, *, needs_loopback: bool) -> str:
    """The method of a request for the metrics: GET or HEAD. `head`: everything before the empty line; None: it was too long.

    Raises Refused for any other request.
    """
    if head is None:
        raise Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a request line and headers of more than {MAX_HEAD_BYTES} bytes",
        )
    try:
        request_line, *lines = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise Refused(HTTPStatus.BAD_REQUEST, "a request with bytes that are not ASCII") from None
    words = request_line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(HTTPStatus.BAD_REQUEST, f"no request of HTTP/1.1: {request_line[:100]!r}")
    method, target, version = words
    if method not in ("GET", "HEAD"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"method {method[:20]!r}: only GET and HEAD", "Allow: GET, HEAD")
    headers = _headers(lines)
    hosts = headers.get("host", [])
    if len(hosts) > 1 or (not hosts and version == "HTTP/1.1"):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{len(hosts)} Host headers: one is needed")
    if "transfer-encoding" in headers or any(length != "0" for length in headers.get("content-length", [])):
        raise Refused(HTTPStatus.BAD_REQUEST, "a request for the metrics has no body")
    if needs_loopback and hosts and not _is_this_machine(_host_of(hosts[0])):
        raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"Host {hosts[0][:100]!r} is not this machine's loopback address")
    if target.partition("?")[0] != PATH:
        raise Refused(HTTPStatus.NOT_FOUND, f"{target[:100]!r} is not here: {PATH} is")
    return method


def _headers(lines: list[str]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Refused(HTTPStatus.BAD_REQUEST, f"no header: {line[:100]!r}")
        headers.setdefault(name.lower(), []).append(value.strip())
    return headers


def _host_of(host_header: str) -> str:
    """Without the port."""
    if host_header.startswith("["):
        return host_header.partition("]")[0] + "]"
    return host_header.partition(":")[0]


def _is_this_machine(host: str) -> bool:
    name = host.removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
