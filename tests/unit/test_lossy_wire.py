"""A lossy wire: where an answer is dropped, those before it are passed on, and the stream is broken behind them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest

from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.protocol.v1.broker_pb2_grpc import BrokerStub
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.wire import Wire
from fencepost_testing.faults.lossy_wire import LossyWire, lossy_host


class _Scripted(random.Random):
    """Chance that is these numbers, one after another."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0)


class _Channel:
    """Every streaming call on it is answered with the same messages."""

    def __init__(self, *responses: pb.ProduceResponse) -> None:
        self._responses = responses

    def unary_unary(self, *_: object, **__: object) -> None: ...

    unary_stream = unary_unary

    def stream_stream(self, *_: object, **__: object) -> Any:
        return self._answers

    async def _answers(self) -> AsyncIterator[pb.ProduceResponse]:
        for response in self._responses:
            yield response


class _Wire:
    def __init__(self, *responses: pb.ProduceResponse) -> None:
        self.connected: list[str] = []
        self._responses = responses

    def connect(self, address: str) -> grpc.aio.Channel:
        self.connected.append(address)
        return cast(grpc.aio.Channel, _Channel(*self._responses))

    def server(self) -> grpc.aio.Server:
        raise NotImplementedError


def _message(*correlation_ids: int) -> pb.ProduceResponse:
    return pb.ProduceResponse(results=[pb.ProduceResult(correlation_id=number) for number in correlation_ids])


def test_an_answer_is_dropped_with_all_that_come_after_it() -> None:
    wire = LossyWire(cast(Wire, _Wire(_message(1, 2), _message(3, 4, 5))), drop_acks=0.5, chance=_Scripted(1, 1, 1, 0))
    received: list[int] = []

    async def scenario() -> None:
        async for response in BrokerStub(wire.connect("broker:1")).Produce():
            received.extend(result.correlation_id for result in response.results)

    with pytest.raises(grpc.aio.AioRpcError) as broken:
        asyncio.run(scenario())
    assert broken.value.details() == "an answer was lost, by a fault"
    assert (received, wire.dropped_acks) == ([1, 2, 3], 1)


def test_without_faults_the_host_is_as_it_was() -> None:
    host = Host()
    assert lossy_host(host, drop_acks=0.0) is host


@pytest.mark.parametrize("drop_acks", [-0.1, 1.5])
def test_what_is_no_probability_is_refused(drop_acks: float) -> None:
    with pytest.raises(ValueError, match=f"drop_acks={drop_acks}"):
        LossyWire(cast(Wire, _Wire()), drop_acks=drop_acks)
