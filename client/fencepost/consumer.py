"""The consumer: reads committed records of chosen partitions, in order, from the positions that the application chooses.

It reads below the high watermark only, so what it has read never changes. Records of one partition come in offset order,
each exactly once, through leader changes and broken connections; partitions take turns. Positions are kept only in this
object: there are no consumer groups.

    async with Consumer("localhost:9092", "orders") as consumer:
        async for record in consumer:
            print(record.partition, record.offset, record.value)

One application task reads (`poll` or `async for`); all methods must be called in one event loop. Some errors the consumer
cannot get past by itself: OffsetOutOfRange under the policy "error", a deleted topic, bytes that stay unreadable. Reading
raises such an error when everything before it has been handed out, and again until the application seeks or assigns. The
position stays where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar, get_args

from fencepost.cluster import ClusterClient
from fencepost.concurrent import for_each
from fencepost.consuming.consumer_core import (
    MAX_BUFFERED_BYTES,
    ConsumerCore,
    LargeBatch,
    ResetPolicy,
    StartPolicy,
    UnreadablePolicy,
)
from fencepost.consuming.fetching import Router
from fencepost.consuming.partition import EARLIEST, LATEST, UNRESOLVED, ConsumerRecord, TopicPartition
from fencepost.history import History
from fencepost.log_queries import first_record_from, list_offset
from fencepost.recording import ReadRecorder
from fencepost_proto.protocol.errors import (
    CorruptMessage,
    FencepostError,
    InvalidConfig,
    InvalidRequest,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.records import MAX_DECOMPRESSED_BYTES, Record
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0  # for answers about offsets, through elections
ITERATION_RECORDS = 1_000  # decoded at once by `async for`

Found = TypeVar("Found")


class OffsetAndTimestamp(NamedTuple):
    """A record's offset and its timestamp."""

    offset: int
    timestamp_ms: int


