"""Byte streams: the seam between this code and the network for protocols that are not gRPC.

Both functions use the running event loop's own transports. The simulation's loop has the same two methods
(`create_server`, `create_connection`) over its in-memory network, so nothing here or above it is replaced there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

P = TypeVar("P", bound=asyncio.BaseProtocol)

BACKLOG = 1_024  # connections that wait for their `connection_made`


@dataclass(frozen=True, slots=True)
class Listening:
    """A port that is listened on. Connections that it has made live on after `close`."""

    server: asyncio.AbstractServer
    address: str  # host:port, with the real port

    def close(self) -> None:
        """Accept no more connections."""
        self.server.close()


Listen = Callable[[str, Callable[[], asyncio.BaseProtocol]], Awaitable[Listening]]  # as `listen`


async def listen(address: str, make_protocol: Callable[[], asyncio.BaseProtocol]) -> Listening:
    """Listen at host:port (port 0: any free one); each connection gets a protocol of its own.

    Raises OSError where the port is occupied, or the address is not this machine's.
    """
    host, port = split_address(address)
    server = await asyncio.get_running_loop().create_server(make_protocol, host, port, backlog=BACKLOG)
    real_port = server.sockets[0].getsockname()[1]
    return Listening(server, f"{address.rpartition(':')[0]}:{real_port}")


async def connect(address: str, make_protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    """One connection to host:port. Raises OSError where it is refused or the host is not known."""
    host, port = split_address(address)
    return await asyncio.get_running_loop().create_connection(make_protocol, host, port)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of host:port; an IPv6 address loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
