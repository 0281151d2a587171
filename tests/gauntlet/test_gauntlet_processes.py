"""The gauntlet's rows about kill -9, once more on real processes, with real sockets, files and signals.

The simulation arranges the moment of death much more finely (test_gauntlet_durability.py); here nothing is simulated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fencepost import AdminClient, Consumer, Producer
from fencepost.descriptions import ElectionCandidate, PartitionDescription
from fencepost_testing.chaos.data_folders import copy_folder, put_back
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

TOPIC = "orders"


@asynccontextmanager
async def cluster_of_three(
    folder: Path, min_insync_replicas: int = 2
) -> AsyncIterator[tuple[AsyncLocalCluster, AdminClient, Producer]]:
    cluster = AsyncLocalCluster(folder / "cluster", brokers=3)
    try:
        async with cluster, AdminClient(cluster.bootstrap) as admin:
            await admin.create_topic(TOPIC, assignments=[(1, 2, 3)], min_insync_replicas=min_insync_replicas)
            await wait_in_sync(admin, TOPIC)
            async with Producer(cluster.bootstrap, batch_size=200) as producer:
                yield cluster, admin, producer
    finally:
        cluster.close()


async def send(producer: Producer, names: list[str]) -> dict[int, str]:
    """Send them all; answers them by the offsets that were acknowledged."""
    deliveries = [await producer.send(TOPIC, name.encode()) for name in names]
    return {(await delivery).offset: name for delivery, name in zip(deliveries, names, strict=True)}


async def read_all(cluster: AsyncLocalCluster, count: int) -> dict[int, str]:
    """`count` records from the beginning."""
    found: dict[int, str] = {}
    async with Consumer(cluster.bootstrap, TOPIC) as consumer:
        async for record in consumer:
            found[record.offset] = (record.value or b"").decode()
            if len(found) == count:
                return found
    return found


@asynchronous
async def test_killed_leader_loses(tmp_path: Path) -> None:
    """nats-io/nats-server issue 3402: see test_gauntlet_durability.py."""

    async with cluster_of_three(tmp_path) as (cluster, admin, producer):
        acked = await send(producer, [f"before{number}" for number in range(500)])
        for killing in range(2):
            victim = (await admin.describe_topic(TOPIC)).partitions[0].leader
            names = [f"killing{killing}-{number}" for number in range(2_000)]
            sending = asyncio.create_task(send(producer, names))
            while producer.stats.records_acked < len(acked) + 200:  # noqa: ASYNC110 - bounded by the test
                await asyncio.sleep(0.001)
            assert not sending.done(), "killed while records flow"
            await cluster.kill(victim)
            acked |= await sending
            assert (await admin.describe_topic(TOPIC)).partitions[0].leader not in (victim, -1)
            await cluster.restart(victim)
            await wait_in_sync(admin, TOPIC)
        assert await read_all(cluster, len(acked)) == acked
        assert len(acked) == len(set(acked.values())) == 4_500


@asynchronous
async def test_crashes_forget_stream(tmp_path: Path) -> None:
    """nats-io/nats-server issue 6888: see test_gauntlet_durability.py."""

    async with cluster_of_three(tmp_path) as (cluster, admin, producer):
        acked = await send(producer, [f"before{number}" for number in range(100)])
        members = list(cluster.members)
        for round_number in range(3):
            order = members[round_number:] + members[:round_number]
            await cluster.kill(*order)
            await cluster.start(*order)
            acked |= await send(producer, [f"round{round_number}-{number}" for number in range(100)])
        assert await admin.list_topics() == [TOPIC]
        producers = (await admin.describe_producers(TOPIC, 0)).producers
        assert [(known.producer_id, known.producer_epoch) for known in producers] == [
            (producer.producer_id, producer.epoch)
        ]
        assert await read_all(cluster, 400) == acked
        assert len(acked) == 400


@pytest.mark.parametrize("copied", ["stopped", "running"])
@asynchronous
async def test_old_folder_leads(tmp_path: Path, copied: str) -> None:
    """rabbitmq-server issue 8059; KAFKA-15582: see test_gauntlet_folders.py."""

    async with cluster_of_three(tmp_path, min_insync_replicas=1) as (cluster, admin, producer):
        folder, copy = cluster.member(1).directory, tmp_path / "copy"
        acked = await send(producer, [f"before{number}" for number in range(100)])
        if copied == "stopped":
            await cluster.stop(1)
        copy_folder(folder, copy)
        if copied == "stopped":
            await cluster.start(1)
            await wait_in_sync(admin, TOPIC)
        acked |= await send(producer, [f"after{number}" for number in range(100)])
        await cluster.stop(3)
        await cluster.stop(2)
        if copied == "stopped":
            await cluster.stop(1)
        else:
            await cluster.kill(1)
            await cluster.wait_gone(1)
        put_back(copy, folder)
        await cluster.start(1, 2, 3)
        warning = "data folder may lack acknowledged records"
        await until(lambda: warning in cluster.log("controller"), "the warning")

        async def partition() -> PartitionDescription:
            return (await admin.describe_topic(TOPIC)).partitions[0]

        described = await until(partition, "no one in sync", holds=lambda partition: not partition.isr)
        assert described.leader == -1

        async def candidates() -> list[ElectionCandidate]:
            return await admin.unclean_candidates(TOPIC, 0)

        await until(
            candidates, "each may be elected", holds=lambda found: not any(candidate.failure for candidate in found)
        )
        await admin.elect_leader(TOPIC, 0, unclean=True)
        assert await read_all(cluster, 200) == acked
        await wait_in_sync(admin, TOPIC)
