"""One partition that a consumer reads: its position and its buffer.

Two offsets (position <= next_fetch): `position` is the next record that the application gets, `next_fetch` the next
offset to ask the leader for. The records between them are buffered, as the bytes of whole batches. A batch is checked,
decompressed and decoded when the application wants its records, one batch at a time.

An answer may begin below the position, since a leader sends whole batches: the records below are skipped.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from fencepost_proto.protocol.errors import (
    CorruptMessage,
    FencepostError,
    InvalidRecord,
    InvariantBroken,
    UnsupportedForMessageFormat,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import HEADER_BYTES, LENGTH_END, check_batch
from fencepost_proto.protocol.records import Headers, Record

LATEST = -1  # timestamps with a meaning in ListOffsets
EARLIEST = -2
UNRESOLVED = -1  # a position that is not known until ListOffsets is answered

LARGE_COMPRESSED_BYTES = 32 * 1024  # a compressed batch of this size or more is opened in a thread …
MAX_INLINE_BYTES = 1024 * 1024  # … and so is one that is larger than this once decompressed

_BATCH = struct.Struct(">qi11xi")  # base offset, length, …, last offset delta
_BATCH_EPOCH = struct.Struct(">qii")  # base offset, length, leader epoch
MAX_EPOCHS = 100  # leader epochs remembered of what was read; older ones are forgotten
_ATTRIBUTES_LOW = 22  # the low byte of the attributes
_COMPRESSION = 0x07


class TopicPartition(NamedTuple):
    """A partition by its topic's name."""

    topic: str
    partition: int


class ConsumerRecord(NamedTuple):
    """One record as the application gets it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def end_of_batches(records: bytes, fetch_offset: int, high_watermark: int) -> int:
    """The end offset of a fetch answer's batches, by their headers; their content is checked when they are opened.

    Raises CorruptMessage unless they are whole, follow each other, begin at or below `fetch_offset` and end above it,
    at or below the high watermark (-1: a new leader does not know it yet; what it sends is committed nevertheless).
    """
    at, size = 0, len(records)
    expected = -1
    while at < size:
        if size - at < HEADER_BYTES:
            raise CorruptMessage(f"{size - at} bytes at the end of an answer to a fetch of offset {fetch_offset}")
        base_offset, length, last_delta = _BATCH.unpack_from(records, at)
        if expected < 0:
            if base_offset > fetch_offset:
                raise CorruptMessage(f"answer to a fetch of offset {fetch_offset} begins at {base_offset}")
        elif base_offset != expected:
            raise CorruptMessage(f"batch at offset {base_offset} follows one that ends at {expected}")
        expected = base_offset + last_delta + 1
        at += LENGTH_END + length
        if length < HEADER_BYTES - LENGTH_END or at > size or last_delta < 0:
            raise CorruptMessage(f"batch at offset {base_offset} has length {length} and last delta {last_delta}")
    if expected <= fetch_offset or 0 <= high_watermark < expected:
        raise CorruptMessage(
            f"answer to a fetch of offset {fetch_offset} ends at {expected}, the high watermark is {high_watermark}"
        )
    return expected


def epochs_in(records: bytes) -> Iterator[tuple[int, int]]:
    """(leader epoch, base offset) of each of an answer's batches, which `end_of_batches` has checked."""
    at = 0
    while at < len(records):
        base_offset, length, epoch = _BATCH_EPOCH.unpack_from(records, at)
        yield epoch, base_offset
        at += LENGTH_END + length


def is_large(batch: bytes) -> bool:
    """Decompressing it would block the event loop."""
    return len(batch) >= LARGE_COMPRESSED_BYTES and bool(batch[_ATTRIBUTES_LOW] & _COMPRESSION)


