"""The Kafka codec's own rules: headers, versions, unknown tagged fields, chunks, and what damage makes of a frame."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from fencepost_proto.kafka.apis import APIS, Api
from fencepost_proto.kafka.codec import (
    MalformedFrame,
    UnsupportedVersion,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from fencepost_proto.kafka.messages.api_versions import ApiVersion, ApiVersionsResponse
from fencepost_proto.kafka.messages.fetch import FetchableTopicResponse, FetchResponse, PartitionData
from fencepost_proto.kafka.messages.init_producer_id import InitProducerIdRequest
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.kafka.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from tests.unit.kafka_messages import random_message

PRODUCE, FETCH, METADATA, API_VERSIONS, INIT_PRODUCER_ID = 0, 1, 3, 18, 22


def request(api_key: int, version: int, message: object) -> bytes:
    """A request's frame without its length."""
    return b"".join(encode_request(api_key, version, 5, "client", message))[4:]


def test_a_header_has_tagged_fields_from_the_first_flexible_version_on() -> None:
    old = request(METADATA, 8, MetadataRequest(topics=[]))
    flexible = request(METADATA, 9, MetadataRequest(topics=[]))
    start = struct.pack(">hhih", METADATA, 8, 5, 6) + b"client"
    assert old == start + struct.pack(">i", 0) + b"\x01\x00\x00"
    assert flexible == start.replace(b"\x00\x08", b"\x00\x09", 1) + b"\x00" + b"\x01" + b"\x01\x00\x00" + b"\x00"


def test_the_client_id_may_be_null() -> None:
    frame = b"".join(encode_request(METADATA, 12, 5, None, MetadataRequest()))
    header, message = decode_request(memoryview(frame)[4:])
    assert header.client_id is None
    assert message == MetadataRequest()


def test_the_response_to_api_versions_never_has_tagged_fields_in_its_header() -> None:
    response = ApiVersionsResponse(api_keys=[ApiVersion(0, 0, 11)])
    frame = b"".join(encode_response(API_VERSIONS, 3, 9, response))
    assert frame[4:8] == struct.pack(">i", 9)
    assert frame[8:11] == b"\x00\x00\x02"  # error code, then one API in compact form: no tag count between
    assert decode_response(API_VERSIONS, 3, memoryview(frame)[4:]) == (9, response)


def test_an_unknown_version_says_whom_to_answer() -> None:
    frame = struct.pack(">hhih", API_VERSIONS, 99, 7, 2) + b"me" + b"whatever version 99 has"
    with pytest.raises(UnsupportedVersion, match="version 99") as raised:
        decode_request(memoryview(frame))
    assert raised.value.header == (API_VERSIONS, 99, 7, "me")
    with pytest.raises(UnsupportedVersion, match="no such API"):
        decode_request(memoryview(struct.pack(">hhih", 999, 0, 7, -1)))


def test_unknown_tagged_fields_are_skipped_wherever_they_stand() -> None:
    tag = b"\x01" + b"\x2a" + b"\x03" + b"abc"  # one field, tag 42, three bytes
    header = struct.pack(">hhih", METADATA, 9, 5, 6) + b"client" + tag
    topic = b"\x07" + b"orders" + tag
    frame = header + b"\x02" + topic + b"\x01\x00\x00" + tag
    _, message = decode_request(memoryview(frame))
    assert message == MetadataRequest(topics=[MetadataRequestTopic(name="orders")])


def test_an_unknown_tag_beside_known_ones_is_skipped() -> None:
    response = ApiVersionsResponse(finalized_features_epoch=12)
    body = b"".join(encode_response(API_VERSIONS, 3, 9, response))[4:]
    known = body[-10:]  # tag 1, length 8, the epoch
    frame = body[:-11] + b"\x02" + known + b"\x63" + b"\x02" + b"zz"
    assert decode_response(API_VERSIONS, 3, memoryview(frame)) == (9, response)


def test_a_tagged_field_must_have_the_length_that_it_states() -> None:
    body = b"".join(encode_response(API_VERSIONS, 3, 9, ApiVersionsResponse(finalized_features_epoch=12)))[4:]
    wrong = body[:-9] + b"\x07" + body[-8:]  # the epoch has 8 bytes
    with pytest.raises(MalformedFrame, match="finalized_features_epoch"):
        decode_response(API_VERSIONS, 3, memoryview(wrong))


def test_records_are_views_when_read_and_chunks_when_written() -> None:
    batch = bytes(range(256)) * 64
    partition = PartitionProduceData(index=0, records=batch)
    frame = request(PRODUCE, 9, ProduceRequest(topic_data=[TopicProduceData(name="t", partition_data=[partition])]))
    _, message = decode_request(memoryview(frame))
    assert isinstance(message, ProduceRequest)
    view = message.topic_data[0].partition_data[0].records
    assert isinstance(view, memoryview)
    assert view.obj is frame
    assert view == batch

    partitions = [PartitionData(partition_index=index, records=batch) for index in range(3)]
    response = FetchResponse(responses=[FetchableTopicResponse(topic="t", partitions=partitions)])
    chunks = encode_response(FETCH, 12, 5, response)
    assert sum(chunk is batch for chunk in chunks) == 3
    _, decoded = decode_response(FETCH, 12, memoryview(b"".join(chunks))[4:])
    assert decoded == response


def test_no_records_are_zero_bytes_and_not_null() -> None:
    response = FetchResponse(responses=[FetchableTopicResponse(topic="t", partitions=[PartitionData()])])
    old = b"".join(encode_response(FETCH, 11, 5, response))
    assert old.endswith(struct.pack(">i", 0))
    null = FetchResponse(responses=[FetchableTopicResponse(topic="t", partitions=[PartitionData(records=None)])])
    assert b"".join(encode_response(FETCH, 11, 5, null)).endswith(struct.pack(">i", -1))


