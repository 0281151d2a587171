"""Partitions move between real brokers while they are written to: state arrives with the data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fencepost import AdminClient, Producer
from fencepost_testing.failover import producer_views
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration.running import TOPIC, Running, running

ClusterFactory = Callable[..., AsyncLocalCluster]


async def move(workload: Running, partition: int, replicas: list[int]) -> None:
    await workload.admin.reassign_partitions(TOPIC, {partition: replicas})

    async def moved() -> bool:
        status = await workload.partition(partition)
        return list(status.replicas) == replicas and set(status.isr) == set(replicas)

    await until(moved, f"partition {partition} is on brokers {replicas}", timeout_s=30)


@asynchronous
async def test_a_partition_moves_to_other_brokers_under_load_and_back(cluster_factory: ClusterFactory) -> None:
    async with cluster_factory(brokers=4) as cluster, running(cluster, drop_acks=0.02) as workload:
        original = list((await workload.partition(0)).replicas)
        newcomer = next(broker for broker in cluster.broker_ids if broker not in original)
        before = await producer_views(workload.admin, TOPIC, 0)
        await move(workload, 0, [newcomer, *original[1:]])
        await workload.writes_go_on()
        assert await workload.leader() in (newcomer, *original[1:])
        after = await producer_views(workload.admin, TOPIC, 0)
        assert [(v.producer_id, v.epoch) for v in after] == [(v.producer_id, v.epoch) for v in before]
        await move(workload, 0, original)


@asynchronous
async def test_a_replica_that_starts_above_offset_0_gets_the_producer_state_too(
    cluster_factory: ClusterFactory,
) -> None:
    """Retention has removed every batch of an idle producer: its state moves along nevertheless."""

    async with (
        cluster_factory(brokers=4, broker_overrides={"retention_check_interval_ms": 100}) as cluster,
        AdminClient(cluster.bootstrap) as admin,
        Producer(cluster.bootstrap) as idle,
        Producer(cluster.bootstrap) as busy,
    ):
        await admin.create_topic(
            TOPIC, assignments=[[1, 2, 3]], min_insync_replicas=2, segment_bytes=20_000, retention_bytes=60_000
        )
        await (await idle.send(TOPIC, b"first", partition=0))
        known = await producer_views(admin, TOPIC, 0)

        async def log_starts_later() -> bool:
            await (await busy.send(TOPIC, b"." * 5_000, partition=0))
            replicas = (await admin.describe_replicas()).values()
            starts = [replica.log_start_offset for broker in replicas for replica in broker.replicas]
            return len(starts) == 3 and min(starts) > 1

        await until(log_starts_later, "retention has removed the first record everywhere", timeout_s=40)
        await admin.reassign_partitions(TOPIC, {0: [4, 2, 3]})
        await until(in_sync(admin, [4, 2, 3]), "broker 4 has taken broker 1's place", timeout_s=30)
        if (await admin.describe_topic(TOPIC)).partitions[0].leader != 4:
            await admin.elect_leader(TOPIC, 0)
        await until(leads(admin, 4), "broker 4 leads", timeout_s=20)
        assert known[0] in await producer_views(admin, TOPIC, 0), "broker 4 knows the idle producer as it was"
        await (await idle.send(TOPIC, b"second", partition=0))
        now = {view.producer_id: view for view in await producer_views(admin, TOPIC, 0)}[known[0].producer_id]
        assert (now.epoch, now.last_sequence) == (known[0].epoch, known[0].last_sequence + 1)


def in_sync(admin: AdminClient, replicas: list[int]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        status = (await admin.describe_topic(TOPIC)).partitions[0]
        return list(status.replicas) == replicas and set(status.isr) == set(replicas)

    return holds


def leads(admin: AdminClient, broker: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return (await admin.describe_topic(TOPIC)).partitions[0].leader == broker

    return holds
