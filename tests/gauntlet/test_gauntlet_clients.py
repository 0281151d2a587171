"""The gauntlet, rows about what clients meet at the edges: sizes and times.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table.
"""

from __future__ import annotations

from fencepost.errors import InvalidTimestamp, MessageTooLarge
from fencepost_proto.protocol.record_batch import HEADER_BYTES
from fencepost_proto.protocol.records import read_records
from tests.gauntlet.story import Story, tale

LIMIT = 1_000
OF_2015_MS = 1_420_000_000_000
OF_2099_MS = 4_070_908_800_000
RETENTION_MS = 20_000


def numbered(count: int, padding: int = 0) -> list[str]:
    return [f"{number:04}" + "." * padding for number in range(count)]


@tale()
async def test_batch_over_topic_limit(story: Story) -> None:
    """KAFKA-3995 (KIP-126), librdkafka issue 488.

    Reported: legal records fail, since the client puts so many of them into a batch that it is above the topic's limit.
    Here 1 of 5,000 records got through.

    Here: a batch is capped by the topic's limit, which the metadata tells; a record that is larger by itself fails at its
    `send`, and nothing else with it.
    """
    await story.create_topic("orders", [[1, 2, 3]], max_message_bytes=LIMIT)
    client = await story.producer(batch_size=64 * LIMIT, linger_ms=20)
    values = numbered(200, padding=60)
    sent = await client.send_together(values)
    error = await client.refusal("x" * LIMIT)
    assert isinstance(error, MessageTooLarge)
    assert not error.may_have_been_appended
    await story.acked(*sent)
    largest = "y" * (LIMIT - HEADER_BYTES - 9)
    sent += await client.send_together([largest])
    error = await client.refusal(largest + "y")
    assert f"a batch of {LIMIT + 1} bytes; the topic takes at most {LIMIT}" in error.message
    await story.acked(*sent)
    assert story.codes() == set(), "nothing was refused"
    sizes = [len(said.batch) for said in story.said if said.answer]
    assert sum(size > LIMIT // 2 for size in sizes) > 10, "batches were full nevertheless"
    assert await story.end() == {"orders-0": [*values, largest]}


@tale(max_request_bytes=1_500)
async def test_batch_over_topic_limit_that_the_client_does_not_know(story: Story) -> None:
    """As above, where the limit is the brokers' own and no metadata tells it: refused, split, acknowledged.

    Several batches are in flight behind each one that is split, and the leader is killed among them.
    """
    await story.create_topic("orders", [[1, 2, 3]])
    client = await story.producer(batch_size=4_000, linger_ms=20)
    first = await client.send_together(numbered(100, padding=60))
    await story.until(lambda: "RECORD_LIST_TOO_LARGE" in story.codes(), "a batch is refused")
    story.kill("broker-1")
    await story.led(not_by=1)
    await story.acked(*first)
    assert client.producer is not None
    assert client.producer.stats.split_batches >= 3
    story.start("broker-1")
    more = [f"more{value}" for value in numbered(100, padding=60)]
    splits = client.producer.stats.split_batches
    await story.acked(*await client.send_together(more))
    assert client.producer.stats.split_batches <= splits + 1, "what was learned is kept"
    assert client.identity[1] == 0
    assert {stamp[1] for said in story.said for stamp in [said.stamp]} == {0}, "no epoch ends for a split"
    assert await story.end() == {"orders-0": [*numbered(100, padding=60), *more]}


async def all_removed(story: Story, partition: str, end_offset: int) -> None:
    """By retention, on every replica."""

    def removed() -> bool:
        return all(story.replica(n, partition).log.log_start_offset == end_offset for n in (1, 2, 3))

    await story.until(removed, f"all of {partition} is removed")


@tale()
async def test_future_timestamp(story: Story) -> None:
    """redpanda issue 9820, KAFKA-18929 (and KIP-937).

    Reported: one record from the far future (milliseconds taken for seconds) stops retention by time for its partition;
    and a backfill of old records is deleted moments after it was acknowledged.

    Here: times beyond an hour after the leader's clock are refused by value, by the client where the application has
    said them, and else by the leader. Where a topic takes any time, retention counts from a segment's last append: the
    future does not extend it, and the past does not shorten it, over a restart too.
    """
    quick = {"retention_ms": RETENTION_MS, "segment_bytes": 300}
    await story.create_topic("orders", [[1, 2, 3]])
    await story.create_topic("any", [[1, 2, 3]], message_timestamp_after_max_ms=-1, **quick)
    await story.create_topic("old", [[1, 2, 3]], **quick)
    client = await story.producer()

    error = await client.refusal("A", timestamp_ms=OF_2099_MS)
    assert isinstance(error, InvalidTimestamp)
    assert str(OF_2099_MS) in error.message
    story.world.machine("astray").wall_clock_offset_ms = 2 * 3_600_000
    astray = await story.producer("astray")
    refused = await astray.send("B")
    await story.settled(refused)
    assert isinstance(refused.error, InvalidTimestamp)
    assert not refused.error.may_have_been_appended
    assert story.answers("B") == ["broker-1: INVALID_TIMESTAMP"]

    began = story.world.now
    await story.acked(await client.send("future", topic="any", timestamp_ms=OF_2099_MS))
    for value in numbered(20):
        await story.acked(
            await client.send(f"any{value}", topic="any"),
            await client.send(f"old{value}", topic="old", timestamp_ms=OF_2015_MS),
        )
    acknowledged = story.world.now
    story.kill("broker-1", "broker-2", "broker-3")
    story.start("broker-1", "broker-2", "broker-3")
    for topic in ("any", "old"):
        await story.led(f"{topic}-0")
    await story.until(lambda: story.world.now > began + RETENTION_MS / 1000 - 2, "nearly the time of retention")
    for topic in ("any", "old"):
        assert [story.log(n, f"{topic}-0").start_offset for n in (1, 2, 3)] == [0, 0, 0], "acknowledged, and gone"
    for topic, end in (("any", 21), ("old", 20)):
        await all_removed(story, f"{topic}-0", end)
    assert story.world.now < acknowledged + 2 * RETENTION_MS / 1000
    assert await story.end() == {"orders-0": [], "any-0": [], "old-0": []}


@tale()
async def test_future_timestamp_where_the_leader_says_the_time(story: Story) -> None:
    """The same topic by append time: whatever producers say, records carry the leader's clock, on every replica."""
    await story.create_topic("orders", [[1, 2, 3]], message_timestamp_type="append")
    client = await story.producer(compression="lz4")
    began_ms = story.world.wall_clock_ms(story.world.machine("broker-1"))
    for value, timestamp_ms in (("A", OF_2099_MS), ("B", OF_2015_MS), ("C", None)):
        await story.acked(await client.send(value, timestamp_ms=timestamp_ms, padding=500))
    story.cut("broker-1", client.node)
    lost = await client.send("D")
    await story.answered("D")
    await story.lose_answers("broker-1", client)
    await story.acked(lost)
    assert story.answers("D") == ["broker-1: at 3", "broker-1: duplicate of 3"], (
        "the copy has other bytes, and is known"
    )
    await story.in_sync()
    ended_ms = story.world.wall_clock_ms(story.world.machine("broker-1"))
    for broker_id in (1, 2, 3):
        files = story.world.machine(f"broker-{broker_id}").disk.files()
        (content,) = [bytes(n.content) for path, n in files if path.startswith("/data/orders-0/") and ".log" in path]
        times = [record.timestamp_ms for record in read_records(content)]
        assert len(times) == 4
        assert times == sorted(times)
        assert began_ms <= times[0] <= times[-1] <= ended_ms
    assert await story.end() == {"orders-0": ["A", "B", "C", "D"]}
