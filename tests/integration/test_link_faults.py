"""Faults on links, disks and processes of a local cluster: each really happens, on both ports where clients meet it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from fencepost import Producer
from fencepost_cli.main import app
from fencepost_testing.cluster_watch import ClusterWatch
from fencepost_testing.faults import FaultError
from fencepost_testing.local_cluster import CONTROLLER, ClusterError, LocalCluster
from fencepost_testing.waiting import until_sync
from tests.integration.test_request_faults import KafkaSender
from tests.unit.kafka_client import kafka_client

SESSION_MS = 500
LAG_MS = 600
WAIT_S = 20.0
NOT_YET_S = 0.3  # for what is not to happen: many times what it takes


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    cluster = LocalCluster(
        brokers=2,
        controller_overrides={"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": 50},
        broker_overrides={"replica_lag_time_max_ms": LAG_MS},
    )
    with cluster:
        yield cluster
        for node in cluster.nodes:
            assert "Traceback" not in cluster.log(node)


@pytest.fixture
def cluster(shared: LocalCluster) -> Iterator[LocalCluster]:
    """Without faults, and whole."""
    shared.wait_in_sync()
    yield shared
    shared.faults.clear()
    shared.start(*shared.nodes)
    shared.wait_registered()


def send(cluster: LocalCluster, topic: str, count: int = 1, size: int = 10) -> float:
    """With Fencepost's own client, all at once; how long it took, in seconds, with a connection that was open before."""

    async def scenario() -> float:
        async with Producer(cluster.bootstrap, linger_ms=0) as producer:
            await producer.send_and_wait(topic, b"first", partition=0)
            began = time.monotonic()
            for _ in range(count):
                await producer.send(topic, bytes(size), partition=0)
            await producer.flush()
            return time.monotonic() - began

    return asyncio.run(scenario())


def send_in_kafka(cluster: LocalCluster, topic: str, count: int = 1, size: int = 10) -> float:
    sender = KafkaSender(cluster)
    sender.send(1, topic=topic)
    began = time.monotonic()
    sender.send(count, topic=topic, size=size)
    assert sender.failures == []
    return time.monotonic() - began


BOTH = pytest.mark.parametrize("send_by", [send, send_in_kafka])
Send = Callable[..., float]


def bytes_of(cluster: LocalCluster, broker: int, topic: str) -> int:
    """Of the first partition's log on one broker."""
    return sum(file.stat().st_size for file in (cluster.directory / f"broker-{broker}" / f"{topic}-0").glob("*.log"))


async def still_waits(task: asyncio.Future[Any]) -> bool:
    done, _ = await asyncio.wait([task], timeout=NOT_YET_S)
    return not done


# ---- Clients ----


def test_what_clients_send_over_a_cut_link_arrives_once_it_is_whole(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=1)
    leader = cluster.leader(topic)

    async def scenario() -> None:
        async with Producer(cluster.bootstrap, linger_ms=0) as producer:
            await producer.send_and_wait(topic, b"0", partition=0)
            before = bytes_of(cluster, leader, topic)
            with cluster.faults.cut("clients", leader) as cut:
                sent = asyncio.ensure_future(producer.send_and_wait(topic, b"1", partition=0))
                kafka = asyncio.ensure_future(asyncio.to_thread(send_in_kafka, cluster, topic))
                assert await still_waits(sent)
                assert await still_waits(kafka)
                assert bytes_of(cluster, leader, topic) == before
                assert cut.fired > 0
            await sent
            await kafka

    asyncio.run(scenario())


def test_a_cut_one_way_loses_answers_only(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=1)
    leader = cluster.leader(topic)

    async def scenario() -> None:
        async with Producer(cluster.bootstrap, linger_ms=0) as producer:
            await producer.send_and_wait(topic, b"0", partition=0)
            before = bytes_of(cluster, leader, topic)
            with cluster.faults.cut(leader, "clients", one_way=True):
                sent = asyncio.ensure_future(producer.send_and_wait(topic, b"1", partition=0))
                assert await still_waits(sent)
                assert bytes_of(cluster, leader, topic) > before
            await sent

    asyncio.run(scenario())


@BOTH
def test_a_delay_is_each_message_s_own_and_not_all_of_theirs_together(cluster: LocalCluster, send_by: Send) -> None:
    topic = cluster.create_topic(replication_factor=1)
    with cluster.faults.delay("clients", (topic, 0), delay_ms=150, jitter_ms=50) as delayed:
        assert 0.3 <= send_by(cluster, topic, 20) < 3.0  # one after another they would take 6 s
        assert delayed.fired > 2


@BOTH
def test_a_link_with_a_limit_carries_so_many_bytes_a_second(cluster: LocalCluster, send_by: Send) -> None:
    topic = cluster.create_topic(replication_factor=1)
    with cluster.faults.limit("clients", (topic, 0), bytes_per_second=200_000):
        assert send_by(cluster, topic, 4, 25_000) >= 0.45


