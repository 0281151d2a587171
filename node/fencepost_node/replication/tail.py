"""The newest part of a leader's log, in memory: what followers and consumers read while they keep up.

A bounded run of whole appends, contiguous, ending at the log's end. Whoever is further behind reads the disk.
"""

from __future__ import annotations

from bisect import bisect_right

from fencepost_proto.errors import InvariantBroken

_COMPACT_AFTER = 256  # dropped entries kept before the lists are cut


class Tail:
    """At most `max_bytes` of the newest batches (but always the last one)."""

    def __init__(self, end_offset: int, max_bytes: int) -> None:
        self.end_offset = end_offset
        self._max_bytes = max_bytes
        self._base_offsets: list[int] = []
        self._batches: list[bytes] = []
        self._first = 0  # index of the oldest kept entry
        self._bytes = 0

    def append(self, base_offset: int, end_offset: int, batch: bytes) -> None:
        if base_offset != self.end_offset:
            raise InvariantBroken(f"batch at {base_offset} appended to a tail that ends at {self.end_offset}")
        self._base_offsets.append(base_offset)
        self._batches.append(batch)
        self._bytes += len(batch)
        self.end_offset = end_offset
        while self._bytes > self._max_bytes and self._first < len(self._batches) - 1:
            self._bytes -= len(self._batches[self._first])
            self._batches[self._first] = b""
            self._first += 1
        if self._first >= _COMPACT_AFTER and self._first * 2 >= len(self._batches):
            del self._base_offsets[: self._first]
            del self._batches[: self._first]
            self._first = 0

    def read(self, offset: int, max_bytes: int, end_offset: int) -> bytes | None:
        """Whole batches from the one that holds `offset`, up to `max_bytes` (but at least one), none that ends above
        `end_offset`; b"" where there is none yet; None where `offset` is older than the tail."""
        if offset >= min(self.end_offset, end_offset):
            return b""
        index = bisect_right(self._base_offsets, offset, lo=self._first) - 1
        if index < self._first:
            return None
        last = len(self._batches)
        taken = 0
        start = index
        while index < last:
            size = len(self._batches[index])
            end = self._base_offsets[index + 1] if index + 1 < last else self.end_offset
            if end > end_offset or (taken and taken + size > max_bytes):
                break
            taken += size
            index += 1
        if index == start + 1:
            return self._batches[start]
        return b"".join(self._batches[start:index])
