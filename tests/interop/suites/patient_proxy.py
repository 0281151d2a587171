"""A proxy before each broker's Kafka port, at which connections to a broker that is down wait until it is back, as where a
whole host is down and not one process of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.ports import LOOPBACK

_LOOK_S = 0.01
_CHUNK_BYTES = 1 << 16


@contextlib.asynccontextmanager
async def patient_proxies(cluster: AsyncLocalCluster) -> AsyncIterator[str]:
    """One before each broker of a cluster that is not up yet, which will advertise it. Yields their addresses."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for broker in cluster.broker_ids:
            member = cluster.member(broker)
            member.kafka_advertised = await stack.enter_async_context(patient_proxy(member.kafka_port))
            addresses.append(member.kafka_advertised)
        yield ",".join(addresses)


@contextlib.asynccontextmanager
async def patient_proxy(broker_port: int) -> AsyncIterator[str]:
    """Yields its address. Connections that are open end with the block."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        broker_out: asyncio.StreamWriter | None = None
        try:
            broker_in, broker_out = await _connect(broker_port)
            passing = [asyncio.create_task(_pass(*ends)) for ends in ((client_in, broker_out), (broker_in, client_out))]
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in passing:
                    direction.cancel()
                await asyncio.wait(passing)
        finally:
            for writer in (client_out, broker_out):
                if writer is not None:
                    writer.transport.abort()
            connections.discard(task)

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            await asyncio.sleep(_LOOK_S)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until one side is gone, and so the other is to go."""
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
