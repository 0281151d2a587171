"""The gauntlet, rows about producers: sequences, epochs, and what a client does when a broker refuses.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table. In all of these an application lost records, got them twice, or could not send any more, though nothing was wrong
with its cluster but one short failure.
"""

from __future__ import annotations

import asyncio

import pytest

from fencepost.errors import DeliveryTimeout
from fencepost_node.producers.producer_state_machine import PRODUCERS
from tests.gauntlet.story import Client, Story, tale

OUT_OF_ORDER = "OUT_OF_ORDER_SEQUENCE_NUMBER"


async def epoch_is_bumped(story: Story, client: Client) -> None:
    """Topic `alone` (one replica, on broker 4) loses B in a power failure, so that C, sent next, is out of order.

    Returns when C has been refused."""
    await story.create_topic("alone", [[4]], min_insync_replicas=1)
    await story.acked(await client.send("A", topic="alone"))
    story.write_back(4)
    await story.acked(await client.send("B", topic="alone"))
    await story.power_failure_of_a_lone_replica(4, "alone-0")
    assert story.values(4, "alone-0") == ["A"]
    await client.send("C", topic="alone")
    await story.answered("C")
    assert story.answers("C")[0] == f"broker-4: {OUT_OF_ORDER}"


@tale()
async def test_first_batches_reordered(story: Story) -> None:
    """apache/kafka PR 23234 (KAFKA-15591, KAFKA-14312, KAFKA-19880).

    Reported: a partition is being created. Batch A meets a broker that does not lead yet; B, on its way behind A, meets
    the same broker a moment later, which leads by now, has no state of the producer and takes B. A can never follow.

    Here: a producer without state begins at sequence 0. B is refused as A was (promise G14), A goes in, B after it.
    """
    client = await story.producer()

    def cut_off() -> None:
        story.separate(client.node, "broker-1")

    with story.slow_disk("broker-1", 1.0):
        story.when_asked("A", cut_off)  # what goes out behind A waits on the link
        await story.order_topic("orders", [[1, 2, 3]])
        a = await client.send("A")
        await story.asked("A", "broker-1")
        assert not story.leads(1), "its log is still being created"
        b = await client.send("B")
        await story.led(by=1)
        assert not story.questions("B")
    await story.answered("A")
    assert story.answers("A") == ["broker-1: NOT_LEADER_OR_FOLLOWER"]
    story.rejoin(client.node, "broker-1")
    await story.answered("B")
    assert len(story.questions("A")) == 1, "B has come to the new leader before A"
    assert story.answers("B") == ["broker-1: NOT_LEADER_OR_FOLLOWER"]
    await story.acked(a, b)
    assert story.stamps("A") | story.stamps("B") == {(client.identity[0], 0, 0), (client.identity[0], 0, 1)}
    assert await story.end() == {"orders-0": ["A", "B"]}


@tale()
async def test_refused_then_disordered(story: Story) -> None:
    """confluentinc/librdkafka issue 4953, seen from the broker.

    Reported: a batch is refused for a reason that passes. Its successors, on their way behind it, come when the reason has
    passed, and are told that they are out of order. The client takes a new epoch, and sends again under it what is stored.

    Here: the leadership has just moved to a broker whose log holds records, but none of this producer's. B is refused as A
    was, until A is back; the epoch stays.
    """
    other = await story.producer("other")
    client = await story.producer(bootstrap="broker-3:9092")
    await story.create_topic("orders", [[1, 2, 3]])
    await story.acked(await other.send("W"))
    story.cut("controller", "broker-2")  # elected, it will learn of it last
    story.kill("broker-1")
    await story.until(lambda: story.partition("orders-0").leader == 2, "broker 2 is elected")

    story.when_asked("A", lambda: story.separate(client.node, "broker-2"))
    a = await client.send("A")
    await story.answered("A")
    assert story.answers("A") == ["broker-2: UNKNOWN_LEADER_EPOCH"]
    assert not story.leads(2)
    b = await client.send("B")
    story.heal("controller", "broker-2")
    await story.led(by=2)
    story.rejoin(client.node, "broker-2")
    await story.answered("B")
    assert len(story.questions("A")) == 1, "B has come to the new leader before A"
    assert story.answers("B") == ["broker-2: UNKNOWN_LEADER_EPOCH"]
    await story.acked(a, b)
    assert story.stamps("A") | story.stamps("B") == {(client.identity[0], 0, 0), (client.identity[0], 0, 1)}
    assert await story.end() == {"orders-0": ["W", "A", "B"]}


