"""The gauntlet, rows about acknowledged records: killed, cut off, paused, moved, without power, they stay.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table. In all of these an application was told that its record is safe, and then it was gone.
"""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

import pytest

from fencepost_node.producers.producer_state_machine import PRODUCERS
from tests.gauntlet.story import Client, Story, tale
from tests.simulation.cluster import broker_node

BROKERS = ("broker-1", "broker-2", "broker-3")


@tale()
async def test_killed_leader_loses(story: Story) -> None:
    """nats-io/nats-server issue 3402.

    Reported: the leader of a stream is killed with kill -9, and messages that it had acknowledged are gone.

    Here: the leader is killed in the middle of its first, second, third … operation on its disk, while records flow.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    client = await story.producer()
    names = (f"r{number}" for number in itertools.count())
    for moment in range(1, 16):
        leader = await story.led()
        machine = story.world.machine(broker_node(leader))
        machine.disk.on_crash = partial(story.kill, machine.name)
        machine.disk.crash_at_operation = machine.disk.operations + moment
        killed = machine.process
        assert killed is not None
        while killed.alive:
            await client.send(next(names))
            await asyncio.sleep(0.001)
        await story.acked(*client.sent)
        assert await story.led(not_by=leader) != leader
        story.start(machine.name)
        await story.in_sync()
    assert story.partition("orders-0").leader_epoch >= 15
    assert await story.end() == {"orders-0": [sent.value for sent in client.sent]}


@tale()
async def test_crashes_forget_stream(story: Story) -> None:
    """nats-io/nats-server issue 6888.

    Reported: after a few kill -9 the cluster has forgotten that the stream exists.

    Here: every process is killed, in every order that there is, a moment after each other; so are topics that were
    created the moment before. Every topic, every record and all that is known of producers is there afterwards.
    """
    anonymous, named = await story.producer("anonymous"), await story.producer("named", name="loader")
    topics = []
    for number, order in enumerate(itertools.permutations(("controller", *BROKERS))):
        if number % 4 == 0:
            topics.append(f"topic{number}")
            await story.all_live()
            await story.order_topic(topics[-1], [[1, 2, 3]], min_insync_replicas=2)
        sent = [await client.send(f"{client.node}{number}", topic=topics[-1]) for client in story.clients]
        if number % 2:
            await story.acked(*sent)
        for node in order:
            story.kill(node)
            await asyncio.sleep(0.003 * (number % 5))
        for node in order[number % 4 :] + order[: number % 4]:
            story.start(node)
        await story.acked(*sent)
    assert [topic.name for topic in story.judge.image.topics.values()] == topics
    logs = await story.end()
    everything = [value for log in logs.values() for value in log]
    assert sorted(everything) == sorted(sent.value for client in (anonymous, named) for sent in client.sent)
    for topic in topics:
        for broker_id in (1, 2, 3):
            known = story.replica(broker_id, f"{topic}-0").log.states[PRODUCERS]
            assert set(known.ids()) == {anonymous.identity[0], named.identity[0]}


@tale(brokers=5)
async def test_partition_kill_remove(story: Story) -> None:
    """nats-io/nats-server issue 7545.

    Reported: one node is cut off, others are killed, one is removed from the group; acknowledged records are lost.

    Here: the same, under load: broker 3 is cut off, broker 1 (the leader) killed, both are taken out of the partition
    and 4 and 5 put in, and then the only one that had everything, broker 2, is killed.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()

    async def load(prefix: str) -> None:
        await story.acked(*[await client.send(f"{prefix}{number}") for number in range(8)])

    await load("whole")
    story.separate("broker-3", *[node for node in story.others("broker-3") if node != client.node])
    await story.in_sync("orders-0", 1, 2)
    await load("cut")
    story.kill("broker-1")
    await story.led(by=2)
    await story.in_sync("orders-0", 2)
    await load("killed")
    assert len(story.log(3).batches) < len(story.log(1).batches) < len(story.log(2).batches)
    await story.reassign("orders", 0, [4, 5])
    await load("moving")
    story.rejoin("broker-3", *[node for node in story.others("broker-3") if node != client.node])
    story.start("broker-1")
    await story.until(lambda: story.partition("orders-0").replicas == (4, 5), "4 and 5 have taken over")
    story.kill("broker-2")
    await load("moved")
    logs = await story.end()
    assert logs == {"orders-0": [sent.value for sent in client.sent]}


