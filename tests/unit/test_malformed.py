"""Requests that are no messages, to every kind of method of a real server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.wire import GrpcWire, Wire, serve
from tests.unit.fake_controller import run

BAD = b"\x0a\xff\xff\xff"  # a string longer than the message
GOOD = broker_pb2.MetadataRequest(topic_names=["a"]).SerializeToString()


async def echo(request: broker_pb2.MetadataRequest, _: object) -> broker_pb2.MetadataRequest:
    return request


async def echo_one_by_one(request: Any, _: object) -> AsyncIterator[broker_pb2.MetadataRequest]:
    yield request


async def last(requests: AsyncIterator[broker_pb2.MetadataRequest], _: object) -> broker_pb2.MetadataRequest:
    return [request async for request in requests][-1]


async def echo_all(
    requests: AsyncIterator[broker_pb2.MetadataRequest], _: object
) -> AsyncIterator[broker_pb2.MetadataRequest]:
    async for request in requests:
        yield request


async def write_all(requests: AsyncIterator[broker_pb2.MetadataRequest], context: Any) -> None:
    async for request in requests:
        await context.write(request)


def add_methods(server: grpc.aio.Server) -> None:
    codec: tuple[Any, Any] = (broker_pb2.MetadataRequest.FromString, broker_pb2.MetadataRequest.SerializeToString)
    write: Any = write_all
    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(echo, *codec),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(echo_one_by_one, *codec),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(last, *codec),
        "StreamStream": grpc.stream_stream_rpc_method_handler(echo_all, *codec),
        "StreamWrite": grpc.stream_stream_rpc_method_handler(write, *codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))


async def call(channel: Any, kind: str, *requests: bytes) -> list[bytes]:
    async def sent() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    path = f"/test.Echo/{kind}"
    match kind:
        case "UnaryUnary":
            return [await channel.unary_unary(path)(requests[-1])]
        case "UnaryStream":
            return [response async for response in channel.unary_stream(path)(requests[-1])]
        case "StreamUnary":
            return [await channel.stream_unary(path)(sent())]
        case _:
            return [response async for response in channel.stream_stream(path)(sent())]


@pytest.mark.parametrize("wire", [GrpcWire(), CarrierWire("lean")], ids=["grpc", "lean"])
@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "StreamWrite"])
def test_what_is_no_message_is_refused_and_the_connection_goes_on(
    wire: Wire, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        running = await serve(wire, "127.0.0.1:0", [], add_methods)
        async with wire.connect(running.address) as channel:
            assert await call(channel, kind, GOOD) == [GOOD]
            for requests in ((BAD,), (GOOD, BAD)):
                with pytest.raises(grpc.aio.AioRpcError, match="INVALID_REQUEST") as caught:
                    await call(channel, kind, *requests)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert await call(channel, kind, GOOD) == [GOOD]
        await running.stop(0)

    with caplog.at_level(logging.WARNING):
        run(test())
    assert not caplog.records
