"""The gauntlet, about names and ids: who gets an identity, and what an old one may still do."""

from __future__ import annotations

import asyncio
from typing import Any

from fencepost.producer import Producer
from fencepost.producing.resume import Resumed
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, ProducerFenced
from fencepost_proto.protocol.metadata import NO_LEADER
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, controller_pb2
from fencepost_proto.runtime.host import Host
from tests.gauntlet.story import Client, Story, tale
from tests.simulation.cluster import CONTROLLER, broker_address
from tests.simulation.disk import MountedDisk

SOON_S = 1.0  # far below a session timeout
BROKERS = ("broker-1", "broker-2")


@tale()
async def test_unrelated_partition_blocks_names(story: Story) -> None:
    """confluentinc/librdkafka issue 3041.

    Reported: one broker is down, and with it the only replica of a partition to which no one writes. No transactional
    producer of the whole cluster can start.

    Here: a partition without a leader holds nothing back. The old instance is fenced where there are leaders.
    """
    await story.create_topic("orders", [[1, 2]])
    await story.create_topic("scratch", [[3]])
    old = await story.producer("old", name="loader")
    await story.acked(await old.send("A"))
    await without_broker_3(story, lambda: story.kill("broker-3"))

    asked_at = story.world.now
    new = await story.producer("new", name="loader")
    assert story.world.now - asked_at < SOON_S
    assert new.identity == (old.identity[0], old.identity[1] + 1)
    b = await old.send("B")
    await story.settled(b)
    assert isinstance(b.error, ProducerFenced)
    await story.acked(await new.send("C"))
    assert await story.end() == {"orders-0": ["A", "C"], "scratch-0": []}


@tale()
async def test_unrelated_partition_blocks_names_and_what_its_last_leader_still_takes_comes_first(story: Story) -> None:
    """The same, and the partition's last leader lives: cut off from the cluster, it does not know that it leads no more.

    What it takes from the old instance meanwhile stays: it comes before all that the new one does there. Until it has heard
    of the fence the new instance gets no answer of it; then what it tells is final.
    """
    await story.create_topic("scratch", [[3]])
    old = await story.producer("old", name="loader")
    await story.acked(await old.send("A", topic="scratch"))
    story.separate("old", *BROKERS)  # so it does not hear that the partition has no leader
    await without_broker_3(story, lambda: story.separate("broker-3", CONTROLLER, *BROKERS))

    new = await story.producer("new", name="loader")
    b = await old.send("B", topic="scratch")
    await story.acked(b)
    assert story.answers("B") == ["broker-3: at 1"], "taken by a leader that was deposed and does not know it"
    assert await asked_of_broker_3(story, new) == "COORDINATOR_NOT_AVAILABLE"
    resuming = resume(story, new)
    await asyncio.sleep(1)
    assert not resuming.done()

    story.rejoin("broker-3", CONTROLLER, *BROKERS)
    await story.until(resuming.done, "the new instance has resumed")
    c = await new.send("C", topic="scratch")  # not before: the resumption would tell of this one
    d = await old.send("D", topic="scratch")
    await story.settled(c, d)
    told = await resuming
    assert told is not None
    assert (told.last_offset, c.offset) == (1, 2)
    assert isinstance(d.error, ProducerFenced)
    assert await story.end() == {"scratch-0": ["A", "B", "C"]}


@tale()
async def test_unrelated_partition_blocks_names_while_its_leader_is_paused(story: Story) -> None:
    """The partition goes offline between the commit of the fence and its answer: its leader is paused, and awakes later,
    with a batch of the old instance in its sockets. That one is taken, before the leader hears anything."""
    await story.create_topic("scratch", [[3]])
    old = await story.producer("old", name="loader")
    await story.acked(await old.send("A", topic="scratch"))
    story.pause("broker-3")
    b = await old.send("B", topic="scratch")
    new = await story.producer("new", name="loader")
    assert story.partition("scratch-0").leader == NO_LEADER, "the answer waited until the leader was declared dead"
    story.cut(CONTROLLER, "broker-3")
    story.wake("broker-3")
    await story.acked(b)
    resuming = resume(story, new)
    await asyncio.sleep(0.5)
    assert not resuming.done()
    story.heal(CONTROLLER, "broker-3")
    await story.until(resuming.done, "the new instance has resumed")
    told = await resuming
    assert told is not None
    assert told.last_offset == b.offset == 1
    await story.acked(await new.send("C", topic="scratch"))
    assert await story.end() == {"scratch-0": ["A", "B", "C"]}


@tale()
async def test_unrelated_partition_blocks_names_while_the_controller_starts_again(story: Story) -> None:
    """The controller is killed between the commit of the fence and the answer, while a broker has not heard of it. The
    instance that asks again is answered when that broker has applied the fence or is declared dead, and not before."""
    await story.create_topic("orders", [[1, 2]])
    await story.create_topic("scratch", [[3]])
    old = await story.producer("old", name="loader")
    await story.acked(await old.send("A"))
    await without_broker_3(story, lambda: story.kill("broker-3"))
    story.cut(CONTROLLER, "broker-1")  # it leads orders-0, and hears of nothing
    starting = asyncio.ensure_future(story.producer("new", name="loader"))
    await story.until(lambda: story.judge.image.producers["loader"].epoch == 1, "the epoch is committed")
    story.kill(CONTROLLER)
    b = await old.send("B")
    await story.acked(b)
    story.start(CONTROLLER)
    await asyncio.sleep(SOON_S)
    assert not starting.done(), "broker 1 has not applied the fence, and may be alive"
    new = await starting
    assert new.identity[1] >= 2
    assert story.partition("orders-0").leader == 2
    c = await old.send("C")
    await story.acked(await new.send("D"))
    story.heal(CONTROLLER, "broker-1")
    await story.settled(c)
    assert c.error is not None
    assert await story.end() == {"orders-0": ["A", "B", "D"], "scratch-0": []}


