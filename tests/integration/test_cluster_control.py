"""What a program can ask of a local cluster, and do to it: by synchronous calls, and by coroutines of the same names."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable

import pytest

from fencepost_testing import AsyncLocalCluster, ClusterError, LocalCluster
from fencepost_testing.waiting import NotInTime
from tests.asynchronous import asynchronous


def test_a_program_kills_pauses_and_restarts_by_the_names_of_brokers_and_partitions() -> None:
    with LocalCluster(brokers=3) as cluster:
        topic = cluster.create_topic(partitions=2)
        assert cluster.topics() == [topic]
        first = cluster.leader(topic, 0)
        assert first in cluster.replicas(topic, 0)
        assert sorted(cluster.isr(topic, 1)) == [1, 2, 3]

        cluster.kill((topic, 0))
        assert not cluster.running(first)
        assert cluster.leader(topic, 0) != first
        with pytest.raises(ClusterError, match=f"broker {first} is not running"):
            cluster.kill(first)
        with pytest.raises(NotInTime, match=rf"all replicas of {topic} in sync.*broker {first} is down"):
            cluster.wait_in_sync(topic, timeout_s=0.3)
        cluster.restart(first)
        cluster.wait_in_sync()
        assert sorted(cluster.isr(topic, 0)) == [1, 2, 3]

        cluster.pause("controller", 2)
        assert cluster.paused("controller")
        assert cluster.paused(2)
        cluster.resume("controller", 2)
        assert cluster.stop(3) == 0
        cluster.up()

        told = cluster.status()
        assert told.healthy
        assert {p.topic for p in told.partitions} == {topic}
        assert set(cluster.logs()) == {"controller", 1, 2, 3}
        assert f"broker {first} killed" in [happening.what for happening in cluster.timeline]
        cluster.delete_topic(topic)
        assert cluster.topics() == []
        cluster.down()
        assert not cluster.any_running()


def test_what_cannot_be_is_refused_by_its_name() -> None:
    with LocalCluster(brokers=1) as cluster:
        topic = cluster.create_topic("orders", config={"retention.ms": 60_000})
        cases: list[tuple[Callable[[], object], str]] = [
            (lambda: cluster.create_topic("orders"), "topic 'orders' is not created: TOPIC_ALREADY_EXISTS"),
            (lambda: cluster.create_topic(config={"compression": "on"}), "INVALID_CONFIG.*compression"),
            (lambda: cluster.create_topic(replication_factor=3), "INVALID_REPLICATION_FACTOR"),
            (lambda: cluster.create_topic("a topic"), "INVALID_TOPIC_EXCEPTION.*a topic"),
            (lambda: cluster.delete_topic("pints"), "topic 'pints' is not deleted: UNKNOWN_TOPIC_OR_PARTITION"),
            (lambda: cluster.leader("pints", 0), "topic 'pints' does not exist"),
            (lambda: cluster.kill(("orders", 7)), "topic 'orders' has no partition 7: it has 1"),
            (lambda: cluster.kill(1, 9), "no broker 9 in this cluster: it has controller, 1"),
            (lambda: cluster.wait_in_sync("pints"), "topic 'pints' does not exist"),
            (lambda: cluster.producers("pints"), "topic 'pints' does not exist"),
            (lambda: cluster.create_topic(partitions=-1), "partitions=-1: must be a whole number from 1 to"),
            (lambda: cluster.create_topic(partitions=10**9), "partitions=1000000000: must be a whole number from 1 to"),
            (
                lambda: cluster.create_topic(replication_factor=0),
                "replication_factor=0: must be a whole number from 1 to",
            ),
            (lambda: cluster.create_topic(5), "name=5: a topic's name is a text"),  # type: ignore[arg-type]
            (lambda: cluster.kill(("orders",)), r"target \('orders',\) is not a pair"),  # type: ignore[arg-type]
            (lambda: cluster.kill([1, 2]), r"target \[1, 2\] is not a pair \(topic, partition\), a broker's id"),  # type: ignore[arg-type]
            (lambda: cluster.kill(("orders", "0")), r"target \('orders', '0'\) is not a pair"),  # type: ignore[arg-type]
            (lambda: cluster.pause(True), "target True is not"),
            (lambda: cluster.kill("leader"), "target 'leader' is not a broker's id, 'controller' or 'leader:<topic>"),
            (lambda: cluster.kill("leader:orders"), "target 'leader:orders' names no partition: 'leader:<topic>-<part"),
            (lambda: cluster.kill("leader:orders-7"), "topic 'orders' has no partition 7: it has 1"),
            (lambda: cluster.start("2"), "no broker 2 in this cluster"),
        ]
        for act, message in cases:
            with pytest.raises(ClusterError, match=message):
                act()
        assert cluster.running(1), "nothing was done to broker 1 where broker 9 was named beside it"
        assert cluster.producers(topic) == []
        cluster.pause("1")
        cluster.resume(1)
        cluster.kill("leader:orders-0")
        assert not cluster.running(1)
        cluster.start("1")
        assert cluster.running(1)
    with pytest.raises(ClusterError, match=f"{cluster.directory} is gone, so this cluster cannot start: its temporary"):
        cluster.up()


@asynchronous
async def test_a_synchronous_call_and_a_coroutine_act_on_one_cluster() -> None:
    cluster = LocalCluster(brokers=1)
    async with cluster.aio:
        topic = await cluster.aio.create_topic()
        assert cluster.topics() == [topic]  # called where a loop runs already
        cluster.kill(1)
        assert not cluster.aio.running(1)
        with pytest.raises(NotInTime, match=rf"a broker that runs leads {topic}-0|tells of topic '{topic}'"):
            await cluster.aio.leader(topic, timeout_s=0.2)
        with pytest.raises(NotInTime, match=r"not within 0.2 s: a broker tells of its topics \(broker 1 is down\)"):
            await cluster.aio.topics(timeout_s=0.2)
        await cluster.aio.start(1)
        assert await cluster.aio.leader(topic) == 1
    assert not cluster.any_running()


def test_both_classes_have_the_same_methods() -> None:
    def methods(cls: type[object]) -> dict[str, inspect.Signature]:
        own = {name: value for name, value in vars(cls).items() if inspect.isfunction(value) and name[0] != "_"}
        return {name: inspect.signature(value) for name, value in own.items()}

    with_loop, without = methods(AsyncLocalCluster), methods(LocalCluster)
    plain = {"terminate"}  # a part that others are made of
    assert set(with_loop) - plain == set(without)
    for name, signature in without.items():
        assert signature.parameters == with_loop[name].parameters, name
    for name in without:
        assert asyncio.iscoroutinefunction(vars(AsyncLocalCluster)[name]), name
    assert re.sub(r"\s+", " ", AsyncLocalCluster.create_topic.__doc__ or "") == re.sub(
        r"\s+", " ", LocalCluster.create_topic.__doc__ or ""
    )
