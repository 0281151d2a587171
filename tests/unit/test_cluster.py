"""The client's view of its cluster, against brokers in this process that die, fall silent and disagree."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fencepost import cluster as cluster_module
from fencepost import metadata_watch
from fencepost.cluster import LEADER_BACKOFF, MAX_CHANNELS, ClusterClient, parse_bootstrap
from fencepost_proto.protocol.errors import (
    CurrentLeader,
    InvalidConfig,
    NetworkException,
    NotLeaderOrFollower,
    OffsetNotAvailable,
    OffsetOutOfRange,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_broker_read import FakeCluster, fake_cluster

NOBODY = "127.0.0.1:1"


@asynccontextmanager
async def client_of(fake: FakeCluster, bootstrap: list[str] | None = None) -> AsyncIterator[ClusterClient]:
    client = ClusterClient(bootstrap or fake.bootstrap, Host())
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("bad", [None, 9092, [9092], b"a:1"])
def test_a_bootstrap_that_is_no_text_is_named(bad: object) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(f"bootstrap={bad!r}")):
        parse_bootstrap(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", " , ", "localhost", "localhost:", ":9092", "localhost:http", "localhost:70000"])
def test_a_bootstrap_that_is_not_host_and_port_is_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidConfig, match="bootstrap"):
        parse_bootstrap(bad)


def test_bootstrap_may_be_a_list_or_one_string_and_repeats_are_dropped() -> None:
    assert parse_bootstrap("a:1, b:2,a:1") == parse_bootstrap(["a:1", "b:2"]) == ["a:1", "b:2"]


@asynchronous
async def test_start_returns_with_the_whole_image_though_only_one_bootstrap_address_answers() -> None:
    async with fake_cluster() as fake:
        topic_id = fake.add_topic("orders", 3)
        async with client_of(fake, [NOBODY, fake.bootstrap[1]]) as client:
            assert client.image == fake.image
            assert (await client.topic("orders")).topic_id == topic_id
            for index in range(3):
                expected = fake.image.current_leader(fake.image.partitions[topic_id, index])
                assert client.leader((topic_id, index)) == expected


@asynchronous
async def test_start_names_the_addresses_where_no_broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "START_TIMEOUT_S", 0.3)
    client = ClusterClient(NOBODY, Host())
    with pytest.raises(NetworkException, match=NOBODY):
        await client.start()


@asynchronous
async def test_a_change_reaches_the_image_and_the_listeners_in_version_order() -> None:
    async with fake_cluster() as fake, client_of(fake) as client:
        seen: list[int] = []
        client.add_listener(lambda image: seen.append(image.version))
        topic_id = fake.add_topic("orders")
        for leader in (2, 3, 1, 2):
            fake.elect((topic_id, 0), leader)
            await until(lambda: client.image.version == fake.image.version, "the newest metadata")
        assert client.image == fake.image
        assert seen == sorted(set(seen))
        assert seen[-1] == fake.image.version


@asynchronous
async def test_when_a_watched_broker_dies_the_new_leader_is_known_at_once() -> None:
    async with fake_cluster() as fake, client_of(fake) as client:
        topic_id = fake.add_topic("orders")
        await until(lambda: client.leader((topic_id, 0)), "a leader")
        await until(lambda: sum(broker.watchers for broker in fake.brokers.values()) == 2, "two watches")
        victim = next(broker for broker in fake.brokers.values() if broker.watchers)
        fake.elect((topic_id, 0), victim.id)
        await victim.kill()
        fake.fence(victim.id)
        loop = asyncio.get_running_loop()
        before = loop.time()
        await until(lambda: client.image.version == fake.image.version, "the newest metadata")
        assert loop.time() - before < 0.5  # not a matter of timeouts
        leader = client.leader((topic_id, 0))
        assert leader is not None
        assert leader.leader_id not in (-1, victim.id)
        await until(lambda: sum(b.watchers for b in fake.brokers.values() if b is not victim) == 2, "two watches")


@asynchronous
async def test_a_silent_broker_delays_no_news_and_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_watch, "SILENCE_S", 0.4)
    async with fake_cluster() as fake, client_of(fake) as client:
        await until(lambda: sum(broker.watchers for broker in fake.brokers.values()) == 2, "two watches")
        silent = next(broker for broker in fake.brokers.values() if broker.watchers)
        silent.pause()
        topic_id = fake.add_topic("orders")
        await until(lambda: client.leader((topic_id, 0)), "a leader")
        await until(lambda: silent.watchers == 0, "the silent broker's watch to end")
        others = [broker for broker in fake.brokers.values() if broker is not silent]
        await until(lambda: all(broker.watchers for broker in others), "the watches of the others")


@asynchronous
async def test_a_stale_broker_never_takes_the_image_back_and_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_watch, "SILENCE_S", 0.4)
    async with fake_cluster() as fake, client_of(fake) as client:
        await until(lambda: sum(broker.watchers for broker in fake.brokers.values()) == 2, "two watches")
        stale = next(broker for broker in fake.brokers.values() if broker.watchers)
        fake.stale.add(stale.id)
        versions: list[int] = []
        client.add_listener(lambda image: versions.append(image.version))
        fake.add_topic("orders")
        await until(lambda: client.image.version == fake.image.version, "the newest metadata")
        others = [broker for broker in fake.brokers.values() if broker is not stale]
        await until(lambda: all(broker.watchers for broker in others), "the watch to leave the stale broker")
        assert client.image == fake.image
        assert versions == sorted(versions)


@asynchronous
async def test_a_broker_of_another_cluster_is_refused() -> None:
    async with fake_cluster(1) as fake, fake_cluster(1, "cluster-b") as foreign:
        for _ in range(5):
            foreign.add_topic("theirs")
        async with client_of(fake) as client:
            client._order.append(foreign.bootstrap[0])
            await until(
                lambda: "cluster-b" in client._watch.failure(foreign.bootstrap[0]),
                "its refusal",
            )
            assert client.image.cluster_id == "cluster-a"
            assert "theirs" not in client.image.topic_ids
            assert fake.brokers[1].watchers == 1


@asynchronous
async def test_a_topic_just_created_is_waited_for_and_one_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_cluster(1) as fake, client_of(fake) as client:
        waiting = asyncio.create_task(client.topic("soon"))
        await asyncio.sleep(0)
        fake.add_topic("soon")
        assert (await waiting).name == "soon"
        monkeypatch.setattr(cluster_module, "TOPIC_WAIT_S", 0.05)
        with pytest.raises(UnknownTopicOrPartition, match="never"):
            await client.topic("never")


@asynchronous
async def test_a_hint_counts_until_the_image_has_caught_up_and_an_older_one_never() -> None:
    async with fake_cluster() as fake, client_of(fake) as client:
        topic_id = fake.add_topic("orders")
        key = (topic_id, 0)
        known = await until(lambda: client.leader(key), "a leader")
        client.learn(key, CurrentLeader(3, known.leader_epoch, "same:1"))
        assert client.leader(key) == known
        newer = CurrentLeader(3, known.leader_epoch + 1, "newer:1")
        client.learn(key, newer)
        client.learn(key, known)
        assert client.leader(key) == newer
        fake.elect(key, 2)
        await until(lambda: client.image.version == fake.image.version, "the newest metadata")
        assert client.leader(key) == CurrentLeader(2, known.leader_epoch + 1, fake.brokers[2].address)
        client.learn(("no such topic", 0), newer)
        assert client.leader(("no such topic", 0)) is None


@asynchronous
async def test_a_call_without_address_goes_on_to_another_broker_where_one_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata_watch, "QUIET_S", 0.3)
    async with fake_cluster() as fake, client_of(fake) as client:
        await until(lambda: sum(broker.watchers for broker in fake.brokers.values()) == 2, "two watches")
        first = next(broker for broker in fake.brokers.values() if broker.address == client.addresses()[0])
        first.pause()  # its watch stays; the call must not wait for it for ever
        request = broker_pb2.MetadataRequest()
        answer = await client.call_broker(lambda broker: broker.Metadata, request, timeout_s=1.0)
        assert answer.answering_broker_id != first.id
        await until(lambda: client.addresses()[-1] == first.address, "the silent broker to be asked last")
        with pytest.raises(NetworkException, match=NOBODY):
            await client.call_broker(lambda broker: broker.Metadata, request, address=NOBODY, timeout_s=1.0)


@asynchronous
async def test_a_call_to_the_leader_follows_it_by_hint_and_by_news_and_stops_at_a_definite_refusal() -> None:
    async with fake_cluster() as fake, client_of(fake) as client:
        topic_id = fake.add_topic("orders")
        key = (topic_id, 0)
        await until(lambda: client.leader(key), "a leader")

        def request(leader: CurrentLeader) -> broker_pb2.ListOffsetsRequest:
            return broker_pb2.ListOffsetsRequest(
                topic_id=topic_id, partition=0, leader_epoch=leader.leader_epoch, timestamp_ms=-1
            )

        async def ask(timeout_s: float) -> broker_pb2.ListOffsetsResponse:
            return await client.call_leader(key, lambda broker: broker.ListOffsets, request, timeout_s=timeout_s)

        assert (await ask(5)).offset == 0
        fake.elect(key, -1)
        await until(lambda: client.image.version == fake.image.version, "the newest metadata")
        with pytest.raises(Exception, match="no leader"):
            await ask(0.1)
        waiting = asyncio.create_task(ask(5))
        await asyncio.sleep(0)
        fake.elect(key, 2)
        assert (await waiting).offset == 0
        # A refusal that carries the next leader, before the image tells of it.
        epoch = fake.image.partitions[key].leader_epoch
        hint = CurrentLeader(3, epoch + 1, fake.brokers[3].address)
        fake.brokers[2].refuse[key] = NotLeaderOrFollower("gone", current_leader=hint)
        waiting = asyncio.create_task(ask(5))
        await until(lambda: client.leader(key) == hint, "the leader of the hint")
        fake.elect(key, 3)
        assert (await waiting).offset == 0
        fake.brokers[3].refuse[key] = OffsetOutOfRange("permanently")
        with pytest.raises(OffsetOutOfRange):
            await ask(5)
        with pytest.raises(UnknownTopicOrPartition):
            await client.call_leader(("none", 0), lambda broker: broker.ListOffsets, request, timeout_s=1)


@asynchronous
async def test_a_leader_that_refuses_again_and_again_is_asked_with_growing_pauses() -> None:
    async with fake_cluster() as fake, client_of(fake) as client:
        key = (fake.add_topic("orders"), 0)
        leader = await until(lambda: client.leader(key), "a leader")
        fake.brokers[leader.leader_id].refuse[key] = OffsetNotAvailable("not yet")
        asked: list[float] = []

        def request(leader: CurrentLeader) -> broker_pb2.ListOffsetsRequest:
            asked.append(asyncio.get_running_loop().time())
            return broker_pb2.ListOffsetsRequest(topic_id=key[0], leader_epoch=leader.leader_epoch, timestamp_ms=-1)

        with pytest.raises(OffsetNotAvailable):
            await client.call_leader(key, lambda broker: broker.ListOffsets, request, timeout_s=1)
        pauses = [after - before for before, after in itertools.pairwise(asked)]
        assert 2 <= len(pauses) <= 5
        assert all(pause >= LEADER_BACKOFF.pause_s(number) * 0.9 for number, pause in enumerate(pauses[:-1], 1))


@asynchronous
async def test_channels_are_kept_and_their_number_is_bounded() -> None:
    async with fake_cluster(1) as fake, client_of(fake) as client:
        kept = client.channel(fake.bootstrap[0])
        for port in range(10_000, 10_000 + 2 * MAX_CHANNELS):
            client.channel(f"127.0.0.1:{port}")
        assert client.channel(fake.bootstrap[0]) is kept
        assert len(client._channels) <= MAX_CHANNELS
        answer = await client.call_broker(lambda broker: broker.Metadata, broker_pb2.MetadataRequest(), timeout_s=5)
        assert answer.answering_broker_id == 1


@asynchronous
async def test_close_ends_every_task_and_may_be_called_twice() -> None:
    async with fake_cluster() as fake:
        client = ClusterClient(fake.bootstrap, Host())
        await client.start()
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("watch-")]
        assert len(tasks) == 2
        await client.close()
        await client.close()
        assert all(task.done() for task in tasks)
