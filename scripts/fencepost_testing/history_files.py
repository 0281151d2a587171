"""Reads and checks histories in files: line by line, several merged by time, each operation with its file and line.

A process that was killed while it wrote leaves a last line without an end. What it says cannot be known; it counts as
not written, and `torn` names it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

from fencepost.history_format import NotAnOperation, Operation, from_line
from fencepost_testing.history_check import BrokenHistory, HistoryCheck, Verdict, with_operations

MAX_LINE_BYTES = 32 * 1024 * 1024  # far beyond any poll; what is longer is no history
_LINES_BETWEEN_TELLING = 20_000

Line = tuple[Operation, int, int]  # and the index of its file, and the line's number there


class UnreadableHistory(Exception):
    """Names the file, the line where there is one, and what is wrong."""


class HistoryFiles:
    """Iterate over it as often as you like. Raises UnreadableHistory, here and then."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.on_read: Callable[[int], None] | None = None  # gets the bytes read since its last call
        self.torn: dict[int, str] = {}  # by index of the file
        self.size_bytes = sum(_size_bytes(path) for path in paths)

    def __iter__(self) -> Iterator[Line]:
        files = [self._read(index) for index in range(len(self._paths))]
        return files[0] if len(files) == 1 else heapq.merge(*files, key=lambda line: line[0].time_ns)

    def located(self) -> Iterator[tuple[str, Operation]]:
        """The operations, and where each is."""
        for operation, index, number in self:
            yield self.where(index, number), operation

    def where(self, index: int, number: int) -> str:
        return f"{self._paths[index]}:{number}"

    def _read(self, index: int) -> Iterator[Line]:
        try:
            with self._paths[index].open("rb") as file:
                yield from self._lines(file, index)
        except OSError as error:
            raise UnreadableHistory(f"{self._paths[index]}: {error.strerror or error}") from None

    def _lines(self, file: BinaryIO, index: int) -> Iterator[Line]:
        unread = 0
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                break
            if len(line) == MAX_LINE_BYTES:
                raise UnreadableHistory(f"{self.where(index, number)}: a line of {MAX_LINE_BYTES} bytes or more")
            unread += len(line)
            if number % _LINES_BETWEEN_TELLING == 0:
                self._tell(unread)
                unread = 0
            try:
                yield from_line(line), index, number
            except NotAnOperation as error:
                if not line.strip():
                    continue
                if not line.endswith(b"\n"):
                    self.torn[index] = f"{self.where(index, number)}: a last line that was not written to its end"
                    continue
                raise UnreadableHistory(f"{self.where(index, number)}: {error}") from None
        self._tell(unread)

    def _tell(self, bytes_read: int) -> None:
        if self.on_read is not None:
            self.on_read(bytes_read)


def check_history_files(
    files: HistoryFiles,
    *,
    foreign_records: bool = False,
    one_partition_per_key: bool = False,
    on_operation: Callable[[Operation], object] | None = None,
) -> Verdict:
    """The verdict on the histories in the files, its findings with the operations around them.

    Raises UnreadableHistory, also for an operation that cannot follow those before it.
    """
    check = HistoryCheck(foreign_records=foreign_records, one_partition_per_key=one_partition_per_key)
    for operation, index, number in files:
        try:
            check.feed(operation)
        except BrokenHistory as error:
            raise UnreadableHistory(f"{files.where(index, number)}: {error}") from None
        if on_operation is not None:
            on_operation(operation)
    verdict = check.finish()
    if verdict.clean:
        return verdict
    files.on_read = None
    return with_operations(verdict, files.located())


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UnreadableHistory(f"{path}: {error.strerror or error}") from None
