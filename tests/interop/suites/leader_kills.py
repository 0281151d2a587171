"""Kills the leaders of a cluster, one broker after the other, while something else runs against it."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable

from fencepost import AdminClient
from fencepost.descriptions import PartitionDescription
from fencepost_proto.protocol.errors import UnknownTopicOrPartition
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until

_TIMEOUT_S = 120.0
_POLL_S = 0.1


async def kill_leaders(cluster: AsyncLocalCluster, every_s: float, tell: Callable[[str], None]) -> None:
    """Until it is cancelled: kill a broker that leads, and once others lead start it again; wait for all replicas.

    From one kill to the next it is `every_s`, or longer where a broker takes longer to come back. A broker that leads
    nothing is passed over.
    """
    loop = asyncio.get_running_loop()
    turn = 0
    async with AdminClient(cluster.bootstrap) as admin:
        while True:
            began = loop.time()
            broker = cluster.broker_ids[turn % len(cluster.broker_ids)]
            turn += 1
            led = await _led_by(broker, admin)
            if led:
                await _kill(broker, cluster, admin)
                took_s = loop.time() - began
                tell(f"broker {broker}, leader of {led} partitions, was killed; all is in sync after {took_s:.1f} s")
            await asyncio.sleep(max(_POLL_S, every_s - (loop.time() - began)))


async def _kill(broker: int, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
    def led() -> Awaitable[int]:
        return _led_by(broker, admin)

    def late() -> Awaitable[int]:
        return _not_in_sync(admin)

    await cluster.kill(broker)
    await cluster.wait_gone(broker)
    await until(led, f"others lead what broker {broker} led", _TIMEOUT_S, holds=operator.not_, poll_s=_POLL_S)
    await cluster.start(broker, timeout_s=_TIMEOUT_S)
    await until(late, "every replica is in sync", _TIMEOUT_S, holds=operator.not_, poll_s=_POLL_S)


async def _led_by(broker: int, admin: AdminClient) -> int:
    return sum(partition.leader == broker for partition in await _partitions(admin))


async def _not_in_sync(admin: AdminClient) -> int:
    return sum(
        partition.leader < 0 or set(partition.isr) != set(partition.replicas) for partition in await _partitions(admin)
    )


async def _partitions(admin: AdminClient) -> list[PartitionDescription]:
    """Of all topics that there are: the tests delete theirs meanwhile."""
    found: list[PartitionDescription] = []
    for name in await admin.list_topics():
        try:
            found += (await admin.describe_topic(name)).partitions
        except UnknownTopicOrPartition:
            continue
    return found