@pytest.mark.parametrize("version", [8, 9])
def test_null_where_it_is_not_allowed_is_damage(version: int) -> None:
    null_name = struct.pack(">h", -1) if version == 8 else b"\x00"
    header = struct.pack(">hhih", METADATA, version, 5, -1) + (b"\x00" if version == 9 else b"")
    one = struct.pack(">i", 1) if version == 8 else b"\x02"
    with pytest.raises(MalformedFrame, match="name"):
        decode_request(memoryview(header + one + null_name + b"\x00\x00\x00\x00"))


def test_a_count_that_the_frame_cannot_hold_allocates_nothing() -> None:
    header = struct.pack(">hhih", METADATA, 8, 5, -1)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame, match="topics: 2147483647 do not fit into the 10 bytes"):
            decode_request(memoryview(header + struct.pack(">i", 2**31 - 1) + bytes(10)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_frame_of_many_tiny_elements_is_refused() -> None:
    frame = struct.pack(">hhih", METADATA, 8, 5, -1) + struct.pack(">i", 1001) + bytes(2002) + b"\x01\x00\x00"
    assert decode_request(memoryview(frame), 1001)
    with pytest.raises(MalformedFrame, match="topics: 1001 elements"):
        decode_request(memoryview(frame), 1000)


def test_a_string_that_is_no_utf_8_is_damage() -> None:
    frame = struct.pack(">hhih", INIT_PRODUCER_ID, 0, 5, -1) + struct.pack(">h", 2) + b"\xff\xfe" + bytes(4)
    with pytest.raises(MalformedFrame, match="UTF-8"):
        decode_request(memoryview(frame))
    with pytest.raises(MalformedFrame, match="UTF-8"):
        decode_request(memoryview(struct.pack(">hhih", INIT_PRODUCER_ID, 0, 5, 1) + b"\xff" + bytes(6)))


@pytest.mark.parametrize(
    "message",
    [
        InitProducerIdRequest(transactional_id="x" * 40_000),
        InitProducerIdRequest(transaction_timeout_ms=2**31),
        InitProducerIdRequest(producer_epoch=None),  # type: ignore[arg-type]
        MetadataRequest(),
    ],
    ids=["string", "number", "null", "class"],
)
def test_a_value_that_its_field_cannot_hold_is_not_written(message: object) -> None:
    with pytest.raises(ValueError, match="InitProducerIdRequest"):
        encode_request(INIT_PRODUCER_ID, 4, 5, "client", message)


def test_a_version_that_is_not_there_is_not_written() -> None:
    with pytest.raises(ValueError, match="no version 2"):
        encode_request(PRODUCE, 2, 5, "client", ProduceRequest())


CASES = [(api, is_request) for api in APIS.values() for is_request in (True, False)]


@pytest.mark.parametrize(
    ("api", "is_request"), CASES, ids=[f"{api.name}-{'request' if r else 'response'}" for api, r in CASES]
)
def test_every_cut_and_changed_frame_is_read_or_malformed(api: Api, is_request: bool) -> None:
    host = random.Random(f"damage {api.name} {is_request}")
    malformed = 0
    for version in range(api.min_version, api.max_version + 1):
        frame = whole_frame(api, version, is_request, host)
        cuts = [frame[: host.randrange(len(frame))] for _ in range(10)]
        for damaged in cuts + [damage(frame, host) for _ in range(20)]:
            malformed += not is_read(api, version, is_request, damaged)
    assert malformed > 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_damaged_frames_are_read_or_malformed() -> None:
    host = random.Random(8)
    frames = [
        (api, version, is_request, whole_frame(api, version, is_request, host))
        for api, is_request in CASES
        for version in range(api.min_version, api.max_version + 1)
        for _ in range(4)
    ]
    malformed = 0
    for _ in range(1_000_000):
        api, version, is_request, frame = host.choice(frames)
        damaged = frame[: host.randrange(len(frame))] if host.random() < 0.2 else damage(frame, host)
        malformed += not is_read(api, version, is_request, damaged)
    assert 200_000 < malformed < 1_000_000


def whole_frame(api: Api, version: int, is_request: bool, host: random.Random) -> bytes:
    """A random message's frame, without its length."""
    cls = api.request if is_request else api.response
    message = random_message(cls, version, host)
    if is_request:
        return b"".join(encode_request(api.key, version, 5, "client", message))[4:]
    return b"".join(encode_response(api.key, version, 5, message))[4:]


def damage(frame: bytes, host: random.Random) -> bytes:
    """Some bytes changed (to the values that lengths lie with, too), inserted or taken away."""
    damaged = bytearray(frame)
    for _ in range(host.choice((1, 1, 2, 5))):
        at = host.randrange(len(damaged)) if damaged else 0
        match host.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([host.randrange(256)])
            case 1:
                lie = host.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x07", b"\x80", b"\x00"))
                damaged[at : at + len(lie)] = lie
            case 2:
                damaged[at:at] = host.randbytes(host.randrange(1, 9))
            case _:
                del damaged[at : at + host.randrange(1, 9)]
    return bytes(damaged)


def is_read(api: Api, version: int, is_request: bool, frame: bytes) -> bool:
    """Read a frame; false where it is malformed. Any other exception is the test's failure."""
    try:
        if is_request:
            decode_request(memoryview(frame))
        else:
            decode_response(api.key, version, memoryview(frame))
    except MalformedFrame:
        return False
    return True
