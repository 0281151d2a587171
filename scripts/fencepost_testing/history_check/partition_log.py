"""What is known of one partition's log: which value stands at which offset, what was read, what may have been skipped.

Offsets lie in chunks of numbers, so that a log of a million records costs 4 MB and one that begins at offset 10^12 no
more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fencepost_testing.history_check.elections import Elections

_CHUNK_BITS = 12
CHUNK = 1 << _CHUNK_BITS
_INDEX_MASK = CHUNK - 1
EMPTY = -1
_EMPTY_CHUNK = array("i", [EMPTY]) * CHUNK


class FinalRead(NamedTuple):
    """A process has read the whole log: what it was not handed is not there."""

    began: int  # line
    start_offset: int
    end_offset: int


class Skip(NamedTuple):
    """A consumer that was handed no offset in [start_offset, end_offset)."""

    process: int
    start_offset: int
    end_offset: int
    line: int


@dataclass(slots=True, eq=False)
class PartitionLog:
    """One partition."""

    topic: str
    partition: int
    number: int
    final: FinalRead | None = None
    elections: Elections = field(default_factory=Elections)
    _chunks: dict[int, array[int]] = field(default_factory=dict)
    _skips: array[int] = field(default_factory=lambda: array("q"))  # four numbers each
    _read: array[int] = field(default_factory=lambda: array("q"))  # [start, end) each

    @property
    def name(self) -> str:
        """The topic alone where an acknowledgement did not say which partition it is."""
        return f"{self.topic}-{self.partition}" if self.partition >= 0 else self.topic

    # ---- What stands where ----

    def put(self, offset: int, value: int) -> int:
        """Enter a value where none stands. Returns the value that stands there then."""
        chunk, index = self._chunks.get(offset >> _CHUNK_BITS), offset & _INDEX_MASK
        if chunk is None:
            chunk = self._chunks[offset >> _CHUNK_BITS] = _EMPTY_CHUNK[:]
        standing = chunk[index]
        if standing != EMPTY:
            return standing
        chunk[index] = value
        return value

    def replace(self, offset: int, value: int) -> None:
        """Another value stands at an offset where one is known."""
        self._chunks[offset >> _CHUNK_BITS][offset & _INDEX_MASK] = value

    def take_out(self, start_offset: int) -> list[tuple[int, int]]:
        """Forget what stands from `start_offset` on. Returns it: (offset, value), in the order of offsets."""
        taken = list(self.known(start_offset))
        for offset, _ in taken:
            self._chunks[offset >> _CHUNK_BITS][offset & _INDEX_MASK] = EMPTY
        return taken

    def at(self, offset: int) -> int:
        """The value at an offset, or EMPTY."""
        chunk = self._chunks.get(offset >> _CHUNK_BITS)
        return EMPTY if chunk is None else chunk[offset & _INDEX_MASK]

    def known(self, start_offset: int = 0, end_offset: int | None = None) -> Iterator[tuple[int, int]]:
        """(offset, value) of all that is known in a range, in the order of offsets."""
        for base in self._bases(start_offset, end_offset):
            first = base << _CHUNK_BITS
            low = max(0, start_offset - first)
            high = CHUNK if end_offset is None else min(CHUNK, end_offset - first)
            for offset, value in enumerate(self._chunks[base][low:high], first + low):
                if value != EMPTY:
                    yield offset, value

    def _bases(self, start_offset: int, end_offset: int | None) -> list[int]:
        """The chunks that a range touches, in order."""
        first = start_offset >> _CHUNK_BITS
        last = max(self._chunks, default=-1) if end_offset is None else (end_offset - 1) >> _CHUNK_BITS
        if last - first < len(self._chunks):
            return [base for base in range(first, last + 1) if base in self._chunks]
        return sorted(base for base in self._chunks if first <= base <= last)

    # ---- What was read ----

    def add_skip(self, skip: Skip) -> None:
        self._skips.extend(skip)

    @property
    def skips(self) -> Iterator[Skip]:
        for index in range(0, len(self._skips), 4):
            yield Skip(*self._skips[index : index + 4])

    def add_read(self, start_offset: int, end_offset: int) -> None:
        """A consumer went through this range."""
        if start_offset < end_offset:
            self._read.extend((start_offset, end_offset))

    def ranges_read(self) -> RangesRead:
        return RangesRead.merged(zip(self._read[::2], self._read[1::2], strict=True))


class RangesRead:
    """Offsets through which someone went."""

    def __init__(self, starts: list[int], ends: list[int]) -> None:
        self._starts = starts
        self._ends = ends

    @classmethod
    def merged(cls, ranges: Iterator[tuple[int, int]]) -> RangesRead:
        starts: list[int] = []
        ends: list[int] = []
        for start, end in sorted(ranges):
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)
        return cls(starts, ends)

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._ends[index]

    def __str__(self) -> str:
        ranges = [f"{start}-{end - 1}" for start, end in zip(self._starts, self._ends, strict=True)]
        return ", ".join(ranges[:3]) + (" …" if len(ranges) > 3 else "")
