"""The segments of a log, and who is reading them.

The row is a tuple that is replaced, never changed, so a reader that has taken it sees a log as it was. A reader in another
thread pins the segment that it reads; one that has left the row (`retired`) is closed when its last reader has gone.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fencepost_node.log.segment import Segment


class SegmentRow:
    """At least one segment, in offset order; the last one is appended to. One thread at a time changes the row."""

    __slots__ = ("_lock", "all")

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._lock = threading.Lock()  # of pins and retirements; held over nothing that waits
        self.all = tuple(segments)

    @property
    def active(self) -> Segment:
        return self.all[-1]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size for segment in self.all)

    def add(self, segment: Segment) -> None:
        self.all = (*self.all, segment)

    def number_at(self, offset: int) -> int:
        """Of the segment that holds `offset`, or would; -1 below the first."""
        return bisect_right(self.all, offset, key=lambda segment: segment.base_offset) - 1

    # ---- Leaving the row: the caller that takes segments out retires them ----

    def take_oldest(self, count: int) -> Sequence[Segment]:
        taken, self.all = self.all[:count], self.all[count:]
        return taken

    def take_after(self, number: int) -> Sequence[Segment]:
        taken, self.all = self.all[number + 1 :], self.all[: number + 1]
        return taken

    def retire(self, segments: Sequence[Segment]) -> None:
        """Close those without readers; the others when their last reader goes."""
        with self._lock:
            for segment in segments:
                segment.retired = True
            idle = [segment for segment in segments if not segment.pins]
        for segment in idle:
            segment.close()

    # ---- Readers ----

    @contextmanager
    def pinned(self, *segments: Segment) -> Iterator[list[Segment]]:
        """Those of the segments that are not retired; they stay open inside. Raises OSError where one cannot be opened.

        Files of a retired segment may be gone, or others may stand under their names: what was opened counts only if the
        segment is still not retired after that.
        """
        with self._lock:
            pinned = [segment for segment in segments if not segment.retired]
            for segment in pinned:
                segment.pins += 1
        try:
            with ExitStack() as held:
                usable = []
                for segment in pinned:
                    try:
                        segment.hold(held)
                    except OSError:
                        if not segment.retired:
                            raise
                    if not segment.retired:
                        usable.append(segment)
                yield usable
        finally:
            with self._lock:
                for segment in pinned:
                    segment.pins -= 1
                left = [segment for segment in pinned if segment.retired and not segment.pins]
            for segment in left:
                segment.close()
