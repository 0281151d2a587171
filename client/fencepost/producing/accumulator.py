"""Collects records into batches: one queue for each partition.

A queue has full batches and one open batch, which accepts records. Batches leave in order, when the sequencer has room:

- a full one at once;
- the open one after its linger time, when nothing else of its partition is in flight. So batches fill under load while
  their predecessors are sent, and without load no record waits;
- after a flush, everything at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from fencepost.producing.batch import Batch, Stamp
from fencepost.producing.config import ProducerConfig
from fencepost.producing.partitioner import partition_for
from fencepost.producing.sequencer import Sequencer
from fencepost_proto.protocol.errors import (
    InvalidRecord,
    InvalidTimestamp,
    InvariantBroken,
    MessageTooLarge,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import APPEND_TIME, PartitionKey, Topic
from fencepost_proto.protocol.record_batch import HEADER_BYTES, restamp
from fencepost_proto.protocol.records import (
    MAX_DECOMPRESSED_BYTES,
    BatchBuilder,
    Compression,
    Headers,
    Record,
    read_records,
)

RECORD_OVERHEAD_BYTES = 21  # of lengths, deltas and counts around one record, at most
WARN_AFTER_S = 3.0  # that records wait for a leader before it is logged, once
NOT_WAITING = -1.0
PARTIAL_IN_FLIGHT = 1  # a batch that is not full is sent while fewer than so many are in flight
MAX_TIMESTAMP = 2**63 - 1
MAX_REMEMBERED_KEYS = 10_000  # of one topic: which partition they go to
_SIZE_OF_PIECES = 2 * MAX_DECOMPRESSED_BYTES  # no bound: what was one batch, uncompressed, is in two

NO_HEADERS: Headers = []
_DEFAULTS = ProducerConfig()

NewRecord = tuple[int, bytes | None, bytes | None, Headers]  # timestamp in ms, key, value, headers


class RecordBatch(Batch):
    """A batch and its records: a builder until it is first sent, then bytes."""

    __slots__ = (
        "_builder",
        "_built_as",
        "_codec",
        "_data",
        "_waiters",
        "append_record",
        "linger_until",
        "queue",
        "size_bytes",
    )

    def __init__(
        self, queue: PartitionQueue, compression: Compression, size_bytes: int, linger_until: float, deadline: float
    ) -> None:
        super().__init__(0, deadline)
        builder = BatchBuilder(compression, size_bytes)
        self.queue = queue
        self.append_record = builder.append
        self.size_bytes = 0  # of the records, for the buffer's bound
        self.linger_until = linger_until
        self._codec = compression
        self._builder: BatchBuilder | None = builder  # until the first sending, which closes the batch
        self._data = b""
        self._built_as: Stamp | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def data(self, stamp: Stamp) -> bytes:
        """The encoded batch with this stamp."""
        if self._builder is not None:
            if self._builder.record_count != self.record_count:
                raise InvariantBroken(
                    f"{self.queue.name}: a batch of {self.record_count} records holds {self._builder.record_count}"
                )
            self._data = self._builder.build(*stamp)
            self._builder = None
        elif stamp != self._built_as:
            self._data = restamp(self._data, *stamp)
        self._built_as = stamp
        return self._data

    def split(self, count: int) -> tuple[RecordBatch, ...]:
        """Two batches with the same records: the first `count` of them, and the others. For a batch that has been sent."""
        records = list(read_records(self._data))
        self.queue.batch_bytes = min(self.queue.batch_bytes, len(self._data) // 2)  # later ones are made smaller
        first, second = (self._piece(part) for part in (records[:count], records[count:]))
        first.size_bytes = self.size_bytes * count // len(records)
        second.size_bytes = self.size_bytes - first.size_bytes
        return first, second

    def _piece(self, records: list[Record]) -> RecordBatch:
        piece = RecordBatch(self.queue, self._codec, _SIZE_OF_PIECES, self.linger_until, self.deadline)
        for _, timestamp_ms, key, value, headers in records:
            if not piece.append_record(timestamp_ms, key, value, headers):
                raise InvariantBroken(f"{self.queue.name}: a record of a batch does not fit half of it")
        piece.record_count = len(records)
        return piece

    def close_split(self) -> None:
        """The batch is split: free its bytes, and wake the tasks that wait; they go on with the pieces."""
        self.done()

    async def wait(self) -> None:
        """Wait until the batch is resolved or split. Raises InvalidRequest in another loop or process, where it would
        not end."""
        self.queue.check_loop()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:  # this task was cancelled
                self._waiters.remove(waiter)

    def done(self) -> None:
        """The batch is resolved: free its bytes and wake the tasks that wait."""
        self._builder, self._data = None, b""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class PartitionQueue:
    """The batches of one partition that are not stamped yet, and the sequencer of those that are."""

    def __init__(self, topic: Topic, partition: int, sequencer: Sequencer) -> None:
        self.topic = topic
        self.partition = partition
        self.key: PartitionKey = (topic.topic_id, partition)
        self.name = f"{topic.name}-{partition}"
        self.sequencer = sequencer
        self.check_loop: Callable[[], None] = lambda: None  # raises in another event loop or process
        self.open: RecordBatch | None = None
        self.full: deque[RecordBatch] = deque()
        self.batch_bytes = topic.config.max_message_bytes  # of a batch; fewer where a leader has refused so many
        self.leader_epoch = -1
        self.address = ""  # of the leader; empty: none is known
        self.timer: asyncio.TimerHandle | None = None
        self.waits_since = NOT_WAITING  # since when its records wait for a leader that can be reached …
        self.quiet_until = 0.0  # until then failed batches are not logged, only counted …
        self.failed_unlogged = 0  # … here
        self.is_warned = False  # … and that has been logged
        self._flush: RecordBatch | None = None  # leaves without lingering

    @property
    def holds_records(self) -> bool:
        """There are records that are neither acknowledged nor failed."""
        return self.open is not None or bool(self.full) or self.sequencer.oldest is not None

    def close_open(self) -> None:
        """The open batch is full."""
        if self.open is not None:
            self.full.append(self.open)
            self.open = None

    def flush(self) -> None:
        self._flush = self.open

    def next_due(self, now: float) -> RecordBatch | None:
        """Remove and return the batch to send now; None: there is none. Call it only where the sequencer has room."""
        if self.full:
            return self.full.popleft()
        batch = self.open
        if batch is None:
            return None
        if batch is not self._flush and (now < batch.linger_until or self.sequencer.in_flight >= PARTIAL_IN_FLIGHT):
            return None
        self.open = None
        return batch

    def remove_expired(self, now: float) -> list[RecordBatch]:
        """Remove and return the batches whose delivery timeout has passed before they were ever sent."""
        if self.open is not None and self.open.deadline <= now:
            self.close_open()
        expired = []
        while self.full and self.full[0].deadline <= now:
            expired.append(self.full.popleft())
        return expired

    def remove_all(self) -> list[RecordBatch]:
        self.close_open()
        batches = list(self.full)
        self.full.clear()
        return batches

    def wake_at(self, now: float) -> float | None:
        """When this queue is due again if nothing happens before; None: never."""
        times = [at for at in (self.sequencer.wake_at(now),) if at is not None]
        if self.full:
            times.append(self.full[0].deadline)
        elif self.open is not None:
            times.append(self.open.linger_until if self.open.linger_until > now else self.open.deadline)
        if self.waits_since != NOT_WAITING and not self.is_warned:
            times.append(self.waits_since + WARN_AFTER_S)
        return min(times, default=None)


class TopicQueues:
    """The queues of one topic's partitions, and the choice among them for each record."""

    def __init__(
        self,
        topic: Topic,
        queues: list[PartitionQueue],
        choose: Callable[[list[PartitionQueue]], PartitionQueue],
        config: ProducerConfig = _DEFAULTS,
    ) -> None:
        self.topic = topic
        self._max_request_size = config.max_request_size
        self._compressed = config.codec is not Compression.NONE
        self.passing_bytes = self._passing_bytes()  # a record whose estimated size is not larger needs no exact check
        self.queues = queues
        self._choose = choose
        self.sticky = choose(queues)  # for records without a key, until its batch is closed
        self.by_key: dict[bytes, PartitionQueue] = {}

    def _passing_bytes(self) -> int:
        alone_bytes = self.topic.config.max_message_bytes - HEADER_BYTES
        return self._max_request_size if self._compressed else min(self._max_request_size, alone_bytes)

    def settings_changed(self, topic: Topic) -> None:
        """The topic's settings are these from now on."""
        same_size = topic.config.max_message_bytes == self.topic.config.max_message_bytes
        self.topic = topic
        self.passing_bytes = self._passing_bytes()
        for queue in self.queues:
            queue.topic = topic
            if not same_size:
                queue.batch_bytes = topic.config.max_message_bytes

    def grow(self, queues: Sequence[PartitionQueue]) -> None:
        """The topic has got these partitions, too. From now on keys are spread over all of them."""
        self.queues.extend(queues)
        self.by_key.clear()

    def next_sticky(self) -> None:
        """The sticky partition's batch is closed: choose another partition with a known leader."""
        others = [queue for queue in self.queues if queue is not self.sticky and queue.address]
        if others:
            self.sticky = self._choose(others)

    def place(self, key: bytes) -> PartitionQueue:
        """The queue of this key's partition; remembered, up to MAX_REMEMBERED_KEYS."""
        if len(self.by_key) >= MAX_REMEMBERED_KEYS:
            self.by_key.clear()
        queue = self.queues[partition_for(key, len(self.queues))]
        self.by_key[key] = queue
        return queue

    def check_size(self, name: str, estimate: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Check the size of a large record for partition `name`.

        Raises MessageTooLarge where it fits no request, or no batch of the topic. With compression its size in the batch is
        not known yet: the leader may refuse the record later.
        """
        if estimate > self._max_request_size:
            raise MessageTooLarge(
                f"record of {estimate} bytes for {name}; max_request_size is {self._max_request_size}"
            )
        alone_bytes = HEADER_BYTES + size_of_record(key, value, headers)
        limit = self.topic.config.max_message_bytes
        if not self._compressed and alone_bytes > limit:
            raise MessageTooLarge(
                f"record for {name} that alone is a batch of {alone_bytes} bytes; the topic takes at most {limit}"
            )

    def check_timestamp(self, timestamp_ms: int, now_ms: int) -> None:
        """Check a timestamp that the application has given. Raises InvalidRecord or InvalidTimestamp where the leader would
        refuse the whole batch."""
        if not isinstance(timestamp_ms, int) or not 0 <= timestamp_ms <= MAX_TIMESTAMP:
            raise InvalidRecord(
                f"timestamp_ms={timestamp_ms!r} of a record for {self.topic.name}: a whole number, 0 or more"
            )
        config = self.topic.config
        if config.message_timestamp_type == APPEND_TIME:
            return
        before_ms, after_ms = config.message_timestamp_before_max_ms, config.message_timestamp_after_max_ms
        if (before_ms >= 0 and timestamp_ms < now_ms - before_ms) or (
            after_ms >= 0 and timestamp_ms > now_ms + after_ms
        ):
            raise InvalidTimestamp(
                f"timestamp_ms={timestamp_ms} of a record for {self.topic.name}: it is {now_ms} now, and the topic takes "
                f"{before_ms} ms before (message_timestamp_before_max_ms) and {after_ms} ms after that "
                f"(message_timestamp_after_max_ms; -1: no limit)"
            )

    def explicit(self, partition: int) -> PartitionQueue:
        if not 0 <= partition < len(self.queues):
            raise UnknownTopicOrPartition(
                f"partition {partition} of topic {self.topic.name!r}: it has 0 to {len(self.queues) - 1}"
            )
        return self.queues[partition]


def headers_of(headers: object) -> Headers:
    """A record's headers in the builder's form. Raises InvalidRecord for anything but (str, bytes or None) pairs."""
    try:
        pairs = [(name, value) for name, value in headers]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InvalidRecord(f"headers {headers!r}: pairs of a name and bytes are expected") from None
    for name, value in pairs:
        if not isinstance(name, str) or not (value is None or isinstance(value, bytes)):
            raise InvalidRecord(f"header {name!r}={value!r}: a name and bytes are expected")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidRecord(f"header name {name!r} cannot be encoded as UTF-8") from None
    return pairs


def size_of_headers(headers: Headers) -> int:
    """Encoded size of a record's headers in bytes: names in UTF-8, each with its length in front."""
    return sum(
        _sized(len(name) if name.isascii() else len(name.encode())) + (_sized(len(value)) if value else 1)
        for name, value in headers
    )


def size_of_record(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Encoded size in bytes of a batch's first record: its attributes and deltas take a byte each, its length comes
    first."""
    body = 3 + (_sized(len(key)) if key else 1) + (_sized(len(value)) if value else 1)
    return _sized(body + _sized(len(headers)) - len(headers) + size_of_headers(headers))


def _sized(length: int) -> int:
    """Encoded size of a field of this length: the length as a zigzag varint (seven bits a byte), then the field itself."""
    return length + (length.bit_length() + 7) // 7
