"""The id that a client of Fencepost's gives itself: bounded, told with every call, by either carrier."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from fencepost import AdminClient, Consumer, Producer
from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.client_ids import KEY, MAX_CHARACTERS, check_client_id, client_id_in, named
from tests.asynchronous import asynchronous


@pytest.mark.parametrize("client", [Producer, Consumer, AdminClient])
@pytest.mark.parametrize(
    "client_id",
    ["", " a", "a ", "a\nb", "grüße", "x" * (MAX_CHARACTERS + 1), None, 7],
    ids=lambda value: repr(value)[:12],
)
def test_an_id_that_no_call_can_carry_is_refused_by_name(client: Any, client_id: object) -> None:
    with pytest.raises(InvalidConfig, match="client_id="):
        client("127.0.0.1:1", client_id=client_id)


def test_what_a_hostile_client_says_is_cut_to_the_bound() -> None:
    assert check_client_id("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    assert client_id_in(((KEY, "x" * 10_000),)) == "x" * MAX_CHARACTERS
    assert client_id_in((("other", "x"), (KEY, b"bytes"))) == ""
    assert client_id_in(None) == ""


@asynchronous
@pytest.mark.parametrize("carrier", ["lean", "grpc"])
async def test_it_goes_with_calls_of_every_shape(carrier: Any) -> None:
    told: list[tuple[str, str]] = []

    def handler_of(shape: str) -> Any:
        async def unary(request: bytes, context: Any) -> bytes:
            told.append((shape, client_id_in(context.invocation_metadata())))
            return request

        async def stream(requests: Any, context: Any) -> None:
            told.append((shape, client_id_in(context.invocation_metadata())))
            await context.write(b"answer")

        return getattr(grpc, f"{shape}_rpc_method_handler")(unary if shape == "unary_unary" else stream)

    shapes = ("unary_unary", "unary_stream", "stream_stream")
    wire = CarrierWire().with_carrier(carrier)
    server = wire.server()
    server.add_registered_method_handlers("test.Shapes", {shape: handler_of(shape) for shape in shapes})
    port = await wire.bind(server, "127.0.0.1:0")
    await server.start()
    channel: Any = named(wire.connect(f"127.0.0.1:{port}"), "orders")
    try:
        assert await channel.unary_unary("/test.Shapes/unary_unary")(b"x", timeout=10) == b"x"
        assert [answer async for answer in channel.unary_stream("/test.Shapes/unary_stream")(b"x", timeout=10)] == [
            b"answer"
        ]
        call: Any = channel.stream_stream("/test.Shapes/stream_stream")(timeout=10)
        assert await call.read() == b"answer"
        await call.done_writing()
    finally:
        await channel.close()
        await server.stop(None)
    assert told == [(shape, "orders") for shape in shapes]