@tale(max_producer_names=2, producer_name_expiration_ms=10_000)
async def test_names_used_up(story: Story) -> None:
    """streamnative/kop issue 896, redpanda-data/redpanda issue 12424.

    Reported: names are never forgotten. Applications that take a new one at each start reach the bound, and from then on
    none starts.

    Here: names that are not used expire, an operator sees and removes them; a running producer keeps its own though it sends
    nothing. Whoever comes back after its name has expired is fenced, whoever has the name now.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    kept = await story.producer("kept", name="kept")
    lost = await story.producer("lost", name="lost")
    await story.acked(await kept.send("A"))
    await story.acked(await lost.send("B"))
    refusal = await refused(story, "third")
    assert isinstance(refusal, InvalidRequest)
    assert "2 names" in str(refusal)

    story.pause("lost")
    await story.until(lambda: "lost" not in story.judge.image.producers, "a name has expired")
    assert "kept" in story.judge.image.producers
    third = await story.producer("third", name="third")
    story.wake("lost")
    c = await lost.send("C")
    await story.acked(await third.send("D"))
    await story.settled(c)
    assert isinstance(c.error, ProducerFenced)

    assert isinstance(await refused(story, "fourth"), InvalidRequest)
    await story.order("RemoveProducerName", controller_pb2.RemoveProducerNameRequest(name="third"))
    await story.producer("fourth", name="fourth")
    e = await third.send("E")
    await story.settled(e)
    assert isinstance(e.error, ProducerFenced)
    asked_at = story.world.now
    assert third.producer is not None
    try:
        await third.producer.resume("orders", 0)
    except ProducerFenced:
        assert story.world.now - asked_at < SOON_S, "no broker will ever know that id again"
    else:
        raise AssertionError("what a forgotten id wrote may be forgotten")
    await story.acked(await kept.send("F"))
    assert await story.end() == {"orders-0": ["A", "B", "D", "F"]}


@tale()
async def test_ids_need_the_controller(story: Story) -> None:
    """KAFKA-12620, thomhurst/Dekaf issue 2994.

    Reported: while the controller is away new idempotent producers start or not, as it happens: the broker that is asked may
    never have fetched ids, or have used them up, and no other is asked.

    Here: every broker has fetched ids before anyone asks, and a producer asks the next broker where one has none.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    has_ids = [broker._ids for broker in story.cluster.brokers.values()]
    await story.until(lambda: all(ids._current or ids._next_block for ids in has_ids), "every broker has ids")
    story.kill(CONTROLLER)
    names = [f"P{number}" for number in range(4)]
    for number, name in enumerate(names):
        asked_at = story.world.now
        client = await story.producer(f"producer-{number}")
        assert story.world.now - asked_at < SOON_S
        await story.acked(await client.send(name))
    for broker_id in (1, 2):
        ids = story.cluster.brokers[broker_id]._ids
        ids._current = ids._next_block = range(0)
    for number in (4, 5, 6):
        client = await story.producer(f"producer-{number}")
        await story.acked(await client.send(f"P{number}"))
    assert len({client.identity[0] for client in story.clients}) == 7
    assert await story.end() == {"orders-0": [f"P{number}" for number in range(7)]}


# ---- What these tales share ----


async def without_broker_3(story: Story, gone: Any) -> None:
    """Broker 3 goes in this way, and is declared dead: its partitions have no leader."""
    gone()
    await story.until(lambda: story.judge.image.brokers[3].fenced, "broker 3 is declared dead")
    assert story.partition("scratch-0").leader == NO_LEADER


def resume(story: Story, client: Client) -> asyncio.Future[Resumed | None]:
    assert client.producer is not None
    assert client._process is not None
    return client._process.spawn(client.producer.resume("scratch", 0))


async def refused(story: Story, name: str) -> FencepostError:
    """The error with which a producer of that name does not start."""
    errors: list[FencepostError] = []

    async def main(host: Host, disk: MountedDisk) -> None:
        try:
            await Producer(story.cluster.bootstrap, host=host, name=name).start()
        except FencepostError as error:
            errors.append(error)

    process = story.world.start(f"{name} in vain", main)
    await story.until(lambda: not process.alive, f"{name} is refused")
    return errors[0]


async def asked_of_broker_3(story: Story, client: Client) -> str:
    """What broker 3 answers to someone who wants to know of the predecessors of this producer, definitely."""
    answers: list[str] = []
    producer_id, epoch = client.identity
    request = broker_pb2.DescribeProducersRequest(
        topic_id=story.topic("scratch").topic_id, producer_id=producer_id, commit_timeout_ms=1_000, producer_epoch=epoch
    )

    async def main(host: Host, disk: MountedDisk) -> None:
        stub = broker_pb2_grpc.BrokerStub(host.wire.connect(broker_address(3)))
        answer = await stub.DescribeProducers(request, timeout=5)
        answers.append(answer.error.message and broker_error(answer))

    process = story.world.start("asker", main)
    await story.until(lambda: not process.alive, "broker 3 has answered")
    return answers[0]


def broker_error(answer: broker_pb2.DescribeProducersResponse) -> str:
    from fencepost_proto.protocol.errors import ErrorCode

    return ErrorCode(answer.error.code).name
