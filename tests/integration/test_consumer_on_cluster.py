"""The consumer against real processes that are killed, paused and restarted while it reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fencepost import AdminClient, Consumer, ConsumerRecord, Producer, TopicPartition
from fencepost.errors import OffsetOutOfRange, UnknownTopicOrPartition
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]
PARTITIONS = 3


class Check:
    """Each partition's records once and in order: offsets without a gap, values as they were sent."""

    def __init__(self) -> None:
        self.next_offset: dict[int, int] = defaultdict(int)
        self.count = 0

    def add(self, record: ConsumerRecord) -> None:
        assert record.offset == self.next_offset[record.partition], f"in partition {record.partition}"
        assert record.value == f"{record.partition}:{record.offset}".encode()
        self.next_offset[record.partition] += 1
        self.count += 1


@contextlib.asynccontextmanager
async def made_topic(cluster: AsyncLocalCluster, **settings: Any) -> AsyncIterator[AdminClient]:
    replicas = len(cluster.broker_ids)
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", partitions=PARTITIONS, replication_factor=replicas, **settings)
        yield admin


async def leader_of(admin: AdminClient, partition: int) -> int:
    """Waits for one."""

    async def leader() -> int:
        return (await admin.describe_topic("orders")).partitions[partition].leader

    return await until(leader, f"a leader of orders-{partition}", holds=lambda leader: leader >= 0)


async def produce(producer: Producer, sent: list[int], count: int) -> None:
    """`count` records to each partition; in a partition without a gap, a value names its own offset."""
    deliveries = []
    for _ in range(count):
        for partition in range(PARTITIONS):
            value = f"{partition}:{sent[partition]}".encode()
            deliveries.append(await producer.send("orders", value, partition=partition))
            sent[partition] += 1
    for delivery in deliveries:
        await delivery


