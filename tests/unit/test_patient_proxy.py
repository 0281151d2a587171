"""The proxy of the interop suites: connections wait for a broker that is down."""

from __future__ import annotations

import asyncio

from fencepost_testing.ports import LOOPBACK
from tests.asynchronous import asynchronous
from tests.interop.suites.patient_proxy import patient_proxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


@asynchronous
async def test_a_connection_waits_until_the_broker_is_back() -> None:
    broker = await asyncio.start_server(echo, LOOPBACK, 0)
    port = broker.sockets[0].getsockname()[1]
    broker.close()
    async with patient_proxy(port) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"are you there?")
        answer = asyncio.create_task(reader.readexactly(14))
        await asyncio.wait([answer], timeout=0.05)
        assert not answer.done()
        broker = await asyncio.start_server(echo, LOOPBACK, port)
        assert await answer == b"are you there?"
        writer.write(b"still?")
        assert await reader.readexactly(6) == b"still?"
        writer.close()
    broker.close()
