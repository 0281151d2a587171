"""The two seams of a process, the wire and the byte streams, with the faults of its cluster on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import grpc

from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.carriers.carrier_wire import Carrier
from fencepost_proto.transport.streams import Listening
from fencepost_proto.transport.wire import Wire
from fencepost_testing.faults.called import FaultyChannel, Link
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.kafka_stream import FaultyKafkaConnection, Inner
from fencepost_testing.faults.served import Handler, faulty


class FaultyWire:
    """Another wire. Its servers have faults on requests and links of clients, its channels on links inside the cluster."""

    def __init__(self, wire: Wire, faults: FaultsInside) -> None:
        self._wire = wire
        self._faults = faults

    def with_carrier(self, carrier: Carrier) -> Wire:
        return FaultyWire(self._wire.with_carrier(carrier), self._faults)

    def connect(self, address: str) -> grpc.aio.Channel:
        channel = FaultyChannel(self._wire.connect(address), Link(self._faults, address))
        return cast(grpc.aio.Channel, channel)

    def server(self) -> grpc.aio.Server:
        """The other wire's own server, so that it can still do all that it could."""
        server = self._wire.server()
        add_generic, add_registered = server.add_generic_rpc_handlers, server.add_registered_method_handlers
        faults = self._faults

        def add_faulty_generic(handlers: Sequence[grpc.GenericRpcHandler]) -> None:
            add_generic([_FaultyHandler(handler, faults) for handler in handlers])

        def add_faulty_registered(service: str, handlers: dict[str, Handler]) -> None:
            add_registered(
                service,
                {name: cast(Handler, faulty(f"/{service}/{name}", handlers[name], faults)) for name in handlers},
            )

        vars(server)["add_generic_rpc_handlers"] = add_faulty_generic
        vars(server)["add_registered_method_handlers"] = add_faulty_registered
        return server

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        return await self._wire.bind(server, listen)


class _FaultyHandler(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler, faults: FaultsInside) -> None:
        self._handler = handler
        self._faults = faults

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return faulty(handler_call_details.method, self._handler.service(handler_call_details), self._faults)


def host_with_faults(host: Host, faults: FaultsInside) -> Host:
    """The host, with these faults on its wire and on its byte streams."""
    listen_under = host.listen

    async def listen(address: str, make_protocol: Callable[[], asyncio.BaseProtocol]) -> Listening:
        return await listen_under(address, lambda: FaultyKafkaConnection(cast(Inner, make_protocol()), faults))

    return replace(host, wire=FaultyWire(host.wire, faults), listen=listen)
