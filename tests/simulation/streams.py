"""Byte streams between simulated processes: what an asyncio program gets from `create_server` and `create_connection`.

A byte stream is a `Connection` of the network like any other: cuts hold it up, resets break it, keep-alive gives it up.
Bytes arrive in order, in pieces as they were written or split at a seeded place: no protocol may rely on either.

What is written and has not been consumed at the far end counts as the writer's: up to a window it is the kernel's, and
beyond that it is in the transport's buffer, whose bounds pause and resume the protocol as asyncio's do.

The protocol's methods run in callbacks of its own process: a paused one is not called, a dead one never again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from tests.simulation.loop import current_process
from tests.simulation.network import HEADER_BYTES, Connection, End, Pipe, node_of
from tests.simulation.process import SimProcess

if TYPE_CHECKING:
    from tests.simulation.network import Network

HIGH_WATER_BYTES = 64 * 1024
SPLIT = 0.1  # of the writes arrive in two pieces
SYN_AGAIN_S = 1.0  # after which a connection is asked for again; each time twice as long
_END = object()  # of the stream, as an item of a pipe


class ByteTap(Protocol):
    """Sees what a listening process reads from one connection, and what it writes."""

    def read(self, data: bytes) -> None: ...

    def written(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Socket:
    """What code asks of a listening socket: its name."""

    name: tuple[str, int]

    def getsockname(self) -> tuple[str, int]:
        return self.name


class SimByteServer(asyncio.AbstractServer):
    """A listening process and the protocols that its connections get."""

    def __init__(self, network: Network, process: SimProcess, host: str, port: int, factory: Callable[[], Any]) -> None:
        self.network = network
        self.process = process
        self.address = f"{host}:{port}"
        self.make_protocol = factory
        self.sockets = (_Socket((host, port)),)
        self._serving = True

    def close(self) -> None:
        if self._serving:
            self._serving = False
            self.network.byte_listeners.pop(self.address, None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.network.loop

    def is_serving(self) -> bool:
        return self._serving

    async def start_serving(self) -> None: ...

    async def serve_forever(self) -> None:
        raise NotImplementedError("the simulation's servers serve from the start")

    async def wait_closed(self) -> None: ...


class SimTransport(asyncio.Transport, End):
    """One end of a byte stream."""

    def __init__(self, process: SimProcess, connection: Connection, names: dict[str, Any]) -> None:
        super().__init__(names)
        self._process = process
        self._connection = connection
        self._network = connection.network
        self.peer: SimTransport | None = None
        self._pipe: Pipe | None = None  # to the far end
        self._protocol: Any = None
        self._arrived: deque[bytes] = deque()
        self._ended = False  # the far end sends no more
        self._unconsumed = 0  # written, and not consumed at the far end
        self._paused_writing = False
        self._paused_reading = False
        self._closing = False
        self._lost = False
        self._loss: Exception | None = None
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self.tap: ByteTap | None = None  # of a listening process's end

    @property
    def client(self) -> SimProcess:
        """Who has made the connection."""
        return self._connection.client

    def join(self, peer: SimTransport, pipe: Pipe) -> None:
        self.peer, self._pipe = peer, pipe

    def begin(self, protocol: Any) -> None:
        """Called in the process of this end."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._lost:  # while this end's `connection_made` was due
            self._call(protocol.connection_lost, self._loss)
        self._deliver()

    def _call(self, method: Callable[..., Any], *args: Any) -> None:
        """In the process that this end belongs to."""
        self._network.loop.call_soon(method, *args, context=self._process.context())

    # ---- From the network ----

    def receive(self, item: Any) -> None:
        if self._lost or self._closing:
            if item is not _END:
                self._consume(item)
            return
        if item is _END:
            self._ended = True
        else:
            self._arrived.append(item)
        self._call(self._deliver)

    def _deliver(self) -> None:
        if self._protocol is None:
            return  # the other end was quicker than this one's `connection_made`
        while self._arrived and not self._paused_reading and not self._lost and not self._closing:
            data = self._arrived.popleft()
            self._consume(data)
            if self.tap is not None:
                self.tap.read(data)
            self._protocol.data_received(data)
        if self._ended and not self._arrived and not self._lost and not self._closing:
            self._ended = False
            if not self._protocol.eof_received():
                self.close()

    def _consume(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.consumed(len(data))

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        if self._paused_writing and self.get_write_buffer_size() <= self._low:
            self._paused_writing = False
            self._call(self._protocol.resume_writing)
        if self._closing and self.get_write_buffer_size() == 0:
            self._finish(None)

    def connection_lost(self, details: str) -> None:
        self._finish(ConnectionResetError(details))

    def _finish(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._loss = error
        self._arrived.clear()
        if self._protocol is not None:
            self._call(self._protocol.connection_lost, error)

    # ---- asyncio.Transport ----

    def write(self, data: Any) -> None:
        self._process.check_alive()
        if self._closing or self._lost or not len(data):
            return
        data = bytes(data)
        if self.tap is not None:
            self.tap.written(data)
        chance = self._network.random
        cut = chance.randrange(len(data)) if chance.random() < SPLIT else 0
        for piece in (data[:cut], data[cut:]):
            if piece:
                self._unconsumed += len(piece)
                assert self._pipe is not None
                self._pipe.put(piece, len(piece) + HEADER_BYTES)
        if not self._paused_writing and self.get_write_buffer_size() > self._high:
            self._paused_writing = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return max(0, self._unconsumed - self._network.window_bytes)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else (4 * low if low is not None else HIGH_WATER_BYTES)
        self._low = low if low is not None else self._high // 4

    def can_write_eof(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return not self._paused_reading and not self._closing

    def pause_reading(self) -> None:
        self._paused_reading = True

    def resume_reading(self) -> None:
        if self._paused_reading:
            self._paused_reading = False
            self._call(self._deliver)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What has been written still arrives; then the far end reads the end of the stream."""
        if self._closing:
            return
        self._closing = True
        assert self._pipe is not None
        self._pipe.put(_END)
        for data in self._arrived:
            self._consume(data)
        self._arrived.clear()
        if self.get_write_buffer_size() == 0:
            self._finish(None)
        self._leave()

    def abort(self) -> None:
        if self._lost:
            return
        self._finish(None)
        self._network.reset_connection(self._connection)

    def _leave(self) -> None:
        """This end takes part in nothing more; the connection goes once both have left."""
        connection = self._connection
        if connection.client is self._process and connection.client_ends.pop(0, None) is not None:
            connection.lose_client_end("closed")
        elif connection.server_ends.pop(0, None) is not None:
            connection.lose_server_end("closed")

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol


class ByteStreams:
    """What the loop's `create_server` and `create_connection` do."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._next_port = 50_000

    def _process(self) -> SimProcess:
        process = current_process.get()
        assert isinstance(process, SimProcess), "a byte stream belongs to a process"
        process.check_alive()
        return process

    async def create_server(self, factory: Callable[[], Any], host: str, port: int) -> SimByteServer:
        process = self._process()
        server = SimByteServer(self._network, process, host, port or self._network.free_port(host), factory)
        if server.address in self._network.byte_listeners:
            raise OSError(f"cannot listen on {server.address}: the port is occupied")
        self._network.byte_listeners[server.address] = server
        return server

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        process = self._process()
        network = self._network
        address = f"{host}:{port}"
        there, back = network.link(process.node, node_of(address)), network.link(node_of(address), process.node)
        answered: asyncio.Future[SimTransport] = network.loop.create_future()

        def answer(transport: SimTransport | None) -> None:
            if answered.done():
                if transport is not None:
                    transport.abort()
            elif transport is None:
                answered.set_exception(ConnectionRefusedError(f"{address} refuses the connection"))
            else:
                answered.set_result(transport)

        def arrived(again_s: float = SYN_AGAIN_S) -> None:
            if node_of(address) in network.dark_nodes:  # as TCP does, until the caller gives up
                if not answered.done() and process.alive:
                    network.loop.call_later(again_s, lambda: there.send(lambda: arrived(2 * again_s)))
                return
            server = network.byte_listeners.get(address)
            if not process.alive:
                return
            if server is None:
                back.send(lambda: answer(None))
                return
            transport = self._establish(process, server, address)
            back.send(lambda: answer(transport))

        there.send(arrived)
        transport = await answered
        protocol = factory()
        transport.begin(protocol)
        return transport, protocol

    def _establish(self, process: SimProcess, server: SimByteServer, address: str) -> SimTransport:
        network = self._network
        connection = Connection(network, process, cast(Any, server))
        network.connections[connection.number] = connection
        self._next_port += 1
        client_name, server_name = (process.node, self._next_port), server.sockets[0].getsockname()
        client = SimTransport(process, connection, {"peername": server_name, "sockname": client_name})
        accepted = SimTransport(server.process, connection, {"peername": client_name, "sockname": server_name})
        window = network.window_bytes
        client.join(accepted, Pipe(connection, connection.to_server, window, accepted.receive))
        if network.tap_of is not None and server_name[1] == network.tapped_port:
            accepted.tap = network.tap_of(server.process, process)
        accepted.join(client, Pipe(connection, connection.to_client, window, client.receive))
        connection.client_ends[0] = client
        connection.server_ends[0] = accepted
        network.loop.call_soon(lambda: accepted.begin(server.make_protocol()), context=server.process.context())
        network.check_silence(connection)
        return client
