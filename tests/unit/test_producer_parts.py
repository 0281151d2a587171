"""The producer's smaller parts: the partitioner, batches, queues, the buffer's bound."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.partitioner import murmur2 as kafkas_murmur2
from hypothesis import given
from hypothesis import strategies as st

from fencepost.errors import BufferFull, InvalidRecord, ProducerClosed, UnknownTopicOrPartition
from fencepost.producing.accumulator import (
    MAX_REMEMBERED_KEYS,
    PartitionQueue,
    RecordBatch,
    TopicQueues,
    headers_of,
)
from fencepost.producing.batch import Batch, Stamp
from fencepost.producing.buffer import TURN_BYTES, Buffer
from fencepost.producing.partitioner import murmur2, partition_for
from fencepost.producing.sequencer import Sequencer
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.metadata import Topic
from fencepost_proto.protocol.record_batch import check_produced
from fencepost_proto.protocol.records import Compression, read_records
from tests.asynchronous import asynchronous

TOPIC = Topic("id-of-orders", "orders")


def queue_of(partition: int = 0, *, address: str = "127.0.0.1:1") -> PartitionQueue:
    queue = PartitionQueue(TOPIC, partition, Sequencer(f"orders-{partition}", 7, 0))
    queue.address = address
    return queue


def batch_in(queue: PartitionQueue, *values: bytes, linger_until: float = 0.0, deadline: float = 100.0) -> RecordBatch:
    batch = RecordBatch(queue, Compression.NONE, 10_000, linger_until, deadline)
    for value in values:
        assert batch.append_record(1_000, None, value, [])
        batch.record_count += 1
    queue.open = batch
    return batch


def occupy(queue: PartitionQueue) -> None:
    """A batch of the partition is in flight."""
    queue.sequencer.attach(1)
    queue.sequencer.add(Batch(1, 100.0))
    queue.sequencer.attempts_to_send(0.0)


# ---- Partitioner ----


@given(st.binary(max_size=64))
def test_murmur2_is_kafkas(data: bytes) -> None:
    assert murmur2(data) == kafkas_murmur2(data)


def test_keys_go_where_every_kafka_client_puts_them() -> None:
    # Values of the Java client's own test.
    for key, expected in [(b"21", -973932308), (b"foobar", -790332482), (b"abc", 479470107)]:
        assert murmur2(key) == expected & 0xFFFFFFFF
        assert partition_for(key, 7) == (expected & 0x7FFFFFFF) % 7


def test_the_partitions_of_keys_are_remembered_within_a_bound() -> None:
    queues = [queue_of(partition) for partition in range(3)]
    topic = TopicQueues(TOPIC, queues, lambda choices: choices[0])
    for number in range(MAX_REMEMBERED_KEYS + 10):
        key = b"%d" % number
        assert topic.place(key).partition == partition_for(key, 3)
    assert len(topic.by_key) <= MAX_REMEMBERED_KEYS


def test_the_sticky_partition_changes_to_another_one_that_has_a_leader() -> None:
    queues = [queue_of(0), queue_of(1, address=""), queue_of(2)]
    topic = TopicQueues(TOPIC, queues, lambda choices: choices[0])
    seen = []
    for _ in range(4):
        seen.append(topic.sticky.partition)
        topic.next_sticky()
    assert seen == [0, 2, 0, 2]


def test_a_partition_out_of_range_is_named() -> None:
    topic = TopicQueues(TOPIC, [queue_of(0)], lambda choices: choices[0])
    for partition in (-1, 1):
        with pytest.raises(UnknownTopicOrPartition, match=f"partition {partition} of topic 'orders'"):
            topic.explicit(partition)


# ---- Batches ----


def test_a_batch_keeps_its_bytes_under_its_stamp_and_changes_only_the_stamp_under_another() -> None:
    batch = batch_in(queue_of(), b"one", b"two")
    first = batch.data(Stamp(7, 0, 5))
    assert batch.data(Stamp(7, 0, 5)) is first
    second = batch.data(Stamp(7, 1, 0))
    header = check_produced(second)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 1, 0)
    assert [record.value for record in read_records(second)] == [b"one", b"two"]
    assert second[61:] == first[61:]


@pytest.mark.parametrize("codec", Compression)
def test_the_pieces_of_a_batch_have_all_its_records_however_well_they_were_compressed(codec: Compression) -> None:
    batch = RecordBatch(queue_of(), codec, 100_000, 0.0, 100.0)
    while batch.append_record(1_000, b"key", b"v" * 50, [("h", b"same")]):
        batch.record_count += 1
    sent = list(read_records(batch.data(Stamp(7, 0, 0))))
    first, second = batch.split(batch.record_count // 2)
    pieces = [list(read_records(piece.data(Stamp(7, 0, 0)))) for piece in (first, second)]
    assert [len(piece) for piece in pieces] == [first.record_count, second.record_count]
    assert [record[1:] for piece in pieces for record in piece] == [record[1:] for record in sent]


def test_a_batch_that_lacks_a_record_that_was_sent_is_never_built() -> None:
    batch = batch_in(queue_of(), b"one", b"two")
    batch.record_count += 1
    with pytest.raises(InvariantBroken, match="orders-0: a batch of 3 records holds 2"):
        batch.data(Stamp(7, 0, 0))


@pytest.mark.parametrize(
    "bad", [{"key": "text"}, {"value": "text"}, {"value": 5}, {"headers": [("a", b"1"), ("b", "2")]}]
)
def test_what_is_not_bytes_is_refused_and_leaves_the_batch_as_it_was(bad: dict[str, object]) -> None:
    batch = batch_in(queue_of(), b"one")
    fields = {"key": None, "value": b"v", "headers": [], **bad}
    with pytest.raises(TypeError):
        batch.append_record(1, fields["key"], fields["value"], fields["headers"])  # type: ignore[arg-type]
    assert batch.append_record(2, None, b"two", [])
    batch.record_count += 1
    records = list(read_records(batch.data(Stamp(7, 0, 0))))
    assert [(record.value, record.headers) for record in records] == [(b"one", []), (b"two", [])]


@pytest.mark.parametrize("headers", [5, [("only a name",)], [(b"bytes", b"v")], [("name", "text")], "ab"])
def test_headers_that_are_no_pairs_of_name_and_bytes_are_refused(headers: object) -> None:
    with pytest.raises(InvalidRecord):
        headers_of(headers)


# ---- Queues ----


def test_a_batch_that_is_not_full_leaves_when_nothing_of_its_partition_is_in_flight() -> None:
    queue = queue_of()
    batch = batch_in(queue, b"v")
    assert queue.next_due(0.0) is batch
    occupy(queue)
    batch_in(queue, b"v")
    assert queue.next_due(0.0) is None


def test_full_batches_leave_before_the_open_one_and_though_others_are_in_flight() -> None:
    queue = queue_of()
    occupy(queue)
    full = batch_in(queue, b"1")
    queue.close_open()
    batch_in(queue, b"2")
    assert queue.next_due(0.0) is full
    assert queue.next_due(0.0) is None


def test_a_batch_lingers_and_a_flush_ends_that_for_it_alone() -> None:
    queue = queue_of()
    batch = batch_in(queue, b"v", linger_until=5.0)
    assert queue.next_due(4.9) is None
    assert queue.wake_at(4.9) == 5.0
    queue.flush()
    assert queue.next_due(4.9) is batch
    batch_in(queue, b"v", linger_until=5.0)
    assert queue.next_due(4.9) is None
    assert queue.next_due(5.0) is not None


def test_batches_that_were_never_sent_expire_in_order() -> None:
    queue = queue_of()
    first = batch_in(queue, b"1", deadline=10.0)
    queue.close_open()
    second = batch_in(queue, b"2", deadline=20.0)
    assert queue.wake_at(0.0) == 10.0
    assert queue.remove_expired(9.9) == []
    assert queue.remove_expired(10.0) == [first]
    assert queue.wake_at(10.0) == 20.0
    assert queue.remove_expired(30.0) == [second]
    assert queue.wake_at(30.0) is None


# ---- The buffer ----


@asynchronous
async def test_a_send_gives_the_event_loop_a_turn_every_so_many_bytes() -> None:
    buffer = Buffer(10 * TURN_BYTES, 1.0, lambda: None, lambda: None)
    turns = 0
    buffer.pause_next()
    while buffer.used < 5 * TURN_BYTES:
        if buffer.used >= buffer.pause_at:
            await buffer.acquire()
            turns += 1
        buffer.used += 1_000
    assert turns == 5


@asynchronous
async def test_freed_memory_does_not_put_off_the_next_turn() -> None:
    buffer = Buffer(10 * TURN_BYTES, 1.0, lambda: None, lambda: None)
    buffer.used = 5 * TURN_BYTES
    await buffer.acquire()
    buffer.free(5 * TURN_BYTES)
    assert buffer.pause_at == TURN_BYTES


@asynchronous
async def test_who_waits_for_room_gets_it_in_turn_and_one_who_gives_up_passes_it_on() -> None:
    hurried = 0

    def flush_now() -> None:
        nonlocal hurried
        hurried += 1

    buffer = Buffer(1_000, 60.0, lambda: None, flush_now)
    buffer.used = 1_000
    taken = []

    async def send(number: int) -> None:
        await buffer.acquire()
        taken.append(number)
        buffer.used += 400

    tasks = [asyncio.create_task(send(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert hurried == 5
    buffer.free(700)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert taken == [1, 2]
    buffer.free(1_000)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert taken == [1, 2, 3, 4]


@asynchronous
async def test_a_full_buffer_is_an_error_in_the_end_and_a_closed_one_at_once() -> None:
    closed = False

    def check() -> None:
        if closed:
            raise ProducerClosed("closed")

    buffer = Buffer(1_000, 0.05, check, lambda: None)
    buffer.used = 1_000
    with pytest.raises(BufferFull, match="1000 bytes are buffered"):
        await buffer.acquire()
    waiters = [asyncio.create_task(buffer.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    closed = True
    buffer.close()
    for result in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(result, ProducerClosed)
