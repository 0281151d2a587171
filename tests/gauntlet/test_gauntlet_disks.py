"""The gauntlet, rows about disks: bytes that change, and room that ends.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table.
"""

from __future__ import annotations

import asyncio

import pytest

from fencepost_node.grpc.describe_log_dirs import describe_log_dirs
from tests.gauntlet.story import Story, tale
from tests.simulation.cluster import broker_node

PARTS_OF_A_BATCH = {
    "base offset": 7,
    "sign of the length": 8,
    "length": 10,
    "leader epoch": 13,
    "magic": 16,
    "last offset delta": 23,
    "producer id": 45,
    "records": 66,
}
SEEN_BY_THE_LEADER = {"base offset", "sign of the length", "length"}  # who looks where its batches begin


def flip(story: Story, broker_id: int, path: str, position: int) -> None:
    story.tell(f"a byte changes on broker {broker_id}: {path} at {position}")
    story.world.machine(broker_node(broker_id)).disk.corrupt(path, position)
    record = story.judge.record(story.partition("orders-0").id)
    assert record is not None
    story.judge.rot(record, broker_id)


@pytest.mark.parametrize("part", PARTS_OF_A_BATCH)
@tale(tail_bytes=0)
async def test_bit_rot_on_the_leader(story: Story, part: str) -> None:
    """aio-libs/aiokafka issue 321, AutoMQ/automq issue 560.

    Reported: a byte changes in a batch on the leader's disk. Consumers stick there for ever, although good replicas exist.

    Here: a consumer asks for the batch, in each part of which a byte has changed. The leader finds that its own bytes are
    wrong, another one leads, the consumer gets the batch from that one, and the replica is filled again: no operator, no
    restart.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    names = [f"r{number}" for number in range(20)]
    for name in names:
        await story.acked(await client.send(name))
    await story.in_sync()
    batch = story.log(1).batches[10]
    place = story.log(1).place_of(batch)
    assert place is not None
    flip(story, 1, place[0], place[1] + PARTS_OF_A_BATCH[part])
    assert await story.read_all() == names
    assert await story.led(not_by=1) != 1
    await story.in_sync()
    assert story.traced("broker-1#1", "giving up a damaged log")
    assert story.world.machine("broker-1").disk.find("/data/orders-0.0.damaged") is not None, "kept for whoever looks"
    assert not story.traced("started", "broker-1#2"), "no restart"
    await story.acked(await client.send("later"))
    assert await story.end() == {"orders-0": [*names, "later"]}


@pytest.mark.parametrize("part", PARTS_OF_A_BATCH)
@tale(tail_bytes=0)
async def test_bit_rot_on_the_leader_that_a_follower_meets(story: Story, part: str) -> None:
    """The same, met by a replica that is being filled; and the leader had read that batch before the byte changed. (A length
    that could not be read ended the stream to that follower, again and again, and with it all that it carries.)"""
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    client = await story.producer()
    names = [f"r{number}" for number in range(20)]
    for name in names:
        await story.acked(await client.send(name))
    await story.in_sync()
    assert await story.read_all() == names
    place = story.log(1).place_of(story.log(1).batches[10])
    assert place is not None
    flip(story, 1, place[0], place[1] + PARTS_OF_A_BATCH[part])
    await story.reassign("orders", 0, [1, 2, 3])
    await story.until(lambda: 3 in story.partition("orders-0").isr, "broker 3 has joined")
    await story.in_sync()
    assert story.traced("broker-1#1", "giving up a damaged log")
    told = [line for line in story.world.trace if "push not taken" in line]
    assert len(told) == (part not in SEEN_BY_THE_LEADER), "what cannot be taken is logged once"
    assert not story.traced("replication stream broke"), "nothing else on that stream is held up"
    assert await story.end() == {"orders-0": names}


@tale(tail_bytes=0)
async def test_bit_rot_on_the_leader_that_no_one_can_replace(story: Story) -> None:
    """The same where no other replica is in sync: nothing is given up, what is whole is served, and the reason is told."""
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    client = await story.producer()
    story.kill("broker-2")
    names = [f"r{number}" for number in range(20)]
    for name in names:
        await story.acked(await client.send(name))
    await story.in_sync("orders-0", 1)
    place = story.log(1).place_of(story.log(1).batches[10])
    assert place is not None
    flip(story, 1, place[0], place[1] + 66)
    story.start("broker-2")
    await asyncio.sleep(10)
    replica = story.replica(1, "orders-0")
    assert "is damaged at byte" in replica.trouble
    (told,) = describe_log_dirs(story.cluster.brokers[1].manager, 1, 0.0).replicas
    assert told.failure == replica.trouble, "what cluster status shows, which then exits with 1"
    assert story.leads(1), "it goes on"
    await story.acked(await client.send("later"))
    assert await story.read_some(10) == names[:10]
    assert len([line for line in story.world.trace if "leader in trouble" in line]) == 1
    refused = [line for line in story.world.trace if "subscription refused" in line]
    assert len(refused) == 1, "what is refused is logged once"
    disk = story.world.machine("broker-1").disk
    disk.corrupt(place[0], place[1] + 66)  # the operator has it put right
    assert await story.end() == {"orders-0": [*names, "later"]}


@tale()
async def test_a_damaged_snapshot_at_the_leaders_log_start(story: Story) -> None:
    """A sibling: what a follower that begins at the log's start needs besides batches. It begins from another leader."""
    await story.create_topic("orders", [[1, 2]], segment_bytes=1_000, retention_bytes=2_000, min_insync_replicas=1)
    client = await story.producer()
    for number in range(60):
        await client.send(f"r{number}")
    await story.acked(*client.sent)
    await story.until(lambda: story.replica(1, "orders-0").log.log_start_offset > 0, "the start has moved")
    await story.in_sync()
    await asyncio.sleep(5)
    start = story.replica(1, "orders-0").log.log_start_offset
    story.world.machine("broker-1").disk.corrupt(f"/data/orders-0/{start:020d}.snapshot", 20)
    await story.reassign("orders", 0, [1, 2, 3])
    await story.until(lambda: 3 in story.partition("orders-0").isr, "broker 3 has joined")
    await story.until(lambda: story.traced("broker-1#1", "replica recovered"), "broker 1 has begun again")
    logs = await story.end()
    assert 0 < len(logs["orders-0"]) < 60


