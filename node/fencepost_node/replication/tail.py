"""The newest part of each leader's log, in memory: what followers and consumers read while they keep up.

A `Tail` is a run of whole appends, contiguous, ending at the log's end. A follower that is further behind reads the disk.

A `TailBudget` bounds the bytes of all tails that share it: of a whole broker, however many partitions it leads. Above it
the batch that was appended first goes, whichever tail has it. So memory goes to the partitions that are written to now, and
a tail may become empty while its log does not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from fencepost_proto.protocol.errors import InvariantBroken

_COMPACT_AFTER = 16  # dropped entries kept before the lists are cut
_CLOSED_KEPT = 1_024  # places of closed tails in a budget's queue before it is cleared of them


class TailBudget:
    """At most `max_bytes` in all tails together (but always the batch that was appended last)."""

    def __init__(self, max_bytes: int) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._queue: deque[Tail] = deque()  # the tail of every kept batch, in the order of the appends
        self._closed = 0  # places in the queue whose tails have been closed

    @property
    def places(self) -> int:
        """How long the queue is."""
        return len(self._queue)

    def appended(self, tail: Tail, size_bytes: int) -> None:
        self.used_bytes += size_bytes
        self._queue.append(tail)
        while self.used_bytes > self._max_bytes and len(self._queue) > 1:
            oldest = self._queue.popleft()
            if len(oldest):
                self.used_bytes -= oldest.drop_first()
            else:
                self._closed -= 1

    def closed(self, batches: int, size_bytes: int) -> None:
        """A tail has been emptied permanently: it had so many batches of so many bytes."""
        self.used_bytes -= size_bytes
        self._closed += batches
        if self._closed > _CLOSED_KEPT and self._closed * 2 > len(self._queue):
            self._queue = deque(tail for tail in self._queue if len(tail))
            self._closed = 0


class Tail:
    """The newest batches of one log."""

    def __init__(self, end_offset: int, budget: TailBudget) -> None:
        self.end_offset = end_offset
        self._budget = budget
        self._base_offsets: list[int] = []
        self._positions: list[int] = []  # bytes appended before each
        self._batches: list[bytes] = []
        self._first = 0  # index of the oldest kept entry
        self._end_position = 0  # bytes ever appended

    def __len__(self) -> int:
        """Batches."""
        return len(self._batches) - self._first

    @property
    def entries(self) -> int:
        """Places in memory for batches, those of dropped ones included."""
        return len(self._batches)

    def append(self, base_offset: int, end_offset: int, batch: bytes) -> None:
        if base_offset != self.end_offset:
            raise InvariantBroken(f"batch at {base_offset} appended to a tail that ends at {self.end_offset}")
        self._base_offsets.append(base_offset)
        self._positions.append(self._end_position)
        self._batches.append(batch)
        self._end_position += len(batch)
        self.end_offset = end_offset
        self._budget.appended(self, len(batch))

    def drop_first(self) -> int:
        """Forget the oldest batch; its size. For the budget."""
        size = len(self._batches[self._first])
        self._batches[self._first] = b""
        self._first += 1
        if self._first >= _COMPACT_AFTER and self._first * 2 >= len(self._batches):
            del self._base_offsets[: self._first]
            del self._positions[: self._first]
            del self._batches[: self._first]
            self._first = 0
        return size

    def close(self) -> None:
        """Release everything; nothing is appended any more."""
        kept = self._batches[self._first :]
        self._base_offsets, self._positions, self._batches, self._first = [], [], [], 0
        self._budget.closed(len(kept), sum(map(len, kept)))

    def available(self, offset: int, end_offset: int) -> int | None:
        """How many bytes `read` would give from `offset` on, had it no bound; None where `offset` is older than the tail."""
        if offset >= min(self.end_offset, end_offset):
            return 0
        start = bisect_right(self._base_offsets, offset, lo=self._first) - 1
        if start < self._first:
            return None
        if end_offset >= self.end_offset:
            return self._end_position - self._positions[start]
        # The batch that holds `end_offset` is not whole below it.
        end = bisect_right(self._base_offsets, end_offset, lo=start) - 1
        return self._positions[end] - self._positions[start]

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
