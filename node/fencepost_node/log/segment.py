"""One segment of a log: a file of concatenated record batches, with an index by offset and one by time.

Offsets in a segment are contiguous: each batch begins where the one before ends. `size` is what readers may see; the
file is longer only while an append is under way. Positions are bytes from the start of the file.

Two ways to go through the batches of a file:

- `walk` reads headers only, and jumps from one to the next;
- `scan` reads every byte and checks every CRC.

Both raise CorruptLog at the first bytes that are not the batch that must come next.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple, Protocol

from fencepost_node.log.disk import Disk, File
from fencepost_node.log.errors import CorruptLog
from fencepost_node.log.index import IndexEntry, SparseIndex
from fencepost_node.log.leader_epochs import NO_EPOCH, LeaderEpochs
from fencepost_node.log.names import INDEX_SUFFIX, LOG_SUFFIX, TIME_INDEX_SUFFIX, file_name
from fencepost_proto.protocol.errors import CorruptMessage, InvalidRecord, UnsupportedForMessageFormat
from fencepost_proto.protocol.record_batch import HEADER_BYTES, LENGTH_END, BatchHeader, check_batch, read_header

log = logging.getLogger(__name__)

NO_TIMESTAMP = -1
NOWHERE = IndexEntry(-1, -1)
MAX_CHECKED = 64  # byte ranges of one segment that are remembered as read and sound; beyond that some are checked again
_BASE_OFFSET_BYTES = 8  # at the start of a batch
_WALK_BYTES = 16 * 1024  # read at a time where only headers matter
_SCAN_BYTES = 1024 * 1024  # read at a time where every byte does
_NOT_A_BATCH = (CorruptMessage, InvalidRecord, UnsupportedForMessageFormat)


class PlacedBatch(NamedTuple):
    """A batch's header and where the batch begins."""

    position: int
    header: BatchHeader


class Readable(Protocol):
    def read(self, position: int, length: int) -> bytes: ...


def walk(file: Readable, path: str, position: int, end: int, next_offset: int) -> Iterator[PlacedBatch]:
    """The batches from `position`, where `next_offset` begins, to `end`: headers only. Raises CorruptLog, OSError."""
    start, data = position, b""
    while position < end:
        if position + HEADER_BYTES > start + len(data):
            start, data = position, file.read(position, min(_WALK_BYTES, end - position))
        try:
            header = read_header(data, position - start)
        except _NOT_A_BATCH as error:
            raise CorruptLog(path, position, next_offset, error.message) from error
        _check_place(path, position, end, next_offset, header)
        yield PlacedBatch(position, header)
        position += header.size_bytes
        next_offset = header.end_offset


def scan(file: Readable, path: str, position: int, end: int, next_offset: int) -> Iterator[PlacedBatch]:
    """As `walk`, and the CRC of every batch is right."""
    start, data = position, b""
    while position < end:
        at = position - start
        size = HEADER_BYTES if len(data) - at < LENGTH_END else LENGTH_END + int.from_bytes(data[at + 8 : at + 12])
        if at + size > len(data) and start + len(data) < end:
            start, at = position, 0
            data = file.read(position, min(_SCAN_BYTES, end - position))
            size = LENGTH_END + int.from_bytes(data[8:12])
            if len(data) < size <= end - position:
                data = file.read(position, size)
        try:
            header = check_batch(data, at)
        except _NOT_A_BATCH as error:
            raise CorruptLog(path, position, next_offset, error.message) from error
        _check_place(path, position, end, next_offset, header)
        yield PlacedBatch(position, header)
        position += header.size_bytes
        next_offset = header.end_offset


def _check_place(path: str, position: int, end: int, next_offset: int, header: BatchHeader) -> None:
    if header.base_offset != next_offset:
        raise CorruptLog(path, position, next_offset, f"a batch of base offset {header.base_offset} stands here")
    if header.size_bytes < HEADER_BYTES or position + header.size_bytes > end:
        raise CorruptLog(
            path, position, next_offset, f"batch length {header.batch_length} where {end - position} bytes are left"
        )
    if header.last_offset_delta < 0:
        raise CorruptLog(path, position, next_offset, f"last offset delta {header.last_offset_delta} is negative")


class LogPlace(NamedTuple):
    """Where a batch begins in a log."""

    segment: int  # the base offset of the segment
    position: int
    offset: int


class Bytes:
    """As much of a `File` as was read from `start` on."""

    __slots__ = ("_data", "_start")

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start

    def read(self, position: int, length: int) -> bytes:
        return self._data[position - self._start : position - self._start + length]


