"""One cluster for many tests: after each it is healed and emptied, so that the next finds it as if it were new."""

from __future__ import annotations

import asyncio

from fencepost_testing import topic_control
from fencepost_testing.async_cluster import AsyncLocalCluster
from fencepost_testing.waiting import WAIT_TIMEOUT_S


async def heal(cluster: AsyncLocalCluster) -> None:
    """No fault is set any more, and every process runs again and is registered. Raises ClusterError where one cannot."""
    if cluster.has_faults:
        cluster.faults.clear()
    paused = [node for node in cluster.nodes if cluster.paused(node)]
    down = [node for node in cluster.nodes if not cluster.running(node)]
    if paused:
        await cluster.resume(*paused)
    if down or paused:
        await cluster.up()


async def empty(cluster: AsyncLocalCluster) -> None:
    """Delete all topics, and all groups that have no members any more."""

    async def delete_topics() -> None:
        names = await topic_control.topics(cluster, WAIT_TIMEOUT_S)
        await topic_control.delete_topics(cluster, names, WAIT_TIMEOUT_S, missing_ok=True)

    await asyncio.gather(delete_topics(), topic_control.delete_groups(cluster))


async def renew(cluster: AsyncLocalCluster) -> None:
    """Heal and empty it."""
    await heal(cluster)
    await empty(cluster)
