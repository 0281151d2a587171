"""The gauntlet, rows about the controller's own state: its store goes back, or is lost.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table.
"""

from __future__ import annotations

import pytest

from fencepost_proto.protocol.v1 import controller_pb2
from tests.gauntlet.story import Client, Story, tale
from tests.simulation.cluster import CONTROLLER, broker_node
from tests.simulation.metadata_store import MetadataCopy, MetadataDatabase

BROKERS = ("broker-1", "broker-2", "broker-3")


def lost() -> MetadataCopy:
    """Of a folder with nothing in it."""
    database = MetadataDatabase(lambda image: None)
    try:
        return database.back_up()
    finally:
        database.close()


async def ids_of(story: Story, *nodes: str) -> list[Client]:
    """New anonymous producers, one at each broker."""
    return [
        await story.producer(node, bootstrap=[f"{broker}:9092"]) for node, broker in zip(nodes, BROKERS, strict=True)
    ]


@pytest.mark.parametrize("restarted", [False, True], ids=["brokers run on", "brokers start again"])
@pytest.mark.parametrize("empty", [False, True], ids=["from a backup", "lost"])
@tale()
async def test_metadata_goes_back(story: Story, empty: bool, restarted: bool) -> None:
    """nats-io/nats-server issues 5382 and 4410, strimzi-kafka-operator 9108, KAFKA-12620.

    Reported: the controller's store comes back from a backup, or is lost. Ids are given out twice, and records of new
    producers are taken for repeats of other ones: acknowledged, and not stored. A named producer is fenced by its own past.
    The data of topics that are younger than the backup are deleted as orphaned.

    Here: a topic, blocks of ids and an epoch of a name are younger than the backup. The controller meets a broker that knows
    more, serves no one and ends; leaders go on. After `recover` the topic and everything in it is there, no id comes twice,
    the name goes on.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    copy = lost() if empty else story.cluster.database.back_up()
    await story.create_topic("late", [[2, 3, 1]], min_insync_replicas=2)
    before = await ids_of(story, "one", "two", "three")
    named = await story.producer("named", name="loader")
    sent = [
        await client.send(f"{client.node}-{topic}", topic=topic)
        for client in (*before, named)
        for topic in ("orders", "late")
    ]
    await story.acked(*sent)

    story.put_controller_back(copy)
    reason = await story.controller_refuses()
    assert ("store is new" if empty else "store has gone back: it is at metadata version") in reason
    await story.acked(await before[0].send("meanwhile"))  # leaders do not need it
    if restarted:
        story.kill(*BROKERS)
        story.start(*BROKERS)
    assert sorted(story.values(1, "late-0")) == ["named-late", "one-late", "three-late", "two-late"]

    await story.recover_controller()
    after = await ids_of(story, "four", "five", "six")
    successor = await story.producer("successor", name="loader")
    sent = [
        await client.send(f"{client.node}-{topic}", topic=topic)
        for client in (*after, successor)
        for topic in ("orders", "late")
    ]
    await story.acked(*sent)
    ids = [client.identity[0] for client in (*before, *after)]
    assert len(set(ids)) == len(ids)
    assert successor.identity[0] == named.identity[0]
    assert successor.identity[1] > named.identity[1]
    logs = await story.end()
    assert sorted(logs["orders-0"]) == sorted(
        [*(f"{c.node}-orders" for c in (*before, named, *after, successor)), "meanwhile"]
    )
    assert sorted(logs["late-0"]) == sorted(f"{c.node}-late" for c in (*before, named, *after, successor))
    assert not story.traced("deleting folder")
    assert not story.traced("is set aside")


@tale()
async def test_metadata_goes_back_and_passes_what_was_lost(story: Story) -> None:
    """The same, where versions alone tell nothing: while every broker is away, the controller goes on from its backup until
    it is beyond what they know. They know it under another lineage."""
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    copy = story.cluster.database.back_up()
    await story.create_topic("late", [[1, 2, 3]])
    client = await story.producer()
    await story.acked(await client.send("A", topic="late"))
    known = story.judge.image.version
    story.kill(*BROKERS)
    story.put_controller_back(copy)
    for _ in range(known - copy.image.version + 3):  # each start is a version
        story.kill(CONTROLLER)
        story.cluster.controller = None
        story.start(CONTROLLER)
        await story.until(
            lambda: story.cluster.controller is not None and story.cluster.controller.address, "it listens"
        )
    assert story.cluster.controller is not None
    assert story.cluster.controller.image.version > known
    story.start(*BROKERS)
    assert "of lineage" in await story.controller_refuses()
    await story.recover_controller()
    assert await story.end() == {"orders-0": [], "late-0": ["A"]}


@tale()
async def test_metadata_goes_back_under_a_broker_that_was_away(story: Story) -> None:
    """The same, where the first broker to come is one that has been away since before the backup: it must neither lead nor
    be given ids before one comes that knows more."""
    await story.create_topic("orders", [[3, 1, 2]], min_insync_replicas=1)
    story.kill("broker-3")
    copy = story.cluster.database.back_up()  # broker 3 still counts as live and in sync
    client = await story.producer()
    await story.led("orders-0", not_by=3)
    await story.acked(await client.send("A"))
    story.kill("broker-1", "broker-2")
    story.put_controller_back(copy)
    story.start("broker-3")
    await story.until(
        lambda: story.cluster.brokers.get(3) is not None and story.cluster.brokers[3].address, "it listens"
    )
    story.start("broker-1", "broker-2")
    await story.controller_refuses()
    assert story.cluster.controller is not None
    assert story.cluster.controller.image.version == copy.image.version + 1  # it has decided nothing
    await story.recover_controller()
    assert await story.end() == {"orders-0": ["A"]}


@tale()
async def test_a_topic_deleted_while_a_broker_was_away_is_set_aside_there_and_gone_elsewhere(story: Story) -> None:
    """A broker deletes what it is told to; what an image merely does not know may be all that is left of it."""
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer()
    await story.acked(await client.send("A"))
    await story.in_sync()
    story.kill("broker-3")
    await story.order("DeleteTopic", controller_pb2.DeleteTopicRequest(name="orders"))
    story.start("broker-3")
    await story.all_live()

    def folders(broker_id: int) -> set[str]:
        files = story.world.machine(broker_node(broker_id)).disk.files()
        return {path.split("/")[2] for path, _ in files if "orders-0" in path}

    await story.until(lambda: not folders(1) and not folders(2), "the others have deleted it")
    await story.until(lambda: any(name.endswith(".stray") for name in folders(3)), "broker 3 has set it aside")
    assert len(folders(3)) == 1
    client.sent.clear()
    assert await story.end() == {}
