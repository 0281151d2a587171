"""Moves batches from the queues to the brokers, and outcomes back.

One task wakes up when something has changed, and does for each changed partition what is due (`_pump`):

- follow the partition's leader;
- fail batches that are too old;
- give closed batches to the sequencer, and the attempts that it wants to the leader's connection.

Answers, broken streams and metadata arrive as calls between two turns of that task. Everything runs on one event loop, so
between two awaits every batch is in exactly one place: a queue, the sequencer's window, or resolved.

The sender owns every task of the producer. A task that ends with an error ends the producer: every pending record fails, and
`check` raises the reason from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from fencepost.cluster import ClusterClient
from fencepost.errors import DeliveryTimeout, ProducerClosed
from fencepost.loop_guard import LoopGuard
from fencepost.producing.accumulator import NOT_WAITING, PartitionQueue, RecordBatch, TopicQueues
from fencepost.producing.batch import Attempt, Batch, Delivered, Failed
from fencepost.producing.buffer import Buffer
from fencepost.producing.config import ProducerConfig
from fencepost.producing.connection import BrokerConnection
from fencepost.producing.delivery_warnings import DeliveryWarnings
from fencepost.producing.identity import Identity
from fencepost.producing.sequencer import Sequencer
from fencepost_proto.protocol.errors import (
    FencepostError,
    InvalidRequest,
    InvariantBroken,
    ProducerFenced,
    UnknownServerError,
    UnknownTopicOrPartition,
    from_proto,
)
from fencepost_proto.protocol.metadata import MetadataImage, Topic
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.signal import Signal
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

QUEUES_IN_A_TURN = 64  # before the event loop gets a turn: a millisecond


@dataclass(slots=True)
class ProducerStats:
    """Counters since the producer was created. records_sent = acked + failed + those still under way."""

    records_sent: int = 0
    records_acked: int = 0
    records_failed: int = 0
    batches_sent: int = 0
    retried_batches: int = 0  # sendings beyond each batch's first
    deduplicated_batches: int = 0  # answers that the batch is in the log already
    split_batches: int = 0  # that were refused as too large and sent in two halves


class Sender:
    """Everything of a producer except accepting records. `start` it before use, `close` it after."""

    def __init__(self, cluster: ClusterClient, config: ProducerConfig, host: Host) -> None:
        self.guard = LoopGuard("producer")
        self.topics: dict[str, TopicQueues] = {}
        self.buffer = Buffer(config.buffer_memory, config.max_block_ms / 1000, self.check, self.flush_now)
        self.identity = Identity(cluster, config, lambda: self.queues, self.changed)
        self._cluster = cluster
        self._config = config
        self._host = host
        self._stats = ProducerStats()
        self._connections: dict[str, BrokerConnection] = {}
        self._connection_tasks: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks(self._task_failed)
        self._batches: dict[RecordBatch, None] = {}  # not resolved, oldest first
        self._changed: dict[PartitionQueue, None] = {}
        self._moved: dict[PartitionQueue, None] = {}  # changed too, but hold no records: they come last
        self._warnings = DeliveryWarnings(cluster, config, self._connections)
        self._wake = Signal()
        self._end: FencepostError | InvariantBroken | None = None  # why the producer has ended
        self._refusal: FencepostError | None = InvalidRequest(  # why records are not accepted
            "the producer is not started: use `async with`, or await start()"
        )

    # ---- Life ----

    async def start(self) -> None:
        await self.identity.start()
        self._refusal = None
        self._cluster.add_listener(self._image_changed)
        self._tasks.spawn(self._run(), "producer-sender")
        self._tasks.spawn(self.identity.run(), "producer-identity")
        if self._config.name:
            self._tasks.spawn(self.identity.keep_name(), "producer-name")
        self.buffer.pause_next()

    def check(self) -> None:
        """Raises the reason, if records cannot be accepted."""
        self.guard.check()
        reason = self._end or self._refusal
        if reason is not None:
            raise reason.with_traceback(None)

    def refuse_records(self) -> None:
        """The producer is being closed: accept no more records."""
        self._refusal = ProducerClosed("the producer is closed")
        self.buffer.close()

    async def close(self) -> None:
        """Fail every record that is left, and end every task."""
        self._end = self._end or ProducerClosed("the producer is closed")
        self._fail_everything(ProducerClosed("the producer was closed before the record was acknowledged"))
        await self._tasks.close()

    def _task_failed(self, error: BaseException) -> None:
        if isinstance(error, FencepostError | InvariantBroken):
            self._stop(error)
        else:
            log.critical("producer task failed", exc_info=error)
            self._stop(UnknownServerError(f"a task of the producer failed: {error!r}"))

    def _stop(self, error: FencepostError | InvariantBroken) -> None:
        """End the producer: every pending record fails, and every later `send` raises this error."""
        if self._end is None:
            self._end = error
            self.buffer.close()
            log.error("producer stopped reason=%s", error)
            self._fail_everything(error if isinstance(error, FencepostError) else UnknownServerError(str(error)))

    def _fail_everything(self, error: FencepostError) -> None:
        for queue in self.queues:
            self._fail_queue(queue, error)

    # ---- State ----

    @property
    def stats(self) -> ProducerStats:
        """The counters as they are now."""
        stats = replace(self._stats)
        pending = sum(batch.record_count for batch in self._batches)
        stats.records_sent = stats.records_acked + stats.records_failed + pending
        return stats

    @property
    def queues(self) -> list[PartitionQueue]:
        return [queue for topic in self.topics.values() for queue in topic.queues]

    @property
    def unresolved_batches(self) -> int:
        return len(self._batches)

    async def open_topic(self, name: str) -> TopicQueues:
        """The queues of a topic's partitions, created if necessary. Raises UnknownTopicOrPartition."""
        self.check()
        topic = await self._cluster.topic(name)
        self.check()
        if name not in self.topics:
            partitions = self._cluster.image.partitions_of(topic.topic_id)
            if not partitions:
                raise UnknownTopicOrPartition(f"topic {name!r} has no partitions")
            queues = [self._open_queue(topic, partition.index) for partition in partitions]
            self.topics[name] = TopicQueues(topic, queues, self._host.random.choice, self._config)
        return self.topics[name]

    def _open_queue(self, topic: Topic, partition: int) -> PartitionQueue:
        queue = PartitionQueue(topic, partition, self._sequencer(f"{topic.name}-{partition}"))
        queue.check_loop = self.guard.check
        self.identity.opened(queue)
        self._place(queue)
        return queue

    def _sequencer(self, name: str) -> Sequencer:
        config = self._config
        return Sequencer(
            name,
            self.identity.producer_id,
            self.identity.epoch,
            named=bool(config.name),
            idempotent=config.idempotent,
            backoff=config.backoff,
        )

    def opened(self, batch: RecordBatch) -> None:
        """A batch has got its first record."""
        self._batches[batch] = None
        self.changed(batch.queue)

    def changed(self, queue: PartitionQueue) -> None:
        """Something may be due for this partition."""
        self._changed[queue] = None
        self._wake.set()

    def flush_now(self) -> None:
        """Send open batches at once, without lingering."""
        for queue in self.queues:
            queue.flush()
            self.changed(queue)

    async def flush(self) -> None:
        """Send every accepted record at once, and wait until each is acknowledged or has failed."""
        self.flush_now()
        pending: deque[Batch] = deque(self._batches)
        while pending:
            batch = pending.popleft()
            if batch.pieces:
                pending.extend(batch.pieces)
            elif batch.outcome is None:
                await cast(RecordBatch, batch).wait()
                pending.append(batch)

    # ---- The task ----

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            for number in range(1, len(self._changed) + len(self._moved) + 1):
                queues = self._changed or self._moved
                if not queues:  # a topic has been deleted
                    break
                queue = next(iter(queues))
                del queues[queue]
                self._pump(queue, loop.time())
                if number % QUEUES_IN_A_TURN == 0:
                    await asyncio.sleep(0)
            if self._changed or self._moved:
                self._wake.set()
            if self._warnings.any_due:
                self._warnings.log_waiting()

    def _pump(self, queue: PartitionQueue, now: float) -> None:
        """Do everything that is due for one partition."""
        self._place(queue)
        sequencer = queue.sequencer
        self._expire(queue, now)
        connection = self._connections.get(queue.address)
        up = connection is not None and connection.up
        if not up or queue.waits_since != NOT_WAITING or self._warnings.is_refused(queue, now):
            self._warnings.watch(queue, now, up)
        if connection is not None and up:
            while True:
                if attempts := sequencer.attempts_to_send(now):
                    self._stats.batches_sent += len(attempts)
                    self._stats.retried_batches += sum(attempt.batch.attempts > 1 for attempt in attempts)
                    connection.send(attempts)
                if not sequencer.has_room(now) or (batch := queue.next_due(now)) is None:
                    break
                topic = self.topics[queue.topic.name]
                if queue is topic.sticky:
                    topic.next_sticky()
                sequencer.add(batch)
        if sequencer.awaiting_identity or (sequencer.bump_needed and sequencer.named):
            self.identity.need()
        self._arm(queue, now)

    def _expire(self, queue: PartitionQueue, now: float) -> None:
        expired: list[Batch] = []
        oldest = queue.sequencer.oldest
        if oldest is not None and oldest.deadline <= now:
            expired += queue.sequencer.expire(now, self._warnings.whereabouts(queue))
        for batch in queue.remove_expired(now):
            error = DeliveryTimeout(
                f"{queue.name}: not sent within the delivery timeout; {self._warnings.whereabouts(queue)}"
            )
            batch.outcome = Failed(error)
            expired.append(batch)
        if expired:
            self._settle(expired)

    def _arm(self, queue: PartitionQueue, now: float) -> None:
        """Set the queue's timer to when it is due next."""
        at = queue.wake_at(now)
        timer = queue.timer
        if at is not None and (timer is None or timer.when() > at):
            if timer is not None:
                timer.cancel()
            queue.timer = asyncio.get_running_loop().call_at(at, self._due, queue)

    def _due(self, queue: PartitionQueue) -> None:
        queue.timer = None
        self.changed(queue)

    # ---- Leaders and connections ----

    def _image_changed(self, image: MetadataImage) -> None:
        addresses = {broker.id: broker.address for broker in image.brokers.values()}
        for topic in list(self.topics.values()):
            now = image.topics.get(topic.topic.topic_id)
            if now is None:
                self._forget(topic)
                continue
            if now is not topic.topic:
                topic.settings_changed(now)
            if (now.topic_id, len(topic.queues)) in image.partitions:
                more = image.partitions_of(now.topic_id)[len(topic.queues) :]
                topic.grow([self._open_queue(now, partition.index) for partition in more])
            for queue in topic.queues:  # there may be thousands, and few of them changed: no call for each
                partition = image.partitions.get(queue.key)
                if partition is None or partition.leader_epoch < queue.leader_epoch:
                    continue
                if partition.leader_epoch > queue.leader_epoch or queue.address != addresses.get(partition.leader, ""):
                    (self._changed if queue.holds_records else self._moved)[queue] = None
                    self._wake.set()
        self._retire_connections(image)

    def _retire_connections(self, image: MetadataImage) -> None:
        """Close connections to addresses that no broker has any more: there are no more connections than brokers."""
        known = {broker.address for broker in image.brokers.values()}
        for address, connection in list(self._connections.items()):
            if address not in known and not connection.queues:
                del self._connections[address]
                self._connection_tasks.pop(address).cancel()

    def _forget(self, topic: TopicQueues) -> None:
        """The topic was deleted: fail its records."""
        del self.topics[topic.topic.name]
        error = UnknownTopicOrPartition(f"topic {topic.topic.name!r} has been deleted")
        for queue in topic.queues:
            self._fail_queue(queue, error)
            self._changed.pop(queue, None)
            self._moved.pop(queue, None)
            self._leave(queue)

    def _leave(self, queue: PartitionQueue) -> None:
        connection = self._connections.get(queue.address)
        if connection is not None:
            connection.leave(queue)

    def _place(self, queue: PartitionQueue) -> None:
        """Follow the partition's leader: change the connection if another leader is known."""
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
            connection = BrokerConnection(
                address,
                self._cluster.channel,
                self._config,
                self._host,
                on_up=self._connection_up,
                on_down=self._connection_down,
                on_answer=self._answered,
            )
            self._connections[address] = connection
            self._connection_tasks[address] = self._tasks.spawn(connection.run(), f"producer-connection-{address}")
        return connection

    def _connection_up(self, connection: BrokerConnection) -> None:
        for queue in connection.queues:
            self._settle(queue.sequencer.attach(queue.leader_epoch))
            self.changed(queue)

    def _connection_down(self, connection: BrokerConnection) -> None:
        for queue in connection.queues:
            self._settle(queue.sequencer.detach())
            self.changed(queue)

    # ---- Outcomes ----

    def _answered(self, attempt: Attempt, result: pb.ProduceResult) -> None:
        queue = cast(RecordBatch, attempt.batch).queue
        sequencer = queue.sequencer
        if result.error.code:
            error = from_proto(result.error)
            if error.current_leader is not None:
                self._cluster.learn(queue.key, error.current_leader)
            log.debug("batch refused partition=%s stamp=%s error=%s", queue.name, attempt.stamp, error)
            resolved = sequencer.refused(attempt, error, asyncio.get_running_loop().time())
            if attempt.batch.pieces:
                self._replace_by_pieces(cast(RecordBatch, attempt.batch), error)
            if sequencer.fenced is not None:
                self._stop(ProducerFenced(f"producer {self._config.name!r}: {sequencer.fenced.message}"))
                return
        else:
            self._stats.deduplicated_batches += result.duplicate
            resolved = sequencer.acknowledged(attempt, result.base_offset, result.duplicate)
        self._settle(resolved)
        if queue.holds_records or sequencer.bump_needed or queue.waits_since != NOT_WAITING:
            self.changed(queue)  # else nothing is due before the next record

    def _replace_by_pieces(self, batch: RecordBatch, reason: FencepostError) -> None:
        """The sequencer has split a batch: its pieces take its place."""
        if batch not in self._batches:
            return  # a late answer to a batch that was split before
        del self._batches[batch]
        self._stats.split_batches += 1
        log.info("batch split partition=%s records=%d reason=%s", batch.queue.name, batch.record_count, reason)
        for piece in batch.pieces:
            self._batches[cast(RecordBatch, piece)] = None
        batch.close_split()

    def _settle(self, resolved: Iterable[Batch]) -> None:
        """Count resolved batches, wake the tasks that wait for them, and free their memory."""
        for batch in resolved:
            assert isinstance(batch, RecordBatch)
            if isinstance(batch.outcome, Delivered):
                self._stats.records_acked += batch.record_count
            else:
                self._stats.records_failed += batch.record_count
                self._warnings.log_failed(batch)
            del self._batches[batch]
            batch.done()
            self.buffer.free(batch.size_bytes)

    def _fail_queue(self, queue: PartitionQueue, error: FencepostError) -> None:
        failed = queue.sequencer.fail_all(error)
        for batch in queue.remove_all():
            batch.outcome = Failed(type(error)(error.message, may_have_been_appended=False))
            failed.append(batch)
        self._settle(failed)
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
