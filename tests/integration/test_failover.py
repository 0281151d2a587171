"""Kill, pause and restart real processes under a workload: nothing is lost, doubled or reordered, and writes go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fencepost_testing.failover import producer_views
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration.running import TOPIC, running

ClusterFactory = Callable[..., AsyncLocalCluster]
QUICK = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 200}


@asynchronous
async def test_kill_9_of_leaders_one_after_another(cluster: AsyncLocalCluster) -> None:
    async with running(cluster) as workload:
        for partition in (0, 1, 2, 0):
            victim = await workload.leader(partition)
            await cluster.kill(victim)
            await workload.writes_go_on()
            await workload.another_leads(victim, partition)
            await cluster.restart(victim)
            await wait_in_sync(workload.admin, TOPIC)


@asynchronous
async def test_kill_9_of_a_follower_is_no_error_to_anyone(cluster: AsyncLocalCluster) -> None:
    async with (
        running(cluster, topic={"partitions": 3, "replication_factor": 3}) as workload,
    ):
        status = await workload.partition(0)
        follower = next(broker for broker in status.replicas if broker != status.leader)
        await cluster.kill(follower)
        await workload.writes_go_on()
        assert (await workload.partition(0)).leader == status.leader
        await cluster.restart(follower)


@pytest.mark.fencepost(**QUICK)
@asynchronous
async def test_while_the_controller_is_dead_leaders_serve_and_on_its_return_nothing_is_forgotten(
    cluster: AsyncLocalCluster,
) -> None:
    async with running(cluster) as workload:
        before = (await workload.admin.describe_topic(TOPIC)).partitions
        await cluster.kill(CONTROLLER)
        await workload.writes_go_on()
        await cluster.restart(CONTROLLER)
        await workload.writes_go_on()
        after = (await workload.admin.describe_topic(TOPIC)).partitions
        assert [p.leader_epoch for p in after] == [p.leader_epoch for p in before], "no one was declared dead"
        victim = await workload.leader()
        await cluster.kill(victim)
        await workload.writes_go_on()
        await cluster.restart(victim)


@pytest.mark.fencepost(**QUICK)
@asynchronous
async def test_kill_9_of_leader_and_controller_at_once(cluster: AsyncLocalCluster) -> None:
    async with running(cluster) as workload:
        victim = await workload.leader()
        await cluster.kill(CONTROLLER, victim)
        await cluster.restart(CONTROLLER)
        await workload.writes_go_on()
        await cluster.restart(victim)


@pytest.mark.fencepost(**QUICK)
@asynchronous
async def test_kill_9_of_every_process_at_once_loses_nothing_and_no_producer_state(
    cluster: AsyncLocalCluster,
) -> None:
    async with running(cluster) as workload:
        for round_number in range(2):
            await cluster.kill(*cluster.members)
            await cluster.start(*cluster.members)
            await workload.writes_go_on()
            views = await producer_views(workload.admin, TOPIC, 0)
            assert [view.epoch for view in views] == [0], f"round {round_number}: the producer's state survived"


@pytest.mark.fencepost(**QUICK)
@asynchronous
async def test_a_paused_leader_is_replaced_and_what_it_appends_on_waking_is_never_acknowledged(
    cluster: AsyncLocalCluster,
) -> None:
    async with running(cluster) as workload:
        victim = await workload.leader()
        await cluster.pause(victim)
        await workload.writes_go_on()
        await workload.another_leads(victim)
        await cluster.resume(victim)
        await wait_in_sync(workload.admin, TOPIC)


@asynchronous
async def test_a_pause_below_the_session_timeout_costs_no_election_whichever_process_it_is(
    cluster_factory: ClusterFactory,
) -> None:
    async with cluster_factory(brokers=3) as cluster, running(cluster) as workload:
        status = await workload.partition(0)
        follower = next(broker for broker in status.replicas if broker != status.leader)
        for node in (CONTROLLER, follower, status.leader):
            await cluster.pause(node)
            await asyncio.sleep(0.5)  # the pause is the fault itself
            await cluster.resume(node)
            await workload.writes_go_on()
        assert (await workload.partition(0)).leader_epoch == status.leader_epoch
        assert "broker fenced" not in cluster.log(CONTROLLER)


@asynchronous
async def test_a_clean_shutdown_hands_leaderships_over_and_the_restart_reads_nothing_but_the_snapshot(
    cluster: AsyncLocalCluster,
) -> None:
    async with running(cluster) as workload:
        victim = await workload.leader()
        assert await cluster.stop(victim) == 0
        assert "leaderships were not handed over" not in cluster.log(victim)
        await workload.another_leads(victim)
        await workload.writes_go_on()
        await cluster.restart(victim)
        await wait_in_sync(workload.admin, TOPIC)
        recoveries = [line for line in cluster.log(victim).splitlines() if "log recovered" in line][-3:]
        assert all("checked_bytes=0" in line for line in recoveries), recoveries


@asynchronous
async def test_lost_acknowledgements_are_recognised_through_failovers(cluster: AsyncLocalCluster) -> None:
    async with running(cluster, drop_acks=0.1) as workload:
        for partition in (0, 1):
            victim = await workload.leader(partition)
            await cluster.kill(victim)
            await workload.writes_go_on()
            await cluster.restart(victim)
            await wait_in_sync(workload.admin, TOPIC)
        assert workload.producer.stats.deduplicated_batches > 0


@asynchronous
async def test_with_flush_always_everything_above_survives_too(cluster: AsyncLocalCluster) -> None:
    async with (
        running(cluster, topic={"flush_always": True}) as workload,
    ):
        victim = await workload.leader()
        await cluster.kill(victim)
        await workload.writes_go_on()
        await cluster.restart(victim)


@asynchronous
async def test_a_broker_whose_disk_refuses_gives_up_its_leaderships_and_nothing_is_lost(
    cluster: AsyncLocalCluster,
) -> None:
    """The disk refuses by a limit on file size, set on the running process: every append beyond it fails."""
    psutil = pytest.importorskip("psutil")

    async with running(cluster) as workload:
        victim = await workload.leader()
        process = psutil.Process(cluster.pid(victim))
        process.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))

        async def given_up() -> bool:
            return all(
                status.leader not in (victim, -1) for status in (await workload.admin.describe_topic(TOPIC)).partitions
            )

        await until(given_up, f"broker {victim} leads nothing any more")
        await workload.writes_go_on()
        process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        # Its own log file was refused too. The controller has heard of it; or of nothing any more, where the first thing
        # that the disk refused was a metadata version, which is not acknowledged then.
        heard = cluster.log(CONTROLLER)
        assert f"replicas failed broker={victim}" in heard or f"broker fenced broker={victim}" in heard
        await cluster.restart(victim)
