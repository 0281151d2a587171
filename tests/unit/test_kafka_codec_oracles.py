"""Laws of the Kafka codec: what it writes is, byte for byte, what kio and kafka-python write; it reads what they read.

For every API, version and direction that an oracle has: random messages, written by the codec, read by the oracle, compared
value by value, written by the oracle again, compared byte by byte, and read back by the codec.
"""

from __future__ import annotations

import datetime
import enum
import importlib
import io
import pkgutil
import random
import uuid
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass

import pytest

from fencepost_proto.kafka.apis import APIS, Api
from fencepost_proto.kafka.codec import decode_request, decode_response, encode_request, encode_response
from fencepost_proto.kafka.messages.api_versions import ApiVersionsResponse
from fencepost_proto.kafka.schema.fields import ZERO_UUID, fields_of
from tests.unit.kafka_messages import given, plain, random_message

pytest.importorskip("kio", reason="pip install -e .[dev] brings the oracles")
pytest.importorskip("kafka", reason="pip install -e .[dev] brings the oracles")

import kafka.protocol
from kafka.protocol.api_message import ApiMessage
from kio.index import load_payload_module
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType

MESSAGES = 4  # per API, version and direction
CASES = [(api, is_request) for api in APIS.values() for is_request in (True, False)]
IDS = [f"{api.name}-{'request' if is_request else 'response'}" for api, is_request in CASES]

KIO_LACKS = {(18, 5)}  # ApiVersions 5 is of Kafka 4.4, newer than both oracles
KAFKA_PYTHON_LACKS = {68, 69}  # the groups of KIP-848
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(("api", "is_request"), CASES, ids=IDS)
def test_kio_reads_and_writes_the_same(api: Api, is_request: bool) -> None:
    checked = 0
    for version in range(api.min_version, api.max_version + 1):
        if (api.key, version) in KIO_LACKS:
            continue
        module = load_payload_module(api.key, version, EntityType.request if is_request else EntityType.response)
        theirs = getattr(module, (api.request if is_request else api.response).__name__)
        read, write = entity_reader(theirs), entity_writer(theirs)
        for ours, body in _messages(api, version, is_request):
            entity, end = read(body, 0)
            assert end == len(body)
            assert _kio_plain(entity) == plain(ours, version), (version, ours)
            written = io.BytesIO()
            write(written, entity)
            assert written.getvalue() == body, (version, ours)
            checked += 1
    assert checked >= MESSAGES


@pytest.mark.parametrize(("api", "is_request"), CASES, ids=IDS)
def test_kafka_python_reads_and_writes_the_same(api: Api, is_request: bool) -> None:
    cls = (api.request if is_request else api.response).__name__
    theirs = _kafka_python_classes().get(cls)
    if theirs is None:
        assert api.key in KAFKA_PYTHON_LACKS, f"kafka-python has no {cls}"
        pytest.skip(f"kafka-python has no {cls}")
    for version in range(api.min_version, min(api.max_version, theirs.max_version) + 1):
        for ours, body in _messages(api, version, is_request):
            if isinstance(ours, ApiVersionsResponse) and ours.error_code:
                continue  # it reads every error as version 0
            message = theirs.decode(body, version=version)
            _compare_by_name(message, ours, version)
            message._header = None  # only its constructor sets it
            assert message.encode(version=version) == body, (version, ours)


def _messages(api: Api, version: int, is_request: bool) -> list[tuple[object, bytes]]:
    """Random messages and their bytes without frame and header, after a round trip through the codec."""
    host = random.Random(f"{api.name} {version} {is_request}")
    cls = api.request if is_request else api.response
    made = []
    for _ in range(MESSAGES):
        message = random_message(cls, version, host)
        if is_request:
            frame = b"".join(encode_request(api.key, version, 77, "me", message))
            header, decoded = decode_request(memoryview(frame)[4:])
            assert header == (api.key, version, 77, "me")
            start = 4 + 10 + 2
        else:
            frame = b"".join(encode_response(api.key, version, 77, message))
            correlation_id, decoded = decode_response(api.key, version, memoryview(frame)[4:])
            assert correlation_id == 77
            start = 4 + 4
        assert int.from_bytes(frame[:4], "big") == len(frame) - 4
        assert plain(decoded, version) == plain(message, version)
        has_tags = api.is_flexible_in(version) and (is_request or api.key != 18)
        made.append((message, frame[start + has_tags :]))
    return made


def _kio_plain(value: object, kafka_type: str = "") -> object:
    if is_dataclass(value):
        return [_kio_plain(getattr(value, f.name), f.metadata.get("kafka_type", "")) for f in dataclass_fields(value)]
    if isinstance(value, tuple):
        return [_kio_plain(each, kafka_type) for each in value]
    if isinstance(value, datetime.timedelta):
        return round(value.total_seconds() * 1000)
    if isinstance(value, datetime.datetime):
        return round((value - EPOCH).total_seconds() * 1000)
    if isinstance(value, uuid.UUID):
        return value.bytes
    if value is None and kafka_type == "uuid":
        return ZERO_UUID
    if isinstance(value, enum.IntEnum):
        return int(value)
    return value


def _kafka_python_classes() -> dict[str, type[ApiMessage]]:
    for module in pkgutil.walk_packages(kafka.protocol.__path__, "kafka.protocol."):
        if ".old" not in module.name and "generate" not in module.name:
            importlib.import_module(module.name)
    found: dict[str, type[ApiMessage]] = {}
    todo = list(ApiMessage.__subclasses__())
    while todo:
        cls = todo.pop()
        found.setdefault(cls.__name__, cls)
        todo += cls.__subclasses__()
    return found


def _compare_by_name(theirs: object, ours: object, version: int) -> None:
    """kafka-python leaves out tagged fields that are absent, has None for a UUID of zeros and sets for bit fields."""
    for field in fields_of(type(ours)):
        value = given(ours, field)
        if field.name.endswith("authorized_operations"):
            continue
        if field.is_in(version) and not (field.tag is not None and value == given(type(ours)(), field)):
            _compare(getattr(theirs, field.name), value, version, f"{type(ours).__name__}.{field.name}")


def _compare(theirs: object, ours: object, version: int, where: str) -> None:
    if isinstance(ours, list):
        assert isinstance(theirs, list | tuple), where
        assert len(theirs) == len(ours), where
        for their_element, our_element in zip(theirs, ours, strict=True):
            _compare(their_element, our_element, version, where)
    elif ours is None or isinstance(ours, bool | int | str):
        assert theirs == ours, where
    elif isinstance(ours, bytes):
        assert (theirs.bytes if isinstance(theirs, uuid.UUID) else theirs or ZERO_UUID[: len(ours)]) == ours, where
    else:
        _compare_by_name(theirs, ours, version)
