"""The topics that a classic consumer's subscription names, and the partitions of its assignment. Pure.

Both are opaque to a broker, but for two questions: whether anyone in a group uses a topic, and who reads what, for those who
describe a group. Layouts (the Java client's `ConsumerProtocolSubscription` and `ConsumerProtocolAssignment`, all versions):
version int16, count int32, then for each topic a string of length int16, in an assignment followed by a count int32 and
as many int32; what follows differs by version.
"""

from __future__ import annotations

import struct

from fencepost_node.coordination import limits

_START = struct.Struct(">hi")
_LENGTH = struct.Struct(">h")
_COUNT = struct.Struct(">i")


class _Reader:
    """Takes one field after the other. Raises struct.error or ValueError where the bytes end too early, or lie."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def topics(self) -> range:
        """As many as there are to read; first of all."""
        _, count = self._take(_START)
        if not 0 <= count <= limits.MAX_SUBSCRIBED_TOPICS:
            raise ValueError(f"{count} topics")
        return range(count)

    def name(self) -> str:
        (length,) = self._take(_LENGTH)
        return self._slice(length).decode()

    def indexes(self) -> list[int]:
        (count,) = self._take(_COUNT)
        return [index for (index,) in _COUNT.iter_unpack(self._slice(count * _COUNT.size))]

    def _take(self, layout: struct.Struct) -> tuple[int, ...]:
        fields: tuple[int, ...] = layout.unpack_from(self._data, self._position)
        self._position += layout.size
        return fields

    def _slice(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if size < 0 or self._position > len(self._data):
            raise ValueError(f"{size} bytes from {start} on, of {len(self._data)}")
        return self._data[start : self._position]


def subscribed_topics(subscription: bytes) -> set[str] | None:
    """None: these bytes are no subscription of a consumer."""
    reader = _Reader(subscription)
    try:
        return {reader.name() for _ in reader.topics()}
    except (struct.error, ValueError):
        return None


def assigned_partitions(assignment: bytes) -> list[tuple[str, int]] | None:
    """Topic and partition, in the order of the assignment. None: these bytes are no assignment of a consumer."""
    reader = _Reader(assignment)
    found: list[tuple[str, int]] = []
    try:
        for _ in reader.topics():
            name = reader.name()
            found += [(name, index) for index in reader.indexes()]
    except (struct.error, ValueError):
        return None
    return found
