"""Stories on a whole simulated cluster: what the random runs found, told plainly."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import pytest
from tests.simulation.cluster import ClusterSettings, SimCluster, broker_node
from tests.simulation.loop import collector_off
from tests.simulation.world import World

from fencepost_proto.v1 import controller_pb2


@pytest.fixture
def cluster() -> Generator[SimCluster]:
    """Three brokers and a controller, running."""
    with collector_off(), World(1) as world:
        cluster = SimCluster(world, ClusterSettings())
        cluster.start_all()
        yield cluster
        cluster.database.close()
        assert world.failures() == []


def play(cluster: SimCluster, story: Coroutine[Any, Any, None]) -> None:
    cluster.world.run(story)


async def create_topic(cluster: SimCluster, name: str, partitions: int = 1) -> None:
    request = controller_pb2.CreateTopicRequest(name=name, partitions=partitions, replication_factor=3)
    while await cluster.ask_admin("CreateTopic", request) != "ok":  # noqa: ASYNC110 - brokers are still registering
        await asyncio.sleep(0.1)


async def all_in_sync(cluster: SimCluster) -> None:
    async with asyncio.timeout(30):
        while any(len(partition.isr) < 3 for partition in cluster.judge.image.partitions.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_every_broker_stops_clean_while_it_leads_and_follows(cluster: SimCluster) -> None:
    async def story() -> None:
        await create_topic(cluster, "orders", partitions=3)
        await all_in_sync(cluster)
        for broker_id in (1, 2, 3):
            node = broker_node(broker_id)
            process = cluster.world.machine(node).process
            assert process is not None
            cluster.stop(node)
            async with asyncio.timeout(10):
                while process.alive:  # noqa: ASYNC110 - a process has no event for its end
                    await asyncio.sleep(0.05)
            cluster.start(node)
            await all_in_sync(cluster)
        assert cluster.exits == {"stopped": 3}

    play(cluster, story())
