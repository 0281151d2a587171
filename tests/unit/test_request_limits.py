"""Bounds of requests: every service's every field has one, and what is outside of it never reaches a service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from fencepost_proto.protocol.control_characters import control_character
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.request_limits import (
    COUNTED_ABOVE_BYTES,
    FIELD_LIMITS,
    MAX_ENTRIES,
    MAX_STRING_BYTES,
    REQUEST_BYTES,
    RequestRefused,
    check_encoded,
    check_message,
    method_of,
)
from fencepost_proto.protocol.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    common_pb2,
    controller_pb2,
    groups_pb2,
    replication_pb2,
)
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.wire import GrpcWire, Wire, serve
from tests.asynchronous import asynchronous

FILES = (broker_pb2, controller_pb2, groups_pb2, replication_pb2)
METHODS: list[MethodDescriptor] = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods_by_name.values()
]


def fields_of(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """All fields of the message and of those inside it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


REQUEST_FIELDS = [field for method in METHODS for field in fields_of(method.input_type, set())]


def method(path: str) -> MethodDescriptor:
    found = method_of(path)
    assert found is not None
    return found


PRODUCE = method("/fencepost.v1.Broker/Produce")
FETCH = method("/fencepost.v1.Broker/Fetch")
REPLICATE = method("/fencepost.v1.Replication/Replicate")
CREATE_TOPIC = method("/fencepost.v1.Admin/CreateTopic")


def test_every_repeated_map_and_bytes_field_of_every_request_has_a_bound_by_name() -> None:
    counted = {
        field.full_name for field in REQUEST_FIELDS if field.is_repeated or field.type == FieldDescriptor.TYPE_BYTES
    }
    assert {"fencepost.v1.ProduceRequest.batches", "fencepost.v1.ReplicaAssignment.replicas"} <= counted
    assert sorted(counted - FIELD_LIMITS.keys()) == [], "name a bound for it in request_limits.FIELD_LIMITS"
    assert sorted(FIELD_LIMITS.keys() - counted) == [], "no request has such a field (any more)"
    assert REQUEST_BYTES.keys() <= {method.full_name for method in METHODS}


def test_a_request_type_that_holds_itself_would_need_a_bound_on_depth() -> None:
    def deepest(message: Descriptor, above: frozenset[str]) -> None:
        assert message.full_name not in above
        for field in message.fields:
            if field.message_type is not None:
                deepest(field.message_type, above | {message.full_name})

    for one in METHODS:
        deepest(one.input_type, frozenset())


