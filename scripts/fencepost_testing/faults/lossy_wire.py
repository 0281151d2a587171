"""A client's own wire, on which acknowledgements are lost: for a client that is to lose them whatever it is connected to.

With the probability `drop_acks`, the answer to a batch is thrown away and its Produce stream is broken, so that everything
in flight is sent again and brokers must recognise what they have. In the simulation, and where chance is to be one client's;
a cluster's brokers lose answers by `Faults.drop_answers`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final, Self, cast

import grpc

from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.carriers.carrier_wire import Carrier
from fencepost_proto.transport.wire import Wire

_PRODUCE: Final = "/fencepost.v1.Broker/Produce"


class LossyWire:
    """Another wire. `dropped_acks`: answers thrown away so far."""

    def __init__(self, wire: Wire, *, drop_acks: float, chance: random.Random | None = None) -> None:
        if not 0 <= drop_acks <= 1:
            raise ValueError(f"drop_acks={drop_acks!r} is not a probability")
        self.dropped_acks = 0
        self._wire = wire
        self._drop_acks = drop_acks
        self._chance = chance or random.Random()

    def connect(self, address: str) -> grpc.aio.Channel:
        return cast(grpc.aio.Channel, _LossyChannel(self._wire.connect(address), self))

    def with_carrier(self, carrier: Carrier) -> Wire:
        self._wire = self._wire.with_carrier(carrier)
        return self

    def server(self) -> grpc.aio.Server:
        return self._wire.server()

    async def bind(self, server: grpc.aio.Server, listen: str) -> int:
        return await self._wire.bind(server, listen)

    def count_kept(self, answers: int) -> int:
        """How many of a message's answers come before the first one that is dropped."""
        for kept in range(answers):
            if self._chance.random() < self._drop_acks:
                self.dropped_acks += 1
                return kept
        return answers


def lossy_host(host: Host | None = None, *, drop_acks: float) -> Host:
    """The host, with a wire that loses acknowledgements; as it is, if it is to lose none."""
    host = host or Host()
    if not drop_acks:
        return host
    return replace(host, wire=LossyWire(host.wire, drop_acks=drop_acks, chance=host.random))


class _LossyChannel:
    """A channel whose Produce calls lose answers."""

    def __init__(self, channel: grpc.aio.Channel, wire: LossyWire) -> None:
        self._channel = channel
        self._wire = wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        start = self._channel.stream_stream(method, *arguments, **options)
        return start if method != _PRODUCE else lambda *a, **o: _LossyCall(start(*a, **o), self._wire)


class _LossyCall:
    """A Produce call that breaks where an answer is dropped; the answers before it in the same message are passed on."""

    def __init__(self, call: Any, wire: LossyWire) -> None:
        self._call = call
        self._wire = wire
        self._responses: AsyncIterator[broker_pb2.ProduceResponse] = aiter(call)
        self._is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> broker_pb2.ProduceResponse:
        if self._is_broken:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details="an answer was lost, by a fault",
            )
        response = await anext(self._responses)
        kept = self._wire.count_kept(len(response.results))
        if kept == len(response.results):
            return response
        self._is_broken = True
        return broker_pb2.ProduceResponse(results=response.results[:kept])
