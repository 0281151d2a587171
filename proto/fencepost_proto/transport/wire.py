"""How services are carried: the seam between this code and the network.

A `Wire` makes channels and servers. The one here is gRPC over TCP; `carriers/` adds a leaner carrier on the same
port, and the simulation has its own: all with the same surface, under the same generated stubs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.transport.malformed import RefuseMalformed

MAX_CONCURRENT_STREAMS = 4096  # of one connection

_COMMON_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Large frames and a wide window: fewer, larger writes for batches of a megabyte.
    ("grpc.http2.max_frame_size", 4 * 1024 * 1024),
    ("grpc.http2.lookahead_bytes", 8 * 1024 * 1024),
    # A peer that vanishes without a word (its machine is gone, a cable is cut) is noticed by keep-alive. The timeout is
    # also how long TCP may wait for its peer to confirm what was sent (TCP_USER_TIMEOUT). It tries again at intervals
    # that double, so a connection that outlives a cut stands still for up to as long again; a new one works at once.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
]
CHANNEL_OPTIONS: Final = [
    *_COMMON_OPTIONS,
    # gRPC's own backoff begins at a second; a restarted broker is back in a fraction of one.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # So long an attempt to connect may take, whatever the name says: two round trips, and what a busy machine adds.
    ("grpc.min_reconnect_backoff_ms", 500),
    # Channels to one address are not shared: a broken one must not take others' streams with it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # an occupied port is an error, not a second listener
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]
INCARNATION_BITS: Final = 128
_REFUSED = os.strerror(errno.ECONNREFUSED)


def new_incarnation(random: Random) -> str:
    """The name of one process, which no other has."""
    return f"{random.getrandbits(INCARNATION_BITS):032x}"


def incarnation_service(incarnation: str) -> str:
    """The name under which a broker's health service answers for one incarnation of it, and no other process does.

    The controller asks for it when a session breaks: NOT_FOUND means that another process has taken the port, and the
    one that held the session is dead.
    """
    return f"fencepost.incarnation.{incarnation}"


def connection_refused(error: grpc.aio.AioRpcError) -> bool:
    """Did the peer's machine say that no one listens at that port? Then the process that listened there is certainly gone.

    gRPC has one code, UNAVAILABLE, for that and for all that is not certain: a connection that a paused process's kernel
    has taken and no one answers, one that is reset, a machine or network out of reach. Only the details say so, in the
    system's own words. Should they ever read otherwise, a refusal passes for an uncertain failure, which is safe.

    For a name with several addresses gRPC reports the last one that it tried; a server listens on all of them.
    """
    return error.code() is grpc.StatusCode.UNAVAILABLE and _REFUSED in (error.details() or "")


class Wire(Protocol):
    """Makes the two ends of gRPC."""

    def with_carrier(self, carrier: Literal["auto", "grpc", "lean"]) -> Wire:
        """The same wire, by that carrier (`carriers/`) where it has a choice."""
        ...

    def connect(self, address: str) -> grpc.aio.Channel:
        """A channel to host:port. Connects lazily; never raises for an address that does not answer."""
        ...

    def server(self) -> grpc.aio.Server:
        """A server without services or ports."""
        ...

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        """Have a server of this wire listen at host:port (0: any port), before its start. Returns the port.

        Raises OSError where the port is occupied, or the address is not this machine's.
        """
        ...


class GrpcWire:
    """gRPC over TCP."""

    def with_carrier(self, carrier: str) -> Wire:
        return self

    def connect(self, address: str) -> grpc.aio.Channel:
        self.check_not_forked()
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)

    def server(self) -> grpc.aio.Server:
        return grpc.aio.server(options=_SERVER_OPTIONS, interceptors=[RefuseMalformed()])

    @staticmethod
    def check_not_forked() -> None:
        """Raises InvalidRequest in a process that was forked from one in which gRPC runs."""
        _check_not_forked()

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        try:
            port = server.add_insecure_port(listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {listen}: {error}") from error
        if port == 0:
            raise OSError(f"cannot listen on {listen}: the port is occupied or the address is not this machine's")
        return port


_process_of_grpc = 0  # whose memory gRPC's state is in


def _check_not_forked() -> None:
    """Raises InvalidRequest in a process that was forked from one in which gRPC runs: no call would ever end there."""
    global _process_of_grpc  # noqa: PLW0603 - as gRPC's own state is
    pid = os.getpid()
    if _process_of_grpc not in (0, pid):
        raise InvalidRequest(
            f"process {pid} was forked from process {_process_of_grpc}, which has used gRPC, and its threads are missing "
            "here: start processes with multiprocessing's 'spawn' or 'forkserver', or before the first client"
        )
    _process_of_grpc = pid


@dataclass(slots=True)
class RunningServer:
    """A started server and where it listens."""

    server: grpc.aio.Server
    address: str  # host:port, with the real port
    health: health.aio.HealthServicer

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, let running calls end within `grace_s`, then break them."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


async def serve(
    wire: Wire,
    listen: str,
    service_names: Sequence[str],
    add_services: Callable[[grpc.aio.Server], None],
) -> RunningServer:
    """Start a server with the given services, health checking and reflection at `listen` (host:port; port 0: any).

    Raises OSError where the port is occupied.
    """
    server = wire.server()
    add_services(server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    real = server if isinstance(server, grpc.aio.Server) else getattr(server, "grpc", None)
    if real is not None:  # reflection asks for the real thing
        reflection.enable_server_reflection([*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], real)
    port = await wire.bind(server, listen)
    await server.start()
    for name in ("", *service_names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    host = listen.rpartition(":")[0]
    return RunningServer(server, f"{host}:{port}", servicer)
