"""A topic was deleted and made again under its name while a broker was away: it comes back to the new one alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fencepost import AdminClient, Consumer, Producer
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]

OLD, NEW = 20, 5  # records


def log_of(cluster: AsyncLocalCluster, broker: int) -> Path:
    return cluster.member(broker).directory / "orders-0" / f"{0:020}.log"


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@asynchronous
async def test_a_broker_that_was_away_takes_the_successor_for_what_it_is(
    cluster_factory: ClusterFactory, damaged: bool
) -> None:
    async with cluster_factory(brokers=3) as cluster, AdminClient(cluster.bootstrap) as admin:
        old = await admin.create_topic("orders", assignments=[(1, 2, 3)])
        await wait_in_sync(admin, "orders")
        async with Producer(cluster.bootstrap) as producer:
            for n in range(OLD):
                await producer.send_and_wait("orders", b"old %d" % n)
        await cluster.kill(3)
        await cluster.wait_gone(3)
        if damaged:
            damage(log_of(cluster, 3))
        await admin.delete_topic("orders")
        new = await admin.create_topic("orders", assignments=[(1, 2, 3)])
        assert new.topic_id != old.topic_id
        sent = [b"new %d" % n for n in range(NEW)]
        async with Producer(cluster.bootstrap) as producer:
            for value in sent:
                await producer.send_and_wait("orders", value)
        await cluster.restart(3)
        await wait_in_sync(admin, "orders")
        folders = sorted(path.name for path in cluster.member(3).directory.glob("orders-*") if path.is_dir())
        assert [name for name in folders if not name.endswith((".damaged", ".stray"))] == ["orders-0"]
        assert len(folders) == 2, folders  # it was told of no deletion: what it had is set aside, not deleted
        await until(lambda: log_of(cluster, 3).read_bytes() == log_of(cluster, 1).read_bytes() != b"", "the same bytes")
        for broker in (1, 2):  # the one that was away leads now
            await cluster.stop(broker)
        async with Consumer(cluster.bootstrap, "orders") as consumer:
            (end,) = (await consumer.end_offsets(consumer.assignment)).values()
            assert [(await anext(consumer)).value for _ in range(end)] == sent
