"""What a consumer decides: what to ask of each leader, how to take an answer, what to hand out next.

Each assigned partition has two offsets. `position` is the next record that the application gets; `next_fetch` is the
next offset to ask the leader for. All that lies between is buffered here, as the bytes of whole batches:

    position <= next_fetch

An answer counts only if it answers what would be asked now: same generation (a seek starts a new one), same offset. So
an answer that comes late, twice, or after a seek changes nothing, and whoever leads, records follow each other without
a gap or a repeat. Batches are checked and decoded one at a time, when the application wants their records.

A fetch may return a first batch that begins below the position: its records below are skipped. A log start above the
position means that retention has removed what came next; the `reset` policy says how to go on. A position above the
log's end is never explained by retention: it is an error whatever the policy.

Nothing here waits, reads a clock or does I/O.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, dropwhile, islice
from math import ceil
from typing import Literal, NamedTuple

from fencepost_proto.errors import (
    CorruptMessage,
    CurrentLeader,
    ErrorCode,
    FencepostError,
    InvalidRecord,
    InvalidRequest,
    InvariantBroken,
    OffsetOutOfRange,
    UnknownTopicOrPartition,
    UnsupportedForMessageFormat,
    from_proto,
)
from fencepost_proto.metadata import PartitionKey
from fencepost_proto.record_batch import HEADER_BYTES, LENGTH_END
from fencepost_proto.records import Headers, Record, read_records
from fencepost_proto.v1 import broker_pb2

LATEST = -1  # timestamps with a meaning in ListOffsets
EARLIEST = -2
UNRESOLVED = -1  # a position that a ListOffsets answer will set

MAX_BUFFERED_BYTES = 16 * 1024 * 1024  # nothing is asked while so much waits for the application
RESPONSE_MAX_BYTES = 8 * 1024 * 1024  # of one answer; each leader may exceed the buffer's bound by one answer
PARTITION_MAX_BYTES = 1024 * 1024  # of one partition in one answer; one larger batch is taken all the same
MAX_WAIT_MS = 500  # of one long poll
RETRY_BACKOFF_S = 0.05  # after a refusal, unless another leader is known earlier
MAX_CORRUPT_FETCHES = 3  # in a row, of one partition, before the application is told
MAX_HAND_OUT_RECORDS = 2_000  # at once: a few milliseconds of decoding
HAND_OUT_BYTES = 512 * 1024  # of batches opened at once
LARGE_COMPRESSED_BYTES = 32 * 1024  # a compressed batch from this size on is opened in a thread

_BATCH = struct.Struct(">qi11xi")  # base offset, length, …, last offset delta
_ATTRIBUTES_LOW = 22  # the low byte of the attributes
_COMPRESSION = 0x07

StartPolicy = Literal["earliest", "latest"]
ResetPolicy = Literal["earliest", "latest", "error"]


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


class Route(NamedTuple):
    """What one stream fetches of one partition; another leader epoch or a seek makes it another route."""

    key: PartitionKey
    leader_epoch: int
    generation: int


class Asked(NamedTuple):
    """What an answer must answer to count."""

    generation: int
    fetch_offset: int
    leader_epoch: int  # whose leader was asked


@dataclass(frozen=True, slots=True)
class Ask:
    """The next request of one stream. Without partitions: ask again after `wait_s`, or when the buffer has room."""

    partitions: list[broker_pb2.FetchPartition]
    asked: dict[PartitionKey, Asked]
    wait_s: float

    def request(self) -> broker_pb2.FetchRequest:
        return broker_pb2.FetchRequest(
            partitions=self.partitions,
            max_wait_ms=ceil(self.wait_s * 1000),
            min_bytes=1,
            max_bytes=RESPONSE_MAX_BYTES,
        )


class LargeBatch(NamedTuple):
    """A compressed batch whose opening would hold the event loop."""

    tp: TopicPartition
    generation: int
    batch: bytes
    position: int

    def open(self) -> Iterator[Record]:
        """Safe in any thread. Raises CorruptMessage."""
        return open_batch(self.batch, self.position)


def open_batch(batch: bytes, position: int) -> Iterator[Record]:
    """The batch's records from `position` on: checked and decompressed now, decoded as they are taken.

    Raises CorruptMessage, now or while records are taken.
    """
    records = read_records(batch)
    try:
        first = next(records)
    except (InvalidRecord, UnsupportedForMessageFormat) as error:  # no leader stores such a batch: it was damaged
        raise CorruptMessage(error.message) from error
    whole = chain((first,), records)
    return whole if first.offset >= position else dropwhile(lambda record: record.offset < position, whole)


def end_of_batches(records: bytes, fetch_offset: int, high_watermark: int) -> int:
    """The end offset of a fetch answer's batches, seen from outside; their content is checked when they are opened.

    Raises CorruptMessage unless they are whole, follow each other, begin at or below `fetch_offset` and end above it,
    at or below the high watermark (-1: a new leader does not tell it yet; what it sends is committed all the same).
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


