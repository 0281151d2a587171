"""The gauntlet, rows about what lies on a disk: put back from a backup, copied beside itself, lost, too long a name.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table.
"""

from __future__ import annotations

import asyncio

import pytest

from fencepost_proto.protocol.metadata import MAX_TOPIC_NAME, NO_LEADER
from fencepost_proto.protocol.v1 import controller_pb2
from tests.gauntlet.story import Story, tale

DATA = "/data"
BROKERS = ("broker-1", "broker-2", "broker-3")


@pytest.mark.parametrize(
    ("copied", "flush_always"),
    [("stopped", False), ("stopped", True), ("killed", False), ("running", True)],
    ids=["stopped", "stopped-synced", "killed", "running-synced"],
)
@tale()
async def test_old_folder_leads(story: Story, copied: str, flush_always: bool) -> None:
    """rabbitmq-server issue 8059; KAFKA-15582.

    Reported: a node comes back with an older, clean copy of its data, leads, and its peers, which have everything, cut
    their logs to its.

    Here: brokers 3, 2 and 1 stop one after another, so that 1 is the last in sync; its folder is put back from a copy that
    was made after a clean stop, after a kill, or while it was running. It does not lead, also where the topic synced what it
    acknowledged. The operator is told, elects one that has everything, and broker 1 gets what it lacks.
    """
    disk = story.world.machine("broker-1").disk
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1, flush_always=flush_always)
    client = await story.producer()
    await story.acked(*[await client.send(f"before{number}") for number in range(5)])
    if copied == "stopped":
        await story.stop("broker-1")
    elif copied == "killed":
        story.kill("broker-1")
    copy = disk.copy_of(DATA)
    if copied != "running":
        story.start("broker-1")
    await story.in_sync()
    await story.acked(*[await client.send(f"after{number}") for number in range(5)])
    await story.in_sync()
    for node in ("broker-3", "broker-2"):
        await story.stop(node)
    await story.in_sync("orders-0", 1)
    if copied == "running":
        story.kill("broker-1")
    else:
        await story.stop("broker-1")
    assert len(story.values(2)) == len(story.values(3)) == 10
    disk.put_back(DATA, copy)
    story.judge.put_back(1)
    assert len(story.values(1)) == 5
    story.start("broker-1", "broker-2", "broker-3")
    await story.all_live()
    assert (story.partition("orders-0").leader, story.partition("orders-0").isr) == (NO_LEADER, ())
    assert story.traced("controller", "data folder may lack acknowledged records", "broker=1")
    assert story.traced("controller", "error: ", "unclean")
    await story.elect("orders-0", 2)
    assert await story.end() == {"orders-0": [sent.value for sent in client.sent]}


@pytest.mark.parametrize("name", ["orders-2-2026-12-01", "orders-1"])
@tale()
async def test_foreign_folder(story: Story, name: str) -> None:
    """strimzi-kafka-operator issue 1307; confluentinc/kafka PR 491.

    Reported: a copy of a partition's folder, beside it, is opened as another partition's log, or deleted.

    Here: broker 1 is stopped, a copy is made, and it is started and leads. The copy is left alone, and the log says so.
    """
    disk = story.world.machine("broker-1").disk
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    client = await story.producer()
    await story.acked(*[await client.send(f"before{number}") for number in range(5)])
    await story.stop("broker-1")
    disk.put_back(f"{DATA}/{name}", disk.copy_of(f"{DATA}/orders-0"))
    held = disk.content(f"{DATA}/{name}")
    assert held
    story.start("broker-1")
    await story.in_sync()
    assert story.traced("broker-1", "warning: left alone", f"{DATA}/{name} because", f"{DATA}/orders-0")
    await story.acked(*[await client.send(f"after{number}") for number in range(5)])
    for node in ("broker-2", "broker-3"):
        story.kill(node)
    await story.led(by=1)
    assert await story.end() == {"orders-0": [sent.value for sent in client.sent]}
    assert disk.content(f"{DATA}/{name}") == held


@pytest.mark.parametrize("length", [244, MAX_TOPIC_NAME])
@tale()
async def test_undeletable_name(story: Story, length: int) -> None:
    """KAFKA-4893; KAFKA-7156.

    Reported: a topic with a name near the longest that is allowed is created, and cannot be deleted: the name of the folder
    that is renamed for its deletion is too long for the file system.

    Here: the simulated file system has the same limit. The topic is deleted from every disk, made again and used.
    """
    topic = "n" * length
    for _ in range(2):
        await story.create_topic(topic, [[1, 2, 3]], min_insync_replicas=2)
        client = await story.producer(f"producer{len(story.clients)}")
        await story.acked(await client.send(f"by {client.node}", topic=topic))
        disks = [story.world.machine(node).disk for node in BROKERS]
        assert all(disk.content(f"{DATA}/{topic}-0") for disk in disks)
        await story.order("DeleteTopic", controller_pb2.DeleteTopicRequest(name=topic))
        await story.until(
            lambda disks=disks: not [path for disk in disks for path, _ in disk.files() if topic[:100] in path],  # type: ignore[misc]
            "it is gone from every disk",
        )
    assert not story.traced("cannot be deleted")
    await story.end()


@pytest.mark.parametrize("last", [False, True], ids=["", "last-in-sync"])
@tale()
async def test_lost_partition_metadata(story: Story, last: bool) -> None:
    """KAFKA-16814; redpanda issue 2320.

    Reported: a file that says whose a log is has gone; the replica cannot be opened, no one sees that, and it never heals.

    Here: that replica counts as damaged. Where others are in sync it is set aside and made again from the leader. Where it
    was the last in sync it is left alone until an operator, who is told, has elected another one.
    """
    disk = story.world.machine("broker-3").disk
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()
    await story.acked(*[await client.send(f"before{number}") for number in range(5)])
    if last:
        story.kill("broker-1", "broker-2")
        await story.in_sync("orders-0", 3)
    await story.stop("broker-3")
    disk.folder(f"{DATA}/orders-0").put({"partition.metadata": None})
    held = sorted(disk.content(f"{DATA}/orders-0").values())
    story.start("broker-3")
    await story.until(lambda: story.traced("broker-3", "error: log is missing", f"{DATA}/orders-0"), "it is missed")
    if last:
        story.start("broker-1", "broker-2")
        await story.all_live()
        assert (story.partition("orders-0").leader, story.partition("orders-0").isr) == (NO_LEADER, ())
        assert sorted(disk.content(f"{DATA}/orders-0").values()) == held
        assert story.cluster.brokers[3].manager.unopened
        await story.elect("orders-0", 1)
    await story.in_sync()
    assert sorted(disk.content(f"{DATA}/orders-0.0.damaged").values()) == held
    await story.acked(await client.send("after"))
    for node in ("broker-1", "broker-2"):
        await story.stop(node)
    await story.led(by=3)
    await asyncio.sleep(1)
    assert await story.end() == {"orders-0": [sent.value for sent in client.sent]}
