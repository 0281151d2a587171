"""The network between simulated processes: links, cuts, connections, and the pipes of their streams.

Theory of operation. A *link* leads from one node to another and back goes another. What is sent over it arrives after a
seeded delay; over a cut link it waits, as TCP's retransmissions would, until the link heals. A *connection* joins a
channel to a server, as one TCP connection does: it has two ends, and each learns on its own of the other's end, by a
message over the link, or by keep-alive after a long silence, or (the machine lost power) by a reset once the machine is
back. A *pipe* is one direction of one stream on a connection: in order, bounded in bytes.

Everything here runs in the network's own context: neither a dead sender nor a paused receiver holds up what is under
way. Only tasks that wait on it belong to processes.
"""

from __future__ import annotations

import random
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from tests.simulation.loop import SimLoop, current_process
from tests.simulation.process import SimProcess, State
from tests.simulation.rates import Rates

if TYPE_CHECKING:
    from tests.simulation.rpc_client import SimChannel
    from tests.simulation.rpc_server import SimServer
    from tests.simulation.streams import ByteTap, SimByteServer

MIN_DELAY_S = 0.000_1
MAX_DELAY_S = 0.001
MAX_RETRANSMIT_S = 1.0  # after a cut heals, TCP tries again at the latest after this long
KEEPALIVE_MIN_S = 10.0  # keepalive_time … plus keepalive_timeout of the channels' options
KEEPALIVE_MAX_S = 15.0
HEADER_BYTES = 50  # of one message, on the wire


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...] = ()
    local_cancel: bool = False


class TooManyOperations(cygrpc.ExecuteBatchError):  # type: ignore[misc]
    """A second write while one is under way: gRPC refuses it, and so does the simulation."""


class Tap:
    """Sees every message of one method, as a server's handler reads and writes it."""

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None: ...

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None: ...


def node_of(address: str) -> str:
    """Nodes are hosts: `broker-1:9000` is a port of node `broker-1`."""
    return address.rpartition(":")[0]


