"""The decisions of a consumer: what to ask each leader, what an answer changes, which records to hand out next. Pure.

*Answers.* An answer counts only if it answers what would be asked now: same generation (a seek begins a new one), same
offset. So an answer that comes late, twice, or after a seek changes nothing, and records follow each other without a gap
or a repeat whichever broker leads.

*Unreadable batches.* A batch cannot be read if its content is not a batch, if it exceeds the limit when it is opened, or if
its bytes are damaged. It is fetched again a few times, since another leader may have it intact. Then the `unreadable`
policy decides: the partition fails at the batch's offset, or goes on behind the batch, which is counted.

*Unclean elections.* Each fetch carries the leader epoch of the batch before it. A leader whose log lacks that batch was
elected uncleanly, without some of the records that were read. Buffered records that it lacks are dropped, and fetched again
from where the two logs part. If the application has got such records, the `reset` policy decides: "error" fails the
partition with OffsetOutOfRange; the others go back to where the logs part.

*Positions out of range.* When a leader refuses a position as out of range, the core asks where the log starts. A start above
the position means that retention has removed the next record: the `reset` policy says how to go on. A position above the
log's end cannot come from retention: it is an error under every policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

from fencepost.consuming.partition import (
    EARLIEST,
    LATEST,
    MAX_INLINE_BYTES,
    UNRESOLVED,
    AssignedPartition,
    ConsumerRecord,
    TopicPartition,
    is_large,
)
from fencepost.fetched_batch import open_batch
from fencepost_proto.protocol.decompression import DecompressedTooLarge
from fencepost_proto.protocol.errors import (
    CorruptMessage,
    CurrentLeader,
    ErrorCode,
    FencepostError,
    InvalidRequest,
    OffsetOutOfRange,
    UnknownTopicOrPartition,
    from_proto,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.records import MAX_DECOMPRESSED_BYTES, Record
from fencepost_proto.protocol.v1 import broker_pb2

MAX_BUFFERED_BYTES = 16 * 1024 * 1024  # no fetches are sent while so much waits for the application
RESPONSE_MAX_BYTES = 8 * 1024 * 1024  # of one answer; each leader may exceed the buffer's bound by one answer
PARTITION_MAX_BYTES = 1024 * 1024  # of one partition in one answer; a single larger batch is accepted nevertheless
MAX_WAIT_MS = 500  # of one long poll
RETRY_BACKOFF_S = 0.05  # after a refusal, unless another leader becomes known earlier
MAX_CORRUPT_FETCHES = 3  # in a row, of one partition, before the `unreadable` policy decides
MAX_HAND_OUT_RECORDS = 2_000  # at once: a few milliseconds of decoding
HAND_OUT_BYTES = 512 * 1024  # of batches opened at once


StartPolicy = Literal["earliest", "latest"]
ResetPolicy = Literal["earliest", "latest", "error"]
UnreadablePolicy = Literal["error", "skip"]


class FetchRoute(NamedTuple):
    """One partition on one stream. Another leader epoch or a seek makes another route."""

    key: PartitionKey
    leader_epoch: int
    generation: int


class Asked(NamedTuple):
    """The question that an answer must match to count."""

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
    """A compressed batch whose decompression would block the event loop."""

    tp: TopicPartition
    generation: int
    batch: bytes
    position: int
    max_decompressed_bytes: int

    def open(self) -> Iterator[Record]:
        """Decompress it; safe in any thread. Raises CorruptMessage."""
        return open_batch(self.batch, self.position, self.max_decompressed_bytes)


class SkippedBatch(NamedTuple):
    """An unreadable batch that a consumer has skipped."""

    tp: TopicPartition
    offset: int
    end_offset: int
    error: CorruptMessage


class Parted(NamedTuple):
    """Reading goes back to `offset`: an unclean election has removed records from the log that were handed out."""

    tp: TopicPartition
    position: int
    offset: int


class ConsumerCore:
    """The state of one consumer. `routes_version` rises with every change after which `routes` may answer differently."""

    def __init__(
        self,
        reset: ResetPolicy,
        unreadable: UnreadablePolicy = "error",
        max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
    ) -> None:
        self.skipped: deque[SkippedBatch] = deque()  # for the caller to remove
        self.parted: deque[Parted] = deque()  # likewise
        self._reset = reset
        self._unreadable = unreadable
        self._max_decompressed_bytes = max_decompressed_bytes
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._by_key: dict[PartitionKey, AssignedPartition] = {}
        self._ready: deque[AssignedPartition] = deque()  # those with something buffered, in turn
        self._generation = 0
        self._answers = 0
        self.routes_version = 0

    # ---- Positions ----

    def assign(
        self,
        partitions: Mapping[TopicPartition, PartitionKey],
        positions: Mapping[TopicPartition, int],
        epochs: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Read exactly these partitions from now on. One that was assigned before goes on where it is; the others begin at
        their position, or else at the log's start. `epochs`: leader epochs of the records before positions, where known."""
        kept = {tp: p for tp, p in self._assigned.items() if partitions.get(tp) == p.key}
        self._assigned = {tp: kept.get(tp) or AssignedPartition(tp, key) for tp, key in sorted(partitions.items())}
        self._by_key = {p.key: p for p in self._assigned.values()}
        self._ready = deque(p for p in self._ready if p.tp in kept)
        self.routes_version += 1
        for tp, p in self._assigned.items():
            if tp not in kept:
                self._move(p, positions.get(tp, UNRESOLVED))
                epoch = epochs.get(tp, -1) if epochs is not None else -1
                if epoch >= 0 and p.position > 0:
                    p.epochs = [(epoch, p.position - 1)]

    @property
    def assignment(self) -> list[TopicPartition]:
        return list(self._assigned)

    def key(self, tp: TopicPartition) -> PartitionKey:
        return self._of(tp).key

    def position(self, tp: TopicPartition) -> int:
        """The next offset to hand out, or UNRESOLVED."""
        return self._of(tp).position

    def epoch_before(self, tp: TopicPartition, position: int) -> int:
        """Leader epoch of the record before a position, as it was read; -1: not known."""
        p = self._assigned.get(tp)
        return p.epoch_before(position) if p is not None else -1

    def high_watermark(self, tp: TopicPartition) -> int:
        """The highest one received from a leader; -1: none yet."""
        return self._of(tp).high_watermark

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise InvalidRequest(f"offset {offset} of {tp.topic}-{tp.partition} is negative")
        self._move(self._of(tp), offset)

    def unresolved(self) -> list[tuple[TopicPartition, PartitionKey, int, int]]:
        """(partition, key, ListOffsets marker, generation) of each partition whose position is not known yet."""
        return [
            (p.tp, p.key, p.start, p.generation)
            for p in self._assigned.values()
            if p.position == UNRESOLVED and p.failure is None
        ]

    def resolve(self, tp: TopicPartition, generation: int, offset: int) -> bool:
        """The offset where the log begins or ends has come; ignored (False) if the application has moved the partition
        since."""
        p = self._assigned.get(tp)
        if p is None or p.generation != generation or p.position != UNRESOLVED:
            return False
        if p.out_of_range >= 0:
            return self._out_of_range(p, offset)
        self._move(p, offset)
        return True

    def fail(self, tp: TopicPartition, generation: int, error: FencepostError) -> None:
        """The partition cannot be read on from this position: reading raises the error until the application seeks."""
        p = self._assigned.get(tp)
        if p is not None and p.generation == generation:
            p.failure = error
            self.routes_version += 1

    def failures(self) -> list[FencepostError]:
        """The errors of partitions that have nothing left to hand out before them."""
        return [p.failure for p in self._assigned.values() if p.failure is not None and not p.has_buffered]

    # ---- Asking ----

    def routes(self, leader: Callable[[PartitionKey], CurrentLeader | None]) -> dict[str, frozenset[FetchRoute]]:
        """What to fetch from which address. A partition that no longer exists fails."""
        found: dict[str, set[FetchRoute]] = {}
        for p in self._assigned.values():
            if p.failure is not None:
                continue
            known = leader(p.key)
            if known is None:
                gone = UnknownTopicOrPartition(f"partition {p.tp.topic}-{p.tp.partition} is not in the cluster")
                self.fail(p.tp, p.generation, gone)
            elif known.address and p.position != UNRESOLVED:
                found.setdefault(known.address, set()).add(FetchRoute(p.key, known.leader_epoch, p.generation))
        return {address: frozenset(routes) for address, routes in found.items()}

    def ask(self, routes: Iterable[FetchRoute], now_s: float) -> Ask:
        """The next request on a stream that serves `routes`. Partitions that were refused are left out until their
        pause is over."""
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
                    last_epoch=p.last_epoch,
                    mismatch=p.corrupt > 0,  # the leader shall check its own bytes
                )
            )
        return Ask(partitions, asked, wait_s)

    def accept_answer(
        self,
        asked: Mapping[PartitionKey, Asked],
        answer: broker_pb2.FetchedPartition,
        now_s: float,
        source: str = "",
    ) -> None:
        """Apply one partition of a leader's answer, from the broker at `source`. Where a refusal names another leader, the
        caller learns it."""
        key = (answer.topic_id, answer.partition)
        p = self._by_key.get(key)
        question = asked.get(key)
        if p is None or question is None or p.failure is not None:
            return
        if (question.generation, question.fetch_offset) != (p.generation, p.next_fetch):
            return
        if answer.error.code != ErrorCode.NONE:
            p.retry_at, p.refused_epoch = now_s + RETRY_BACKOFF_S, question.leader_epoch
        if answer.error.code == ErrorCode.OFFSET_OUT_OF_RANGE and answer.HasField("divergence"):
            self._part(p, p.parts_at(answer.divergence.epoch, answer.divergence.end_offset))
        elif answer.error.code == ErrorCode.OFFSET_OUT_OF_RANGE:
            if not p.has_buffered:  # else what is buffered is handed out first
                refused = p.next_fetch
                self._move(p, UNRESOLVED)
                p.out_of_range = refused
        elif answer.error.code != ErrorCode.NONE:
            error = from_proto(answer.error)
            if not error.retriable:
                self.fail(p.tp, p.generation, error)
        else:
            p.high_watermark = max(p.high_watermark, answer.high_watermark)
            p.source = source
            if answer.records:
                self._buffer_records(p, answer)

    def _buffer_records(self, p: AssignedPartition, answer: broker_pb2.FetchedPartition) -> None:
        was_ready = p.has_buffered
        try:
            p.put_answer(answer.records, answer.high_watermark)
        except CorruptMessage as error:
            self._corrupt(p, error, None)
            return
        if not was_ready:
            self._ready.append(p)
        self._answers += 1
        p.served = self._answers

    def _part(self, p: AssignedPartition, offset: int) -> None:
        """The log parts from what was read at `offset`: records from there on are not in it any more."""
        position = p.position
        if position <= offset < p.next_fetch:
            self._move(p, position)  # only buffered records are gone
        elif offset >= p.next_fetch or self._reset == "error":
            self._move(p, position)
            message = (
                f"records of {p.tp.topic}-{p.tp.partition} that were read, from offset {offset} to {position}, are not in "
                f"the log any more: a leader has been elected uncleanly"
            )
            self.fail(p.tp, p.generation, OffsetOutOfRange(message))
        else:
            self._move(p, offset)
            self.parted.append(Parted(p.tp, position, offset))

    def _out_of_range(self, p: AssignedPartition, log_start_offset: int) -> bool:
        """Go on from a position that was refused as out of range, or fail. True where the new position is known now."""
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
        """Records are buffered."""
        return bool(self._ready)

    @property
    def buffered_bytes(self) -> int:
        """Of all partitions, in whole batches."""
        return sum(p.buffered_bytes for p in self._ready)

    def large_batch(self) -> LargeBatch | None:
        """The next batch, if it must be opened in a thread; `put_opened` gets the result."""
        if self._ready and self._ready[0].opened is None:
            p = self._ready[0]
            batch = p.next_batch()
            if p.large or is_large(batch):
                return LargeBatch(p.tp, p.generation, batch, p.position, self._max_decompressed_bytes)
        return None

    def put_opened(self, large: LargeBatch, records: Iterator[Record] | CorruptMessage) -> None:
        """A large batch's records, or why there are none; ignored if the application has moved on."""
        p = self._assigned.get(large.tp)
        if p is None or p.generation != large.generation or p.opened is not None or p.position != large.position:
            return
        if isinstance(records, CorruptMessage):
            self._corrupt(p, records, p.end_of_unreadable())
        else:
            p.put_opened(large.batch, records)

    def hand_out(self, max_records: int) -> list[ConsumerRecord]:
        """The next records; partitions take turns, and positions move. Few records where batches are large."""
        room = min(max_records, MAX_HAND_OUT_RECORDS)
        handed: list[ConsumerRecord] = []
        opened_bytes = 0
        while self._ready and room > len(handed):
            p = self._ready[0]
            try:
                if p.opened is None:
                    batch = p.next_batch()
                    if opened_bytes >= HAND_OUT_BYTES or p.large or is_large(batch):
                        break
                    opened_bytes += len(batch)
                    p.put_opened(batch, open_batch(batch, p.position, MAX_INLINE_BYTES))
                p.hand_out_opened(room - len(handed), handed)
            except DecompressedTooLarge:
                p.large = True
                break
            except CorruptMessage as error:
                self._corrupt(p, error, p.end_of_unreadable())
                continue
            if p.between_answers:  # the next partition's turn
                self._ready.popleft()
                if p.has_buffered:
                    self._ready.append(p)
        return handed

    # ---- Inside ----

    def _of(self, tp: TopicPartition) -> AssignedPartition:
        p = self._assigned.get(tp)
        if p is None:
            raise InvalidRequest(f"partition {tp.topic}-{tp.partition} is not assigned to this consumer")
        return p

    def _is_current(self, route: FetchRoute) -> bool:
        p = self._by_key.get(route.key)
        return p is not None and p.generation == route.generation and p.failure is None

    def _move(self, p: AssignedPartition, position: int, start: int = EARLIEST) -> None:
        self._generation += 1
        p.move(position, start, self._generation)
        if p in self._ready:
            self._ready.remove(p)
        self.routes_version += 1

    def _corrupt(self, p: AssignedPartition, error: CorruptMessage, end_offset: int | None) -> None:
        """Bytes cannot be read: fetch them again, MAX_CORRUPT_FETCHES times at most. Then fail the partition, or go on at
        `end_offset`, where that is the policy and the end is certain."""
        count, position = p.corrupt + 1, p.position
        self._move(p, position)
        p.corrupt = count
        if count < MAX_CORRUPT_FETCHES:
            return
        where = f"{p.tp.topic}-{p.tp.partition} at offset {position}, as broker {p.source} sent it: {error.message}"
        if self._unreadable == "skip" and end_offset is not None and end_offset > position:
            self._move(p, end_offset)
            self.skipped.append(SkippedBatch(p.tp, position, end_offset, CorruptMessage(where)))
            return
        onward = f" (the next batch begins at offset {end_offset})" if end_offset is not None else ""
        self.fail(p.tp, p.generation, CorruptMessage(where + onward))
