"""Random messages of Kafka's protocol, from their schemas; what one version of a message says, as plain values."""

from __future__ import annotations

import random

from fencepost_proto.kafka.schema.fields import BOOL, BYTES, RECORDS, STRING, UUID, ZERO_UUID, Field, Kind, fields_of

WORDS = ("", "a", "orders", "grüße-ü-名", "x" * 130, "é" * 200)
ERROR_CODES = (0, 1, 3, 6, 35, 74, 87)
BITS = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}


def random_message(cls: type[object], version: int, host: random.Random, depth: int = 0) -> object:
    """A message whose fields of this version have random values, and whose other fields have their defaults."""
    values = {
        field.name: _random_value(field, version, host, depth)
        for field in fields_of(cls)
        if field.is_in(version) and not (field.tag is not None and host.random() < 0.4)
    }
    return cls(**values)


def _random_value(field: Field, version: int, host: random.Random, depth: int) -> object:
    if field.is_nullable_in(version) and host.random() < 0.25:
        return None
    if field.is_array:
        one = field._replace(is_array=False, nullable=None)
        count = host.choice((0, 1, 2, 3) if depth < 2 else (0, 1, 2))
        if isinstance(field.kind, Kind) and host.random() < 0.1:
            count = 200  # its length takes two bytes as a varint
        return [_random_value(one, version, host, depth + 1) for _ in range(count)]
    if not isinstance(field.kind, Kind):
        return random_message(field.kind, version, host, depth + 1)
    return _random_primitive(field.name, field.kind, host)


def _random_primitive(name: str, kind: Kind[object], host: random.Random) -> object:
    if kind is BOOL:
        return host.random() < 0.5
    if kind is STRING:
        return host.choice(WORDS)
    if kind in (BYTES, RECORDS):
        return host.randbytes(host.choice((0, 1, 61, 127, 128, 300)))
    if kind is UUID:
        return host.choice((ZERO_UUID, host.randbytes(16)))
    if name == "error_code" or name.endswith("_error_code"):
        return host.choice(ERROR_CODES)  # an oracle knows them by name
    if "timestamp" in name or name.endswith("_time_ms"):
        return host.choice((0, 1_700_000_000_000 % 2 ** BITS[kind.name], 1))  # an oracle makes it a date
    top = 2 ** BITS[kind.name]
    return host.choice((0, 1, -1, host.randrange(-top, top), top - 1, -top))


def plain(message: object, version: int) -> list[object]:
    """The values of this version's fields, in wire order, nested messages as lists; an absent tagged one as its default."""
    return [_plain(given(message, field), version) for field in fields_of(type(message)) if field.is_in(version)]


def given(message: object, field: Field) -> object:
    """What a field says; the default of a tagged struct that is None."""
    value = getattr(message, field.name)
    if value is None and field.tag is not None and field.nullable is None and isinstance(field.kind, type):
        return field.kind()
    return value


def _plain(value: object, version: int) -> object:
    if isinstance(value, list):
        return [_plain(each, version) for each in value]
    if isinstance(value, memoryview):
        return bytes(value)
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    return plain(value, version)
