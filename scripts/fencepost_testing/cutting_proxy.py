"""A proxy before a broker's Kafka port that cuts connections after an append.

It passes frames on in both directions, and now and then keeps the answer to a Produce request for itself and cuts the
connection: the records are in the log, and the client has to find out. Only the frames' lengths, API keys and
correlation ids are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.ports import LOOPBACK

_LENGTH = struct.Struct(">i")
_REQUEST_START = struct.Struct(">hhi")  # API key, version, correlation id
_CORRELATION_ID = struct.Struct(">i")
_PRODUCE = 0
_MAX_FRAME_BYTES = 128 * 1024 * 1024
_LOOK_S = 0.01


class Cuts:
    """When answers are cut: one every `interval_s` at most, over all proxies that share this. 0: none."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._interval_s = interval_s
        self._clock = clock
        self._next_at = clock() + interval_s

    def take(self) -> bool:
        """Whether the answer at hand is cut."""
        if not self._interval_s or self._clock() < self._next_at:
            return False
        self._next_at = self._clock() + self._interval_s
        self.count += 1
        return True


@contextlib.asynccontextmanager
async def proxies_before(cluster: AsyncLocalCluster, cuts: Cuts, *, refuse: bool = True) -> AsyncIterator[str]:
    """A proxy before each broker of a cluster that is not up yet, which will advertise it. Yields their addresses."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for broker in cluster.broker_ids:
            member = cluster.member(broker)
            proxy = await stack.enter_async_context(CuttingProxy(member.kafka_port, cuts, refuse=refuse))
            member.kafka_advertised = proxy.address
            addresses.append(proxy.address)
        yield ",".join(addresses)


class CuttingProxy:
    """One broker's proxy, on a port of its own during `async with`.

    While the broker is down connections are refused; or, where it is not to `refuse`, they wait until it is back.
    """

    def __init__(self, broker_port: int, cuts: Cuts, *, refuse: bool = True) -> None:
        self.broker_port = broker_port
        self._refuse = refuse
        self._port = 0
        self._cuts = cuts
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None  # for the broker, while it is down
        self._cut_last = False  # then the next answer passes: a client with long pauses would lose every one

    @property
    def address(self) -> str:
        """host:port. Only inside `async with`."""
        return f"{LOOPBACK}:{self._port}"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_listener()
        tasks = [*self._connections, *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self._port)
        self._port = int(self._server.sockets[0].getsockname()[1])

    def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _look_for_broker(self) -> None:
        """Listen again once the broker does."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, self.broker_port)
            except OSError:
                continue
            writer.transport.abort()
            await self._listen()
            self._looking = None
            return

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        broker_out: asyncio.StreamWriter | None = None
        try:
            broker_in, broker_out = await self._connect()
            produces: set[int] = set()
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_requests(client_in, broker_out, produces))
                directions.create_task(self._pass_answers(broker_in, client_out, produces))
        except* (OSError, asyncio.IncompleteReadError, ConnectionCut):
            pass  # one side is gone, and so is the other
        finally:
            for writer in (client_out, broker_out):
                if writer is not None:
                    writer.transport.abort()
            self._connections.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection(LOOPBACK, self.broker_port)
            except OSError:
                if self._refuse:
                    self._close_listener()
                    if self._looking is None:
                        self._looking = asyncio.create_task(self._look_for_broker())
                    raise
            await asyncio.sleep(_LOOK_S)

    async def _pass_requests(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, produces: set[int]
    ) -> None:
        while True:
            frame = await _read_frame(source)
            if len(frame) >= _REQUEST_START.size:
                api_key, _, correlation_id = _REQUEST_START.unpack_from(frame)
                if api_key == _PRODUCE:
                    produces.add(correlation_id)
            await _write_frame(target, frame)

    async def _pass_answers(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, produces: set[int]
    ) -> None:
        while True:
            frame = await _read_frame(source)
            (correlation_id,) = _CORRELATION_ID.unpack_from(frame)
            if correlation_id in produces:
                produces.discard(correlation_id)
                self._cut_last = not self._cut_last and self._cuts.take()
                if self._cut_last:
                    raise ConnectionCut
            await _write_frame(target, frame)


class ConnectionCut(Exception):
    """The proxy's own doing."""


async def _read_frame(source: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await source.readexactly(_LENGTH.size))
    if not 0 <= length <= _MAX_FRAME_BYTES:
        raise ConnectionCut
    return await source.readexactly(length)


async def _write_frame(target: asyncio.StreamWriter, frame: bytes) -> None:
    target.write(_LENGTH.pack(len(frame)) + frame)
    with contextlib.suppress(ConnectionResetError):
        await target.drain()
