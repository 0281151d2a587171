"""What compiled readers and writers share: varints, skipping of unknown tagged fields, and the errors with their
words."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import MAX_STRING_BYTES

_MAX_LENGTH = 2**31 - 1  # of anything: Kafka's lengths are signed 32-bit numbers
_ONE_BYTE = 0x80


class MalformedFrame(Exception):
    """Bytes that are not the message that they should be. The message says which field, what it says and what is
    there."""


def read_long_uvarint(data: memoryview, position: int, first: int) -> tuple[int, int]:
    """Value and end of an unsigned varint whose first byte was read already and has a successor."""
    value = first & 0x7F
    shift = 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < _ONE_BYTE:
            break
        shift += 7
        if shift > 28:
            raise MalformedFrame("an unsigned varint has more than 5 bytes")
    if value > _MAX_LENGTH:
        raise MalformedFrame(f"the unsigned varint {value} is greater than {_MAX_LENGTH}")
    return value, position


def read_uvarint(data: memoryview, position: int) -> tuple[int, int]:
    """Value and end of an unsigned varint of at most 2^31 - 1."""
    first = data[position]
    return (first, position + 1) if first < _ONE_BYTE else read_long_uvarint(data, position + 1, first)


def _uvarint(value: int) -> bytes:
    encoded = bytearray()
    while value >= _ONE_BYTE:
        encoded.append(value & 0x7F | _ONE_BYTE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


SHORT_UVARINTS = [_uvarint(value) for value in range(_ONE_BYTE)]


def uvarint(value: int) -> bytes:
    """An unsigned varint; the common ones come from a table."""
    return SHORT_UVARINTS[value] if value < _ONE_BYTE else _uvarint(value)


def skip_tagged_fields(data: memoryview, position: int, count: int, size: int) -> int:
    """The position after `count` tagged fields, none of which this version knows."""
    for _ in range(count):  # ends with the frame at the latest: each takes two bytes
        tag, position = read_uvarint(data, position)
        length, position = read_uvarint(data, position)
        if length > size - position:
            raise beyond_frame(f"tagged field {tag}", length, size - position)
        position += length
    return position


def beyond_frame(field: str, length: int, left: int) -> MalformedFrame:
    """A length or count that the rest of the frame cannot hold, or below zero where null is not allowed."""
    if length < 0:
        return MalformedFrame(f"{field}: null or a length of {length}, which it may not have")
    return MalformedFrame(f"{field}: {length} do not fit into the {left} bytes that are left of the frame")


def too_many(field: str, count: int) -> MalformedFrame:
    return MalformedFrame(f"{field}: {count} elements are more than one frame may have")


def too_long_to_read(field: str, length: int) -> MalformedFrame:
    return MalformedFrame(f"{field}: a string of {length} bytes; at most {MAX_STRING_BYTES} are allowed")


def wrong_tag_length(field: str, surplus: int) -> MalformedFrame:
    return MalformedFrame(f"tagged field {field}: ends {surplus} bytes beyond the length that it states")


def too_long_to_write(field: str, length: int) -> ValueError:
    return ValueError(f"{field}: a string of {length} bytes; at most {MAX_STRING_BYTES} are allowed")