async def one_lags_and_one_loses_its_tail(story: Story) -> Client:
    """Broker 1 leads and holds A, B, C, all acknowledged. Broker 3 is cut off and has only A; the machine of broker 2, the
    other one in sync, has lost its power, and C with it."""
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    client = await story.producer()
    await story.acked(await client.send("A"))
    story.separate("broker-3", *story.others("broker-3"))
    await story.in_sync("orders-0", 1, 2)
    await story.acked(await client.send("B"))
    story.write_back(2)
    await story.acked(await client.send("C"))
    assert [story.values(n) for n in (1, 2, 3)] == [["A", "B", "C"], ["A", "B", "C"], ["A"]]
    story.power_failure(2)
    assert story.values(2) == ["A", "B"], "its tail is gone"
    return client


@tale()
async def test_power_failure_split_brain(story: Story) -> None:
    """nats-io/nats-server issue 7567.

    Reported: a node comes back from a power failure without its unsynced tail, and with another node that lags behind
    it forms a majority and elects a leader: acknowledged records are gone.

    Here: broker 3 lags behind, broker 2 loses its tail, broker 1 dies. Two of three live, and neither is elected: 2 has
    left the in-sync set as it came back. With 1 everything comes back.
    """
    client = await one_lags_and_one_loses_its_tail(story)
    story.separate("broker-2", "broker-1")  # it shall not catch up
    story.start("broker-2")
    await story.in_sync("orders-0", 1)
    story.kill("broker-1")
    story.rejoin("broker-3", *story.others("broker-3"))
    await story.until(lambda: story.partition("orders-0").leader < 0, "no one leads")
    elections = story.partition("orders-0").leader_epoch
    d = await client.send("D")
    await asyncio.sleep(30)
    live = {broker.id for broker in story.judge.image.brokers.values() if not broker.fenced}
    assert live == {2, 3}, "a majority"
    assert (story.partition("orders-0").leader, story.partition("orders-0").leader_epoch) == (-1, elections)
    assert not d.settled

    story.rejoin("broker-2", "broker-1")
    story.start("broker-1")
    await story.led(by=1)
    await story.acked(d)
    assert await story.end() == {"orders-0": ["A", "B", "C", "D"]}


@tale()
async def test_power_failure_split_brain_where_the_leader_dies_first(story: Story) -> None:
    """As above, but broker 1 is dead before anyone has noticed that broker 2 is, too: so 2 is elected while its machine is
    dark. It comes back without the tail, leads nothing, and leaves the in-sync set as its last member.

    Broker 1 has left the in-sync set with everything, and no one has committed anything since: it is eligible (KIP-966), and
    leads once it is back, without an operator.
    """
    client = await one_lags_and_one_loses_its_tail(story)
    story.kill("broker-1")
    await story.until(lambda: story.partition("orders-0").leader == 2, "broker 2 is elected in the dark")
    story.rejoin("broker-3", *story.others("broker-3"))
    story.start("broker-2")
    await story.until(lambda: not story.partition("orders-0").isr, "no one is in sync")
    assert (story.partition("orders-0").eligible, story.partition("orders-0").last_known_isr) == ((1,), (2,))
    d = await client.send("D")
    await asyncio.sleep(30)
    assert {broker.id for broker in story.judge.image.brokers.values() if not broker.fenced} == {2, 3}
    assert (story.partition("orders-0").leader, d.settled) == (-1, False), "two of three are live, and lack B or C"
    assert not story.traced("broker-2#2", "became leader"), "it has never led without its tail"
    assert not story.traced("controller", "error", "partition needs an unclean election")
    story.start("broker-1")
    await story.led(by=1)
    await story.acked(d)
    assert await story.end() == {"orders-0": ["A", "B", "C", "D"]}


