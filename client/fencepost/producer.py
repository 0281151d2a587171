"""The producer: records in, each exactly once and in order into its partition's log, or an error that says what is known.

How a record travels: `send` puts it into its partition's open batch (`producing.accumulator`) and returns a `Delivery`.
The sender task, woken when something has changed, gives batches to the partition's sequencer (`producing.sequencer`,
which decides everything about order, retries and epochs) and what that wants sent to the connection of the partition's
leader (`producing.connection`). Answers and broken streams go back the same way. All of it runs on one event loop,
and between two awaits every batch is in exactly one place.

The path of `send` that almost every record takes has no await in it. It is left when a record needs metadata or room, and
every so many bytes, so that the loop gets on with sending.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, Unpack, cast

from fencepost.cluster import Cluster
from fencepost.errors import BufferFull, DeliveryTimeout, ProducerClosed
from fencepost.producing.accumulator import (
    NO_HEADERS,
    RECORD_OVERHEAD_BYTES,
    PartitionQueue,
    Record,
    RecordBatch,
    TopicQueues,
    headers_of,
    size_of_headers,
)
from fencepost.producing.batch import Attempt, Batch, Delivered, Failed
from fencepost.producing.config import ProducerConfig, ProducerOptions
from fencepost.producing.connection import BrokerConnection
from fencepost.producing.delivery import Delivery, RecordMetadata
from fencepost.producing.identity import Identity
from fencepost.producing.resume import Resumed, resume
from fencepost.producing.sequencer import Backoff, Sequencer
from fencepost_proto.errors import (
    FencepostError,
    InvalidRecord,
    InvalidRequest,
    InvariantBroken,
    MessageTooLarge,
    ProducerFenced,
    UnknownServerError,
    UnknownTopicOrPartition,
    from_proto,
)
from fencepost_proto.host import Host
from fencepost_proto.metadata import MetadataImage
from fencepost_proto.v1 import broker_pb2 as pb

log = logging.getLogger(__name__)

YIELD_BYTES = 64 * 1024  # appended without giving the event loop a turn
CLOSE_TIMEOUT_S = 30.0

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(slots=True)
class ProducerStats:
    """Counters since the producer was made. records_sent = acked + failed + those still under way."""

    records_sent: int = 0
    records_acked: int = 0
    records_failed: int = 0
    batches_sent: int = 0
    retried_batches: int = 0  # sendings beyond each batch's first
    deduplicated_batches: int = 0  # answers that said: it is there already
    dropped_acks: int = 0  # thrown away by the fault switch


class Producer:
    """Sends records. An async context manager: it connects on entry, flushes and closes on exit.

    `bootstrap`: host:port of any brokers, as a list or separated by commas. Further settings are those of
    `ProducerConfig`, by keyword.
    """

    def __init__(
        self, bootstrap: str | Sequence[str], *, host: Host | None = None, **config: Unpack[ProducerOptions]
    ) -> None:
        self.config = ProducerConfig(**config)
        self._host = host if host is not None else Host()
        self._cluster = Cluster(bootstrap, self._host)
        self._identity = Identity(self._cluster, self.config, self)
        self._stats = ProducerStats()
        self._topics: dict[str, TopicQueues] = {}
        self._connections: dict[str, BrokerConnection] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._batches: dict[RecordBatch, None] = {}  # not resolved, oldest first
        self._buffered = 0  # bytes of their records
        self._yield_at = -1  # `send` leaves its fast path at so many buffered bytes; -1: always
        self._room: deque[asyncio.Future[None]] = deque()  # sends that wait, in order
        self._changed: dict[PartitionQueue, None] = {}
        self._wake = asyncio.Event()
        self._end: FencepostError | InvariantBroken | None = None  # why nothing can be sent any more
        self._started = False
        self._closing = False
        self._now_ms = self._host.wall_clock_ms
        self._max_record = self.config.max_request_size

    # ---- Life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect, and get a producer id. Raises NetworkException, CoordinatorNotAvailable, and what refuses a name."""
        if self._started:
            raise InvalidRequest("the producer has been started before")
        self._started = True
        try:
            await self._cluster.start()
            await self._identity.start()
        except BaseException:
            self._end = ProducerClosed("the producer could not start")
            await self._cluster.close()
            raise
        self._cluster.add_listener(self._image_changed)
        self._own(self._send_forever(), "producer-sender")
        self._own(self._identity.run(), "producer-identity")
        self._yield_at = 0

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is there, wait for it at most so long, fail the rest with ProducerClosed. May be called twice."""
        first, self._closing = not self._closing, True
        self._yield_at = -1
        self._let_in()
        try:
            if first and self._started and self._end is None:
                async with asyncio.timeout(timeout_s):
                    await self._flush()
        except TimeoutError:
            log.warning("producer closed before all was acknowledged batches=%d", len(self._batches))
        finally:
            self._end = self._end or ProducerClosed("the producer is closed")
            self._fail_everything(ProducerClosed("the producer was closed before the record was acknowledged"))
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # each one's error went to _task_ended
            await self._cluster.close()

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, FencepostError | InvariantBroken):
            self._stop(error)
        elif error is not None:
            log.critical("producer task failed task=%s", task.get_name(), exc_info=error)
            self._stop(UnknownServerError(f"the producer's {task.get_name()} failed: {error!r}"))

    def _stop(self, error: FencepostError | InvariantBroken) -> None:
        """The producer is at its end: everything pending fails, and every later send raises this."""
        if self._end is not None:
            return
        log.error("producer stopped reason=%s", error)
        self._end = error
        self._yield_at = -1
        self._let_in()
        self._fail_everything(error if isinstance(error, FencepostError) else UnknownServerError(str(error)))

    def _fail_everything(self, error: FencepostError) -> None:
        for queue in self.queues:
            self._fail_queue(queue, error)

    # ---- Sending ----

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> Delivery:
        """Take a record for sending. Await the returned `Delivery` to learn its offset, or that it failed.

        Waits only for the first metadata of a topic and for room in the buffer. The record goes to `partition`, else to
        its key's partition, else to one that changes with every batch. Records of one partition keep their order.
        Raises UnknownTopicOrPartition, MessageTooLarge, BufferFull, ProducerFenced, ProducerClosed; then nothing was
        taken.
        """
        if self._buffered >= self._yield_at:
            await self._breathe()
        queues = self._topics.get(topic)
        if queues is None:
            queues = await self._open_topic(topic)
        if partition is not None:
            queue = queues.explicit(partition)
        elif key is None:
            queue = queues.sticky
        else:
            queue = queues.by_key.get(key) or queues.place(key)
        size = RECORD_OVERHEAD_BYTES + (len(value) if value else 0) + (len(key) if key else 0)
        pairs = NO_HEADERS
        if headers:
            pairs = headers_of(headers)
            size += size_of_headers(pairs)
        if size > self._max_record:
            raise MessageTooLarge(f"record of {size} bytes for {queue.name}; max_request_size is {self._max_record}")
        if timestamp_ms is None:
            timestamp_ms = self._now_ms()
        elif timestamp_ms < 0:
            raise InvalidRecord(f"timestamp_ms={timestamp_ms} of a record for {queue.name} is negative")
        batch = queue.open
        if batch is None or not batch.append(timestamp_ms, key, value, pairs):
            movable = queues if key is None and partition is None else None
            batch = self._append_to_another(queue, movable, (timestamp_ms, key, value, pairs))
        index = batch.record_count
        batch.record_count = index + 1
        batch.size_bytes += size
        self._buffered += size
        return Delivery(batch, index, timestamp_ms)

    async def send_and_wait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> RecordMetadata:
        """`send`, and await the delivery."""
        return await (
            await self.send(topic, value, key=key, partition=partition, headers=headers, timestamp_ms=timestamp_ms)
        )

    async def flush(self) -> None:
        """Send everything that has been taken, without lingering, and wait until it is acknowledged or failed."""
        self._check_open()
        await self._flush()

    @property
    def stats(self) -> ProducerStats:
        """The counters as they stand."""
        stats = replace(self._stats, dropped_acks=sum(c.dropped_acks for c in self._connections.values()))
        pending = sum(batch.record_count for batch in self._batches)
        stats.records_sent = stats.records_acked + stats.records_failed + pending
        return stats

    @property
    def producer_id(self) -> int:
        """-1 without acks="all"."""
        return self._identity.producer_id

    @property
    def epoch(self) -> int:
        """As it was given; the partitions of an anonymous producer may have gone on from it."""
        return self._identity.epoch

    async def resume(self, topic: str, partition: int) -> Resumed | None:
        """What the predecessor of this named producer got into a partition, for good; None: nothing that is known.

        To be asked before the first `send` to the partition: later it tells of this instance's own records. It also is
        None where the predecessor used up the last epoch of its id, and this instance has another one.
        """
        self._check_open()
        if not self.config.name:
            raise InvalidRequest("only a named producer can resume: Producer(…, name=…)")
        queue = (self._topics.get(topic) or await self._open_topic(topic)).explicit(partition)
        return await resume(self._cluster, queue.key, self._identity.producer_id, self.config.max_block_ms / 1000)

    # ---- Taking records ----

    def _append_to_another(
        self,
        queue: PartitionQueue,
        movable: TopicQueues | None,  # for a record without a key: it may go to another partition
        record: Record,
    ) -> RecordBatch:
        """The record does not fit the queue's open batch, or there is none: put it elsewhere."""
        if queue.open is not None:
            self._full(queue)
            if movable is not None:
                movable.next_sticky()
                queue = movable.sticky
                batch = queue.open
                if batch is not None:
                    if batch.append(*record):
                        return batch
                    self._full(queue)
        now = asyncio.get_running_loop().time()
        config = self.config
        batch = RecordBatch(
            queue,
            config.codec,
            config.batch_size,
            linger_until=now + config.linger_ms / 1000,
            deadline=now + config.delivery_timeout_ms / 1000,
        )
        batch.append(*record)  # raises TypeError for what is not bytes: nothing has changed
        queue.open = batch
        self._batches[batch] = None
        self._mark(queue)
        return batch

    def _full(self, queue: PartitionQueue) -> None:
        queue.close_open()
        self._mark(queue)
        self._yield_at = min(self._yield_at, self._buffered)  # the next `send` gives the sender a turn

    async def _breathe(self) -> None:
        """Give the event loop a turn, and wait until the buffer has room."""
        self._check_open()
        if self._buffered >= self.config.buffer_memory or self._room:
            await self._wait_for_room()
        else:
            await asyncio.sleep(0)
        self._check_open()
        self._yield_at = min(self._buffered + YIELD_BYTES, self.config.buffer_memory)

    async def _wait_for_room(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        for queue in self.queues:
            queue.flush()  # lingering would keep the room taken
            self._mark(queue)
        try:
            async with asyncio.timeout(self.config.max_block_ms / 1000):
                await waiter
        except TimeoutError:
            raise BufferFull(
                f"{self._buffered} bytes are buffered and unacknowledged; no room within {self.config.max_block_ms} ms "
                f"(buffer_memory is {self.config.buffer_memory})"
            ) from None
        finally:
            self._room.remove(waiter)
            self._let_in()

    def _let_in(self) -> None:
        """Wake the first who waits for room, if there is some; he wakes the next."""
        if self._room and not self._room[0].done() and (self._ended or self._buffered < self.config.buffer_memory):
            self._room[0].set_result(None)

    @property
    def _ended(self) -> bool:
        return self._end is not None or self._closing

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end.with_traceback(None)
        if self._closing:
            raise ProducerClosed("the producer is closed")
        if not self._started:
            raise InvalidRequest("the producer is not started: use `async with`, or await start()")

    async def _open_topic(self, name: str) -> TopicQueues:
        """Make the queues of a topic's partitions. Raises UnknownTopicOrPartition."""
        self._check_open()
        topic = await self._cluster.topic(name)
        self._check_open()
        if name not in self._topics:
            partitions = self._cluster.image.partitions_of(topic.topic_id)
            if not partitions:
                raise UnknownTopicOrPartition(f"topic {name!r} has no partitions")
            queues = [PartitionQueue(topic, p.index, self._sequencer(f"{name}-{p.index}")) for p in partitions]
            for queue in queues:
                self._identity.opened(queue)
                self._place(queue)
            self._topics[name] = TopicQueues(topic, queues, self._host.random.choice)
        return self._topics[name]

    def _sequencer(self, name: str) -> Sequencer:
        config = self.config
        return Sequencer(
            name,
            self._identity.producer_id,
            self._identity.epoch,
            named=bool(config.name),
            idempotent=config.idempotent,
            backoff=Backoff(config.retry_backoff_ms / 1000, config.retry_backoff_max_ms / 1000),
        )

    # ---- The sender ----

    @property
    def queues(self) -> list[PartitionQueue]:
        return [queue for topic in self._topics.values() for queue in topic.queues]

    def changed(self, queue: PartitionQueue) -> None:
        """Something about it may be due."""
        self._mark(queue)

    def _mark(self, queue: PartitionQueue) -> None:
        self._changed[queue] = None
        self._wake.set()

    async def _send_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for queue in changed:
                self._pump(queue, loop.time())

    def _pump(self, queue: PartitionQueue, now: float) -> None:
        """Everything that is due for one partition."""
        self._place(queue)
        sequencer = queue.sequencer
        self._expire(queue, now)
        connection = self._connections.get(queue.address)
        if connection is not None and connection.up:
            while True:
                if attempts := sequencer.attempts_to_send(now):
                    self._stats.batches_sent += len(attempts)
                    self._stats.retried_batches += sum(attempt.batch.attempts > 1 for attempt in attempts)
                    connection.send(attempts)
                if not sequencer.has_room(now) or (batch := queue.take(now)) is None:
                    break
                topic = self._topics[queue.topic.name]
                if queue is topic.sticky:
                    topic.next_sticky()
                sequencer.add(batch)
        if sequencer.awaiting_identity or (sequencer.bump_needed and sequencer.named):
            self._identity.need()
        self._arm(queue, now)

    def _expire(self, queue: PartitionQueue, now: float) -> None:
        expired = queue.sequencer.expire(now)
        for batch in queue.take_expired(now):
            error = DeliveryTimeout(f"{queue.name}: not sent within the delivery timeout; {queue.whereabouts}")
            batch.outcome = Failed(error)
            expired.append(batch)
        if expired:
            self._settle(expired)

    def _arm(self, queue: PartitionQueue, now: float) -> None:
        """Come back when the next thing is due."""
        at = queue.wake_at(now)
        timer = queue.timer
        if at is not None and (timer is None or timer.when() > at):
            if timer is not None:
                timer.cancel()
            queue.timer = asyncio.get_running_loop().call_at(at, self._due, queue)

    def _due(self, queue: PartitionQueue) -> None:
        queue.timer = None
        self._mark(queue)

    async def _flush(self) -> None:
        for queue in self.queues:
            queue.flush()
            self._mark(queue)
        for batch in list(self._batches):
            if batch.outcome is None:
                await batch.wait()

    # ---- Where partitions are led ----

    def _image_changed(self, image: MetadataImage) -> None:
        for topic in list(self._topics.values()):
            if topic.topic.topic_id not in image.topics:
                self._forget(topic)
                continue
            for queue in topic.queues:
                self._mark(queue)

    def _forget(self, topic: TopicQueues) -> None:
        """The topic has been deleted."""
        del self._topics[topic.topic.name]
        error = UnknownTopicOrPartition(f"topic {topic.topic.name!r} has been deleted")
        for queue in topic.queues:
            self._fail_queue(queue, error)
            self._changed.pop(queue, None)
            self._leave(queue)

    def _leave(self, queue: PartitionQueue) -> None:
        connection = self._connections.get(queue.address)
        if connection is not None:
            connection.leave(queue)

    def _place(self, queue: PartitionQueue) -> None:
        """Follow the partition's leader."""
        leader = self._cluster.leader(queue.key)
        if leader is None or leader.leader_epoch < queue.leader_epoch:
            return
        if (leader.leader_epoch, leader.address) == (queue.leader_epoch, queue.address):
            return
        self._leave(queue)
        queue.leader_epoch, queue.address = leader.leader_epoch, leader.address
        self._settle(queue.sequencer.detach())
        if leader.address:
            connection = self._connection(leader.address)
            connection.lead(queue)
            if connection.up:
                queue.sequencer.attach(leader.leader_epoch)

    def _connection(self, address: str) -> BrokerConnection:
        connection = self._connections.get(address)
        if connection is None:
            connection = BrokerConnection(address, self._cluster.channel, self.config, self._host, self)
            self._connections[address] = connection
            self._own(connection.run(), f"producer-connection-{address}")
        return connection

    def connection_up(self, connection: BrokerConnection) -> None:
        for queue in connection.queues:
            self._settle(queue.sequencer.attach(queue.leader_epoch))
            self._mark(queue)

    def connection_down(self, connection: BrokerConnection) -> None:
        for queue in connection.queues:
            self._settle(queue.sequencer.detach())
            self._mark(queue)

    # ---- Outcomes ----

    def answered(self, attempt: Attempt, result: pb.ProduceResult) -> None:
        queue = cast(RecordBatch, attempt.batch).queue
        sequencer = queue.sequencer
        if result.error.code:
            error = from_proto(result.error)
            if error.current_leader is not None:
                self._cluster.learn(queue.key, error.current_leader)
            log.debug("batch refused partition=%s stamp=%s error=%s", queue.name, attempt.stamp, error)
            resolved = sequencer.refused(attempt, error, asyncio.get_running_loop().time())
            if sequencer.fenced is not None:
                self._stop(ProducerFenced(f"producer {self.config.name!r}: {sequencer.fenced.message}"))
                return
        else:
            self._stats.deduplicated_batches += result.duplicate
            resolved = sequencer.acknowledged(attempt, result.base_offset, result.duplicate)
        self._settle(resolved)
        self._mark(queue)

    def _settle(self, resolved: Iterable[Batch]) -> None:
        """Tell who waits, and free the memory."""
        for batch in resolved:
            assert isinstance(batch, RecordBatch)
            if isinstance(batch.outcome, Delivered):
                self._stats.records_acked += batch.record_count
            else:
                self._stats.records_failed += batch.record_count
                error = batch.outcome.error if batch.outcome is not None else None
                log.warning(
                    "batch failed partition=%s records=%d may_have_been_appended=%s error=%s",
                    batch.queue.name, batch.record_count, error and error.may_have_been_appended, error,
                )  # fmt: skip
            del self._batches[batch]
            self._buffered -= batch.size_bytes
            batch.done()
        self._yield_at = min(self._yield_at, self._buffered + YIELD_BYTES)
        self._let_in()

    def _fail_queue(self, queue: PartitionQueue, error: FencepostError) -> None:
        failed = queue.sequencer.fail_all(error)
        for batch in queue.take_all():
            batch.outcome = Failed(type(error)(error.message, may_have_been_appended=False))
            failed.append(batch)
        self._settle(failed)
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