@dataclass(slots=True)
class _Assigned:
    """One assigned partition."""

    tp: TopicPartition
    key: PartitionKey
    position: int
    start: int = EARLIEST  # where to begin while the position is UNRESOLVED
    out_of_range: int = -1  # the position that a leader refused, while the log's start is asked for to tell why
    next_fetch: int = UNRESOLVED  # position <= next_fetch
    generation: int = 0
    high_watermark: int = -1  # never goes back
    chunks: deque[bytes] = field(default_factory=deque)  # whole batches
    at: int = 0  # 0 <= at < len(chunks[0]): where the next batch begins in the first chunk
    opened: Iterator[Record] | None = None
    opened_end: int = 0  # end offset of the opened batch
    opened_bytes: int = 0
    retry_at: float = 0.0  # not before, of the leader of `refused_epoch` or an older one
    refused_epoch: int = -1
    served: int = 0  # number of the last answer that brought records: whoever waited longest is asked for first
    corrupt: int = 0
    failure: FencepostError | None = None

    def next_batch(self) -> bytes:
        """The next batch that is not opened yet."""
        chunk = self.chunks[0]
        _, length, _ = _BATCH.unpack_from(chunk, self.at)
        return chunk[self.at : self.at + LENGTH_END + length]

    def put_opened(self, batch: bytes, records: Iterator[Record]) -> None:
        base_offset, _, last_delta = _BATCH.unpack_from(batch)
        self.opened, self.opened_end, self.opened_bytes = records, base_offset + last_delta + 1, len(batch)
        self.at += len(batch)
        if self.at == len(self.chunks[0]):
            self.chunks.popleft()
            self.at = 0