def test_connections_are_reset(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=1)
    leader = cluster.leader(topic)

    async def scenario() -> None:
        async with (
            kafka_client(cluster.member(leader).kafka_address) as client,
            Producer(cluster.bootstrap) as producer,
        ):
            await producer.send_and_wait(topic, b"0", partition=0)
            with cluster.faults.reset("clients", leader) as reset:
                assert await client.closed() == b""
                await reset.wait_fired_async(2)
            await producer.send_and_wait(topic, b"1", partition=0)

    asyncio.run(scenario())


def test_one_client_is_cut_off_by_its_id_and_others_are_served(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=1)

    async def scenario() -> None:
        async with (
            Producer(cluster.bootstrap, linger_ms=0, client_id="slow") as slow,
            Producer(cluster.bootstrap, linger_ms=0) as other,
        ):
            await slow.send_and_wait(topic, b"0", partition=0)
            with cluster.faults.cut("client:slow", (topic, 0)) as cut:
                waiting = [
                    asyncio.ensure_future(slow.send_and_wait(topic, b"1", partition=0)),
                    asyncio.ensure_future(
                        asyncio.to_thread(KafkaSender(cluster, **{"client.id": "slow"}).send, 1, topic=topic)
                    ),
                ]
                await other.send_and_wait(topic, b"2", partition=0)
                await asyncio.to_thread(send_in_kafka, cluster, topic)
                for sent in waiting:
                    assert await still_waits(sent)
                assert cut.fired >= 2
            await asyncio.gather(*waiting)
            with cluster.faults.reset("client:slow", times=1) as reset:
                await reset.wait_fired_async()
            await slow.send_and_wait(topic, b"3", partition=0)

    asyncio.run(scenario())


# ---- The cluster's own links ----


def test_a_follower_that_is_cut_off_leaves_the_in_sync_set_and_comes_back(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=1)
    leader = cluster.leader(topic)
    with cluster.faults.cut(1, 2):
        send(cluster, topic)
        assert cluster.isr(topic) == [leader]
    cluster.wait_in_sync(topic)


def test_a_broker_that_is_cut_off_from_the_controller_loses_its_leaderships(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2)
    leader = cluster.leader(topic)
    with cluster.faults.cut(leader, CONTROLLER):
        until_sync(lambda: cluster.leader(topic) != leader, "another broker leads", WAIT_S)
    cluster.wait_in_sync(topic)


def test_links_between_brokers_are_slow_and_reset(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=2)
    with cluster.faults.delay(1, 2, delay_ms=100):
        assert send(cluster, topic) >= 0.2  # to the follower, and back
    with cluster.faults.reset(1, 2, times=1) as reset:
        reset.wait_fired(1)
    send(cluster, topic)
    follower = next(broker for broker in (1, 2) if broker != cluster.leader(topic))
    assert "replication stream broke" in cluster.log(follower)


def test_an_isolated_broker_is_cut_off_from_everyone(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=1)
    leader = cluster.leader(topic)
    with cluster.faults.cut(leader):
        until_sync(lambda: cluster.leader(topic) != leader, "another broker leads", WAIT_S)
        send(cluster, topic)
        send_in_kafka(cluster, topic)
    cluster.wait_in_sync(topic)


# ---- Disks ----


def test_a_full_disk_fails_its_replica_and_is_recovered_from(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=1)
    leader = cluster.leader(topic)
    with cluster.faults.fill_disk(leader, topic=topic) as full:
        send(cluster, topic)
        assert full.fired > 0
        assert cluster.leader(topic) != leader
        assert "No space left on device, by a fault" in cluster.log(leader)
    cluster.wait_in_sync(topic)


def test_a_slow_disk_makes_acknowledged_syncs_slow(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=1, config={"flush.messages": 1})
    with cluster.faults.slow_disk(cluster.leader(topic), delay_ms=200, topic=topic) as slow:
        assert send(cluster, topic) >= 0.2
        assert slow.fired > 0


def test_a_failing_sync_acknowledges_nothing_and_is_recovered_from(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=1, config={"flush.messages": 1})
    leader = cluster.leader(topic)
    with cluster.faults.fail_syncs(leader, topic=topic, times=1) as failed:
        send(cluster, topic)
        assert failed.fired == 1
        assert cluster.leader(topic) != leader
    cluster.wait_in_sync(topic)


def test_the_controller_s_store_is_full_slow_and_fails_to_sync(cluster: LocalCluster) -> None:
    faults, log = cluster.faults, cluster.member(CONTROLLER).log_file
    for set_fault, reason in ((faults.fill_disk, "No space left on device"), (faults.fail_syncs, "Input/output error")):
        with set_fault(CONTROLLER) as failed:
            with pytest.raises(ClusterError, match=f"could not store the change: metadata store: {reason}, by a fault"):
                cluster.create_topic("refused")
            assert failed.fired > 0
        assert cluster.create_topic("refused") == "refused"
        assert "commits succeed again" in log.read_text()
        cluster.delete_topic("refused")
    with faults.slow_disk(CONTROLLER, delay_ms=300) as slow:
        began = time.monotonic()
        cluster.create_topic()
        assert time.monotonic() - began >= 0.3
        assert slow.fired > 0


# ---- Processes ----