def merged(ranges: tuple[tuple[int, int], ...], new: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Disjoint ranges, rising, with one more; at most MAX_CHECKED of them, the newest among them."""
    start, end = new
    apart = []
    for low, high in ranges:
        if high < start or end < low:
            apart.append((low, high))
        else:
            start, end = min(start, low), max(end, high)
    return tuple(sorted([*apart[-MAX_CHECKED + 1 :], (start, end)]))


class Segment:
    """One segment. The log appends; reads may run in other threads at the same time."""

    __slots__ = (
        "_checked",
        "_disk",
        "_indexed_position",
        "_interval_bytes",
        "appended_ms",
        "base_offset",
        "end_offset",
        "file",
        "largest_timestamp_ms",
        "offset_index",
        "path",
        "pins",
        "retired",
        "size",
        "synced_size",
        "time_index",
    )

    def __init__(self, disk: Disk, directory: str, base_offset: int, index_interval_bytes: int, file: File) -> None:
        self._disk = disk
        self._interval_bytes = index_interval_bytes
        self._indexed_position = 0
        self._checked: tuple[tuple[int, int], ...] = ()  # byte ranges whose CRCs were right when they were last read
        self.base_offset = base_offset
        self.end_offset = base_offset
        self.path = f"{directory}/{file_name(base_offset, LOG_SUFFIX)}"
        self.file = file
        self.size = 0
        self.synced_size = 0  # bytes known to be on disk
        self.largest_timestamp_ms = NO_TIMESTAMP
        self.appended_ms = NO_TIMESTAMP  # the time of the last append, where this process knows it
        self.pins = 0  # readers in other threads; the row guards this and `retired`
        self.retired = False  # no longer of the log: closed when the last reader has left
        self.offset_index = SparseIndex(disk, f"{directory}/{file_name(base_offset, INDEX_SUFFIX)}")
        self.time_index = SparseIndex(disk, f"{directory}/{file_name(base_offset, TIME_INDEX_SUFFIX)}")

    @staticmethod
    def create(disk: Disk, directory: str, base_offset: int, index_interval_bytes: int) -> Segment:
        """An empty segment. Raises OSError."""
        file = disk.open(f"{directory}/{file_name(base_offset, LOG_SUFFIX)}", create=True)
        if file.size:
            file.truncate(0)  # no log reaches up to here: left by an append that failed to make the file
        return Segment(disk, directory, base_offset, index_interval_bytes, file)

    @staticmethod
    def open(
        disk: Disk, directory: str, base_offset: int, index_interval_bytes: int, names: Collection[str]
    ) -> Segment:
        """A segment that is there, as yet with nothing in it: `note` what is found. `names`: of the folder's files.

        Raises OSError.
        """
        file = disk.open(f"{directory}/{file_name(base_offset, LOG_SUFFIX)}")
        segment = Segment(disk, directory, base_offset, index_interval_bytes, file)
        if (name := file_name(base_offset, INDEX_SUFFIX)) in names:
            segment.offset_index = SparseIndex.load(disk, f"{directory}/{name}")
        if (name := file_name(base_offset, TIME_INDEX_SUFFIX)) in names:
            segment.time_index = SparseIndex.load(disk, f"{directory}/{name}")
        return segment

    # ---- Appending ----

    def append_placed(self, data: bytes, batches: Iterable[PlacedBatch]) -> None:
        """Write whole batches at the end; their positions count from the start of `data`. Raises OSError."""
        start = self.size
        self.file.append(data)
        for position, header in batches:
            self.note(start + position, header)

    def note(self, position: int, header: BatchHeader) -> None:
        """A batch stands at `position`, the end so far: count it, and index it where an entry is due."""
        self._index(position, header)
        self.end_offset = header.end_offset
        self.size = position + header.size_bytes

    def _index(self, position: int, header: BatchHeader) -> None:
        self.largest_timestamp_ms = max(self.largest_timestamp_ms, header.max_timestamp)
        if position - self._indexed_position >= self._interval_bytes:
            self._indexed_position = position
            self.offset_index.add_entry(header.base_offset, position)
            self.time_index.add_entry(self.largest_timestamp_ms, header.base_offset)

    @property
    def is_whole(self) -> bool:
        """A failed append has left nothing behind."""
        return self.file.size == self.size

    def cut_back(self) -> None:
        """Remove what a failed append has written. Raises OSError."""
        self.file.truncate(self.size)

    # ---- Reading ----

    def read_from(self, offset: int, max_bytes: int, end_offset: int, epochs: LeaderEpochs) -> bytes:
        """Whole batches from the one that holds `offset`, at least one, at most `max_bytes`, none beyond `end_offset`.

        Empty where that batch itself ends beyond `end_offset`. What has not been read before is checked, against `epochs`
        too: the leader epoch is in no CRC. Raises CorruptLog where that batch is damaged, OSError.
        """
        first = next((placed for placed in self.walk_from(offset) if placed.header.end_offset > offset), None)
        if first is None:
            raise CorruptLog(self.path, self.size, self.end_offset, f"the segment ends before offset {offset}")
        if first.header.end_offset > end_offset:
            self._sound_end(
                self.file.read(first.position, first.header.size_bytes), first, epochs
            )  # or it says so falsely
            return b""
        end = self._border(first, max_bytes, end_offset)
        data = self.file.read(first.position, end - first.position)
        if len(data) < end - first.position:
            problem = f"{len(data)} bytes where {end - first.position} were appended"
            raise CorruptLog(self.path, first.position, first.header.base_offset, problem)
        if not any(start <= first.position and end <= until for start, until in self._checked):
            sound = self._sound_end(data, first, epochs)
            self._checked = merged(self._checked, (first.position, sound))
            return data[: sound - first.position]
        return data

    def _sound_end(self, data: bytes, first: PlacedBatch, epochs: LeaderEpochs) -> int:
        """The position up to which these batches, which begin with `first`, are what was stored: what is whole is served,
        and damage is reported to readers from there. Raises CorruptLog where the first one is damaged."""
        start, end = first.position, first.position
        try:
            for placed in scan(Bytes(data, start), self.path, start, start + len(data), first.header.base_offset):
                self._check_epoch(placed, epochs)
                end = placed.position + placed.header.size_bytes
        except CorruptLog:
            if end == start:
                raise
        return end

    def _check_epoch(self, placed: PlacedBatch, epochs: LeaderEpochs) -> None:
        header = placed.header
        epoch = epochs.epoch_at(header.base_offset)
        if epoch not in (header.leader_epoch, NO_EPOCH):
            problem = f"a batch of leader epoch {header.leader_epoch} stands here, which was written under {epoch}"
            raise CorruptLog(self.path, placed.position, header.base_offset, problem)

    def check_from(self, place: LogPlace, size: int, max_bytes: int, epochs: LeaderEpochs) -> LogPlace:
        """Read and check about `max_bytes` of the first `size` bytes, from `place` on; what is synced, from the disk.

        Returns where the next batch begins. Raises CorruptLog, OSError.
        """
        position, offset = place.position, place.offset
        if min(position + max_bytes, size) <= self.synced_size:
            self.file.forget(position, max_bytes)
        for placed in scan(self.file, self.path, position, size, offset):
            self._check_epoch(placed, epochs)
            position, offset = placed.position + placed.header.size_bytes, placed.header.end_offset
            if position - place.position >= max_bytes:
                break
        return LogPlace(self.base_offset, position, offset)

    def distrust(self) -> None:
        self._checked = ()

    def _border(self, first: PlacedBatch, max_bytes: int, end_offset: int) -> int:
        """The last border of batches within `max_bytes` and at or below `end_offset`, but after the first batch."""
        size = self.size  # before end_offset, which an append in another thread raises first
        limit = min(first.position + max_bytes, size)
        if limit == size and end_offset >= self.end_offset:
            return size
        end, next_offset = first.position + first.header.size_bytes, first.header.end_offset
        nearest = min(
            self.offset_index.last_by_second(limit) or NOWHERE, self.offset_index.last_by_first(end_offset) or NOWHERE
        )
        if nearest.second > end and self._fits(nearest):
            next_offset, end = nearest
        if end < limit:
            with suppress(CorruptLog):  # reported to readers from there
                for position, header in walk(self.file, self.path, end, size, next_offset):
                    if position + header.size_bytes > limit or header.end_offset > end_offset:
                        break
                    end = position + header.size_bytes
        return end

    def _floor(self, offset: int) -> tuple[int, int]:
        """(position, base offset) of an indexed batch at or before `offset`."""
        entry = self.offset_index.last_by_first(offset)
        return (entry.second, entry.first) if entry and self._fits(entry) else (0, self.base_offset)

    def _fits(self, entry: IndexEntry) -> bool:
        """Whether a batch begins where the index says. Without it the segment is gone through from its start."""
        start = self.file.read(entry.second, _BASE_OFFSET_BYTES) if entry.second >= 0 else b""
        if len(start) == _BASE_OFFSET_BYTES and int.from_bytes(start) == entry.first:
            return True
        log.warning("index entry does not fit path=%s offset=%d position=%d", self.path, entry.first, entry.second)
        return False

    def walk_from(self, offset: int) -> Iterator[PlacedBatch]:
        """The batches from an indexed one at or before `offset` on, to the end as it is now."""
        position, base_offset = self._floor(offset)
        return walk(self.file, self.path, position, self.size, base_offset)

    def scan_from(self, offset: int) -> Iterator[PlacedBatch]:
        """As `walk_from`, with every CRC checked."""
        position, base_offset = self._floor(offset)
        return scan(self.file, self.path, position, self.size, base_offset)

    def border_at(self, offset: int) -> tuple[int, int]:
        """(position, base offset) of the batch that holds `offset`, or of the end."""
        for position, header in self.walk_from(offset):
            if header.end_offset > offset:
                return position, header.base_offset
        return self.size, self.end_offset

    def first_reaching(self, timestamp_ms: int, from_offset: int) -> BatchHeader | None:
        """The first batch with offsets from `from_offset` on whose max timestamp is at least `timestamp_ms`."""
        if self.largest_timestamp_ms < timestamp_ms:
            return None
        for _, header in self.walk_from(self._none_reaches(timestamp_ms)):
            if header.max_timestamp >= timestamp_ms and header.end_offset > from_offset:
                return header
        return None

    def _none_reaches(self, timestamp_ms: int) -> int:
        """An offset before which every batch's max timestamp is below that, also where an entry of the index has changed
        on disk: its neighbour says less, and is right."""
        found = self.time_index.two_below_first(timestamp_ms)
        if found is None or found[0].first >= timestamp_ms:
            return self.base_offset
        return min(found[0].second, found[1].second)

    # ---- The indexes after a restart or a cut ----

    def trust_index(self, below_offset: int) -> tuple[int, int]:
        """Take the index for batches below `below_offset` and drop the rest.

        Returns (position, base offset) from which batches are to be indexed. Both indexes are dropped where they do not
        fit each other, or the batches. Raises OSError.
        """
        count = min(len(self.offset_index), len(self.time_index))
        while count and self.time_index.entry(count - 1).second >= below_offset:
            count -= 1
        if count and (entry := self._confirmed(count - 1)) is not None:
            (base_offset, position), largest_timestamp_ms = entry
            self._cut_indexes(count, position, largest_timestamp_ms)
            return position, base_offset
        return self.drop_index()

    def _confirmed(self, number: int) -> tuple[IndexEntry, int] | None:
        """That entry of the offset index, and the largest timestamp so far, where both indexes say what the batches since
        the entry before say. None: something has changed on the disk."""
        entry, (told_ms, base_offset) = self.offset_index.entry(number), self.time_index.entry(number)
        offset, position, largest_ms = self.base_offset, 0, NO_TIMESTAMP
        if number:
            offset, position = self.offset_index.entry(number - 1)
            largest_ms = self.time_index.entry(number - 1).first
        if entry.first != base_offset or not 0 <= position < entry.second < self.file.size:
            return None
        with suppress(CorruptLog):
            for placed in walk(self.file, self.path, position, self.file.size, offset):
                largest_ms = max(largest_ms, placed.header.max_timestamp)
                if placed.position >= entry.second:
                    fits = placed.position == entry.second and placed.header.base_offset == entry.first
                    return (entry, told_ms) if fits and largest_ms == told_ms else None
        return None

    def drop_index(self) -> tuple[int, int]:
        """Begin both indexes again, empty; returns as `trust_index`. Raises OSError."""
        self._cut_indexes(0, 0, NO_TIMESTAMP)
        return 0, self.base_offset

    def _cut_indexes(self, count: int, position: int, largest_timestamp_ms: int) -> None:
        self.offset_index.cut(count)
        self.time_index.cut(count)
        self._indexed_position = position
        self.largest_timestamp_ms = largest_timestamp_ms

    def truncate(self, position: int, end_offset: int) -> None:
        """Cut at a border, permanently: synced on return. No append is under way. Raises OSError, CorruptLog."""
        self.size, self.end_offset = position, end_offset
        self._checked = ()
        self.file.truncate(position)
        self.file.sync()
        self.synced_size = position
        start, base_offset = self.trust_index(end_offset)
        for placed in walk(self.file, self.path, start, position, base_offset):
            self._index(*placed)

    # ---- The disk ----

    def flush_indexes(self) -> None:
        """Raises OSError."""
        self.offset_index.flush()
        self.time_index.flush()

    def hold(self, stack: ExitStack) -> None:
        """Keep its files in reach until the stack is closed, though they be removed meanwhile. Raises OSError."""
        self.file.hold()
        stack.callback(self.file.release)
        for index in (self.offset_index, self.time_index):
            if (held := index.hold()) is not None:
                stack.callback(held.release)

    def close(self) -> None:
        self.file.close()
        self.offset_index.close()
        self.time_index.close()