@pytest.mark.parametrize("one", METHODS, ids=lambda one: one.full_name)
def test_a_message_of_empty_entries_is_refused_before_it_is_parsed(one: MethodDescriptor) -> None:
    limit = REQUEST_BYTES.get(one.full_name, 1024 * 1024)
    for field in one.input_type.fields:
        if field.is_repeated:
            entry = bytes([field.number << 3 | 2, 0])
            with pytest.raises(RequestRefused, match=f"a {one.input_type.name} with more than"):
                check_encoded(entry * (limit // len(entry)), one)
    with pytest.raises(RequestRefused, match=f"more than|at most {limit}"):
        check_encoded(b"\x80\x7d\x00" * (limit // 2), one)  # fields that no one knows
    with pytest.raises(RequestRefused, match=f"a request of {limit + 1} bytes"):
        check_encoded(bytes(limit + 1), one)


def test_entries_inside_of_entries_and_packed_numbers_are_counted() -> None:
    inside = b"\x0a\x00" * (COUNTED_ABOVE_BYTES // 2)  # replicas of one assignment, each an empty run of numbers
    request = controller_pb2.CreateTopicRequest(name="a").SerializeToString() + _field(5, inside)
    with pytest.raises(RequestRefused, match="ReplicaAssignment with more than"):
        check_encoded(request, CREATE_TOPIC)
    many = controller_pb2.ReplicaAssignment(replicas=range(50_000)).SerializeToString()
    with pytest.raises(RequestRefused, match=r"bytes of numbers"):
        check_encoded(_field(5, many), CREATE_TOPIC)


def _field(number: int, data: bytes) -> bytes:
    size, encoded = len(data), bytearray()
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes([number << 3 | 2]) + bytes(encoded) + data


@pytest.mark.parametrize(
    "data", [b"\x0b" * 40_000, b"\xff" * 40_000, b"\x0a\xff\xff" + bytes(40_000), b"\x0a" * 39_999]
)
def test_what_is_no_message_is_refused_or_left_to_the_parser(data: bytes) -> None:
    try:
        check_encoded(data, FETCH)
    except RequestRefused:
        return
    with pytest.raises(Exception, match="parsing message"):
        broker_pb2.FetchRequest.FromString(data)


def test_the_largest_requests_that_clients_and_brokers_send_pass() -> None:
    partitions = [
        broker_pb2.FetchPartition(topic_id="t" * 22, partition=n, leader_epoch=9, fetch_offset=2**60, max_bytes=2**30)
        for n in range(MAX_ENTRIES)
    ]
    fetch = broker_pb2.FetchRequest(partitions=partitions, max_wait_ms=500, min_bytes=1, max_bytes=2**23)
    check_encoded(fetch.SerializeToString(), FETCH)
    check_message(fetch)
    batches = [broker_pb2.ProduceBatch(correlation_id=n, topic_id="t" * 22, records=bytes(800)) for n in range(10_000)]
    produce = broker_pb2.ProduceRequest(batches=batches)
    check_encoded(produce.SerializeToString(), PRODUCE)
    check_message(produce)
    acks = [replication_pb2.Ack(topic_id="t" * 22, partition=n, subscription=2**40) for n in range(MAX_ENTRIES)]
    check_encoded(replication_pb2.ReplicateRequest(acks=acks).SerializeToString(), REPLICATE)


def test_one_entry_more_than_the_bound_is_refused_naming_field_count_and_bound() -> None:
    request = broker_pb2.ProduceRequest(batches=[broker_pb2.ProduceBatch()] * (MAX_ENTRIES + 1))
    with pytest.raises(RequestRefused, match=r"ProduceRequest.batches has 10001 entries; at most 10000"):
        check_message(request)
    del request.batches[-1]
    check_message(request)


def test_a_string_that_is_too_long_is_refused_wherever_it_stands() -> None:
    for size, refused in ((MAX_STRING_BYTES, False), (MAX_STRING_BYTES + 1, True)):
        for request in (
            broker_pb2.MetadataRequest(topic_names=["a", "x" * size]),
            broker_pb2.ProduceRequest(batches=[broker_pb2.ProduceBatch(topic_id="x" * size)]),
            controller_pb2.SessionRequest(register=controller_pb2.Register(address="x" * size)),
            controller_pb2.SessionRequest(
                heartbeat=controller_pb2.Heartbeat(failed_replicas=[common_pb2.PartitionRef(topic_id="x" * size)])
            ),
        ):
            if refused:
                with pytest.raises(RequestRefused, match=f"{size} bytes; at most {MAX_STRING_BYTES}"):
                    check_message(request)
            else:
                check_message(request)
    with pytest.raises(RequestRefused, match="bytes; at most"):
        check_message(broker_pb2.MetadataRequest(topic_names=["\N{GRINNING FACE}" * (MAX_STRING_BYTES // 4 + 1)]))


@pytest.mark.parametrize("found", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066"])
def test_a_control_character_is_refused_in_any_string(found: str) -> None:
    text = f"host:1{found}2026-11-28 INFO a forged line"
    assert control_character(text) == found
    for request in (
        controller_pb2.SessionRequest(register=controller_pb2.Register(address=text)),
        controller_pb2.SessionRequest(register=controller_pb2.Register(incarnation=text)),
        broker_pb2.InitProducerIdRequest(name=text),
        broker_pb2.MetadataRequest(topic_names=[text]),
        broker_pb2.FetchRequest(partitions=[broker_pb2.FetchPartition(topic_id=text)]),
        controller_pb2.CreateTopicRequest(name=text),
        replication_pb2.ReplicateRequest(cluster_id=text),
    ):
        with pytest.raises(RequestRefused, match="control character"):
            check_message(request)


@pytest.mark.parametrize(
    "name", ["", "orders-loader", "Zähler 7", "注文", "\N{FAMILY}\N{ZERO WIDTH JOINER}", "a\u00a0b"]
)
def test_names_of_people_pass(name: str) -> None:
    assert control_character(name) == ""
    check_message(broker_pb2.InitProducerIdRequest(name=name))


# ---- At the edge of a real server ----


class Services(broker_pb2_grpc.BrokerServicer):
    """Counts what gets through."""

    def __init__(self) -> None:
        self.taken = 0

    async def InitProducerId(self, request: Any, context: Any) -> broker_pb2.InitProducerIdResponse:
        self.taken += 1
        return broker_pb2.InitProducerIdResponse(producer_id=7)

    async def Metadata(self, request: Any, context: Any) -> broker_pb2.MetadataResponse:
        self.taken += 1
        return broker_pb2.MetadataResponse(answering_broker_id=7)

    async def Fetch(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        async for _ in request_iterator:
            self.taken += 1
            await context.write(broker_pb2.FetchResponse())


@pytest.mark.parametrize("wire", [GrpcWire(), CarrierWire("lean")], ids=["grpc", "lean"])
@asynchronous
async def test_at_the_edge_a_refusal_is_the_answer_and_the_connection_goes_on(wire: Wire) -> None:
    services = Services()  # type: ignore[abstract]  # the other methods are not asked
    running = await serve(
        wire, "127.0.0.1:0", [], lambda server: broker_pb2_grpc.add_BrokerServicer_to_server(services, server)
    )
    async with wire.connect(running.address) as channel:
        stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
        answer = await stub.InitProducerId(broker_pb2.InitProducerIdRequest(name="a\nb"))
        assert answer.error.code == ErrorCode.INVALID_REQUEST  # in the answer, where there is a place for it
        assert r"'\n'" in answer.error.message
        with pytest.raises(grpc.aio.AioRpcError, match="topic_names has 10001 entries") as caught:
            await stub.Metadata(broker_pb2.MetadataRequest(topic_names=["a"] * (MAX_ENTRIES + 1)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        raw: Any = channel.stream_stream("/fencepost.v1.Broker/Fetch")
        call = raw()
        await call.write(b"")
        assert await call.read() == b""
        await call.write(b"\n\x00" * 500_000)
        with pytest.raises(grpc.aio.AioRpcError, match="FetchRequest with more than") as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert services.taken == 1
        assert (await stub.InitProducerId(broker_pb2.InitProducerIdRequest(name="ab"))).producer_id == 7
    await running.stop(0)
