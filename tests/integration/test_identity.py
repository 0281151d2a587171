"""Named producers on real processes: the fence, and what a successor learns of its predecessor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fencepost import AdminClient, Consumer, Producer, TopicPartition
from fencepost.errors import ProducerFenced
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.waiting import until
from fencepost_testing.workload import Workload, WorkloadSpec
from tests.asynchronous import asynchronous
from tests.integration.running import TOPIC, judge

ClusterFactory = Callable[..., AsyncLocalCluster]
QUICK = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 200}
NAME = "orders-loader"


async def create(admin: AdminClient, **settings: Any) -> None:
    await admin.create_topic(TOPIC, **{"partitions": 1, "replication_factor": 3, "min_insync_replicas": 2, **settings})


async def values(cluster: AsyncLocalCluster) -> list[bytes | None]:
    """All of partition 0, in order."""
    partition = TopicPartition(TOPIC, 0)
    async with Consumer(cluster.bootstrap) as consumer:
        await consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        read: list[bytes | None] = []
        while len(read) < end:
            read += [record.value for record in await consumer.poll(1_000, 200)]
        return read


@asynchronous
async def test_an_old_instance_is_fenced_while_it_is_sending(cluster_factory: ClusterFactory) -> None:
    async with (
        cluster_factory(brokers=3) as cluster,
        AdminClient(cluster.bootstrap) as admin,
    ):
        await create(admin, partitions=3)
        old_ledger, new_ledger = Ledger("old"), Ledger("new")
        async with Producer(cluster.bootstrap, name=NAME) as old:
            sending = Workload(old, WorkloadSpec(TOPIC, keys=30, rate=1_000), old_ledger)
            task = asyncio.create_task(sending.run(asyncio.Event()))
            await until(lambda: sending.acked > 200, "the old instance has sent something")
            async with Producer(cluster.bootstrap, name=NAME) as new:
                await asyncio.wait_for(task, 15)
                assert isinstance(sending.fatal, ProducerFenced)
                fresh = Workload(new, WorkloadSpec(TOPIC, keys=30, count=300), new_ledger)
                await fresh.run(asyncio.Event())
                assert fresh.acked == 300
        await judge(cluster, admin, [old_ledger, new_ledger])


@asynchronous
async def test_once_the_new_instance_has_its_epoch_nothing_of_the_old_one_is_appended(
    cluster_factory: ClusterFactory,
) -> None:
    async with cluster_factory(brokers=3) as cluster, AdminClient(cluster.bootstrap) as admin:
        await create(admin)
        async with Producer(cluster.bootstrap, name=NAME) as old:
            await (await old.send(TOPIC, b"by the old one"))
            async with Producer(cluster.bootstrap, name=NAME):
                end = (await admin.describe_producers(TOPIC, 0)).log_end_offset
                delivery = await old.send(TOPIC, b"too late")
                with pytest.raises(ProducerFenced) as refusal:
                    await delivery
                assert not refusal.value.may_have_been_appended
                assert (await admin.describe_producers(TOPIC, 0)).log_end_offset == end
        assert await values(cluster) == [b"by the old one"]


@asynchronous
async def test_a_successor_resumes_exactly_where_its_killed_predecessor_ended(cluster_factory: ClusterFactory) -> None:
    """The application numbers its records; after each death it goes on behind the last one that is in the log."""

    async with (
        cluster_factory(brokers=3, controller_overrides=QUICK) as cluster,
        AdminClient(cluster.bootstrap) as admin,
    ):
        await create(admin)
        for life in range(3):
            producer = Producer(cluster.bootstrap, name=NAME, linger_ms=2, delivery_timeout_ms=20_000)
            await producer.start()
            resumed = await producer.resume(TOPIC, 0)
            done = -1 if resumed is None or resumed.record is None else int(resumed.record.value or b"")
            assert (resumed is None) == (life == 0)
            for number in range(done + 1, done + 400):
                await producer.send(TOPIC, b"%d" % number)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            if life == 1:
                await cluster.kill((await admin.describe_topic(TOPIC)).partitions[0].leader)
            await asyncio.sleep(0.02)
            await producer.close(timeout_s=0)  # many outcomes are unknown: the application died
        async with Producer(cluster.bootstrap, name=NAME) as last:
            assert await last.resume(TOPIC, 0) is not None
        read = [int(value or b"") for value in await values(cluster)]
        assert read == list(range(len(read))), "each number once, in order, without a hole"
        assert len(read) > 100


@asynchronous
async def test_a_name_waits_for_the_controller_and_a_restart_of_all_forgets_no_epoch(
    cluster_factory: ClusterFactory,
) -> None:
    async with (
        cluster_factory(brokers=3, controller_overrides=QUICK) as cluster,
        AdminClient(cluster.bootstrap) as admin,
    ):
        await create(admin)
        async with Producer(cluster.bootstrap, name=NAME) as first:
            await (await first.send(TOPIC, b"first"))
            await cluster.kill(*cluster.members)
            await cluster.start(*cluster.members)
            async with Producer(cluster.bootstrap, name=NAME) as second:
                await (await second.send(TOPIC, b"second"))
                producers = (await admin.describe_producers(TOPIC, 0)).producers
                assert [producer.producer_epoch for producer in producers] == [1]
                with pytest.raises(ProducerFenced):
                    await (await first.send(TOPIC, b"too late"))
        assert await values(cluster) == [b"first", b"second"]
