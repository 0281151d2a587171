"""The producer: appends each record to its partition's log exactly once and in order, or raises what is known of it.

The way of a record:

1. `send` puts it into its partition's open batch (`producing.accumulator`) and returns a `Delivery`.
2. The sender (`producing.sender`) gives the batch to the partition's sequencer (`producing.sequencer`), which decides
   everything about order, retries and epochs.
3. What the sequencer wants to be sent goes to the connection of the partition's leader (`producing.connection`).
4. Answers and broken streams go back to the sequencer, and outcomes to the `Delivery`.

`send` awaits nothing for almost every record. It awaits where a record needs metadata or room, and once every so many bytes,
so that the event loop gets on with sending (`producing.buffer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from fencepost.cluster import ClusterClient
from fencepost.history import History
from fencepost.producing.accumulator import (
    NO_HEADERS,
    RECORD_OVERHEAD_BYTES,
    NewRecord,
    PartitionQueue,
    RecordBatch,
    TopicQueues,
    headers_of,
    size_of_headers,
)
from fencepost.producing.config import ProducerConfig, ProducerOptions
from fencepost.producing.delivery import Delivery, RecordMetadata
from fencepost.producing.resume import Resumed, resume
from fencepost.producing.sender import ProducerStats, Sender
from fencepost.recording import SendRecorder
from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.runtime.host import Host

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 30.0
CANCELLED_CLOSE_TIMEOUT_S = 5.0  # at the end of a block that was cancelled: the user who pressed Ctrl-C waits for it

Headers = Sequence[tuple[str, bytes | None]]


class Producer:
    """Sends records. An async context manager: it connects on entry, flushes and closes on exit. A block that is cancelled
    (Ctrl-C under `asyncio.run`) waits a shorter time for what it has sent.

    `bootstrap`: host:port of any brokers, as a list or separated by commas. `history`: where to record every send and its
    outcome; values must then be unique in their topic. Further settings are those of `ProducerConfig`, by keyword.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        history: History | None = None,
        host: Host | None = None,
        **config: Unpack[ProducerOptions],
    ) -> None:
        self.config = ProducerConfig(**config)
        self._host = host if host is not None else Host()
        self._cluster = ClusterClient(bootstrap, self._host, self.config.client_id)
        self._sender = Sender(self._cluster, self.config, self._host)
        self._buffer = self._sender.buffer
        self._topics = self._sender.topics
        self._now_ms = self._host.wall_clock_ms
        self._recorder = SendRecorder(history, self.send) if history is not None else None
        if self._recorder is not None:  # around `send`, so that it costs nothing where no history is recorded
            self.send = self._recorder.send  # type: ignore[method-assign]
        self._started = False
        self._guard = self._sender.guard
        self._closing = False
        self._closed = asyncio.Event()

    # ---- Life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        await self.close(CANCELLED_CLOSE_TIMEOUT_S if cancelled else CLOSE_TIMEOUT_S)

    async def start(self) -> None:
        """Connect, and get a producer id. Raises NetworkException, CoordinatorNotAvailable, and what refuses a name."""
        if self._started:
            raise InvalidRequest("the producer has been started before")
        self._started = True
        self._guard.bind()
        try:
            await self._cluster.start()
            await self._sender.start()
        except BaseException:
            await self.close(0)
            raise

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is there, wait for it at most so long, fail the rest with ProducerClosed. May be called twice.

        In a process that was forked from the producer's it returns at once, and leaves the parent's connections alone.
        """
        if self._guard.forked:
            return
        self._guard.check()
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self._sender.refuse_records()
        try:
            async with asyncio.timeout(timeout_s):
                await self._sender.flush()
        except TimeoutError:
            log.warning("producer closed before all was acknowledged batches=%d", self._sender.unresolved_batches)
        finally:
            try:
                await self._sender.close()
                await self._cluster.close()
                if self._recorder is not None:
                    await self._recorder.close()
            finally:
                self._closed.set()

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
        """Accept a record for sending. Await the returned `Delivery` for its offset, or for the error with which it failed.

        Waits only for the first metadata of a topic and for room in the buffer. The record goes to `partition`, else to
        its key's partition, else to one that changes with every batch. Records of one partition keep their order.
        Raises UnknownTopicOrPartition, MessageTooLarge, InvalidTimestamp, BufferFull, ProducerFenced, ProducerClosed;
        then the record was not accepted.
        """
        buffer = self._buffer
        if buffer.used >= buffer.pause_at:
            await buffer.acquire()
        queues = self._topics.get(topic)
        if queues is None:
            queues = await self._sender.open_topic(topic)
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
        if size > queues.passing_bytes:
            queues.check_size(queue.name, size, key, value, pairs)
        if timestamp_ms is None:
            timestamp_ms = self._now_ms()
        else:
            queues.check_timestamp(timestamp_ms, self._now_ms())
        batch = queue.open
        if batch is None or not batch.append_record(timestamp_ms, key, value, pairs):
            movable = queues if key is None and partition is None else None
            batch = self._append_to_another(queue, movable, (timestamp_ms, key, value, pairs))
        index = batch.record_count
        batch.record_count = index + 1
        batch.size_bytes += size
        buffer.used += size
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
        """Send every accepted record at once, without lingering, and wait until each is acknowledged or has failed."""
        self._guard.check()
        self._sender.check()
        await self._sender.flush()

    @property
    def stats(self) -> ProducerStats:
        """The counters as they are now."""
        return self._sender.stats

    @property
    def producer_id(self) -> int:
        """-1 without acks="all"."""
        return self._sender.identity.producer_id

    @property
    def epoch(self) -> int:
        """As the cluster gave it. The partitions of an anonymous producer may have newer ones of their own."""
        return self._sender.identity.epoch

    async def resume(self, topic: str, partition: int) -> Resumed | None:
        """The last record of this producer's name in a partition, written by an earlier instance; None: there is none.

        No record of an earlier instance can be appended after it. Call it before the first `send` to the partition: later it
        returns this instance's own records. Waits while the partition has no leader. Raises PredecessorForgotten where the
        name was not used for so long that brokers have forgotten what was written under it
        (`producer_name_expiration_ms` of the controller).
        """
        self._guard.check()
        self._sender.check()
        if not self.config.name:
            raise InvalidRequest("only a named producer can resume: Producer(…, name=…)")
        queue = (self._topics.get(topic) or await self._sender.open_topic(topic)).explicit(partition)
        return await resume(self._cluster, queue.key, self._sender.identity, self.config.max_block_ms / 1000)

    # ---- Batches ----

    def _append_to_another(
        self,
        queue: PartitionQueue,
        movable: TopicQueues | None,  # for a record without a key: it may go to another partition
        record: NewRecord,
    ) -> RecordBatch:
        """Append a record that does not fit the queue's open batch, or for which there is none. Returns its batch."""
        self._guard.check()
        if queue.open is not None:
            self._full(queue)
            if movable is not None:
                movable.next_sticky()
                queue = movable.sticky
                batch = queue.open
                if batch is not None:
                    if batch.append_record(*record):
                        return batch
                    self._full(queue)
        now = asyncio.get_running_loop().time()
        config = self.config
        batch = RecordBatch(
            queue,
            config.codec,
            min(config.batch_size, queue.batch_bytes),
            linger_until=now + config.linger_ms / 1000,
            deadline=now + self._sender.identity.delivery_timeout_s,
        )
        batch.append_record(*record)  # raises TypeError for what is not bytes: nothing has changed
        queue.open = batch
        self._sender.opened(batch)
        return batch

    def _full(self, queue: PartitionQueue) -> None:
        queue.close_open()
        self._sender.changed(queue)
        self._buffer.pause_next()