class ConsumerCore:
    """The state of one consumer. `routes_version` rises with every change that `routes` may answer differently for."""

    def __init__(self, reset: ResetPolicy) -> None:
        self._reset = reset
        self._assigned: dict[TopicPartition, _Assigned] = {}
        self._by_key: dict[PartitionKey, _Assigned] = {}
        self._ready: deque[_Assigned] = deque()  # those with something buffered, in turn
        self._generation = 0
        self._answers = 0
        self.buffered_bytes = 0
        self.routes_version = 0

    # ---- Positions ----

    def assign(
        self, partitions: Mapping[TopicPartition, PartitionKey], positions: Mapping[TopicPartition, int]
    ) -> None:
        """Read exactly these from now on. One that was assigned before goes on where it is; the others begin at their
        position, or else at the log's start."""
        kept = {tp: p for tp, p in self._assigned.items() if partitions.get(tp) == p.key}
        for tp, p in self._assigned.items():
            if tp not in kept:
                self._drop_buffer(p)
        self._assigned = {tp: kept.get(tp) or _Assigned(tp, key, UNRESOLVED) for tp, key in sorted(partitions.items())}
        self._by_key = {p.key: p for p in self._assigned.values()}
        self.routes_version += 1
        for tp, p in self._assigned.items():
            if tp not in kept:
                self._move(p, positions.get(tp, UNRESOLVED))

    @property
    def assignment(self) -> list[TopicPartition]:
        return list(self._assigned)

    def key(self, tp: TopicPartition) -> PartitionKey:
        return self._of(tp).key

    def position(self, tp: TopicPartition) -> int:
        """The next offset to hand out, or UNRESOLVED."""
        return self._of(tp).position

    def high_watermark(self, tp: TopicPartition) -> int:
        """The highest that a leader has told; -1: none yet."""
        return self._of(tp).high_watermark

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise InvalidRequest(f"offset {offset} of {tp.topic}-{tp.partition} is negative")
        self._move(self._of(tp), offset)

    def unresolved(self) -> list[tuple[TopicPartition, PartitionKey, int, int]]:
        """(partition, key, ListOffsets marker, generation) of each whose position is to be found out."""
        return [
            (p.tp, p.key, p.start, p.generation)
            for p in self._assigned.values()
            if p.position == UNRESOLVED and p.failure is None
        ]

    def resolve(self, tp: TopicPartition, generation: int, offset: int) -> bool:
        """Where the log begins or ends; ignored (False) if the application has moved the partition since."""
        p = self._assigned.get(tp)
        if p is None or p.generation != generation or p.position != UNRESOLVED:
            return False
        if p.out_of_range >= 0:
            return self._out_of_range(p, offset)
        self._move(p, offset)
        return True

    def fail(self, tp: TopicPartition, generation: int, error: FencepostError) -> None:
        """No way on from this position: the application is told, and only it can go on, by a seek."""
        p = self._assigned.get(tp)
        if p is not None and p.generation == generation:
            p.failure = error
            self.routes_version += 1

    def failures(self) -> list[FencepostError]:
        """Of the partitions that have nothing left to hand out before their error."""
        return [p.failure for p in self._assigned.values() if p.failure is not None and not _has_buffered(p)]

    # ---- Asking ----

    def routes(self, leader: Callable[[PartitionKey], CurrentLeader | None]) -> dict[str, frozenset[Route]]:
        """What to fetch from which address. A partition that the cluster no longer has fails."""
        found: dict[str, set[Route]] = {}
        for p in self._assigned.values():
            if p.failure is not None:
                continue
            known = leader(p.key)
            if known is None:
                gone = UnknownTopicOrPartition(f"partition {p.tp.topic}-{p.tp.partition} is not in the cluster")
                self.fail(p.tp, p.generation, gone)
            elif known.address and p.position != UNRESOLVED:
                found.setdefault(known.address, set()).add(Route(p.key, known.leader_epoch, p.generation))
        return {address: frozenset(routes) for address, routes in found.items()}

    def ask(self, routes: Iterable[Route], now_s: float) -> Ask:
        """The next request on a stream that serves `routes`. Partitions that were refused wait for their time."""
        wait_s = MAX_WAIT_MS / 1000
        asked: dict[PartitionKey, Asked] = {}
        partitions: list[broker_pb2.FetchPartition] = []
        if self.buffered_bytes >= MAX_BUFFERED_BYTES:
            return Ask(partitions, asked, wait_s)
        current = [(self._by_key[route.key], route) for route in routes if self._is_current(route)]
        for p, route in sorted(current, key=lambda pair: (pair[0].served, pair[0].key)):
            if p.retry_at > now_s and route.leader_epoch <= p.refused_epoch:
                wait_s = min(wait_s, p.retry_at - now_s)
                continue
            asked[p.key] = Asked(p.generation, p.next_fetch, route.leader_epoch)
            partitions.append(
                broker_pb2.FetchPartition(
                    topic_id=p.key[0],
                    partition=p.key[1],
                    leader_epoch=route.leader_epoch,
                    fetch_offset=p.next_fetch,
                    max_bytes=PARTITION_MAX_BYTES,
                )
            )
        return Ask(partitions, asked, wait_s)

    def take(self, asked: Mapping[PartitionKey, Asked], answer: broker_pb2.FetchedPartition, now_s: float) -> None:
        """One partition of a leader's answer. A refusal's hint at another leader is the caller's to learn."""
        key = (answer.topic_id, answer.partition)
        p = self._by_key.get(key)
        question = asked.get(key)
        if p is None or question is None or p.failure is not None:
            return
        if (question.generation, question.fetch_offset) != (p.generation, p.next_fetch):
            return
        if answer.error.code != ErrorCode.NONE:
            p.retry_at, p.refused_epoch = now_s + RETRY_BACKOFF_S, question.leader_epoch
        if answer.error.code == ErrorCode.OFFSET_OUT_OF_RANGE:
            if not _has_buffered(p):  # else what is buffered is handed out first
                refused = p.next_fetch
                self._move(p, UNRESOLVED)
                p.out_of_range = refused
        elif answer.error.code != ErrorCode.NONE:
            error = from_proto(answer.error)
            if not error.retriable:
                self.fail(p.tp, p.generation, error)
        else:
            p.high_watermark = max(p.high_watermark, answer.high_watermark)
            if answer.records:
                self._take_records(p, answer)

    def _take_records(self, p: _Assigned, answer: broker_pb2.FetchedPartition) -> None:
        records = answer.records
        try:
            end = end_of_batches(records, p.next_fetch, answer.high_watermark)
        except CorruptMessage as error:
            self._corrupt(p, error)
            return
        if not _has_buffered(p):
            self._ready.append(p)
        self._answers += 1
        p.served = self._answers
        p.chunks.append(records)
        p.next_fetch = end
        self.buffered_bytes += len(records)

    def _out_of_range(self, p: _Assigned, log_start_offset: int) -> bool:
        """Go on from a refused position, or fail. True where the new position is known now."""
        refused = p.out_of_range
        if refused >= log_start_offset or self._reset == "error":
            where = "below the log's start" if refused < log_start_offset else "above the log's end; it starts at"
            message = f"offset {refused} of {p.tp.topic}-{p.tp.partition} is {where} {log_start_offset}"
            self._move(p, refused)
            self.fail(p.tp, p.generation, OffsetOutOfRange(message))
            return False
        if self._reset == "latest":
            self._move(p, UNRESOLVED, LATEST)
            return False
        self._move(p, log_start_offset)
        return True

    # ---- Handing out ----

    @property
    def readable(self) -> bool:
        """Something is buffered."""
        return bool(self._ready)

    def large_batch(self) -> LargeBatch | None:
        """The batch that is next in turn, if it must be opened in a thread; then `put_opened` it."""
        if self._ready and self._ready[0].opened is None:
            p = self._ready[0]
            batch = p.next_batch()
            if _is_large(batch):
                return LargeBatch(p.tp, p.generation, batch, p.position)
        return None

    def put_opened(self, large: LargeBatch, records: Iterator[Record] | CorruptMessage) -> None:
        """A large batch's records, or why there are none; ignored if the application has moved on."""
        p = self._assigned.get(large.tp)
        if p is None or p.generation != large.generation or p.opened is not None or p.position != large.position:
            return
        if isinstance(records, CorruptMessage):
            self._corrupt(p, records)
        else:
            p.put_opened(large.batch, records)

    def hand_out(self, max_records: int) -> list[ConsumerRecord]:
        """The next records, partition by partition in turn; positions move with them. Few where batches are large."""
        room = min(max_records, MAX_HAND_OUT_RECORDS)
        handed: list[ConsumerRecord] = []
        opened_bytes = 0
        while self._ready and room > len(handed):
            p = self._ready[0]
            try:
                if p.opened is None:
                    batch = p.next_batch()
                    if opened_bytes >= HAND_OUT_BYTES or _is_large(batch):
                        break
                    opened_bytes += len(batch)
                    p.put_opened(batch, open_batch(batch, p.position))
                self._read_on(p, room, handed)
            except CorruptMessage as error:
                self._corrupt(p, error)
        return handed

    def _read_on(self, p: _Assigned, room: int, handed: list[ConsumerRecord]) -> None:
        """Move records of the opened batch into `handed` until it holds `room` or the batch is used up."""
        if p.opened is None:
            raise InvariantBroken(f"no batch of {p.tp} is open")
        topic, partition = p.tp
        wanted = room - len(handed)
        make = ConsumerRecord._make  # this line is what most of a reader's time goes into
        records = [make((topic, partition, *record)) for record in islice(p.opened, wanted)]
        if records:
            if records[0].offset != p.position or records[-1].offset != p.position + len(records) - 1:
                raise CorruptMessage(
                    f"{len(records)} records at offsets {records[0].offset} to {records[-1].offset} of {p.tp}, "
                    f"where {p.position} is next"
                )
            handed += records
            p.position = records[-1].offset + 1
        if p.position == p.opened_end:
            p.opened, p.corrupt = None, 0
            self.buffered_bytes -= p.opened_bytes
            if p.at == 0:  # a whole answer is handed out: the next partition's turn
                self._ready.popleft()
                if p.chunks:
                    self._ready.append(p)
        elif len(records) < wanted:
            raise CorruptMessage(f"batch of {p.tp} that should end at {p.opened_end} ends at {p.position}")

    # ---- Inside ----

    def _of(self, tp: TopicPartition) -> _Assigned:
        p = self._assigned.get(tp)
        if p is None:
            raise InvalidRequest(f"partition {tp.topic}-{tp.partition} is not assigned to this consumer")
        return p

    def _is_current(self, route: Route) -> bool:
        p = self._by_key.get(route.key)
        return p is not None and p.generation == route.generation and p.failure is None

    def _move(self, p: _Assigned, position: int, start: int = EARLIEST) -> None:
        """Begin again at `position`: what is buffered or on its way no longer counts."""
        self._drop_buffer(p)
        self._generation += 1
        p.generation = self._generation
        p.position, p.start, p.next_fetch, p.out_of_range = position, start, position, -1
        p.retry_at, p.corrupt, p.failure = 0.0, 0, None
        self.routes_version += 1

    def _corrupt(self, p: _Assigned, error: CorruptMessage) -> None:
        """Bytes that cannot be read: fetch them again from the position, a bounded number of times."""
        count = p.corrupt + 1
        self._move(p, p.position)
        p.corrupt = count
        if count >= MAX_CORRUPT_FETCHES:
            self.fail(p.tp, p.generation, error)

    def _drop_buffer(self, p: _Assigned) -> None:
        if _has_buffered(p):
            self.buffered_bytes -= sum(map(len, p.chunks)) - p.at + (p.opened_bytes if p.opened is not None else 0)
        if p in self._ready:
            self._ready.remove(p)
        p.chunks.clear()
        p.at, p.opened = 0, None


def _has_buffered(p: _Assigned) -> bool:
    return p.opened is not None or bool(p.chunks)


def _is_large(batch: bytes) -> bool:
    return len(batch) >= LARGE_COMPRESSED_BYTES and bool(batch[_ATTRIBUTES_LOW] & _COMPRESSION)
