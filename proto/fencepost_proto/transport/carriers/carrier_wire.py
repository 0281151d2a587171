"""The wire of real processes: two carriers on one port, and which one a call takes.

- `lean` (transport/lean/): what Fencepost's own processes and clients speak among themselves.
- `grpc`: for everyone else, and for peers of a version that speaks nothing else.
- `auto`, the default: serve both; call by lean, and by gRPC where the peer has answered in another protocol. Such a
  peer is remembered; from time to time, and by no call's delay, it is asked again.

Of a peer that turns out to speak gRPC only, the first unary calls go on by gRPC, since nothing of them was sent; the first
streams end with UNAVAILABLE, as if it could not be reached, and their callers try again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, cast

import grpc

from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.transport.carriers.shared_port import SharedPort
from fencepost_proto.transport.lean.client import Call, LeanChannel
from fencepost_proto.transport.lean.server import LeanServer
from fencepost_proto.transport.wire import GrpcWire, Wire

Carrier = Literal["auto", "grpc", "lean"]
CARRIERS: Final[tuple[Carrier, ...]] = ("auto", "grpc", "lean")
CARRIER_VARIABLE: Final = "FENCEPOST_CARRIER"  # of the environment: for clients; servers have a setting
ASK_AGAIN_S: Final = 10.0  # a peer that spoke gRPC only
MAX_REMEMBERED: Final = 1_000  # such peers


class CarrierWire:
    """Implements `Wire`. `carrier`: see above; `lean` still serves both."""

    def __init__(self, carrier: Carrier = "auto") -> None:
        self._carrier = carrier
        self._grpc = GrpcWire()
        self._grpc_peers: dict[str, float] = {}  # address -> when to ask again

    def with_carrier(self, carrier: Carrier) -> Wire:
        return self if carrier == self._carrier else CarrierWire(carrier)

    def connect(self, address: str) -> grpc.aio.Channel:
        if self._carrier == "grpc":
            return self._grpc.connect(address)
        if self._carrier == "lean":
            return cast(grpc.aio.Channel, LeanChannel(address))
        self._grpc.check_not_forked()
        return cast(grpc.aio.Channel, _AutoChannel(address, self._grpc, self._grpc_peers))

    def server(self) -> grpc.aio.Server:
        if self._carrier == "grpc":
            return self._grpc.server()
        return cast(grpc.aio.Server, SharedServer(self._grpc.server()))

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        if not isinstance(server, SharedServer):
            return await self._grpc.bind(server, listen)
        grpc_port = await self._grpc.bind(server.grpc, "127.0.0.1:0")
        try:
            return await server.listen(listen, grpc_port)
        except OSError as error:
            raise OSError(f"cannot listen on {listen}: {error.strerror or error}") from error


def wire_of_environment() -> CarrierWire:
    """By the carrier that CARRIER_VARIABLE names; unset: auto. Raises InvalidConfig for an unknown one."""
    carrier = os.environ.get(CARRIER_VARIABLE) or "auto"
    if carrier not in CARRIERS:
        raise InvalidConfig(f"{CARRIER_VARIABLE}={carrier!r} is not one of {', '.join(CARRIERS)}")
    return CarrierWire(carrier)


class SharedServer:
    """A gRPC server and a lean one with the same services."""

    def __init__(self, grpc_server: grpc.aio.Server) -> None:
        self.grpc = grpc_server
        self._lean = LeanServer()
        self._port = SharedPort(self._lean.make_link)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.grpc.add_generic_rpc_handlers(handlers)
        self._lean.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        self.grpc.add_registered_method_handlers(service_name, handlers)
        self._lean.add_registered_method_handlers(service_name, handlers)

    async def listen(self, address: str, grpc_port: int) -> int:
        return await self._port.listen(address, f"127.0.0.1:{grpc_port}")

    async def start(self) -> None:
        await self.grpc.start()

    async def stop(self, grace: float | None) -> None:
        """Accept nothing more; both end their calls within `grace` seconds."""
        self._port.close()
        await asyncio.gather(self._lean.stop(grace), self.grpc.stop(grace))
        await self._port.close_relays()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._lean.wait_for_termination(timeout)

    def real_peer(self, peer: str) -> str:
        """Who is behind a peer that a servicer context names."""
        return self._port.real_peer(peer)

    def close_peer(self, peer: str, reason: str) -> bool:
        """End the connection of a peer that a servicer context names, with one line in the log; False: there is none."""
        return self._lean.close_peer(peer, reason) or self._port.close_peer(peer, reason)


class _AutoChannel:
    """A channel that takes the one carrier or the other, anew for each call."""

    def __init__(self, address: str, wire: GrpcWire, grpc_peers: dict[str, float]) -> None:
        self._address = address
        self._wire = wire
        self._grpc_peers = grpc_peers
        self._lean = LeanChannel(address, self._speaks_lean, self._speaks_grpc)
        self._grpc: grpc.aio.Channel | None = None

    def _speaks_lean(self) -> None:
        self._grpc_peers.pop(self._address, None)

    def _speaks_grpc(self) -> None:
        self._grpc_peers.pop(self._address, None)
        if len(self._grpc_peers) >= MAX_REMEMBERED:
            del self._grpc_peers[next(iter(self._grpc_peers))]
        self._grpc_peers[self._address] = asyncio.get_running_loop().time() + ASK_AGAIN_S

    def _takes_grpc(self) -> bool:
        ask_at = self._grpc_peers.get(self._address)
        if ask_at is None:
            return False
        now = asyncio.get_running_loop().time()
        if now >= ask_at:
            self._grpc_peers[self._address] = now + ASK_AGAIN_S
            self._lean.connect()
        return True

    def _method(self, shape: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        by_lean: Callable[..., Any] = getattr(self._lean, shape)(*arguments, **options)
        by_grpc: Callable[..., Any] | None = None

        def begin(*request: Any, **call_options: Any) -> Any:
            if self._takes_grpc():
                return begin_by_grpc(*request, **call_options)
            call = by_lean(*request, **call_options)
            if shape != "unary_unary":
                return call
            return _UnaryCall(call, self._takes_grpc, partial(begin_by_grpc, *request, **call_options))

        def begin_by_grpc(*request: Any, **call_options: Any) -> Any:
            nonlocal by_grpc
            if by_grpc is None:
                if self._grpc is None:
                    self._grpc = self._wire.connect(self._address)
                by_grpc = cast(Callable[..., Any], getattr(self._grpc, shape)(*arguments, **options))
            return by_grpc(*request, **call_options)

        return begin

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._method("unary_unary", *arguments, **options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._method("unary_stream", *arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._method("stream_unary", *arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._method("stream_stream", *arguments, **options)

    async def __aenter__(self) -> _AutoChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """End every call, and both connections."""
        await self._lean.close(grace)
        if self._grpc is not None:
            await self._grpc.close(grace)


class _UnaryCall:
    """A call by the lean carrier, which becomes one by gRPC where it finds out that the peer speaks nothing else."""

    def __init__(self, call: Call[Any, Any], takes_grpc: Callable[[], bool], begin_by_grpc: Callable[[], Any]) -> None:
        self._call: Any = call
        self._takes_grpc = takes_grpc
        self._begin_by_grpc = begin_by_grpc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        try:
            return await self._call
        except grpc.aio.AioRpcError:
            if self._call.has_begun or not self._takes_grpc():
                raise
        self._call = self._begin_by_grpc()
        return await self._call