@tale(brokers=4)
async def test_bump_duplicates_elsewhere(story: Story) -> None:
    """confluentinc/librdkafka issue 4953.

    Reported: an out-of-order answer on one partition makes the producer bump its epoch. On another partition a batch
    whose answer was lost is sent again under the new epoch; no broker can recognise it, and it is in the log twice.

    Here: partitions have epochs of their own. What may be in a log keeps its stamp.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    await story.acked(await client.send("W"))
    story.cut("broker-1", client.node)
    x = await client.send("X")
    await story.answered("X")
    await epoch_is_bumped(story, client)
    await story.acked(client.sent[-1])
    assert story.stamps("C") == {(client.identity[0], 0, 2), (client.identity[0], 1, 0)}, "the epoch was bumped"
    assert not x.settled

    await story.lose_answers("broker-1", client)
    await story.acked(x)
    assert story.answers("X") == ["broker-1: at 1", "broker-1: duplicate of 1"]
    await story.acked(await client.send("Y"))
    assert story.stamps("X") | story.stamps("Y") == {(client.identity[0], 0, 1), (client.identity[0], 0, 2)}
    assert await story.end() == {"alone-0": ["A", "C"], "orders-0": ["W", "X", "Y"]}


@tale(brokers=4)
async def test_migration_during_bump(story: Story) -> None:
    """thomhurst/Dekaf issue 3385.

    Reported: while the producer gets its next epoch, the leader of a partition moves. The batch that is rerouted to the
    new leader gets a fresh stamp, though the old leader had appended it: it is in the log twice.

    Here: a named producer (whose epoch is one for all partitions) asks for the next epoch only when no batch is left
    that may be in a log. The rerouted batch keeps its stamp, is recognised, and then the bump goes on.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(name="loader")
    producer_id, epoch = client.identity
    await story.acked(await client.send("W"))
    story.cut("broker-1", client.node)
    x = await client.send("X")
    await story.answered("X")
    await story.in_sync("orders-0")
    await epoch_is_bumped(story, client)
    await asyncio.sleep(0.5)
    c = client.sent[-1]
    assert (client.identity, c.settled, x.settled) == ((producer_id, epoch), False, False), "it is about to bump"

    await story.reset("broker-1", client.node)
    story.kill("broker-1")
    leader = await story.led(not_by=1)
    await story.acked(x, c)
    assert story.answers("X") == ["broker-1: at 1", f"broker-{leader}: duplicate of 1"]
    assert story.stamps("X") == {(producer_id, epoch, 1)}
    assert story.stamps("C") == {(producer_id, epoch, 2), (producer_id, epoch + 1, 0)}
    assert story.questions("X")[-1].at < story.questions("C")[-1].at
    assert client.identity == (producer_id, epoch + 1)
    assert await story.end() == {"alone-0": ["A", "C"], "orders-0": ["W", "X"]}


