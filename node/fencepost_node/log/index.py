"""A sparse index: rising pairs of numbers in a file, found by either column.

A segment has two. The offset index pairs a batch's base offset with its position in the segment; the time index pairs
the largest timestamp up to and including a batch with that batch's base offset. Both get an entry for the same
batches, one for every `index_interval_bytes` or so.

New entries stay in memory until `flush` (in a thread, before the snapshot that makes recovery trust them), so appending
to an index costs no system call. What is missing in the file after a crash is rebuilt from the batches.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fencepost_node.log.disk import Disk, File

_ENTRY = struct.Struct(">qq")


class IndexEntry(NamedTuple):
    first: int
    second: int


class SparseIndex:
    """One index file. Neither column ever falls from one entry to the next.

    `add_entry` is called by one thread; `flush` and the finders may run in others.
    """

    __slots__ = ("_disk", "_file", "_flushed", "_lock", "_path", "_tail")

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._lock = threading.Lock()
        self._file: File | None = None
        self._flushed = 0  # entries that the file holds …
        self._tail: list[IndexEntry] = []  # … and those that follow them

    @staticmethod
    def load(disk: Disk, path: str) -> SparseIndex:
        """With what the file holds, unchecked; it is there. Raises OSError."""
        index = SparseIndex(disk, path)
        index._file = disk.open(path)
        index._flushed = index._file.size // _ENTRY.size
        return index

    def __len__(self) -> int:
        with self._lock:
            return self._flushed + len(self._tail)

    def add_entry(self, first: int, second: int) -> None:
        with self._lock:
            self._tail.append(IndexEntry(first, second))

    def entry(self, number: int) -> IndexEntry:
        with self._lock:
            flushed, tail = self._flushed, self._tail
        return self._entry(number, flushed, tail)

    def last_by_first(self, limit: int) -> IndexEntry | None:
        """The last entry whose first number is at most `limit`."""
        return next(self._backwards(bisect_right, lambda entry: entry.first, limit), None)

    def two_below_first(self, limit: int) -> tuple[IndexEntry, IndexEntry] | None:
        """The last two entries whose first numbers are below `limit`. None: there are not two."""
        entries = self._backwards(bisect_left, lambda entry: entry.first, limit)
        last, before = next(entries, None), next(entries, None)
        return (before, last) if before and last else None

    def last_by_second(self, limit: int) -> IndexEntry | None:
        """The last entry whose second number is at most `limit`."""
        return next(self._backwards(bisect_right, lambda entry: entry.second, limit), None)

    def _backwards(
        self, bisect: Callable[..., int], column: Callable[[IndexEntry], int], limit: int
    ) -> Iterator[IndexEntry]:
        """The entries before where `bisect` puts `limit`, the last one first."""
        with self._lock:
            flushed, tail, size = self._flushed, self._tail, self._flushed + len(self._tail)
        low = flushed if tail and column(tail[0]) < limit else 0
        number = bisect(range(size), limit, lo=low, key=lambda n: column(self._entry(n, flushed, tail)))
        return (self._entry(n, flushed, tail) for n in range(number - 1, -1, -1))

    def _entry(self, number: int, flushed: int, tail: list[IndexEntry]) -> IndexEntry:
        if number >= flushed:
            return tail[number - flushed]
        assert self._file is not None  # flushed > 0
        data = self._file.read(number * _ENTRY.size, _ENTRY.size)
        if len(data) < _ENTRY.size:
            raise OSError(f"{self._path} ends before entry {number}")
        return IndexEntry._make(_ENTRY.unpack(data))

    def cut(self, length: int) -> None:
        """Keep the first `length` entries, on disk too. Raises OSError."""
        with self._lock:
            if length < self._flushed:
                assert self._file is not None
                self._file.truncate(length * _ENTRY.size)
                self._file.sync()
                self._flushed = length
            self._tail = self._tail[: max(length - self._flushed, 0)]

    def flush(self) -> None:
        """Put every entry on disk. Raises OSError; then nothing is lost and the next call tries again."""
        with self._lock:
            flushed, tail = self._flushed, list(self._tail)
        if not tail:
            return
        if self._file is None:
            self._file = self._disk.open(self._path, create=True)
        if self._file.size != flushed * _ENTRY.size:
            self._file.truncate(flushed * _ENTRY.size)  # what an earlier call wrote in part, or a crash left
        self._file.append(b"".join(_ENTRY.pack(*entry) for entry in tail))
        self._file.sync()
        with self._lock:
            self._flushed += len(tail)
            self._tail = self._tail[len(tail) :]

    def hold(self) -> File | None:
        """See `File.hold`: the file that is held, whose `release` is the caller's to call. Raises OSError."""
        if self._file is not None:
            self._file.hold()
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