@tale()
async def test_lost_tail_last_replica(story: Story) -> None:
    """KIP-966, "last replica standing".

    Reported: replicas drop out of the in-sync set one by one; the last one goes down too, in a power failure, comes back
    with a shorter log than it had acknowledged, and is elected at once: the loss is silent.

    Here: it is not elected, and neither is anyone else. The controller says so, and names who is left; an operator
    looks at the logs and elects the longest.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()
    await story.acked(await client.send("A"))
    await story.in_sync()
    story.kill("broker-2", "broker-3")
    await story.in_sync("orders-0", 1)
    b = await client.send("B")
    await story.acked(b)
    story.power_failure(1)
    story.lossy["orders-0"] = None
    assert [story.values(n) for n in (1, 2, 3)] == [[], ["A"], ["A"]], "the last one has lost most"

    story.start(*BROKERS)
    await story.until(lambda: not story.partition("orders-0").isr, "no one is in sync")
    assert story.partition("orders-0").last_known_isr == (1,)
    await asyncio.sleep(30)
    assert {broker.id for broker in story.judge.image.brokers.values() if not broker.fenced} == {1, 2, 3}
    assert story.partition("orders-0").leader == -1, "all live, and still no one is elected"
    assert story.traced("controller", "error", "partition needs an unclean election", "last_known_isr=[1]")
    ends = {n: story.replica(n, "orders-0").log.log_end_offset for n in (1, 2, 3)}
    assert ends == {1: 0, 2: 1, 3: 1}
    await story.elect("orders-0", 2)
    await story.acked(await client.send("C"))
    log = (await story.end())["orders-0"]
    assert log == ["A", "C"], "A would have been lost, had the last one been elected silently"


@tale()
async def test_the_last_replicas_machine_goes_down_and_one_that_left_before_it_leads(story: Story) -> None:
    """As above, with `min.insync.replicas` 2: what the last one in sync alone holds was never committed, so whoever left
    before it with everything may lead in its place. Even where the last one's log was removed, not only cut."""
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    client = await story.producer()
    await story.acked(await client.send("A"))
    await story.in_sync()
    story.kill("broker-2")
    await story.in_sync("orders-0", 1, 3)
    await story.acked(await client.send("B"))
    story.kill("broker-3")
    await story.in_sync("orders-0", 1)
    c = await client.send("C")
    await asyncio.sleep(5)
    assert not c.settled
    story.kill("broker-1")
    story.world.machine("broker-1").disk.folder("/data").put({"orders-0": None})
    story.judge.put_back(1)
    story.start("broker-1", "broker-2")
    await story.until(lambda: not story.partition("orders-0").isr, "the last one in sync has told that its log is gone")
    await asyncio.sleep(30)
    assert (story.partition("orders-0").leader, story.partition("orders-0").eligible) == (-1, (3,))
    story.start("broker-3")
    await story.led(by=3)
    await story.acked(c)
    assert await story.end() == {"orders-0": ["A", "B", "C"]}


@tale()
async def test_lost_tail_last_replica_of_a_topic_that_syncs(story: Story) -> None:
    """As above, where the topic acknowledges only what is on the disk: nothing is lost, so the last one leads again."""
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1, flush_always=True)
    client = await story.producer()
    await story.acked(await client.send("A"))
    story.kill("broker-2", "broker-3")
    await story.in_sync("orders-0", 1)
    await story.acked(await client.send("B"))
    story.power_failure(1)
    assert story.values(1) == ["A", "B"]
    story.start("broker-2", "broker-3")
    await asyncio.sleep(10)
    assert story.partition("orders-0").leader == -1, "they do not have B"
    story.start("broker-1")
    await story.led(by=1)
    assert await story.end() == {"orders-0": ["A", "B"]}


@pytest.mark.parametrize("hears", ["at once", "late"])
@tale()
async def test_paused_leader_wakes(story: Story, hears: str) -> None:
    """Jepsen's analyses of Redpanda and of NATS (process pauses).

    Reported: a leader is paused for longer than the cluster waits for it. It wakes up, still believes that it leads,
    and acknowledges writes that the new leader does not have.

    Here: it appends them, since it cannot know better, and cannot commit them: its followers follow another. They are
    never acknowledged by it, and are cut when it hears of the election.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()
    stale = await story.producer("stale", bootstrap="broker-1:9092")
    await story.acked(await client.send("A"))
    await story.acked(await stale.send("B"))
    story.separate(stale.node, "broker-2", "broker-3")  # no one tells it of the election

    story.pause("broker-1")
    if hears == "late":
        for node in ("controller", "broker-2", "broker-3"):
            story.cut(node, "broker-1")
    s = await stale.send("S")
    t = await stale.send("T")
    await story.led(not_by=1)
    await story.acked(await client.send("C"))
    story.wake("broker-1")
    await story.asked("S", "broker-1")
    if hears == "late":
        await story.until(lambda: {"S", "T"} <= set(story.values(1)), "the old leader appends")
        await asyncio.sleep(5)
        assert story.leads(1), "two of them believe that they lead"
        assert (s.settled, t.settled) == (False, False)
        for node in ("controller", "broker-2", "broker-3"):
            story.heal(node, "broker-1")
    await story.until(lambda: story.traced("broker-1#1", "truncating topic=orders"), "the old leader cuts")
    await story.in_sync()
    assert story.values(1) == ["A", "B", "C"]
    assert (s.settled, t.settled) == (False, False)
    story.rejoin(stale.node, "broker-2", "broker-3")
    await story.acked(s, t)
    assert not any(" at " in answer for value in "ST" for answer in story.answers(value, "broker-1"))
    assert await story.end() == {"orders-0": ["A", "B", "C", "S", "T"]}
