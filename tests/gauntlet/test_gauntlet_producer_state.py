"""The gauntlet, rows about what brokers know of producers: that it is there when it is needed, and true.

What was reported, where, and what happens here instead is told by each test's docstring; docs/GAUNTLET.md has the
table. In all of these a broker forgot or invented what it knew of a producer, in a restart, a move, a failed write or a
recovery; the producer's next retry was appended twice, or dropped, or refused for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest

from fencepost_node.log.log import Log
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.host import Host
from tests.gauntlet.story import Story, tale
from tests.simulation.disk import MountedDisk
from tests.simulation.loop import current_process

BROKERS = ("broker-1", "broker-2", "broker-3")


@pytest.mark.parametrize("then", ["new connection", "failover", "restart", "clean restart", "power failure"])
@tale()
async def test_window_of_five(story: Story, then: str) -> None:
    """redpanda-data/redpanda PR 3077 (issue 3038).

    Reported: five batches may be in flight, but the retry of any but the last is an error: the broker (or what it saves
    for a restart) knows one batch of a producer only.

    Here: five batches are appended and all five answers are lost. Whatever happens then (for "power failure", to the
    leader), all five retries are recognised, with the offsets of the originals.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=2)
    client = await story.producer()
    await story.acked(await client.send("W"))
    story.cut("broker-1", client.node)
    five = [await client.send(value) for value in "ABCDE"]
    await story.answered("E")
    await story.in_sync()
    assert not any(sent.settled for sent in five)

    await story.reset("broker-1", client.node)
    if then == "failover":
        story.kill("broker-1")
    elif then == "restart":
        story.kill("controller", *BROKERS)
        story.start("controller", *BROKERS)
    elif then == "clean restart":
        for broker in BROKERS:
            await story.stop(broker)
        assert not any("checked_bytes" in line for line in story.world.trace if "checked_bytes=0" not in line)
        story.start(*BROKERS)
    elif then == "power failure":
        story.power_failure(1)
        assert story.values(1) == [], "the machine has lost what it had not synced, which was all"
    story.heal("broker-1", client.node)
    await story.acked(*five)
    for offset, sent in enumerate(five, start=1):
        first, *retries = story.answers(sent.value)
        assert first == f"broker-1: at {offset}"
        assert retries[-1].endswith(f": duplicate of {offset}")
        assert sent.offset == offset
    await story.acked(await client.send("F"))
    assert await story.end() == {"orders-0": list("WABCDEF")}


@tale(brokers=4)
async def test_duplicates_after_move(story: Story) -> None:
    """AutoMQ/automq issues 437 and 509.

    Reported: a partition moves to other brokers and producer state stays behind. Retries are appended again, or the
    producer's next batch is out of order for ever.

    Here: the producer's batches have even left the log by retention, so that no copy of the log tells of them. The new
    replicas get the state at the log's start with the log.
    """
    await story.create_topic("orders", [[1, 2]], segment_bytes=1_000, retention_bytes=2_000)
    client = await story.producer()
    filler = await story.producer("filler")
    await story.acked(await client.send("W"))
    story.cut("broker-1", client.node)
    x = await client.send("X")
    await story.answered("X")
    story.separate(client.node, *BROKERS, "broker-4")  # it cannot ask again until all is over
    number = 0
    while min(story.log(1).start_offset, story.log(2).start_offset) < 5:
        await story.acked(await filler.send(f"f{number}", padding=200))
        number += 1
        await asyncio.sleep(0.1)

    await story.reassign("orders", 0, [3, 4])
    await story.until(lambda: story.partition("orders-0").replicas == (3, 4), "the partition has moved")
    leader = await story.led()
    assert min(story.log(3).start_offset, story.log(4).start_offset) > 1, "X never was on either of them"
    assert not x.settled
    await story.reset(client.node, "broker-1")
    story.rejoin(client.node, *BROKERS, "broker-4")
    await story.acked(x)
    assert story.answers("X")[-1] == f"broker-{leader}: duplicate of 1"
    await story.acked(await client.send("Y"))
    assert story.stamps("Y") == {(client.identity[0], 0, 2)}
    log = (await story.end())["orders-0"]
    assert log[-1] == "Y"
    assert "X" not in log


@pytest.mark.parametrize("replicas", [[1], [1, 2, 3]], ids=["alone", "replicated"])
@tale()
async def test_state_before_persist(story: Story, replicas: list[int]) -> None:
    """apache/pulsar issue 5218.

    Reported: the broker notes a batch as seen, then writes it, and the write fails. The retry is taken for a duplicate
    and acknowledged; the record is nowhere.

    Here: state changes with the append, in one step. The retry is appended: by another leader, or, where the partition
    has no other, by the same broker once it has been started again.
    """
    await story.create_topic("orders", [replicas], min_insync_replicas=1)
    client = await story.producer()
    await story.acked(await client.send("W"))
    log = story.replica(1, "orders-0").log
    before = log.states[PRODUCERS].copy()
    story.fail_next_append(1, "orders-0")
    a = await client.send("A")
    await story.answered("A")
    assert story.answers("A")[0] == "broker-1: KAFKA_STORAGE_ERROR"
    assert story.faults(1) == {"EIO on append": 1}
    assert log.states[PRODUCERS] == before
    assert log.log_end_offset == 1

    if len(replicas) == 1:
        assert not a.settled
        story.kill("broker-1")
        story.start("broker-1")
        await story.acked(a)
    else:
        await story.led(not_by=1)
        await story.acked(a)
        story.kill("broker-1")  # an operator has changed its disk
        story.start("broker-1")
    assert story.answers("A")[-1].endswith(": at 1"), "appended, not taken for a duplicate"
    await story.acked(await client.send("B"))
    assert await story.end() == {"orders-0": ["W", "A", "B"]}


