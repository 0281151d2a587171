"""Which segments retention deletes. Pure.

Those that hold only deleted records go, whatever their age.

Timestamps come from producers, and may say anything. So retention by time counts from the newest record's timestamp, but

- not before the segment was last appended to: a backfill of old records stays for `retention_ms`, like any others, and
  does not vanish moments after its acknowledgement;
- a timestamp that lies in the future is none: one record of the year 2099 keeps nothing but its own segment, and that
  until `retention_ms` after its last append.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fencepost_node.log.config import NO_LIMIT


class SegmentFacts(NamedTuple):
    end_offset: int
    size_bytes: int
    largest_timestamp_ms: int  # -1: it holds no batch
    appended_ms: int = -1  # when it was last appended to; -1: not known

    def age_from_ms(self, now_ms: int) -> int:
        """The time from which its age counts."""
        newest_ms = self.largest_timestamp_ms if self.largest_timestamp_ms <= now_ms else -1
        return max(newest_ms, min(self.appended_ms, now_ms))


def segments_to_delete(
    segments: Sequence[SegmentFacts],
    now_ms: int,
    retention_ms: int,
    retention_bytes: int,
    high_watermark: int,
    *,
    log_start_offset: int = 0,
) -> int:
    """How many of the oldest segments go. Never the last one, and none that reaches above the high watermark.

    A segment goes when it ends below the log's start, when its age (see above) is more than `retention_ms`, or when what
    stays without it is still `retention_bytes` or more.
    """
    count = 0
    size_bytes = sum(segment.size_bytes for segment in segments)
    for segment in segments[:-1]:
        expired = retention_ms != NO_LIMIT and segment.age_from_ms(now_ms) < now_ms - retention_ms
        size_bytes -= segment.size_bytes
        surplus = retention_bytes != NO_LIMIT and size_bytes >= retention_bytes
        deleted = segment.end_offset <= log_start_offset
        if segment.end_offset > high_watermark or not (deleted or expired or surplus):
            break
        count += 1
    return count
