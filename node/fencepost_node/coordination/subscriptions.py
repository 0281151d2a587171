"""The topics that a classic consumer's subscription names. Pure.

A subscription is opaque to a broker, but for one question: whether anyone in a group uses a topic. Its layout (the Java
client's `ConsumerProtocolSubscription`, all versions): version int16, count int32, then for each topic a string of length
int16; what follows differs by version.
"""

from __future__ import annotations

import struct

from fencepost_node.coordination import limits

_START = struct.Struct(">hi")
_LENGTH = struct.Struct(">h")


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