@tale()
async def test_partly_duplicate_batch(story: Story) -> None:
    """apache/pulsar issue 6273.

    Reported: a batch comes whose first records are in the log and whose last are not. It is dropped as a duplicate,
    whole, with success: the new records are lost.

    Here: only an exact repeat is a duplicate. Any other overlap is refused with an error, nothing is appended, and the
    stream goes on. (No client of ours sends such a batch, so the test writes them by hand.)
    """
    await story.create_topic("orders", [[1, 2, 3]])
    topic_id = story.topic("orders").topic_id
    answers: list[str] = []

    async def main(host: Host, disk: MountedDisk) -> None:
        call: Any = broker_pb2_grpc.BrokerStub(host.wire.connect("broker-1:9092")).Produce()

        async def produce(first: int, count: int) -> None:
            builder = BatchBuilder(Compression.NONE, 10_000)
            for number in range(count):
                builder.append(1_000, None, b"%d" % (first + number), [])
            request = broker_pb2.ProduceRequest()
            request.batches.add(
                correlation_id=len(answers), topic_id=topic_id, leader_epoch=0, acks=-1, timeout_ms=1_000,
                records=builder.build(1_234, 0, first),
            )  # fmt: skip
            await call.write(request)
            result = (await call.read()).results[0]
            error = ErrorCode(result.error.code).name if result.error.code else ""
            answers.append(error or f"{'duplicate of' if result.duplicate else 'at'} {result.base_offset}")

        await produce(0, 3)
        await produce(3, 3)
        for first, count in ((4, 4), (5, 2), (0, 8), (0, 6), (0, 2), (1, 2), (2, 2), (1, 3), (3, 4)):
            await produce(first, count)
        await produce(3, 3)
        await produce(6, 2)

    process = story.world.start("by-hand", main)
    await story.until(lambda: not process.alive, "all is asked")
    assert story.world.crashes == []
    overlaps = ["OUT_OF_ORDER_SEQUENCE_NUMBER"] * 9
    assert answers == ["at 0", "at 3", *overlaps, "duplicate of 3", "at 6"]
    assert await story.end() == {"orders-0": list("01234567")}


@tale()
async def test_double_recovery(story: Story) -> None:
    """apache/pulsar issue 25954.

    Reported: the recovery of deduplication state can be started a second time while the first one runs. The two replays
    race, and duplicates pass.

    Here: the disk is slow, and while a log is opened metadata comes again and again, which names its partition.
    Each log is opened once in the life of a process, and nothing is appended to it before that has ended.
    """
    opened: list[tuple[object, str]] = []  # (process, folder)
    appended: list[tuple[object, str]] = []
    open_log, append = Log.open, Log.append_as_leader

    def note_open(disk: Any, directory: str, *args: Any, **options: Any) -> Log:
        opened.append((disk._process, directory))
        return open_log(disk, directory, *args, **options)

    def note_append(log: Log, *args: Any) -> bytes:
        process = current_process.get()
        assert (process, log.directory) in opened, f"appended to {log.directory} before it was recovered"
        appended.append((process, log.directory))
        return append(log, *args)

    with patch.object(Log, "open", staticmethod(note_open)), patch.object(Log, "append_as_leader", note_append):
        await story.create_topic("orders", [[1]], min_insync_replicas=1)
        client = await story.producer()
        await story.acked(await client.send("A"))
        story.cut("broker-1", client.node)
        b = await client.send("B")
        await story.answered("B")
        await story.reset("broker-1", client.node)
        story.kill("broker-1")
        story.heal("broker-1", client.node)
        with story.slow_disk("broker-1", 1.0):
            story.start("broker-1")
            await story.led(by=1)
            await story.order_topic("fresh", [[1]], min_insync_replicas=1)
            c = await client.send("C", topic="fresh")
            await story.answered("C")
            for number in range(5):
                await story.order_topic(f"other{number}", [[2]], min_insync_replicas=1)
            manager = story.cluster.brokers[1].manager
            await story.until(lambda: len(manager.image.topics) == 7, "broker 1 has applied all of that")
            assert not story.leads(1, "fresh-0"), "and its log is still being opened"
            assert story.answers("C")[0] == "broker-1: NOT_LEADER_OR_FOLLOWER"
            await story.acked(b, c)
            await asyncio.sleep(5)  # a second opening, if there were one, would have begun by now
        logs = await story.end()

    mine = [(process, folder) for process, folder in opened if repr(process).startswith("broker-1")]
    assert sorted((repr(process), folder) for process, folder in mine) == [
        ("broker-1#1", "/data/orders-0"),
        ("broker-1#2", "/data/fresh-0"),
        ("broker-1#2", "/data/orders-0"),
    ]
    assert len(appended) == 3
    stored = [answer for answer in story.answers("B") if " at " in answer or "duplicate" in answer]
    assert stored == ["broker-1: at 1", "broker-1: duplicate of 1"]
    assert (logs["orders-0"], logs["fresh-0"]) == (["A", "B"], ["C"])
