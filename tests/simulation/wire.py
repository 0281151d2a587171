"""The wire of one simulated process: the production code's seam to the network.

Every simulated server serves both carriers at its address, as real ones do: gRPC as `rpc_client` and `rpc_server`
imitate it, and the lean one, which is the production code on simulated byte streams. `carrier` says by which of them a
process calls others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import grpc

from fencepost_proto.transport.carriers.carrier_wire import Carrier
from fencepost_proto.transport.lean.client import ClientCall, LeanChannel
from fencepost_proto.transport.lean.frames import Metadata
from fencepost_proto.transport.lean.server import Context, LeanServer, ServerCall
from fencepost_proto.transport.wire import Wire
from tests.simulation.network import Network, Tap
from tests.simulation.process import SimProcess
from tests.simulation.rpc_client import SimChannel
from tests.simulation.rpc_server import SimServer


class SimWire:
    """Implements fencepost_proto.transport.wire.Wire."""

    def __init__(self, network: Network, process: SimProcess, carrier: Literal["grpc", "lean"] = "grpc") -> None:
        self._network = network
        self._process = process
        self.carrier = carrier

    def with_carrier(self, carrier: Carrier) -> Wire:
        """`auto` is what the simulation has chosen for this process."""
        return self if carrier == "auto" else SimWire(self._network, self._process, carrier)

    def connect(self, address: str) -> grpc.aio.Channel:
        self._process.check_alive()
        if self.carrier == "lean":
            return cast(grpc.aio.Channel, _CountedLeanChannel(self._network, self._process, address))
        return cast(grpc.aio.Channel, SimChannel(self._network, self._process, address))

    def server(self) -> grpc.aio.Server:
        self._process.check_alive()
        return cast(
            grpc.aio.Server,
            SimSharedServer(SimServer(self._network, self._process), SimLeanServer(self._network, self._process)),
        )

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        return await cast(SimSharedServer, server).listen(listen)


class _CountedLeanChannel(LeanChannel):
    """The production channel, whose calls are counted."""

    def __init__(self, network: Network, process: SimProcess, address: str) -> None:
        super().__init__(address)
        self._network = network
        self._process = process

    def _new_call(self, method: str, timeout_s: float | None, metadata: Metadata) -> ClientCall:
        self._network.rates.note(repr(self._process), f"calls {method}")
        return super()._new_call(method, timeout_s, metadata)


class SimLeanServer(LeanServer):
    """The production server, whose requests and answers the judge sees."""

    def __init__(self, network: Network, process: SimProcess) -> None:
        super().__init__()
        self.network = network
        self.process = process

    def make_context(self, call: ServerCall, handler: Any) -> Context:
        tap = self.network.taps.get(call.start.method)
        return Context(call, handler) if tap is None else _TappedContext(call, handler, tap, self.process)


class _TappedContext(Context):
    def __init__(self, call: ServerCall, handler: Any, tap: Tap, process: SimProcess) -> None:
        super().__init__(call, handler)
        assert call.link is not None
        transport: Any = call.link.transport
        self._tapped_call = call
        self._tap = tap
        self._process = process
        self._client: SimProcess = transport.client

    async def read(self) -> Any:
        message = await super().read()
        if message is not grpc.aio.EOF:
            self._tap.request(self._process, self._client, self._tapped_call, message)
        return message

    async def write(self, message: Any) -> None:
        self.check()
        self._tap.response(self._process, self._client, self._tapped_call, message)
        await super().write(message)


class SimSharedServer:
    """One simulated server of each carrier, with the same services."""

    def __init__(self, by_grpc: SimServer, by_lean: LeanServer) -> None:
        self._both = (by_grpc, by_lean)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        for server in self._both:
            server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        for server in self._both:
            server.add_registered_method_handlers(service_name, handlers)

    async def listen(self, address: str) -> int:
        by_grpc, by_lean = self._both
        port = by_grpc.listen(address)
        return await by_lean.listen(f"{address.rpartition(':')[0]}:{port}")

    async def start(self) -> None:
        for server in self._both:
            await server.start()

    async def stop(self, grace: float | None) -> None:
        await asyncio.gather(*(server.stop(grace) for server in self._both))

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._both[0].wait_for_termination(timeout)