@pytest.mark.parametrize("full", ["the leader's disk", "all brokers' disks", "all disks"])
@tale()
async def test_disk_full_for_ever(story: Story, full: str) -> None:
    """camunda/camunda issues 5329 and 6232.

    Reported: a broker's disk is full for a while. When it has room again nothing recovers by itself; reading has stopped.

    Here: the leader's disk is full, or everyone's, or the controller's, too. Where another disk has room leadership goes
    there. Otherwise writes are refused retriably, while all that was acknowledged is read. When there is room again, writes
    come back and all replicas are in sync: no operator, no restart.
    """
    everywhere = full != "the leader's disk"
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(delivery_timeout_ms=600_000)
    before = [f"b{number}" for number in range(10)]
    for name in before:
        await story.acked(await client.send(name))
    disks = [story.world.machine(broker_node(broker_id)).disk for broker_id in ((1, 2, 3) if everywhere else (1,))]
    for disk in disks:
        disk.capacity_bytes = disk.used_bytes() + 30
    story.cluster.database.failing_commits = 10**9 if full == "all disks" else 0
    meanwhile = [await client.send(f"m{number}") for number in range(5)]
    if everywhere:
        await asyncio.sleep(20)
        assert not any(sent.settled for sent in meanwhile)
        assert (await story.read_some(10))[:10] == before
    else:
        await story.acked(*meanwhile)
        assert await story.led(not_by=1) != 1
        await asyncio.sleep(20)
    failed = [line for line in story.world.trace if "replica failed" in line or "leader in trouble" in line]
    assert 1 <= len(failed) < 40, "told of, and tried again with growing pauses"
    for disk in disks:
        assert disk.counters.faults.get("ENOSPC on append", 0) < 200
        disk.capacity_bytes = None
    story.cluster.database.failing_commits = 0
    await story.acked(*meanwhile)
    await story.in_sync()
    assert not [line for line in story.world.trace if "#2" in line], "no restart"
    assert await story.end() == {"orders-0": before + [sent.value for sent in meanwhile]}


@tale()
async def test_all_replicas_come_back_with_the_first_that_finds_room(story: Story) -> None:
    """A sibling, found by chaos: each of a broker's replicas waited for its own next attempt, up to 5 s after the room was
    there, and a partition without another electable replica had no leader until then."""
    count = 6
    await story.create_topic("orders", [[2, 3, 1]] * count)
    client = await story.producer()
    disk = story.world.machine(broker_node(1)).disk
    disk.capacity_bytes = disk.used_bytes()
    await story.acked(*[await client.send(f"m{number}", partition=number) for number in range(count)])
    for number in range(count):
        await story.in_sync(f"orders-{number}", 2, 3)
    await asyncio.sleep(20)  # the pauses between attempts have grown
    disk.capacity_bytes = None
    began = story.world.now
    await story.until(lambda: story.traced("replica recovered", "broker-1"), "one is back")
    first = story.world.now
    for number in range(count):
        await story.in_sync(f"orders-{number}", 1, 2, 3)
    assert first - began < 7
    assert story.world.now - first < 0.5
    await story.end()


@tale()
async def test_a_failed_replica_that_was_moved_away_and_back_serves_again(story: Story) -> None:
    """A sibling: what a broker has once reported as failed was never let into an in-sync set until its next start."""
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()
    await story.acked(await client.send("A"))
    story.fail_next_append(2, "orders-0")
    await client.send("B")
    await story.in_sync("orders-0", 1, 3)
    await story.reassign("orders", 0, [1, 3])
    await story.until(lambda: story.partition("orders-0").replicas == (1, 3), "2 is no replica")
    await story.until(lambda: story.traced("broker-2#1", "deleting folder"), "its log is gone")
    await story.reassign("orders", 0, [1, 2, 3])
    await story.until(lambda: 2 in story.partition("orders-0").isr, "broker 2 is in sync again")
    assert await story.end() == {"orders-0": ["A", "B"]}


@tale()
async def test_the_controllers_disk_is_full_for_ever(story: Story) -> None:
    """A sibling: changes of the metadata are refused, what leads goes on leading, and nothing has to be started again."""
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(delivery_timeout_ms=600_000)
    await story.acked(await client.send("before"))
    await story.in_sync()
    story.cluster.database.failing_commits = 10**9
    await story.acked(*[await client.send(f"m{number}") for number in range(5)])
    story.kill("broker-3")
    waits = await client.send("while 3 is dead, which no one can write down")
    await asyncio.sleep(30)
    assert not waits.settled, "a member that is dead is in sync for ever"
    assert await story.read_some(6) == ["before", *(f"m{number}" for number in range(5))]
    assert 1 <= len([line for line in story.world.trace if "commit failed" in line]) < 90
    assert len([line for line in story.world.trace if "could not store" in line and "broker-" in line]) < 90
    story.cluster.database.failing_commits = 0
    await story.acked(waits)
    story.start("broker-3")
    await story.in_sync()
    assert not [line for line in story.world.trace if "controller#2" in line], "no restart"
    assert len(set((await story.end())["orders-0"])) == 7