@dataclass(slots=True, eq=False)
class AssignedPartition:
    """One assigned partition."""

    tp: TopicPartition
    key: PartitionKey
    position: int = UNRESOLVED
    start: int = EARLIEST  # where to begin while the position is UNRESOLVED
    out_of_range: int = -1  # the position that a leader refused, while the log's start is asked for
    next_fetch: int = UNRESOLVED  # position <= next_fetch
    generation: int = 0  # changes at every move
    high_watermark: int = -1  # never decreases
    retry_at: float = 0.0  # the leader of `refused_epoch`, or an older one, is not asked before
    refused_epoch: int = -1
    served: int = 0  # number of the last answer with records; the partition with the lowest one is asked for first
    corrupt: int = 0  # fetches in a row whose bytes could not be read
    source: str = ""  # address of the broker whose answer came last
    large: bool = False  # the next batch needs a thread, although it seemed small
    failure: FencepostError | None = None
    epochs: list[tuple[int, int]] = field(default_factory=list)  # (leader epoch, its first offset read), rising
    opened: Iterator[Record] | None = None  # the rest of the batch that is being handed out
    _opened_end: int = 0  # its end offset
    _opened_bytes: int = 0
    _answers: deque[bytes] = field(default_factory=deque)  # of whole batches
    _at: int = 0  # 0 <= _at < len(_answers[0]): where the next batch begins in the first answer

    def move(self, position: int, start: int, generation: int) -> None:
        """Begin again at `position`: buffered records, and answers on their way, no longer count."""
        goes_back = 0 <= position <= self.next_fetch
        self.epochs = [entry for entry in self.epochs if goes_back and entry[1] < position]
        self.position, self.start, self.next_fetch, self.out_of_range = position, start, position, -1
        self.generation = generation
        self.retry_at, self.corrupt, self.failure = 0.0, 0, None
        self.drop_buffer()

    # ---- The buffer ----

    @property
    def has_buffered(self) -> bool:
        return self.opened is not None or bool(self._answers)

    @property
    def buffered_bytes(self) -> int:
        opened = self._opened_bytes if self.opened is not None else 0
        return sum(map(len, self._answers)) - self._at + opened

    @property
    def between_answers(self) -> bool:
        """No answer is handed out in part."""
        return self.opened is None and self._at == 0

    def put_answer(self, records: bytes, high_watermark: int) -> None:
        """Buffer a leader's answer. Raises CorruptMessage."""
        self.next_fetch = end_of_batches(records, self.next_fetch, high_watermark)
        for epoch, base_offset in epochs_in(records):
            if not self.epochs or self.epochs[-1][0] != epoch:
                self.epochs = [*self.epochs[1 - MAX_EPOCHS :], (epoch, base_offset)]
        self.high_watermark = max(self.high_watermark, self.next_fetch)  # leaders serve committed records only
        self._answers.append(records)

    @property
    def last_epoch(self) -> int | None:
        """Leader epoch of the batch before `next_fetch`; None: it was not read."""
        return self.epochs[-1][0] if self.epochs else None

    def epoch_before(self, position: int) -> int:
        """Leader epoch of the batch before a position, as it was read; -1: not known."""
        return next((epoch for epoch, first_offset in reversed(self.epochs) if first_offset < position), -1)

    def parts_at(self, epoch: int, end_offset: int) -> int:
        """Where the leader's log parts from what was read: at this offset, or below it, as the next fetch will show.

        `epoch`: the leader's newest epoch that is not newer than `last_epoch` (-1: none); `end_offset`: where it ends there.
        """
        end = self.next_fetch
        for known, first_offset in reversed(self.epochs):
            if known <= epoch:
                return min(end, end_offset)
            end = first_offset
        return min(end, end_offset)

    def drop_buffer(self) -> None:
        self._answers.clear()
        self._at, self.opened, self.large = 0, None, False

    # ---- Handing out ----

    def next_batch(self) -> bytes:
        """The next batch that is not opened yet."""
        answer = self._answers[0]
        _, length, _ = _BATCH.unpack_from(answer, self._at)
        return answer[self._at : self._at + LENGTH_END + length]

    def put_opened(self, batch: bytes, records: Iterator[Record]) -> None:
        """`records` are those of `next_batch`."""
        base_offset, _, last_delta = _BATCH.unpack_from(batch)
        self.opened, self._opened_end, self._opened_bytes = records, base_offset + last_delta + 1, len(batch)
        self.large = False
        self._at += len(batch)
        if self._at == len(self._answers[0]):
            self._answers.popleft()
            self._at = 0

    def end_of_unreadable(self) -> int | None:
        """The end offset of the batch that could not be opened, or not read to its end; None: it is not certain.

        It is certain where the CRC is right (then the bytes are as the producer sent them), or where the next batch of the
        same answer begins at it.
        """
        if self.opened is not None:
            return self._opened_end
        if not self._answers:
            return None
        batch = self.next_batch()
        base_offset, _, last_delta = _BATCH.unpack_from(batch)
        if self._at + len(batch) == len(self._answers[0]):
            try:
                check_batch(batch)
            except InvalidRecord:  # its CRC is right, but its record count is not
                pass
            except (CorruptMessage, UnsupportedForMessageFormat):
                return None
        return int(base_offset + last_delta + 1)

    def hand_out_opened(self, max_records: int, into: list[ConsumerRecord]) -> None:
        """Move up to so many records of the opened batch into a list, and the position with them.

        Raises CorruptMessage; the records that are in the list by then count as read.
        """
        if self.opened is None:
            raise InvariantBroken(f"no batch of {self.tp} is open")
        topic, partition = self.tp
        make = ConsumerRecord._make  # a reader spends most of its time in the next line
        records = [make((topic, partition, *record)) for record in islice(self.opened, max_records)]
        if records:
            first, last = records[0].offset, records[-1].offset
            if first != self.position or last != first + len(records) - 1:
                raise CorruptMessage(
                    f"{len(records)} records at offsets {first} to {last} of {topic}-{partition}, "
                    f"where {self.position} is next"
                )
            into += records
            self.position = last + 1
        if self.position == self._opened_end:
            self.opened, self.corrupt = None, 0
        elif len(records) < max_records:
            raise CorruptMessage(
                f"batch of {topic}-{partition} that should end at {self._opened_end} ends at {self.position}"
            )