async def read_until(consumer: Consumer, check: Check, count: int, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while check.count < count:
            for record in await consumer.poll(timeout_ms=100):
                check.add(record)
    assert check.count == count


@asynchronous
async def test_each_record_is_read_once_and_in_order_while_leaders_are_killed_one_after_another(
    cluster: AsyncLocalCluster,
) -> None:
    async with (
        made_topic(cluster, min_insync_replicas=2) as admin,
        Producer(cluster.bootstrap) as producer,
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        sent, check = [0] * PARTITIONS, Check()
        for partition in range(PARTITIONS):
            victim = await leader_of(admin, partition)
            writing = asyncio.create_task(produce(producer, sent, 400))
            check.add(await anext(consumer))
            await cluster.kill(victim)
            await writing
            await read_until(consumer, check, sum(sent))
            await cluster.wait_gone(victim)
            await cluster.start(victim)
        assert await consumer.end_offsets(consumer.assignment) == {
            TopicPartition("orders", partition): count for partition, count in enumerate(sent)
        }


@asynchronous
async def test_reading_goes_on_while_the_controller_is_dead(cluster: AsyncLocalCluster) -> None:
    async with (
        made_topic(cluster),
        Producer(cluster.bootstrap) as producer,
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        sent, check = [0] * PARTITIONS, Check()
        await produce(producer, sent, 10)
        await cluster.kill(CONTROLLER)
        await produce(producer, sent, 10)
        await read_until(consumer, check, sum(sent))
        async with Consumer(cluster.bootstrap, "orders") as newcomer:
            await read_until(newcomer, Check(), sum(sent))


@asynchronous
async def test_a_paused_leader_delays_reading_no_longer_than_its_session(cluster: AsyncLocalCluster) -> None:
    async with (
        made_topic(cluster, min_insync_replicas=2) as admin,
        Producer(cluster.bootstrap) as producer,
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        sent, check = [0] * PARTITIONS, Check()
        await produce(producer, sent, 10)
        await read_until(consumer, check, sum(sent))
        paused = await leader_of(admin, 0)
        await cluster.pause(paused)
        await produce(producer, sent, 10)
        await read_until(consumer, check, sum(sent), timeout_s=10)
        await cluster.resume(paused)
        await produce(producer, sent, 10)
        await read_until(consumer, check, sum(sent))


@asynchronous
async def test_a_consumer_goes_on_where_it_was_after_every_process_was_killed(cluster: AsyncLocalCluster) -> None:
    async with (
        made_topic(cluster),
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        sent, check = [0] * PARTITIONS, Check()
        async with Producer(cluster.bootstrap) as producer:
            await produce(producer, sent, 50)
        while check.count < 60:
            for record in await consumer.poll(60 - check.count):
                check.add(record)
        await cluster.kill(*cluster.members)
        await cluster.start(*cluster.members)
        async with Producer(cluster.bootstrap) as producer:
            await produce(producer, sent, 50)
        await read_until(consumer, check, sum(sent))


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
@asynchronous
async def test_compressed_batches_are_read_as_they_were_sent(cluster_factory: ClusterFactory, compression: str) -> None:
    async with (
        cluster_factory(brokers=1) as cluster,
        made_topic(cluster),
        Producer(cluster.bootstrap, compression=compression, linger_ms=5) as producer,
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        sent, check = [0] * PARTITIONS, Check()
        await produce(producer, sent, 2_000)
        await read_until(consumer, check, sum(sent))
        headers: list[tuple[str, bytes | None]] = [("trace", b"1"), ("none", None)]
        await producer.send_and_wait("orders", None, key=b"key", partition=1, headers=headers)
        (record,) = await consumer.poll(timeout_ms=5_000)
        assert (record.key, record.value, list(record.headers)) == (b"key", None, headers)


@asynchronous
async def test_offsets_by_time_beginnings_and_ends_are_those_of_the_log(cluster: AsyncLocalCluster) -> None:
    tp = TopicPartition("orders", 0)
    async with (
        made_topic(cluster),
        Producer(cluster.bootstrap, linger_ms=50) as producer,
        Consumer(cluster.bootstrap) as consumer,
    ):
        deliveries = []
        for n in range(9):
            deliveries.append(await producer.send("orders", b"x", partition=0, timestamp_ms=1_000 + 10 * n))
            if n % 3 == 2:
                await producer.flush()
        for delivery in deliveries:
            await delivery
        assert await consumer.beginning_offsets([tp]) == {tp: 0}
        assert await consumer.end_offsets([tp]) == {tp: 9}
        for timestamp_ms, offset in ((0, 0), (1_000, 0), (1_001, 1), (1_030, 3), (1_045, 5), (1_080, 8)):
            found = (await consumer.offsets_for_times({tp: timestamp_ms}))[tp]
            assert found is not None
            assert found.offset == offset
        assert await consumer.offsets_for_times({tp: 1_081}) == {tp: None}
        await consumer.assign([tp])
        await consumer.seek_to_timestamp(1_045)
        assert (await anext(consumer)).offset == 5


@asynchronous
async def test_what_retention_removed_is_passed_or_raised_as_the_policy_says(cluster_factory: ClusterFactory) -> None:
    tp = TopicPartition("orders", 0)
    async with (
        cluster_factory(brokers=1, broker_overrides={"retention_check_interval_ms": 100}) as cluster,
        made_topic(cluster, segment_bytes=1024 * 1024, retention_bytes=1024 * 1024),
        Producer(cluster.bootstrap) as producer,
        Consumer(cluster.bootstrap) as consumer,
    ):
        await consumer.assign([tp])
        for _ in range(60):
            await producer.send("orders", bytes(100_000), partition=0)
        await producer.flush()

        async def log_start() -> int:
            return (await consumer.beginning_offsets([tp]))[tp]

        start = await until(log_start, "retention has removed the first record", 20)
        consumer.seek(tp, 0)
        first = await anext(consumer)
        assert first.offset >= start
        async with Consumer(cluster.bootstrap, reset="error") as strict:
            await strict.assign([tp])
            for offset in (0, 61):
                strict.seek(tp, offset)
                with pytest.raises(OffsetOutOfRange, match=f"offset {offset} of orders-0"):
                    await anext(strict)


@asynchronous
async def test_a_topic_deleted_while_it_is_read_is_an_error_that_names_it(cluster: AsyncLocalCluster) -> None:
    async with (
        made_topic(cluster) as admin,
        Consumer(cluster.bootstrap, "orders") as consumer,
    ):
        assert await consumer.poll(timeout_ms=50) == []
        reading = asyncio.create_task(anext(consumer))
        await admin.delete_topic("orders")
        with pytest.raises(UnknownTopicOrPartition, match="orders-0"):
            await reading