class Consumer:
    """Reads partitions of a cluster. An async context manager.

    - `topics`: read all their partitions, as `subscribe` does.
    - `start`: where a partition without a position begins.
    - `reset`: how to go on where retention has removed the next record: at the log's new start ("earliest"), at its end
      ("latest"), or with OffsetOutOfRange ("error").
    - `unreadable`: what to do at a batch that cannot be read by anyone (its content is not a batch, or exceeds the next
      setting): raise CorruptMessage and stay there ("error"), or go on behind it ("skip"). A skipped batch is logged and
      counted in `skipped_batches` and `skipped_records`.
    - `max_decompressed_bytes`: the size to which one compressed batch may be decompressed; what is beyond is not opened.
    - `history`: where to record what is read.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *topics: str,
        start: StartPolicy = "earliest",
        reset: ResetPolicy = "earliest",
        unreadable: UnreadablePolicy = "error",
        max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
        history: History | None = None,
        host: Host | None = None,
    ) -> None:
        if start not in get_args(StartPolicy):
            raise InvalidConfig(f"start={start!r} is not one of {', '.join(get_args(StartPolicy))}")
        if reset not in get_args(ResetPolicy):
            raise InvalidConfig(f"reset={reset!r} is not one of {', '.join(get_args(ResetPolicy))}")
        if unreadable not in get_args(UnreadablePolicy):
            raise InvalidConfig(f"unreadable={unreadable!r} is not one of {', '.join(get_args(UnreadablePolicy))}")
        if not isinstance(max_decompressed_bytes, int) or max_decompressed_bytes < 1:
            raise InvalidConfig(f"max_decompressed_bytes={max_decompressed_bytes!r}: a number of 1 or more")
        self.skipped_batches = 0  # unreadable ones, with unreadable="skip"
        self.skipped_records = 0
        self._topics = topics
        self._start: StartPolicy = start
        self._cluster = ClusterClient(bootstrap, host or Host())
        self._core = ConsumerCore(reset, unreadable, max_decompressed_bytes)
        self._arrived = asyncio.Event()  # set with every change that reading or `position` may wait for
        self._router = Router(self._core, self._cluster, self._arrived.set, self._on_resolved)
        self._connected = False  # between start and close
        self._tasks = Tasks(self._task_failed)
        self._bug: BaseException | None = None  # that has ended the fetching
        self._iterated: deque[ConsumerRecord] = deque()  # decoded for `async for`, not handed out yet
        self._recorder = ReadRecorder(history, self._core.high_watermark) if history is not None else None

    # ---- Life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises NetworkException where no broker answers, UnknownTopicOrPartition for a topic."""
        await self._cluster.start()
        self._connected = True
        self._tasks.spawn(self._router.run(), "consumer-router")
        try:
            if self._topics:
                await self.subscribe(*self._topics)
        except BaseException:  # also cancellation: close() will not be called
            await self.close()
            raise

    async def close(self) -> None:
        """Stop fetching and disconnect. Positions stay readable. May be called twice.

        In a process that was forked from the consumer's it returns at once, and leaves the parent's connections alone.
        """
        if self._cluster.guard.forked:
            return
        self._cluster.guard.check()
        self._connected = False
        self._arrived.set()
        await self._tasks.close()
        await self._cluster.close()

    def _task_failed(self, error: BaseException) -> None:
        """The next read raises it."""
        self._bug = error
        self._arrived.set()

    # ---- What to read ----

    async def assign(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> None:
        """Read exactly these partitions. Those assigned before keep their positions; the others begin as `start` says.

        With start="latest" everything committed after this returns will be read.
        """
        keys = {TopicPartition(*tp): await self._key(TopicPartition(*tp)) for tp in partitions}
        assigned = set(self._core.assignment)
        fresh = [tp for tp in keys if tp not in assigned]
        positions = await self._offsets(fresh, LATEST) if self._start == "latest" else {}
        self._core.assign(keys, positions)
        for tp, position in positions.items():
            self._moved(tp, position)
        self._iterated = deque(record for record in self._iterated if _tp(record) in keys)
        self._router.wake()

    async def subscribe(self, *topics: str) -> None:
        """`assign` of all partitions of these topics."""
        self._check_connected()
        found: list[TopicPartition] = []
        for name in topics:
            topic = await self._cluster.topic(name)
            partitions = self._cluster.image.partitions_of(topic.topic_id)
            found += [TopicPartition(name, partition.index) for partition in partitions]
        await self.assign(found)

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read, sorted."""
        return self._core.assignment

    # ---- Positions ----

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read `offset` next. Reading raises an error if it does not exist."""
        self._core.seek(tp, offset)
        self._moved(tp, offset)
        self._iterated = deque(record for record in self._iterated if _tp(record) != tp)
        self._router.wake()

    async def seek_to_beginning(self, *tps: TopicPartition) -> None:
        """Go to the first record of the log; without arguments, in every assigned partition."""
        self._seek_all(await self.beginning_offsets(tps or self.assignment))

    async def seek_to_end(self, *tps: TopicPartition) -> None:
        """Go behind the last committed record; without arguments, in every assigned partition."""
        self._seek_all(await self.end_offsets(tps or self.assignment))

    async def seek_to_timestamp(self, timestamp_ms: int, *tps: TopicPartition) -> None:
        """Go to the first record of that time or later, or to the end where there is none."""
        wanted = tps or self.assignment
        ends = await self.end_offsets(wanted)
        found = await self.offsets_for_times(dict.fromkeys(wanted, timestamp_ms))
        self._seek_all({tp: at.offset if at is not None else ends[tp] for tp, at in found.items()})

    async def position(self, tp: TopicPartition) -> int:
        """The offset of the next record that reading will return. Waits while it is not known yet."""
        for record in self._iterated:
            if _tp(record) == tp:
                return record.offset
        while (position := self._core.position(tp)) == UNRESOLVED:
            self._arrived.clear()
            self._raise_failure()
            await self._arrived.wait()
        return position

    def high_watermark(self, tp: TopicPartition) -> int:
        """The end of what is committed, as far as leaders have said; -1: not known yet. Never decreases."""
        return self._core.high_watermark(tp)

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset of each log; the partitions need not be assigned."""
        return await self._offsets(tps, EARLIEST)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last committed record of each log; the partitions need not be assigned."""
        return await self._offsets(tps, LATEST)

    async def offsets_for_times(
        self, timestamps_ms: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """The first record of that time or later in each partition; None: there is none yet."""
        return await self._each(timestamps_ms, lambda tp, key: self._record_at(key, timestamps_ms[tp]))

    # ---- Reading ----

    async def poll(self, max_records: int = 500, timeout_ms: int = 1_000) -> list[ConsumerRecord]:
        """The next records, as soon as there are any; empty after `timeout_ms`. It may return fewer than there are.

        Cancellation loses no record. Raises the errors that reading cannot get past (see the top of this file).
        """
        self._check_connected()
        if max_records < 1:
            raise InvalidRequest(f"max_records={max_records}: a poll takes one record or more")
        if self._iterated:
            records = [self._iterated.popleft() for _ in range(min(max_records, len(self._iterated)))]
        else:
            records = await self._fetch_records(max_records, asyncio.get_running_loop().time() + timeout_ms / 1000)
        if self._recorder is not None:
            self._recorder.handed_out(records)
        return records

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConsumerRecord:
        self._check_connected()
        while not self._iterated:
            self._iterated.extend(await self._fetch_records(ITERATION_RECORDS, None))
        record = self._iterated.popleft()
        if self._recorder is not None:
            self._recorder.handed_out([record])
        return record

    async def _fetch_records(self, max_records: int, deadline_s: float | None) -> list[ConsumerRecord]:
        if self._recorder is None:
            return await self._next_records(max_records, deadline_s)
        self._recorder.invoked()
        try:
            return await self._next_records(max_records, deadline_s)
        except (FencepostError, asyncio.CancelledError) as error:
            self._recorder.failed(error)
            raise

    async def _next_records(self, max_records: int, deadline_s: float | None) -> list[ConsumerRecord]:
        """The next records of the core. Nothing is awaited between hand-out and return, so that cancellation loses none."""
        await asyncio.sleep(0)  # other tasks must run, the fetching too, even if every call finds records
        while True:
            self._arrived.clear()
            if (large := self._core.large_batch()) is not None:
                await self._open(large)
            if records := self._hand_out(max_records):
                return records
            if self._core.readable:
                continue
            self._raise_failure()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    # ---- Inside ----

    def _moved(self, tp: TopicPartition, offset: int) -> None:
        """The application has moved a position."""
        if self._recorder is not None:
            self._recorder.moved(tp, offset)

    def _on_resolved(self, tp: TopicPartition, offset: int) -> None:
        """A position was found out, or has moved without the application."""
        if self._recorder is not None:
            self._recorder.found(tp, offset)

    def _hand_out(self, max_records: int) -> list[ConsumerRecord]:
        was_full = self._core.buffered_bytes >= MAX_BUFFERED_BYTES
        records = self._core.hand_out(max_records)
        self._note_skipped()
        if was_full and self._core.buffered_bytes < MAX_BUFFERED_BYTES:
            self._router.wake()
        if not records:  # bytes that could not be read are fetched again
            self._router.look_again()
        return records

    async def _open(self, large: LargeBatch) -> None:
        """Decompress a large batch in a thread: it would block the event loop."""
        try:
            opened: Iterator[Record] | CorruptMessage = await asyncio.to_thread(large.open)
        except CorruptMessage as error:
            opened = error
        self._core.put_opened(large, opened)
        self._note_skipped()
        self._router.look_again()

    def _note_skipped(self) -> None:
        while self._core.skipped:
            tp, offset, end_offset, error = self._core.skipped.popleft()
            self.skipped_batches += 1
            self.skipped_records += end_offset - offset
            log.error(
                "unreadable batch skipped topic=%s partition=%d offset=%d records=%d reason=%s",
                tp.topic, tp.partition, offset, end_offset - offset, error.message,
            )  # fmt: skip
            self._on_resolved(tp, end_offset)

    def _check_connected(self) -> None:
        self._cluster.guard.check()
        if not self._connected:
            raise InvalidRequest("the consumer is not open: use it as `async with Consumer(…)`")

    def _raise_failure(self) -> None:
        """Raise the error that reading cannot get past, if there is one."""
        self._check_connected()
        if self._bug is not None:
            raise self._bug
        if not self._core.assignment:
            raise InvalidRequest("no partition is assigned to this consumer")
        for failure in self._core.failures():
            raise failure.with_traceback(None)

    def _seek_all(self, offsets: Mapping[TopicPartition, int]) -> None:
        for tp, offset in offsets.items():
            self.seek(tp, offset)

    async def _key(self, tp: TopicPartition) -> PartitionKey:
        self._check_connected()
        topic = await self._cluster.topic(tp.topic)
        key = (topic.topic_id, tp.partition)
        if key not in self._cluster.image.partitions:
            count = len(self._cluster.image.partitions_of(topic.topic_id))
            raise UnknownTopicOrPartition(f"topic {tp.topic!r} has no partition {tp.partition}: it has {count}")
        return key

    async def _offsets(self, tps: Iterable[TopicPartition], marker: int) -> dict[TopicPartition, int]:
        async def offset(key: PartitionKey) -> int:
            return (await list_offset(self._cluster, key, marker, REQUEST_TIMEOUT_S))[0]

        return await self._each(tps, lambda _, key: offset(key))

    async def _record_at(self, key: PartitionKey, timestamp_ms: int) -> OffsetAndTimestamp | None:
        if timestamp_ms < 0:
            raise InvalidRequest(f"timestamp {timestamp_ms} ms is negative")
        record = await first_record_from(self._cluster, key, timestamp_ms, REQUEST_TIMEOUT_S)
        return OffsetAndTimestamp(record.offset, record.timestamp_ms) if record is not None else None

    async def _each(
        self, tps: Iterable[TopicPartition], ask: Callable[[TopicPartition, PartitionKey], Awaitable[Found]]
    ) -> dict[TopicPartition, Found]:
        """Ask for all partitions, many at once. Raises the first error."""

        async def one(tp: TopicPartition) -> Found:
            return await ask(tp, await self._key(tp))

        wanted = list(dict.fromkeys(tps))
        return dict(zip(wanted, await for_each(wanted, one), strict=True))


def _tp(record: ConsumerRecord) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
