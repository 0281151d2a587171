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


def subscribed_topics(subscription: bytes) -> set[str] | None:
    """None: these bytes are no subscription of a consumer."""
    try:
        _, count = _START.unpack_from(subscription)
        if not 0 <= count <= limits.MAX_SUBSCRIBED_TOPICS:
            return None
        topics = set()
        position = _START.size
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(subscription, position)
            position += _LENGTH.size
            if length < 0 or position + length > len(subscription):
                return None
            topics.add(subscription[position : position + length].decode())
            position += length
    except (struct.error, UnicodeDecodeError):
        return None
    return topics


def assigned_partitions(assignment: bytes) -> list[tuple[str, int]] | None:
    """Topic and partition, in the order of the assignment. None: these bytes are no assignment of a consumer."""
    try:
        _, topics = _START.unpack_from(assignment)
        if not 0 <= topics <= limits.MAX_SUBSCRIBED_TOPICS:
            return None
        found: list[tuple[str, int]] = []
        position = _START.size
        for _ in range(topics):
            (length,) = _LENGTH.unpack_from(assignment, position)
            position += _LENGTH.size
            if length < 0 or position + length > len(assignment):
                return None
            name = assignment[position : position + length].decode()
            position += length
            (count,) = _COUNT.unpack_from(assignment, position)
            position += _COUNT.size
            if count < 0 or position + count * _COUNT.size > len(assignment):
                return None
            found += [(name, index) for index in struct.unpack_from(f">{count}i", assignment, position)]
            position += count * _COUNT.size
    except (struct.error, UnicodeDecodeError):
        return None
    return found
