"""The consumer: reads committed records of chosen partitions, in order, from the positions that the application chooses.

It reads below the high watermark only, so what it has read never changes. Records of one partition come in offset order,
each exactly once, through leader changes and broken connections; partitions take turns. Positions are kept only in this
object, unless it is a member of a group:

    async with Consumer("localhost:9092", "orders", group="billing") as consumer:
        async for record in consumer:
            print(record.partition, record.offset, record.value)

The members of a group share the partitions of the topics, whichever broker dies or member comes or goes. Each record goes
to the one member that has its partition; how far the group has come is committed, every 5 s and when a partition changes
hands, and that is where the next member begins. A member that dies, or is paused for longer than its session, loses its
partitions: what it had read and not committed is read again, and a commit for a partition that it has lost is refused.

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
from fencepost.consuming.group import Beginning, Group, GroupOptions, Reading, Told
from fencepost.consuming.partition import EARLIEST, LATEST, UNRESOLVED, ConsumerRecord, TopicPartition
from fencepost.errors import PartitionLost
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
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.records import MAX_DECOMPRESSED_BYTES, Record
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.client_ids import DEFAULT_CLIENT_ID

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
    - `client_id`: a name for logs, for faults, and for those who describe the group. It proves nothing.

    In a group:

    - `group`: its id. The partitions of `topics` are shared among its members; `assign` is not possible.
    - `start` counts for partitions for which the group has committed nothing yet.
    - `auto_commit_ms`: how often what the application is done with is committed: all that it has got before its last reading
      call, and at a regular end of the `async with` block all. None: only `commit` commits.
    - `max_poll_interval_ms`: an application that does not read for so long leaves the group, until it reads again.
    - `on_assigned`, `on_revoked`: called with the partitions that come, and with those that go while commits for them are
      still possible. `on_lost`: with those that the group has taken away already; without it `on_revoked` is called. All
      inside reading calls; a coroutine function is awaited.
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
        group: str | None = None,
        auto_commit_ms: int | None = 5_000,
        max_poll_interval_ms: int = 300_000,
        client_id: str = DEFAULT_CLIENT_ID,
        on_assigned: Told | None = None,
        on_revoked: Told | None = None,
        on_lost: Told | None = None,
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
        if group is None and (on_assigned or on_revoked or on_lost):
            raise InvalidConfig("on_assigned, on_revoked and on_lost go with a group")
        host = host or Host()
        self._cluster = ClusterClient(bootstrap, host, client_id)
        self._core = ConsumerCore(reset, unreadable, max_decompressed_bytes)
        self._arrived = asyncio.Event()  # set with every change that reading or `position` may wait for
        self._router = Router(self._core, self._cluster, self._arrived.set, self._on_resolved)
        self._connected = False  # between start and close
        self._tasks = Tasks(self._task_failed)
        self._bug: BaseException | None = None  # that has ended the fetching
        self._iterated: deque[ConsumerRecord] = deque()  # decoded for `async for`, not handed out yet
        self._recorder = ReadRecorder(history, self._core.high_watermark) if history is not None else None
        self._subscribed: dict[str, tuple[str, int]] = {}  # id and number of partitions, by topic's name
        self._group: Group | None = None
        self._last: Sequence[ConsumerRecord] = ()  # handed out by the last reading call, until the next one …
        self._lost_since_read: TopicPartition | None = None  # … and one of theirs that was lost since
        if group is not None:
            options = GroupOptions(
                group, auto_commit_ms, max_poll_interval_ms, client_id, on_assigned, on_revoked, on_lost
            )
            reading = Reading(self._take, self._drop, self._done, self._core.epoch_before, self._arrived.set)
            self._group = Group(options, self._cluster, host, reading, from_latest=start == "latest")

    # ---- Life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._last = ()  # it is done with all that it has got
        await self.close()

    async def start(self) -> None:
        """Connect. Raises NetworkException where no broker answers, UnknownTopicOrPartition for a topic."""
        await self._cluster.start()
        self._connected = True
        self._cluster.add_listener(self._on_image)
        self._tasks.spawn(self._router.run(), "consumer-router")
        if self._group is not None:
            self._group.start(self._tasks)
        try:
            if self._topics:
                await self.subscribe(*self._topics)
        except BaseException:  # also cancellation: close() will not be called
            await self.close()
            raise

    async def close(self) -> None:
        """Stop fetching and disconnect. Positions stay readable. May be called twice.

        A member of a group commits what the application is done with, and leaves. That is all that it has got before its
        last reading call, and at a regular end of the `async with` block the rest too.

        In a process that was forked from the consumer's it returns at once, and leaves the parent's connections alone.
        """
        if self._cluster.guard.forked:
            return
        self._cluster.guard.check()
        was_connected, self._connected = self._connected, False
        self._arrived.set()
        if self._group is not None and was_connected:
            await self._group.finish()
        await self._tasks.close()
        if self._group is not None and was_connected:
            await self._group.leave()
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
        if self._group is not None:
            raise InvalidRequest(
                f"partitions of group {self._group.group_id!r} are assigned by its coordinator: subscribe"
            )
        self._subscribed = {}
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
        """`assign` of all partitions of these topics, and of those that they get later, which are read from their start.

        In a group: the topics whose partitions it shares with the other members.
        """
        self._check_connected()
        found: list[TopicPartition] = []
        counts: dict[str, tuple[str, int]] = {}
        for name in topics:
            topic = await self._cluster.topic(name)
            partitions = self._cluster.image.partitions_of(topic.topic_id)
            found += [TopicPartition(name, partition.index) for partition in partitions]
            counts[name] = topic.topic_id, len(partitions)
        if self._group is not None:
            self._group.subscribe(topics)
            return
        await self.assign(found)
        self._subscribed = counts
        self._on_image(self._cluster.image)

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
        deadline_s = asyncio.get_running_loop().time() + timeout_ms / 1000
        records: list[ConsumerRecord] = []
        if self._group is None or await self._ready(self._group, deadline_s):
            if self._iterated:
                records = [self._iterated.popleft() for _ in range(min(max_records, len(self._iterated)))]
            else:
                records = await self._fetch_records(max_records, deadline_s)
        if self._recorder is not None:
            self._recorder.handed_out(records)
        if self._group is not None:
            self._last = records
            self._group.has_read()
        return records

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConsumerRecord:
        self._check_connected()
        if self._group is not None:
            await self._ready(self._group, None)
        while not self._iterated:
            self._iterated.extend(await self._fetch_records(ITERATION_RECORDS, None))
        record = self._iterated.popleft()
        if self._recorder is not None:
            self._recorder.handed_out([record])
        if self._group is not None:
            self._last = (record,)
            self._group.has_read()
        return record

    async def _ready(self, group: Group, deadline_s: float | None) -> bool:
        """A reading call begins: all that was handed out before is done. False: the time is up before records may be handed
        out."""
        self._last, self._lost_since_read = (), None
        group.reading()
        return group.is_settled or await self._settle(group, deadline_s)

    async def _settle(self, group: Group, deadline_s: float | None) -> bool:
        """True where records may be handed out. False: the time is up."""
        while True:
            self._arrived.clear()
            await group.settle()
            if group.may_hand_out:
                return True
            self._raise_failure()
            if not await self._wait_arrived(deadline_s):
                return False

    async def _wait_arrived(self, deadline_s: float | None) -> bool:
        """False: the time is up."""
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

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
            group = self._group
            if group is not None and not group.is_settled and not await self._settle(group, deadline_s):
                return []
            if (large := self._core.large_batch()) is not None:
                await self._open(large)
            if records := self._hand_out(max_records):
                return records
            if self._core.readable:
                continue
            self._raise_failure()
            if not await self._wait_arrived(deadline_s):
                return []

    # ---- Commits ----

    async def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Commit how far the group has come: behind everything that this member has handed out, or these offsets (of the
        next record to read). Returns when it is stored on every in-sync replica.

        Through failovers it is tried for 30 s. Raises PartitionLost where a partition is not this member's any more: then
        nothing of this call is committed; InvalidRequest; or the last retriable error: then it may be committed.
        """
        group = self._in_group()
        if offsets is None and self._lost_since_read is not None:
            tp = self._lost_since_read
            raise PartitionLost(
                f"{tp.topic}-{tp.partition}, of which the last records came, is not this member's any more"
            )
        await group.commit(self._positions() if offsets is None else offsets)

    async def committed(self, *tps: TopicPartition) -> dict[TopicPartition, int]:
        """What the group has committed for these, or for its assigned partitions; those without a commit are left out."""
        group = self._in_group()
        keys = {await self._key(tp): tp for tp in tps or self.assignment}
        return {keys[key]: offset for key, offset in (await group.committed(list(keys))).items()}

    def _in_group(self) -> Group:
        self._check_connected()
        if self._group is None:
            raise InvalidRequest("the consumer is in no group: Consumer(…, group=…)")
        return self._group

    def _positions(self) -> dict[TopicPartition, int]:
        """Behind what was handed out; without those that are not known yet."""
        positions = {tp: self._core.position(tp) for tp in self._core.assignment}
        for record in reversed(self._iterated):
            positions[_tp(record)] = record.offset
        return {tp: position for tp, position in positions.items() if position != UNRESOLVED}

    def _done(self) -> dict[TopicPartition, int]:
        """Behind what the application is done with: without what its last reading call returned, while it works on that."""
        positions = self._positions()
        for record in reversed(self._last):
            if _tp(record) in positions:
                positions[_tp(record)] = record.offset
        return positions

    def _take(self, beginnings: Mapping[PartitionKey, Beginning]) -> None:
        """Read these too, for the group."""
        keys = {tp: self._core.key(tp) for tp in self._core.assignment}
        positions, epochs = {}, {}
        for key, each in beginnings.items():
            keys[each.tp], positions[each.tp], epochs[each.tp] = key, each.position, each.leader_epoch
        self._core.assign(keys, positions, epochs)
        for tp, position in positions.items():
            if position != UNRESOLVED:
                self._on_resolved(tp, position)
        self._router.wake()

    def _drop(self, tps: Iterable[TopicPartition]) -> None:
        """Read these no more."""
        gone = set(tps)
        kept = {tp: self._core.key(tp) for tp in self._core.assignment if tp not in gone}
        if len(kept) == len(self._core.assignment):
            return
        self._core.assign(kept, {})
        self._iterated = deque(record for record in self._iterated if _tp(record) in kept)
        self._lost_since_read = next((_tp(record) for record in self._last if _tp(record) in gone), None)
        self._last = [record for record in self._last if _tp(record) in kept]
        self._router.wake()

    # ---- Inside ----

    def _on_image(self, image: MetadataImage) -> None:
        """Read partitions that subscribed topics have got, from their start: they are younger than the subscription."""
        fresh: dict[TopicPartition, PartitionKey] = {}
        for name, (topic_id, count) in self._subscribed.items():
            while (key := (topic_id, count)) in image.partitions:
                fresh[TopicPartition(name, count)] = key
                count += 1  # noqa: PLW2901
            self._subscribed[name] = topic_id, count
        if fresh:
            self._core.assign({tp: self._core.key(tp) for tp in self._core.assignment} | fresh, {})
            self._router.wake()

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
        if self._group is not None:
            self._group.raise_failure()
        elif not self._core.assignment:
            raise InvalidRequest("no partition is assigned to this consumer")
        for failure in self._core.failures():
            if self._group is None or not isinstance(failure, UnknownTopicOrPartition):  # the group gives that one up
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
