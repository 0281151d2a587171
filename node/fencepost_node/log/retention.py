"""Which segments retention deletes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fencepost_node.log.config import NO_LIMIT


class SegmentFacts(NamedTuple):
    end_offset: int
    size_bytes: int
    largest_timestamp_ms: int  # -1: it holds no batch


def segments_to_delete(
    segments: Sequence[SegmentFacts], now_ms: int, retention_ms: int, retention_bytes: int, high_watermark: int
) -> int:
    """How many of the oldest segments go. Never the last one, and none that reaches above the high watermark.

    A segment goes when its newest record is older than `retention_ms`, or when what stays without it is still
    `retention_bytes` or more.
    """
    count = 0
    size_bytes = sum(segment.size_bytes for segment in segments)
    for segment in segments[:-1]:
        expired = retention_ms != NO_LIMIT and segment.largest_timestamp_ms < now_ms - retention_ms
        size_bytes -= segment.size_bytes
        surplus = retention_bytes != NO_LIMIT and size_bytes >= retention_bytes
        if segment.end_offset > high_watermark or not (expired or surplus):
            break
        count += 1
    return count
