"""The proxy that cuts connections after appends, before a server that answers every frame with its correlation id."""

from __future__ import annotations

import asyncio
import struct

import pytest

from fencepost_testing.cutting_proxy import Cuts, CuttingProxy
from fencepost_testing.ports import LOOPBACK
from fencepost_testing.waiting import until
from tests.asynchronous import run

PRODUCE, FETCH = 0, 1
TIMEOUT_S = 10.0


def frame(api_key: int, correlation_id: int) -> bytes:
    return struct.pack(">ihhih", 10, api_key, 9, correlation_id, -1)


class Echo:
    """A broker in so far as it answers in order; it counts what it has been asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                asked = await reader.readexactly(length)
                (correlation_id,) = struct.unpack_from(">i", asked, 4)
                self.asked.append(correlation_id)
                writer.write(struct.pack(">ii", 4, correlation_id))
        except asyncio.IncompleteReadError:
            writer.close()


def test_an_answer_to_produce_is_kept_and_the_connection_cut() -> None:
    async def story() -> None:
        broker, now = Echo(), [0.0]
        await broker.start()
        cuts = Cuts(5.0, clock=lambda: now[0])
        async with CuttingProxy(broker.port, cuts) as proxy:
            reader, writer = await asyncio.open_connection(LOOPBACK, int(proxy.address.split(":")[1]))
            writer.write(frame(PRODUCE, 1))
            assert await reader.readexactly(8) == struct.pack(">ii", 4, 1)
            now[0] = 5.0
            writer.write(frame(FETCH, 2))
            assert await reader.readexactly(8) == struct.pack(">ii", 4, 2)
            writer.write(frame(PRODUCE, 3))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(8)
            now[0] = 50.0
            reader, writer = await asyncio.open_connection(LOOPBACK, int(proxy.address.split(":")[1]))
            writer.write(frame(PRODUCE, 4))
            assert await reader.readexactly(8) == struct.pack(">ii", 4, 4)  # never two in a row
            writer.close()
            assert broker.asked == [1, 2, 3, 4]
            assert cuts.count == 1

    run(story(), TIMEOUT_S)


def test_connections_are_refused_while_the_broker_is_down() -> None:
    async def story() -> None:
        broker = Echo()
        await broker.start()
        async with CuttingProxy(broker.port, Cuts(0)) as proxy:
            port = int(proxy.address.split(":")[1])
            assert broker.server is not None
            broker.server.close()

            async def refused() -> bool:
                try:
                    reader, writer = await asyncio.open_connection(LOOPBACK, port)
                except ConnectionRefusedError:
                    return True
                await reader.read()
                writer.close()
                return False

            await until(refused, "connections are refused", TIMEOUT_S)
            await broker.start()

            async def answered() -> bool:
                try:
                    reader, writer = await asyncio.open_connection(LOOPBACK, port)
                except ConnectionRefusedError:
                    return False
                writer.write(frame(PRODUCE, 7))
                answer = await reader.read(8)
                writer.close()
                return answer == struct.pack(">ii", 4, 7)

            await until(answered, "the proxy listens again", TIMEOUT_S)

    run(story(), TIMEOUT_S)


def test_connections_wait_for_the_broker_where_they_are_not_refused() -> None:
    async def story() -> None:
        broker = Echo()
        await broker.start()
        async with CuttingProxy(broker.port, Cuts(0), refuse=False) as proxy:
            port = int(proxy.address.split(":")[1])
            assert broker.server is not None
            broker.server.close()
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(frame(FETCH, 7))
            answer = asyncio.create_task(reader.readexactly(8))
            await asyncio.wait([answer], timeout=0.05)
            assert not answer.done()
            await broker.start()
            assert await answer == struct.pack(">ii", 4, 7)
            writer.write(frame(FETCH, 7))
            assert await reader.readexactly(8) == struct.pack(">ii", 4, 7)
            writer.close()

    run(story(), TIMEOUT_S)