@pytest.mark.parametrize("name", ["", "loader"], ids=["anonymous", "named"])
@tale(brokers=4)
async def test_idle_partition_after_bump(story: Story, name: str) -> None:
    """apache/kafka PR 9832 (KAFKA-12152).

    Reported: the producer bumps its epoch. A partition that had nothing in flight then goes on with its old sequence
    under the new epoch, and everything that is sent to it is refused for ever.

    Here: an anonymous producer's partition goes on under its old epoch; a named one's begins at 0 of the next.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(name=name)
    producer_id, epoch = client.identity
    await story.acked(*[await client.send(value) for value in "PQR"])
    await epoch_is_bumped(story, client)
    await story.acked(client.sent[-1])
    assert (producer_id, epoch + 1, 0) in story.stamps("C")

    await story.acked(await client.send("S"), await client.send("T"))
    first = (producer_id, epoch + 1, 0) if name else (producer_id, epoch, 3)
    assert story.stamps("S") == {first}
    assert story.codes() == {OUT_OF_ORDER}, "that of C: no other batch was refused"
    assert await story.end() == {"alone-0": ["A", "C"], "orders-0": ["P", "Q", "R", "S", "T"]}


@pytest.mark.parametrize("outage", ["killed", "paused", "cut off"])
@tale(preferred_leader_interval_ms=1_000)
async def test_desync_after_rejoin(story: Story, outage: str) -> None:
    """confluentinc/confluent-kafka-python issue 1128, confluent-kafka-go issue 830, librdkafka issue 3584.

    Reported: a broker comes back after an outage and takes its leadership again; idempotent producers die of a fatal
    error, their sequences and the broker's being out of step.

    Here: what a broker knows of producers comes with the log that it copies, before it can lead.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    peers = ["controller", "broker-2", "broker-3"]
    await story.acked(*[await client.send(f"a{n:02}") for n in range(12)])
    if outage == "killed":
        story.kill("broker-1")
    elif outage == "paused":
        story.pause("broker-1")
    else:
        story.separate("broker-1", *peers)
    orphan = await client.send("orphan")  # to a leader that cannot commit it, or that is none any more
    await story.led(not_by=1)
    await story.acked(orphan, *[await client.send(f"b{n:02}") for n in range(12)])
    if outage == "cut off":
        assert "orphan" in story.values(1), "the cut-off leader has taken what it must give up"

    if outage == "killed":
        story.start("broker-1")
    elif outage == "paused":
        story.wake("broker-1")
    else:
        story.rejoin("broker-1", *peers)
    await story.led(by=1)
    assert story.partition("orders-0").leader_epoch >= 2, "the leadership has gone and come back"
    await story.acked(*[await client.send(f"c{n:02}") for n in range(12)])
    if outage == "cut off":
        assert story.traced("broker-1", "truncating", "orders")
    assert not any("SEQUENCE" in code or "PRODUCER" in code for code in story.codes())
    assert client.identity[1] == 0
    expected = [f"a{n:02}" for n in range(12)] + ["orphan"] + [f"{k}{n:02}" for k in "bc" for n in range(12)]
    assert await story.end() == {"orders-0": expected}


@tale()
async def test_stuck_until_restart(story: Story) -> None:
    """aio-libs/aiokafka issue 1017.

    Reported: during a short outage a batch runs out of time. Its sequence is used up and in no log, so every send that
    follows gets OutOfOrderSequenceNumber, until the process is started again.

    Here: a batch that was given up ends its epoch. One that was sent behind it meets the same error once, and is
    reported; what follows is accepted.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(delivery_timeout_ms=1_000)
    await story.acked(await client.send("W"))
    story.separate(client.node, "broker-1")
    a = await client.send("A")
    await asyncio.sleep(0.8)
    b = await client.send("B")
    await story.settled(a)
    assert isinstance(a.error, DeliveryTimeout)
    assert a.error.may_have_been_appended
    await story.reset(client.node, "broker-1")
    story.rejoin(client.node, "broker-1")
    await story.settled(b)
    assert story.answers("A") == []
    assert story.answers("B") == [f"broker-1: {OUT_OF_ORDER}"]
    assert b.error is not None
    assert b.error.may_have_been_appended, "its first sending was never answered: nothing else would be honest"

    for value in "CDE":
        await story.acked(await client.send(value))
        assert len(story.answers(value)) == 1, "accepted at once"
    assert await story.end() == {"orders-0": ["W", "C", "D", "E"]}


@tale(expiring=True, producer_expiration_ms=10_000)
async def test_idle_past_expiry(story: Story) -> None:
    """redpanda-data/redpanda issue 22670.

    Reported: a producer is idle for longer than brokers remember it. Its next batch is refused as out of order, and the
    application gets the error.

    Here: the answer says that the producer is unknown. The batch is certainly in no log, so it begins the next epoch,
    and the application notices nothing.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    await story.acked(await client.send("A"), await client.send("B"))
    logs = [story.replica(broker_id, "orders-0").log for broker_id in (1, 2, 3)]
    assert [len(log.states[PRODUCERS]) for log in logs] == [1, 1, 1]
    await story.until(lambda: not any(len(log.states[PRODUCERS]) for log in logs), "every replica has forgotten it")

    c = await client.send("C")
    await story.acked(c)
    assert story.answers("C") == ["broker-1: UNKNOWN_PRODUCER_ID", "broker-1: at 2"]
    await story.acked(await client.send("D"))
    assert story.answers("D") == ["broker-1: at 3"]
    assert await story.end() == {"orders-0": ["A", "B", "C", "D"]}
