"""The consumer over real gRPC, against brokers in this process that move leaderships, die, fall silent and refuse."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from struct import pack_into

import cramjam
import pytest

from fencepost import cluster as cluster_module
from fencepost import metadata_watch
from fencepost.consumer import Consumer, OffsetAndTimestamp
from fencepost.consuming import fetching as consumer_fetch
from fencepost.consuming.consumer_core import MAX_BUFFERED_BYTES
from fencepost.consuming.partition import ConsumerRecord, TopicPartition
from fencepost.history import History
from fencepost_proto.protocol.errors import (
    CorruptMessage,
    InvalidConfig,
    InvalidRequest,
    NotLeaderOrFollower,
    OffsetOutOfRange,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import HEADER_BYTES
from fencepost_proto.protocol.records import Compression
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.batches import batch, with_field
from tests.unit.fake_broker_read import FakeCluster, batch_of, fake_cluster

T0 = TopicPartition("orders", 0)


def with_content(content: bytes, codec: Compression) -> bytes:
    """A batch of three records, as a hostile producer makes one: only its header is right."""
    data = bytearray(batch(3)[:HEADER_BYTES] + content)
    pack_into(">i", data, 8, len(data) - 12)
    return with_field(bytes(data), 21, ">h", int(codec))


def write(fake: FakeCluster, key: PartitionKey, count: int, compression: Compression = Compression.NONE) -> None:
    """One batch; each value is its own offset."""
    log = fake.logs[key]
    values = [str(log.end_offset + n).encode() for n in range(count)]
    log.append(batch_of(values, compression=compression), fake.image.partitions[key].leader_epoch)


async def read(consumer: Consumer, count: int) -> list[ConsumerRecord]:
    """The next `count` records; fails the test if they do not come."""
    records: list[ConsumerRecord] = []
    async with asyncio.timeout(10):
        while len(records) < count:
            records += await consumer.poll(count - len(records))
    return records


def check_in_order(records: list[ConsumerRecord], begin: int = 0) -> None:
    expected: dict[int, int] = defaultdict(lambda: begin)
    for record in records:
        assert record.offset == expected[record.partition]
        assert record.value == str(record.offset).encode()
        expected[record.partition] += 1


@asynchronous
async def test_all_partitions_of_a_topic_are_read_from_the_beginning_each_in_order() -> None:
    async with fake_cluster() as fake:
        topic_id = fake.add_topic("orders", 3)
        for index in range(3):
            for count, compression in ((3, Compression.NONE), (50, Compression.ZSTD), (2, Compression.LZ4)):
                write(fake, (topic_id, index), count, compression)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            assert consumer.assignment == [TopicPartition("orders", n) for n in range(3)]
            records: list[ConsumerRecord] = []
            async for record in consumer:
                records.append(record)
                assert await consumer.position(TopicPartition("orders", record.partition)) == record.offset + 1
                if len(records) == 165:
                    break
            check_in_order(records)
            assert consumer.high_watermark(T0) == 55
            assert await consumer.poll(timeout_ms=1) == []


@asynchronous
async def test_a_record_written_while_the_consumer_waits_arrives_at_once() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            await until(lambda: fake.brokers[1].fetches, "a fetch")
            loop = asyncio.get_running_loop()
            took_s = []
            for _ in range(5):
                begun = loop.time()
                reading = asyncio.create_task(read(consumer, 1))
                await asyncio.sleep(0)
                write(fake, key, 1)
                await reading
                took_s.append(loop.time() - begun)
            assert sorted(took_s)[2] < 0.3


@asynchronous
async def test_reading_goes_on_at_the_new_leader_without_a_gap_or_a_repeat() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            records: list[ConsumerRecord] = []
            for leader in (2, 3, 1, 3, 2):
                write(fake, key, 10)
                records += await read(consumer, 5)
                fake.elect(key, leader)
                records += await read(consumer, 5)
            check_in_order(records)
            await until(
                lambda: [b.fetch_streams for b in fake.brokers.values()] == [0, 1, 0], "one stream, to broker 2"
            )


@asynchronous
async def test_a_killed_leader_costs_no_more_than_its_election() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            write(fake, key, 3)
            records = await read(consumer, 3)
            await fake.brokers[1].kill()
            write(fake, key, 3)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            fake.fence(1)
            records += await read(consumer, 3)
            assert loop.time() - begun < 2
            check_in_order(records)


@asynchronous
async def test_a_refusal_with_a_hint_leads_to_the_new_leader_before_the_metadata_does() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            write(fake, key, 3)
            records = await read(consumer, 3)
            fake.stale = {1, 3}
            fake.elect(key, 2)
            hint = fake.image.current_leader(fake.image.partitions[key])
            fake.brokers[1].refuse[key] = NotLeaderOrFollower("moved", current_leader=hint)
            if fake.brokers[2].watchers:  # no news but the hint
                fake.brokers[2].pause()
                await asyncio.sleep(0)
                fake.brokers[2].resume()
            write(fake, key, 3)
            records += await read(consumer, 3)
            check_in_order(records)


@asynchronous
async def test_a_silent_leader_is_given_up_after_a_deadline_and_followed_when_it_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer_fetch, "RESPONSE_MARGIN_S", 0.1)
    monkeypatch.setattr(metadata_watch, "SILENCE_S", 0.3)
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            write(fake, key, 3)
            records = await read(consumer, 3)
            await until(lambda: fake.brokers[1].fetch_streams, "a fetch stream")
            fake.brokers[1].pause()
            write(fake, key, 3)
            assert await consumer.poll(timeout_ms=300) == []
            fake.elect(key, 3)
            records += await read(consumer, 3)
            check_in_order(records)
            fake.brokers[1].resume()


@asynchronous
async def test_a_partition_without_a_leader_is_waited_for_and_does_not_hold_up_the_others() -> None:
    async with fake_cluster() as fake:
        topic_id = fake.add_topic("orders", 2)
        fake.elect((topic_id, 0), -1)
        for index in range(2):
            write(fake, (topic_id, index), 3)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            assert {record.partition for record in await read(consumer, 3)} == {1}
            fake.elect((topic_id, 0), 3)
            assert {record.partition for record in await read(consumer, 3)} == {0}


@asynchronous
async def test_seeking_drops_what_was_on_its_way() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        for _ in range(10):
            write(fake, key, 10)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            for offset in (55, 0, 99, 7, 7):
                consumer.seek(T0, offset)
                assert await consumer.position(T0) == offset
                assert (await anext(consumer)).offset == offset
            await consumer.seek_to_end()
            assert await consumer.position(T0) == 100
            assert await consumer.poll(timeout_ms=50) == []
            write(fake, key, 1)
            assert (await read(consumer, 1))[0].offset == 100
            await consumer.seek_to_beginning(T0)
            check_in_order(await read(consumer, 101))
            with pytest.raises(InvalidRequest, match="other-0"):
                consumer.seek(TopicPartition("other", 0), 1)


@asynchronous
async def test_a_latest_start_reads_what_is_committed_after_the_assignment_and_nothing_before() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        write(fake, key, 5)
        async with Consumer(fake.bootstrap, "orders", start="latest") as consumer:
            write(fake, key, 2)
            assert [record.offset for record in await read(consumer, 2)] == [5, 6]


@asynchronous
async def test_offsets_by_time_are_those_of_the_record_not_of_its_batch() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        log = fake.logs[key]
        log.append(batch_of([b"0", b"1", b"2"], timestamps=[100, 200, 300]))
        log.append(batch_of([b"3", b"4", b"5"], timestamps=[400, 350, 600]))
        async with Consumer(fake.bootstrap, "orders") as consumer:
            for timestamp_ms, expected in (
                (0, OffsetAndTimestamp(0, 100)),
                (101, OffsetAndTimestamp(1, 200)),
                (300, OffsetAndTimestamp(2, 300)),
                (301, OffsetAndTimestamp(3, 400)),
                (401, OffsetAndTimestamp(5, 600)),
                (601, None),
            ):
                assert await consumer.offsets_for_times({T0: timestamp_ms}) == {T0: expected}
            assert await consumer.beginning_offsets([T0]) == {T0: 0}
            assert await consumer.end_offsets([T0]) == {T0: 6}
            await consumer.seek_to_timestamp(150)
            assert (await read(consumer, 1))[0].offset == 1
            await consumer.seek_to_timestamp(9_999, T0)
            assert await consumer.position(T0) == 6


@pytest.mark.parametrize(("reset", "expected"), [("earliest", 20), ("latest", 40)])
@asynchronous
async def test_what_retention_removed_is_passed_as_reset_says(reset: str, expected: int) -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        for _ in range(4):
            write(fake, key, 10)
        fake.logs[key].remove_before(20)
        async with Consumer(fake.bootstrap, reset=reset) as consumer:  # type: ignore[arg-type]
            await consumer.assign([T0])
            consumer.seek(T0, 5)
            await until(
                lambda: any(p.fetch_offset == 5 for f in fake.brokers[1].fetches for p in f.partitions),
                "a fetch from offset 5",
            )
            await until(
                lambda: any(p.fetch_offset == expected for f in fake.brokers[1].fetches for p in f.partitions),
                f"a fetch from offset {expected}",
            )
            write(fake, key, 1)
            assert (await read(consumer, 1))[0].offset == expected


@asynchronous
async def test_an_offset_out_of_range_under_the_policy_error_is_raised_until_the_application_seeks() -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders"), 0)
        write(fake, key, 10)
        async with Consumer(fake.bootstrap, reset="error") as consumer:
            await consumer.assign([("orders", 0)])
            consumer.seek(T0, 11)
            for _ in range(2):
                with pytest.raises(OffsetOutOfRange, match="offset 11 of orders-0"):
                    await read(consumer, 1)
            consumer.seek(T0, 3)
            check_in_order(await read(consumer, 7), 3)


@asynchronous
async def test_damaged_bytes_are_fetched_again_and_raised_when_they_stay_damaged() -> None:
    async with fake_cluster(1) as fake:
        key = (fake.add_topic("orders"), 0)
        write(fake, key, 10)
        fake.brokers[1].corrupt_next = 2
        async with Consumer(fake.bootstrap, "orders") as consumer:
            check_in_order(await read(consumer, 10))
            assert fake.brokers[1].corrupt_next == 0
            fake.brokers[1].corrupt_next = 1000
            write(fake, key, 1)
            with pytest.raises(CorruptMessage):
                await read(consumer, 1)


@asynchronous
async def test_a_batch_that_no_one_can_read_is_raised_with_its_place_or_skipped_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fake_cluster() as fake:
        key = (fake.add_topic("orders", 1), 0)
        write(fake, key, 3)
        content = bytes(cramjam.zstd.compress(bytes(3_000_000)))
        fake.logs[key].append(with_content(content, Compression.ZSTD), fake.image.partitions[key].leader_epoch)
        write(fake, key, 2)
        async with Consumer(fake.bootstrap, "orders", max_decompressed_bytes=2_000_000) as consumer:
            check_in_order(await read(consumer, 3))
            for _ in range(2):
                with pytest.raises(CorruptMessage, match=r"orders-0 at offset 3, as broker .*limit of 2000000"):
                    await consumer.poll(10, 5_000)
            assert await consumer.position(T0) == 3
        lines: list[str] = []
        async with Consumer(
            fake.bootstrap,
            "orders",
            unreadable="skip",
            max_decompressed_bytes=2_000_000,
            history=History(lines.append, process="reader"),
        ) as consumer:
            records = await read(consumer, 5)
            assert [record.offset for record in records] == [0, 1, 2, 6, 7]
            assert (consumer.skipped_batches, consumer.skipped_records) == (1, 3)
        moves = [json.loads(line) for line in lines if '"seek"' in line]
        assert [move["offset"] for move in moves][-1] == 6
        (told,) = [line for line in caplog.messages if "unreadable batch skipped" in line]
        assert "topic=orders partition=0 offset=3 records=3" in told


@asynchronous
async def test_a_deleted_topic_is_raised_after_what_was_read_of_it() -> None:
    async with fake_cluster(1) as fake:
        topic_id = fake.add_topic("orders")
        write(fake, (topic_id, 0), 3)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            await read(consumer, 1)
            fake.change(deleted=(f"topics/{topic_id}", f"partitions/{topic_id}/0"))
            await until(lambda: "orders" not in consumer._cluster.image.topic_ids, "the deletion to be known")
            assert len(await read(consumer, 2)) == 2
            with pytest.raises(UnknownTopicOrPartition, match="orders-0"):
                await read(consumer, 1)


@asynchronous
async def test_what_is_not_there_or_not_possible_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "TOPIC_WAIT_S", 0.1)
    with pytest.raises(InvalidConfig, match="start='first'"):
        Consumer("localhost:9092", start="first")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="reset='none'"):
        Consumer("localhost:9092", reset="none")  # type: ignore[arg-type]
    async with fake_cluster(1) as fake:
        fake.add_topic("orders", 2)
        with pytest.raises(UnknownTopicOrPartition, match="nothing"):
            await Consumer(fake.bootstrap, "nothing").start()
        async with Consumer(fake.bootstrap) as consumer:
            with pytest.raises(UnknownTopicOrPartition, match="no partition 2: it has 2"):
                await consumer.assign([("orders", 2)])
            with pytest.raises(InvalidRequest, match="no partition is assigned"):
                await consumer.poll()
            with pytest.raises(InvalidRequest, match="max_records=0"):
                await consumer.poll(0)
            with pytest.raises(UnknownTopicOrPartition, match="nothing"):
                await consumer.end_offsets([T0, TopicPartition("nothing", 0)])
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling(), "an error leaves no mark on the application's task"
        for reading in (consumer.poll, consumer.__anext__, lambda: consumer.subscribe("orders")):
            with pytest.raises(InvalidRequest, match="not open"):
                await reading()
        await until(lambda: fake.brokers[1].fetch_streams == fake.brokers[1].watchers == 0, "the streams' end")


@asynchronous
async def test_a_closed_consumer_hands_out_nothing_more_and_still_knows_where_it_was() -> None:
    async with fake_cluster(1) as fake:
        write(fake, (fake.add_topic("orders", 1), 0), 5)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            assert (await consumer.poll(2))[-1].offset == 1
        for reading in (consumer.poll, consumer.__anext__):
            with pytest.raises(InvalidRequest, match="not open"):
                await reading()
        assert await consumer.position(T0) == 2


@asynchronous
async def test_cancelling_a_read_loses_no_record() -> None:
    async with fake_cluster(1) as fake:
        key = (fake.add_topic("orders"), 0)
        records: list[ConsumerRecord] = []
        async with Consumer(fake.bootstrap, "orders") as consumer:
            for turn in range(60):
                reading = asyncio.create_task(consumer.poll(3) if turn % 2 else _one(consumer))
                write(fake, key, 2, Compression.GZIP)
                for _ in range(turn % 12):
                    await asyncio.sleep(0)
                reading.cancel()
                try:
                    records += await reading
                except asyncio.CancelledError:
                    continue
            records += await read(consumer, 120 - len(records))
            check_in_order(records)


@asynchronous
async def test_the_history_has_each_invocation_each_record_and_each_move_in_the_order_the_application_saw() -> None:
    async with fake_cluster(1) as fake:
        key = (fake.add_topic("orders"), 0)
        write(fake, key, 3)
        lines: list[str] = []
        async with Consumer(fake.bootstrap, "orders", history=History(lines.append, process="c1")) as consumer:
            await read(consumer, 2)
            assert (await anext(consumer)).offset == 2
            assert await consumer.poll(timeout_ms=1) == []
            consumer.seek(T0, 1)
            assert (await anext(consumer)).offset == 1
            write(fake, key, 3)
            write(fake, key, 1)
            assert (await anext(consumer)).offset == 2
            fake.logs[key].remove_before(6)
            consumer.seek(T0, 3)
            assert (await read(consumer, 1))[0].offset == 6
            fake.change(deleted=(f"topics/{key[0]}", f"partitions/{key[0]}/0"))
            with pytest.raises(UnknownTopicOrPartition):
                await read(consumer, 1)
        told = [json.loads(line) for line in lines]
        assert {line["process"] for line in told} == {"c1"}
        assert [line["time"] for line in told] == sorted(line["time"] for line in told)
        story = [(line["type"], line["op"], line.get("offset")) for line in told if line["type"] != "invoke"]
        assert story[:9] == [
            ("info", "seek", 0),
            ("ok", "poll", 0),
            ("ok", "poll", 1),
            ("ok", "poll", 2),
            ("ok", "poll", None),
            ("info", "seek", 1),
            ("ok", "poll", 1),
            ("ok", "poll", 2),
            ("info", "seek", 3),
        ]
        assert [entry for entry in story[9:] if entry != ("ok", "poll", None)] == [
            ("info", "seek", 6),
            ("ok", "poll", 6),
            ("fail", "poll", None),
        ]
        invoked = {line["id"] for line in told if line["type"] == "invoke"}
        assert {line["id"] for line in told if line["op"] == "poll"} == invoked


async def _one(consumer: Consumer) -> list[ConsumerRecord]:
    return [await anext(consumer)]


@asynchronous
async def test_a_slow_reader_holds_fetching_back_and_a_large_answer_does_not_hold_the_loop() -> None:
    async with fake_cluster(1) as fake:
        key = (fake.add_topic("orders"), 0)
        batch = batch_of([bytes(100)] * 9_000)
        count = 3 * MAX_BUFFERED_BYTES // len(batch)
        for _ in range(count):
            fake.logs[key].append(batch)
        async with Consumer(fake.bootstrap, "orders") as consumer:
            core = consumer._core
            await until(lambda: core.buffered_bytes >= MAX_BUFFERED_BYTES, "a full buffer")
            assert core.buffered_bytes < MAX_BUFFERED_BYTES + 9 * 1024 * 1024
            assert await consumer.position(T0) == 0
            seen = 0
            async for record in consumer:
                assert record.offset == seen
                seen += 1
                if seen == count * 9_000:
                    break