class Link:
    """One direction between two nodes."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.cut = False
        self.extra_delay_s = 0.0
        self.bytes_per_s = 0.0  # 0: no limit
        self.reset_probability = 0.0  # of each message: the connection breaks under it
        self._busy_until = 0.0
        self._stalled: list[Callable[[], None]] = []

    @property
    def is_sound(self) -> bool:
        """No fault is on it."""
        return not (self.cut or self.extra_delay_s or self.bytes_per_s or self.reset_probability)

    def send(self, arrive: Callable[[], None], size_bytes: int = HEADER_BYTES, not_before: float = 0.0) -> float:
        """Call `arrive` when it has come through, not before `not_before`; answers when that is, unless a cut comes."""
        network = self.network
        now = network.loop.time()
        at = now + MIN_DELAY_S + network.random.random() * (MAX_DELAY_S + self.extra_delay_s)
        if self.bytes_per_s:
            self._busy_until = max(self._busy_until, now) + size_bytes / self.bytes_per_s
            at = max(at, self._busy_until)
        at = max(at, not_before)
        network.loop.call_at(at, self._arrive, arrive, context=network.context)
        return at

    def _arrive(self, arrive: Callable[[], None]) -> None:
        if self.cut:
            self._stalled.append(arrive)
        else:
            arrive()

    def heal(self) -> None:
        if self.cut:
            self.cut = False
            stalled, self._stalled = self._stalled, []
            after = self.network.random.random() * MAX_RETRANSMIT_S
            self.network.loop.call_later(after, self._release, stalled, context=self.network.context)

    def _release(self, stalled: list[Callable[[], None]]) -> None:
        for arrive in stalled:
            self._arrive(arrive)


class Pipe:
    """One direction of one stream. `receive` gets the items in order, at the far end."""

    def __init__(self, connection: Connection, link: Link, window_bytes: int, receive: Callable[[Any], None]) -> None:
        self._connection = connection
        self._link = link
        self._window_bytes = window_bytes
        self._receive = receive
        self._in_flight: deque[Any] = deque()
        self._pending_bytes = 0  # sent and not yet consumed
        self._last_at = 0.0
        self._writer: Future[None] | None = None
        self._broken = False  # for the writer
        self._deaf = False  # at the far end

    def put(self, item: Any, size_bytes: int = HEADER_BYTES) -> None:
        link = self._link
        self._in_flight.append(item)
        self._last_at = link.send(self._arrive, size_bytes, self._last_at)
        if link.reset_probability and link.network.random.random() < link.reset_probability:
            link.network.reset_connection(self._connection)

    def _arrive(self) -> None:
        item = self._in_flight.popleft()
        if not self._deaf:
            self._receive(item)

    async def write(self, data: bytes) -> None:
        """Send; returns once there is room in the window again. Raises TooManyOperations, ExecuteBatchError."""
        if self._writer is not None:
            raise TooManyOperations("TOO_MANY_OPERATIONS: a write is already under way on this call")
        if self._broken:
            raise cygrpc.ExecuteBatchError("write on a broken stream")
        size = len(data) + HEADER_BYTES
        self._pending_bytes += size
        self.put(data, size)
        if self._pending_bytes > self._window_bytes:
            self._writer = self._link.network.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def consumed(self, data: bytes) -> None:
        self._pending_bytes -= len(data) + HEADER_BYTES
        if self._pending_bytes <= self._window_bytes and self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def break_off(self) -> None:
        """Nothing more arrives at the far end."""
        self._deaf = True

    def break_off_writer(self) -> None:
        """What is under way still arrives; whoever writes, or waits for room, gets an error."""
        self._broken = True
        if self._writer is not None and not self._writer.done():
            self._writer.set_exception(cygrpc.ExecuteBatchError("the stream broke under a write"))


class End:
    """What a connection tells one end of one of its streams."""

    def connection_lost(self, details: str) -> None:
        raise NotImplementedError


class Connection:
    """One TCP connection: a channel's process at one end, a server's at the other."""

    def __init__(self, network: Network, channel_process: SimProcess, server: SimServer) -> None:
        network.connections_made += 1
        self.number = network.connections_made
        self.network = network
        self.client = channel_process
        self.server = server
        self.to_server = network.link(channel_process.node, server.process.node)
        self.to_client = network.link(server.process.node, channel_process.node)
        self.client_open = True
        self.server_open = True
        self.client_ends: dict[int, End] = {}
        self.server_ends: dict[int, End] = {}
        self.silent_since: float | None = None
        self._next_stream = 0

    def next_stream(self) -> int:
        self._next_stream += 1
        return self._next_stream

    def joins(self, one: str, other: str) -> bool:
        return (self.client.node, self.server.process.node) in ((one, other), (other, one))

    def lose_client_end(self, details: str) -> None:
        if self.client_open:
            self.client_open = False
            self._lose(self.client_ends, details)

    def lose_server_end(self, details: str) -> None:
        if self.server_open:
            self.server_open = False
            self._lose(self.server_ends, details)

    def _lose(self, ends: dict[int, End], details: str) -> None:
        lost = list(ends.values())
        ends.clear()
        for end in lost:
            end.connection_lost(details)
        if not (self.client_open or self.server_open):
            self.network.connections.pop(self.number, None)


class Network:
    """Every node, link, listener and connection."""

    def __init__(self, loop: SimLoop, chance: random.Random) -> None:
        self.loop = loop
        self.random = chance
        self.context = copy_context()
        self.context.run(current_process.set, None)
        self.listeners: dict[str, SimServer] = {}
        self.byte_listeners: dict[str, SimByteServer] = {}
        self.tap_of: Callable[[SimProcess, SimProcess], ByteTap] | None = None  # server, client: of a byte stream …
        self.tapped_port = 0  # … to this port
        self.connections: dict[int, Connection] = {}
        self.connections_made = 0
        self.rates = Rates(loop)
        self.window_bytes = chance.choice((16_384, 65_536, 1_048_576))
        self.taps: dict[str, Tap] = {}  # by full method name
        self.dark_nodes: dict[str, None] = {}  # without power: they do not even refuse
        self._links: dict[tuple[str, str], Link] = {}
        self._next_port: dict[str, int] = {}

    def link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link(self, source, target)
        return link

    def links(self) -> Iterator[Link]:
        return iter(self._links.values())

    def free_port(self, host: str) -> int:
        port = self._next_port[host] = self._next_port.get(host, 40_000) + 1
        return port

    # ---- Connecting ----

    def dial(self, channel: SimChannel, answer: Callable[[Connection | str], None]) -> None:
        """Try to connect; `answer` gets the connection or why it was refused, or, in a silence, nothing."""
        process, address = channel.process, channel.address
        there = self.link(process.node, node_of(address))
        back = self.link(node_of(address), process.node)

        def arrived() -> None:
            if node_of(address) in self.dark_nodes:
                return
            server = self.listeners.get(address)
            if server is None:
                back.send(lambda: answer("Connection refused"))
            elif server.process.running:  # a paused one never sends its settings frame
                back.send(lambda: established(server))

        def established(server: SimServer) -> None:
            if self.listeners.get(address) is not server:
                answer("Connection refused")
                return
            connection = Connection(self, process, server)
            self.connections[connection.number] = connection
            self.check_silence(connection)
            answer(connection)

        there.send(arrived)

    # ---- What happens to processes and machines ----

    def process_ended(self, process: SimProcess, *, power_failure: bool = False) -> None:
        """Its sockets close. After a power failure no one is told."""
        for address in [a for a, server in self.listeners.items() if server.process is process]:
            del self.listeners[address]
        for address in [a for a, server in self.byte_listeners.items() if server.process is process]:
            del self.byte_listeners[address]
        for connection in list(self.connections.values()):
            if connection.client is process:
                connection.lose_client_end("process ended")
                if not power_failure:
                    self.tell_server_end(connection)
            if connection.server.process is process:
                connection.lose_server_end("process ended")
                if not power_failure:
                    self.tell_client_end(connection)
            self.check_silence(connection)

    def power_off(self, node: str) -> None:
        self.dark_nodes[node] = None
        self._check_all()

    def power_on(self, node: str) -> None:
        """The machine answers again, and resets connections that it knows nothing of."""
        self.dark_nodes.pop(node, None)
        for connection in list(self.connections.values()):
            if connection.client.node == node and not connection.client_open:
                self.tell_server_end(connection)
            if connection.server.process.node == node and not connection.server_open:
                self.tell_client_end(connection)
        self._check_all()

    def paused_or_resumed(self) -> None:
        self._check_all()

    # ---- Faults of the network ----

    def cut(self, source: str, target: str) -> None:
        """One way: nothing from `source` reaches `target`."""
        self.link(source, target).cut = True
        self._check_all()

    def heal(self, source: str, target: str) -> None:
        self.link(source, target).heal()
        self._check_all()

    def heal_all(self) -> None:
        for link in self._links.values():
            link.heal()
            link.extra_delay_s = 0.0
            link.bytes_per_s = 0.0
            link.reset_probability = 0.0
        self._check_all()

    def reset(self, one: str, other: str) -> None:
        """Every connection between two nodes breaks; what is under way on it is lost."""
        for connection in list(self.connections.values()):
            if connection.joins(one, other):
                self.reset_connection(connection)

    def reset_connection(self, connection: Connection) -> None:
        for lose in (connection.lose_client_end, connection.lose_server_end):
            after = self.random.random() * MAX_DELAY_S
            self.loop.call_later(after, lose, "Stream removed (Connection reset by peer)", context=self.context)

    def tell_client_end(self, connection: Connection) -> None:
        connection.to_client.send(lambda: connection.lose_client_end("Stream removed (Socket closed)"))

    def tell_server_end(self, connection: Connection) -> None:
        connection.to_server.send(lambda: connection.lose_server_end("Stream removed (Socket closed)"))

    # ---- Keep-alive ----

    def _check_all(self) -> None:
        for connection in list(self.connections.values()):
            self.check_silence(connection)

    def check_silence(self, connection: Connection) -> None:
        silent = (
            connection.to_client.cut
            or connection.to_server.cut
            or connection.client.state is State.PAUSED
            or connection.server.process.state is State.PAUSED
            or connection.client.node in self.dark_nodes
            or connection.server.process.node in self.dark_nodes
        )
        if not silent:
            connection.silent_since = None
        elif connection.silent_since is None:
            since = connection.silent_since = self.loop.time()
            for lose in (connection.lose_client_end, connection.lose_server_end):
                patience = self.random.uniform(KEEPALIVE_MIN_S, KEEPALIVE_MAX_S)
                self.loop.call_later(patience, self._keepalive, connection, since, lose, context=self.context)

    def _keepalive(self, connection: Connection, since: float, lose: Callable[[str], None]) -> None:
        if connection.silent_since == since:
            lose("keepalive watchdog timeout")
            self.tell_client_end(connection)  # the other end learns of it when the link is whole again
            self.tell_server_end(connection)