def test_a_pause_ends_with_its_fault_and_with_a_clear(cluster: LocalCluster) -> None:
    with cluster.faults.pause(2) as paused:
        assert cluster.paused(2)
        assert paused.fired == 1
    assert not cluster.paused(2)
    cluster.faults.pause(CONTROLLER)
    assert cluster.paused(CONTROLLER)
    cluster.faults.clear()
    assert not cluster.paused(CONTROLLER)


def test_a_leader_is_killed_and_the_kill_is_over_with(cluster: LocalCluster) -> None:
    topic = cluster.create_topic(replication_factor=2, min_insync_replicas=1)
    leader = cluster.leader(topic)
    watch = ClusterWatch(cluster)
    killed = cluster.faults.kill((topic, 0))
    assert (killed.fired, killed.is_set, cluster.running(leader), watch.problems()) == (1, False, False, [])
    assert cluster.leader(topic) != leader
    with pytest.raises(FaultError, match=f"broker {leader} is not running"):
        cluster.faults.kill(leader)


# ---- By commands ----


def test_commands_set_show_and_remove_faults(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = cluster.create_topic(replication_factor=1)
    monkeypatch.chdir(cluster.directory.parent)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["faults", *words, "--data-dir", cluster.directory.name])
        assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output
        return result.output

    first = json.loads(run("drop-answers", "--api", "Produce", "--topic", topic, "--times", "1", "--json"))
    send(cluster, topic)
    run("cut", f"leader:{topic}-0", "controller", "--one-way")
    assert "slow-disk broker=controller" in run("slow-disk", "--broker", "controller", "--delay-ms", "1")
    listed = json.loads(run("list", "--json"))
    assert [(fault["fault"].partition(" ")[0], fault["fired"]) for fault in listed[:1]] == [("drop-answers", 1)]
    assert len(listed) == 3
    assert f"{first['id']} removed; it has fired 1 times" in run("remove", first["id"])
    assert "drop-answers" in run("timeline")
    assert "no fault is set" in run("clear")
    assert "no broker 9 in this cluster: it has 1, 2" in run("pause", "9", code=1)
    assert f"no fault '{first['id']}' is set: there is none" in run("remove", first["id"], code=1)


# ---- What cannot be ----


def test_what_cannot_be_is_refused_by_its_name(cluster: LocalCluster) -> None:
    faults = cluster.faults
    topic = cluster.create_topic()
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: faults.cut(1, 7), "no broker 7 in this cluster: it has 1, 2"),
        (lambda: faults.cut(1, 1), "1 and 1 are no two sides of a link"),
        (lambda: faults.cut("client", 1), "target 'client' is not .* nor 'clients'"),
        (lambda: faults.cut([], 1), "no two sides"),
        (lambda: faults.cut((topic, 9)), "9.: the cluster has no such partition"),
        (lambda: faults.limit(1, 2, bytes_per_second=0), "bytes_per_second=0"),
        (lambda: faults.delay(1, 2, delay_ms=0), "delay_ms=0 is no delay"),
        (lambda: faults.reset(1, 2, times=-1), "times=-1"),
        (lambda: faults.fill_disk(3), "no broker 3"),
        (lambda: faults.fill_disk(1, topic="no-such"), "no topic 'no-such'"),
        (lambda: faults.fill_disk("client:a"), "no broker 'client:a' in this cluster: it has 1, 2, and 'controller'"),
        (lambda: faults.fail_syncs("controller", topic=topic), "the controller has one store for all"),
        (lambda: faults.cut("client:", 1), "client_id=''"),
        (lambda: faults.cut("clients", "client:a"), "clients have no links with each other"),
        (lambda: faults.slow_disk(1, delay_ms=10**9), "delay_ms=1000000000"),
        (lambda: faults.pause("clients"), "target 'clients' is not a broker's id, 'controller' or"),
        (lambda: faults.cut(1, []), r"b=\[\] names no one: leave it out where everyone else is meant"),
        (lambda: faults.cut(None), "target None is not a pair"),  # type: ignore[arg-type]
        (lambda: faults.kill((topic,)), "is not a pair"),  # type: ignore[arg-type]
        (lambda: faults.kill([1, 2]), r"target \[1, 2\] is not a pair"),  # type: ignore[arg-type]
        (lambda: faults.cut(1, 2, one_way="no"), "one_way='no': must be True or False"),  # type: ignore[arg-type]
        (lambda: faults.fail_requests(None, error=3), "api=None: name the requests that are to fail"),  # type: ignore[arg-type]
        (lambda: faults.drop_requests(["Produce"]), r"no api \['Produce'\]"),  # type: ignore[arg-type]
        (lambda: faults.set("melt-disk", {}), "no fault 'melt-disk': there are drop-requests, drop-answers"),
        (lambda: faults.set("limit", {"a": 1}), "limit needs bytes_per_second"),
        (lambda: faults.set("cut", {"a": 1, "sideways": True}), "no condition 'sideways' of cut"),
        (lambda: faults.set("fill-disk", {"sideways": True}), "no condition 'sideways'"),
    ]
    for call, message in refused:
        with pytest.raises(FaultError, match=message):
            call()
    assert faults.active() == []
