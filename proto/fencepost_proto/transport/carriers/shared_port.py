"""One port for both carriers: the first byte of a connection says which one it speaks.

A connection of the lean carrier begins with `frames.MAGIC`, whose first byte begins nothing else; it is served here.
Any other one is gRPC's to judge: its bytes are passed on, both ways, to the gRPC server, which listens on a loopback
port. So each process has one address, which is what clients, proxies, probes and metadata know, and no setting says who
speaks what: an older process at that address is recognised by its answer, and a newer one serves older clients as
before.

gRPC's side sees the relay as its peer. `real_peer` says who that is.

Bounds: MAX_RELAYED connections; MAX_UNDECIDED that have said nothing, and FIRST_BYTE_WITHIN_S for the first byte; what one
side has sent and the other has not taken is at most what one read brings and RELAY_BUFFER_BYTES: beyond it nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from fencepost_proto.transport import streams
from fencepost_proto.transport.lean import frames

log = logging.getLogger(__name__)

MAX_RELAYED: Final = 4_000
MAX_UNDECIDED: Final = 1_000  # connections that have sent nothing yet
FIRST_BYTE_WITHIN_S: Final = 10.0
RELAY_BUFFER_BYTES: Final = 256 * 1024


class SharedPort:
    """Listens, and hands each connection to the lean server's protocol or to the gRPC server's port."""

    def __init__(self, make_link: Callable[[], asyncio.Protocol]) -> None:
        self._make_link = make_link
        self._grpc_address = ""
        self._listening: streams.Listening | None = None
        self._undecided: dict[_FirstByte, None] = {}
        self._relays: dict[_Relay, None] = {}
        self._peers: dict[str, _Relay] = {}  # as gRPC names them

    async def listen(self, address: str, grpc_address: str) -> int:
        """Returns the port. Raises OSError where it is occupied, or the address is not this machine's."""
        self._grpc_address = grpc_address
        self._listening = await streams.listen(address, lambda: _FirstByte(self))
        return streams.split_address(self._listening.address)[1]

    def close(self) -> None:
        """Accept no more connections; those that are relayed live on."""
        if self._listening is not None:
            self._listening.close()
        for undecided in list(self._undecided):
            undecided.abort()

    async def close_relays(self) -> None:
        """Once the gRPC server has stopped."""
        relays = list(self._relays)
        for relay in relays:
            relay.end()
        tasks = [relay.connecting for relay in relays if relay.connecting is not None]
        if tasks:
            await asyncio.wait(tasks)

    def real_peer(self, peer: str) -> str:
        """The client behind a peer of gRPC's."""
        relay = self._peers.get(peer)
        return peer if relay is None else relay.client

    def close_peer(self, peer: str, reason: str) -> bool:
        """Let go of the connection of a peer of gRPC's, and of what is on its way to it; False: there is none."""
        relay = self._peers.get(peer)
        if relay is None:
            return False
        log.warning("connection closed peer=%s reason=%s", relay.client, reason)
        relay.abort()
        return True

    # ---- For connections ----

    def undecided(self, connection: _FirstByte) -> None:
        """A connection that has said nothing yet. If there are too many, the one that has been silent for longest goes."""
        if len(self._undecided) >= MAX_UNDECIDED:
            next(iter(self._undecided)).abort()
        self._undecided[connection] = None

    def decided(self, connection: _FirstByte) -> None:
        self._undecided.pop(connection, None)

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """A connection has sent its first bytes."""
        if data[0] == frames.MAGIC[0]:
            protocol = self._make_link()
        elif len(self._relays) < MAX_RELAYED:
            protocol = _Relay(self, self._grpc_address)
        else:
            log.warning("connection closed reason=%d connections of gRPC are the most", MAX_RELAYED)
            transport.abort()
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def relay_began(self, relay: _Relay) -> None:
        self._relays[relay] = None

    def relay_ended(self, relay: _Relay) -> None:
        self._relays.pop(relay, None)
        self._peers.pop(relay.peer_of_grpc, None)

    def relay_known(self, relay: _Relay) -> None:
        """As what gRPC sees it."""
        self._peers[relay.peer_of_grpc] = relay


class _FirstByte(asyncio.Protocol):
    """A connection that has sent nothing yet."""

    def __init__(self, port: SharedPort) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._port.undecided(self)
        self._timer = asyncio.get_running_loop().call_later(FIRST_BYTE_WITHIN_S, self.abort)

    def data_received(self, data: bytes) -> None:
        self._done()
        assert self._transport is not None
        if not self._transport.is_closing():
            self._port.hand_over(self._transport, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._done()

    def abort(self) -> None:
        self._done()
        if self._transport is not None:
            self._transport.abort()

    def _done(self) -> None:
        self._port.decided(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Relay(asyncio.Protocol):
    """The client's side of a connection that is passed on."""

    def __init__(self, port: SharedPort, address: str) -> None:
        self.client = ""
        self.peer_of_grpc = ""
        self.connecting: asyncio.Task[None] | None = None
        self._port = port
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._far = _FarSide(self)
        self._early: list[bytes] = []
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=RELAY_BUFFER_BYTES)
        self._transport.pause_reading()
        name = transport.get_extra_info("peername")
        self.client = _name(name)
        self._port.relay_began(self)
        self.connecting = asyncio.get_running_loop().create_task(self._connect(), name=f"relay {self.client}")

    async def _connect(self) -> None:
        try:
            far, _ = await streams.connect(self._address, lambda: self._far)
        except OSError as error:
            log.warning("a connection was not passed on peer=%s reason=%s", self.client, error)
            self.end()
            return
        finally:
            self.connecting = None
        if self._over or self._transport is None:
            far.abort()
            return
        far.set_write_buffer_limits(high=RELAY_BUFFER_BYTES)
        self.peer_of_grpc = _name(far.get_extra_info("sockname"))
        self._port.relay_known(self)
        for data in self._early:
            far.write(data)
        self._early.clear()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._far.transport is None:
            self._early.append(data)  # what came with the first byte; reading pauses
        else:
            self._far.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.end()

    def pause_writing(self) -> None:
        if self._far.transport is not None and not self._far.transport.is_closing():
            self._far.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._far.transport is not None and not self._far.transport.is_closing():
            self._far.transport.resume_reading()

    # ---- From the far side ----

    def answered(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def hold(self, wanted: bool) -> None:
        """gRPC does not take what it is sent: read no more. Or it does again."""
        if self._transport is None or self._transport.is_closing():
            return
        if wanted:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close both sides, without what is not written."""
        self.end()
        for transport in (self._transport, self._far.transport):
            if transport is not None:
                transport.abort()

    def end(self) -> None:
        """One side has closed: so does the other, after what is written."""
        if self._over:
            return
        self._over = True
        self._port.relay_ended(self)
        for transport in (self._transport, self._far.transport):
            if transport is not None:
                transport.close()
        if self.connecting is not None:
            self.connecting.cancel()


class _FarSide(asyncio.Protocol):
    """gRPC's side of it."""

    def __init__(self, relay: _Relay) -> None:
        self.transport: asyncio.Transport | None = None
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._relay.answered(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.end()

    def pause_writing(self) -> None:
        self._relay.hold(True)

    def resume_writing(self) -> None:
        self._relay.hold(False)


def _name(name: object) -> str:
    """As gRPC writes the address of a peer."""
    if not isinstance(name, tuple):
        return str(name)
    host, port = name[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
