"""The matrix of Apache Kafka's system test of replication: how a process goes down × which one, under idempotent producers.

A *shutdown* lasts until writes have been seen to go on without the process (where they can); a *bounce* is stop and start
at once, several times in a row. *Clean* is SIGTERM, *hard* is SIGKILL. The verdict is the history checker's, over what two
producers and a consumer were told and what a last consumer reads, and that of the replicas' files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fencepost import AdminClient
from fencepost.history import History
from fencepost_testing.chaos.client_config import ClientConfig
from fencepost_testing.chaos.consuming import consume
from fencepost_testing.chaos.producing import produce
from fencepost_testing.exactly_once import judge as judge_log
from fencepost_testing.history_check import check_history
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node
from fencepost_testing.member import is_etcd
from fencepost_testing.read_back import read_everything
from fencepost_testing.topic_waits import wait_in_sync, wait_settled, wait_writable
from tests.asynchronous import asynchronous
from tests.integration.etcd_processes import ETCD, NO_ETCD

ClusterFactory = Callable[..., AsyncLocalCluster]
CONTROLLER_SETTINGS = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 200}
BROKER_SETTINGS = {"controlled_shutdown_max_wait_ms": 1_000}  # where all go down no one takes a leadership over
SETTINGS: dict[str, Any] = {"controller_overrides": CONTROLLER_SETTINGS, "broker_overrides": BROKER_SETTINGS}
TOPIC = "orders"
PARTITIONS = 2
BOUNCES = 3
OF_SEVERAL = {"active controller": "controller:active", "etcd leader": "etcd:leader"}
RATE = 250.0  # records a second of one producer


@dataclass
class Scene:
    """A cluster that is written to and read from, and everything that its clients were told."""

    cluster: AsyncLocalCluster
    admin: AdminClient
    lines: list[str] = field(default_factory=list)

    async def victims(self, who: str) -> list[Node]:
        if who == "controller":
            return [CONTROLLER]
        if who in OF_SEVERAL:
            return [await self.cluster.resolve(OF_SEVERAL[who])]
        if who == "all":
            return [*self.cluster.broker_ids, CONTROLLER]
        partition = (await self.admin.describe_topic(TOPIC)).partitions[0]
        if who == "leader":
            return [partition.leader]
        return [next(broker for broker in partition.replicas if broker != partition.leader)]

    async def down(self, nodes: list[Node], *, clean: bool) -> None:
        if clean:
            for node in nodes:
                self.cluster.terminate(node)
        else:
            await self.cluster.kill(*nodes)
        for node in nodes:
            code = await self.cluster.wait_gone(node, timeout_s=30)
            assert code == (0 if clean else -9) or is_etcd(node)  # which ends by the signal that it was sent

    async def up(self, nodes: list[Node]) -> None:
        await self.cluster.start(*nodes)
        await wait_writable(self.admin, TOPIC)


@asynccontextmanager
async def written_to(cluster: AsyncLocalCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """Inside, an anonymous and a named producer send, and a consumer reads along. At the end everything is judged."""
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3, min_insync_replicas=2)
        await wait_in_sync(admin, TOPIC)
        scene = Scene(cluster, admin)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            clients = [
                group.create_task(produce(client(cluster, "anonymous.1", 1), recorder(scene, "anonymous.1"), stop)),
                group.create_task(
                    produce(client(cluster, "named.1", 2, name="orders"), recorder(scene, "named.1"), stop)
                ),
                group.create_task(consume(client(cluster, "reader.1", 3), recorder(scene, "reader.1"), stop)),
            ]
            await wait_writable(admin, TOPIC)
            yield scene
            await wait_writable(admin, TOPIC)
            stop.set()
        assert [task.result() for task in clients] == [0, 0, 0]
        await judge(scene, tmp_path)


async def judge(scene: Scene, tmp_path: Path) -> None:
    await wait_in_sync(scene.admin, TOPIC)
    settled = await wait_settled(scene.admin, TOPIC)
    final = tmp_path / "final.jsonl"
    records = await read_everything(scene.cluster.bootstrap, TOPIC, final)
    verdict = check_history([*scene.lines, *final.read_text().splitlines()])
    assert verdict.clean, verdict.findings
    assert verdict.final_reads == PARTITIONS
    assert (verdict.failed, verdict.unknown) == (0, 0), "no error reached the application"
    assert verdict.sends == verdict.acked == records > 0
    found = await judge_log(scene.cluster, TOPIC, settled=settled)
    assert found.ok, str(found)
    assert (found.replicas_checked, found.records) == (3 * PARTITIONS, records)


def client(cluster: AsyncLocalCluster, process: str, seed: int, **settings: Any) -> ClientConfig:
    return ClientConfig(
        process=process,
        kind="",
        bootstrap=cluster.bootstrap,
        topic=TOPIC,
        partitions=PARTITIONS,
        history_file="",
        seed=seed,
        rate=RATE,
        keys=20,
        settings=settings,
    )


def recorder(scene: Scene, process: str) -> History:
    return History(scene.lines.append, process=process)


@pytest.mark.parametrize("who", ["leader", "follower", "controller", "all"])
@pytest.mark.parametrize("how", ["clean shutdown", "hard shutdown", "clean bounce", "hard bounce"])
@asynchronous
async def test_exactly_once_through_a(how: str, who: str, cluster_factory: ClusterFactory, tmp_path: Path) -> None:
    await bounce_in(how, who, cluster_factory(brokers=3, **SETTINGS), tmp_path)


@pytest.mark.skipif(ETCD is None, reason=NO_ETCD)
@pytest.mark.parametrize("who", OF_SEVERAL)
@pytest.mark.parametrize("how", ["clean bounce", "hard shutdown", "hard bounce"])
@asynchronous
async def test_exactly_once_where_there_are_several_controllers_through_a(
    how: str, who: str, cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    await bounce_in(how, who, cluster_factory(brokers=3, controllers=2, **SETTINGS), tmp_path)


async def bounce_in(how: str, who: str, cluster: AsyncLocalCluster, tmp_path: Path) -> None:
    clean, bounce = how.startswith("clean"), how.endswith("bounce")
    async with cluster, written_to(cluster, tmp_path) as scene:
        for _ in range(BOUNCES if bounce else 1):
            victims = await scene.victims(who)
            await scene.down(victims, clean=clean)
            if not bounce and who != "all":
                await wait_writable(scene.admin, TOPIC)
            await scene.up(victims)
