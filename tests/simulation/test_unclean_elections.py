"""After an unclean election the elected log is the truth, and every promise holds for what follows."""

from __future__ import annotations

import asyncio

from tests.gauntlet.story import Client, Story, tale
from tests.simulation.workload import ConsumerApp, SendLedger


async def one_goes_on_alone(story: Story, common: int, alone: int) -> Client:
    """`common` records on brokers 1 and 2, and `alone` more on broker 1 only, which is all that is in sync."""
    story.lossy["orders-0"] = None
    client = await story.producer("old")
    for n in range(common):
        await story.acked(await client.send(f"a{n}"))
    await story.in_sync("orders-0", 1, 2)
    story.separate("broker-2", "broker-1", "broker-3")
    for n in range(alone):
        await client.send(f"b{n}")
    await story.acked(*client.sent)
    await story.in_sync("orders-0", 1)
    return client


async def elect(story: Story, broker_id: int, *killed: str) -> None:
    story.kill(*killed)
    await story.until(lambda: story.partition("orders-0").leader < 0, "no leader")
    story.rejoin(f"broker-{broker_id}", "broker-1", "broker-3")
    await story.elect("orders-0", broker_id)


@tale()
async def test_a_follower_whose_log_starts_above_where_the_histories_part_starts_over(story: Story) -> None:
    await story.create_topic("orders", [[1, 2]], segment_bytes=300, retention_bytes=600, min_insync_replicas=1)
    await one_goes_on_alone(story, common=4, alone=40)
    await story.until(lambda: story.replica(1, "orders-0").log.log_start_offset > 10, "retention has moved the start")
    await elect(story, 2, "broker-1")
    new = await story.producer("new")
    for n in range(3):
        await story.acked(await new.send(f"c{n}"))
    story.start("broker-1")
    await story.in_sync("orders-0", 1, 2)
    assert story.traced("broker-1#2", "starting over")
    replica = story.replica(1, "orders-0")
    assert replica.log.log_end_offset == 7
    assert replica.high_watermark <= 7
    assert (await story.end())["orders-0"][-3:] == ["c0", "c1", "c2"]


@tale()
async def test_readers_and_producers_go_on_over_it(story: Story) -> None:
    """The reader has read ten records that are gone: it reads again from where the logs part. The producer's next sequence
    follows batches that are gone: it begins again, and nothing of it is refused permanently."""
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    reader = ConsumerApp(story.world, "reader-0", ("orders",), story.cluster.bootstrap, SendLedger())
    reader.unclean = story.judge.unclean_elections
    reader.start()
    client = await one_goes_on_alone(story, common=4, alone=10)
    read = ("orders", 0)
    await story.until(lambda: reader.positions.get(read) == 14, "all is read")
    await elect(story, 2, "broker-1")
    for n in range(12):  # beyond what was read before: an offset alone would not tell that the log is another one
        await story.acked(await client.send(f"c{n}"))
    await story.until(lambda: reader.positions.get(read) == 16, "the new history is read")
    assert story.traced("reader-0", "reading goes back", "from=14 to=4")
    assert [value.decode() for _, value in sorted(reader.read[read].items())] == [
        *(f"a{n}" for n in range(4)),
        *(f"c{n}" for n in range(12)),
    ]
    assert reader.problems == []
    assert story.judge.counts["batches lost to unclean elections"] == 10
    story.start("broker-1")
    await story.in_sync("orders-0", 1, 2)
    await asyncio.sleep(1)
    assert await story.end() == {"orders-0": [*(f"a{n}" for n in range(4)), *(f"c{n}" for n in range(12))]}


def damage(story: Story, broker_id: int, number: int, *, running: bool) -> None:
    """A byte changes in the records of that batch."""
    record = story.judge.record(story.partition("orders-0").id)
    log = story.log(broker_id)
    place = log.place_of(log.batches[number])
    assert record is not None
    assert place is not None
    story.world.machine(f"broker-{broker_id}").disk.corrupt(place[0], place[1] + 66)
    (story.judge.rot if running else story.judge.damage)(record, broker_id)


@tale()
async def test_what_a_leader_with_changed_bytes_has_acknowledged_alone_is_lost_to_an_election(story: Story) -> None:
    """The judge cannot read it in that leader's files (seed 81036 of commit 17c0933: G1)."""
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    first = await story.producer("first")
    await story.acked(await first.send("first"))
    await story.in_sync("orders-0", 1, 2)
    damage(story, 1, 0, running=True)
    client = await one_goes_on_alone(story, common=4, alone=10)
    await elect(story, 2, "broker-1")
    await story.acked(await client.send("c"))
    await story.until(lambda: story.judge.counts.get("batches lost to unclean elections"), "the judge has compared")
    assert story.judge.counts["batches lost to unclean elections"] == 10
    record = story.judge.record(story.partition("orders-0").id)
    assert record is not None
    assert [record.past.is_lost(stamp) for n in range(10) for stamp in story.stamps(f"b{n}")] == [True] * 10
    assert not any(record.past.is_lost(stamp) for n in range(4) for stamp in story.stamps(f"a{n}"))
    assert (await story.end())["orders-0"] == ["first", *(f"a{n}" for n in range(4)), "c"]


@tale()
async def test_what_was_acknowledged_after_a_power_failure_took_data_is_lost_to_an_election(story: Story) -> None:
    """No replica is known to be whole, and nothing is asked of the partition; but its leader goes on, and what it has
    acknowledged until then is gone by the operator's order (seed 960019 of commit 5f3b8dc: G1)."""
    story.lossy["orders-0"] = None
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    first = await story.producer("first")
    await story.acked(await first.send("first"))
    await story.in_sync("orders-0", 1, 2)
    damage(story, 1, 0, running=True)
    story.power_failure(2)
    record = story.judge.record(story.partition("orders-0").id)
    assert record is not None
    assert record.tainted
    await story.in_sync("orders-0", 1)
    client = await story.producer("old")
    for n in range(10):
        await story.acked(await client.send(f"b{n}"))
    story.separate("broker-2", "broker-1", "broker-3")
    story.start("broker-2")
    await story.all_live()
    await elect(story, 2, "broker-1")
    await story.acked(await client.send("c"))
    assert not record.tainted
    await story.until(lambda: story.judge.counts.get("batches lost to unclean elections"), "the judge has compared")
    assert [record.past.is_lost(stamp) for n in range(10) for stamp in story.stamps(f"b{n}")] == [True] * 10
    assert (await story.end())["orders-0"] == ["c"]


@tale()
async def test_a_damaged_log_that_was_given_up_is_elected(story: Story) -> None:
    """The log is empty, and is the truth from then on (seed 81005 of commit 17c0933: G1)."""
    await story.create_topic("orders", [[1, 2]], min_insync_replicas=1)
    client = await one_goes_on_alone(story, common=4, alone=3)
    story.kill("broker-2")
    damage(story, 2, 2, running=False)
    story.rejoin("broker-2", "broker-3")
    story.start("broker-2")
    await story.until(lambda: story.traced("log recovered directory=/data/orders-0", "end=0", "broker-2#2"), "given up")
    await elect(story, 2, "broker-1")
    await story.acked(await client.send("c"))
    assert not story.judge.damaged
    assert story.judge.counts["batches lost to unclean elections"] == 7
    assert (await story.end())["orders-0"] == ["c"]
