"""A set of offsets, as spans: it is small where most of them follow each other."""

from __future__ import annotations

from bisect import bisect_right


class Spans:
    """Starts and ends (exclusive) of spans that do not touch."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, offset: int) -> None:
        index = bisect_right(self._starts, offset)  # the span behind it
        if index and offset < self._ends[index - 1]:
            return
        grows_before = index > 0 and self._ends[index - 1] == offset
        grows_behind = index < len(self._starts) and self._starts[index] == offset + 1
        if grows_before and grows_behind:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif grows_before:
            self._ends[index - 1] = offset + 1
        elif grows_behind:
            self._starts[index] = offset
        else:
            self._starts.insert(index, offset)
            self._ends.insert(index, offset + 1)

    @property
    def first(self) -> int | None:
        return self._starts[0] if self._starts else None

    def missing(self, start: int, end: int) -> list[int]:
        """The offsets from `start` up to before `end` that are not in it."""
        found: list[int] = []
        at = start
        for first, last in zip(self._starts, self._ends, strict=True):
            if at >= end:
                break
            found += range(at, min(first, end))
            at = max(at, last)
        found += range(at, end)
        return found
