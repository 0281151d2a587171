"""The names of internal topics, for who still looks for them here: `fencepost_proto.protocol.internal_topics` has them."""

from __future__ import annotations

from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS, OFFSETS_TOPIC

__all__ = ["INTERNAL_TOPICS", "OFFSETS_TOPIC"]
