"""Topic ids on the wire of Kafka: 16 bytes, which metadata writes as 22 characters of base64."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

NO_TOPIC_ID = bytes(16)
_PADDING = "=="


@lru_cache(maxsize=4_096)
def to_wire(topic_id: str) -> bytes:
    """NO_TOPIC_ID for an id that was not made by a controller."""
    try:
        raw = base64.urlsafe_b64decode(topic_id + _PADDING)
    except (binascii.Error, ValueError):
        return NO_TOPIC_ID
    return raw if len(raw) == len(NO_TOPIC_ID) else NO_TOPIC_ID


@lru_cache(maxsize=4_096)
def from_wire(topic_id: bytes) -> str:
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
