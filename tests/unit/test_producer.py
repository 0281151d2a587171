"""The producer as its users meet it, over real gRPC, against brokers that fail in chosen ways."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import pytest

from fencepost import loop_guard
from fencepost import producer as producer_module
from fencepost.consumer import Consumer
from fencepost.errors import (
    BufferFull,
    CoordinatorNotAvailable,
    DeliveryTimeout,
    InvalidConfig,
    InvalidRecord,
    InvalidRequest,
    InvalidTimestamp,
    MessageTooLarge,
    NetworkException,
    ProducerClosed,
    ProducerFenced,
    UnknownTopicOrPartition,
)
from fencepost.history import History
from fencepost.history_format import from_line
from fencepost.producer import Producer
from fencepost.producing import accumulator, delivery_warnings
from fencepost.producing.config import ProducerConfig, ProducerOptions
from fencepost.producing.delivery import Delivery, RecordMetadata
from fencepost.producing.partitioner import partition_for
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import NO_LEADER
from fencepost_proto.protocol.record_batch import MAX_EPOCH
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.faults.lossy_wire import LossyWire
from fencepost_testing.waiting import until
from tests.unit.fake_broker_read import Log, run
from tests.unit.fake_broker_write import BREAK, SWALLOW, FakeWriteCluster, fake_write_cluster

ORDERS = ("id-of-orders", 0)


def with_cluster(test: Callable[[FakeWriteCluster], Awaitable[None]], partitions: int = 1) -> None:
    async def body() -> None:
        async with fake_write_cluster() as cluster:
            cluster.add_topic("orders", partitions)
            await test(cluster)

    run(body())


async def send_all(producer: Producer, values: list[bytes], *, pause_every: int = 0) -> list[Delivery]:
    deliveries = []
    for number, value in enumerate(values):
        deliveries.append(await producer.send("orders", value))
        if pause_every and number % pause_every == 0:
            await asyncio.sleep(0.001)
    return deliveries


def numbered(count: int) -> list[bytes]:
    return [b"%06d" % number for number in range(count)]


# ---- Sending ----


def test_a_record_is_acknowledged_with_its_place() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            first = await producer.send_and_wait("orders", b"one", key=b"k", headers=[("h", b"1")], timestamp_ms=77)
            second = await (await producer.send("orders", b"two"))
            assert (first.topic, first.partition, first.offset, first.timestamp_ms) == ("orders", 0, 0, 77)
            assert second.offset == 1
            assert producer.stats.records_acked == producer.stats.records_sent == 2
        record = cluster.records(ORDERS)[0]
        assert (record.key, record.value, record.headers, record.timestamp_ms) == (b"k", b"one", [("h", b"1")], 77)

    with_cluster(test)


def test_records_of_a_batch_have_consecutive_offsets_and_keep_their_order() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, batch_size=2_000) as producer:
            deliveries = await send_all(producer, numbered(5_000))
            places = [await delivery for delivery in deliveries]
            assert [place.offset for place in places] == list(range(5_000))
            assert cluster.values(ORDERS) == numbered(5_000)
            assert producer.stats.batches_sent < 500

    with_cluster(test)


def test_keys_choose_partitions_as_kafka_does_and_records_without_keys_spread() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, batch_size=1_000) as producer:
            for number in range(300):
                key = b"key-%d" % (number % 20)
                place = await producer.send("orders", b"v", key=key)
                if number < 20:
                    assert (await place).partition == partition_for(key, 3)
            spread = Counter([(await d).partition for d in await send_all(producer, [b"x" * 100] * 500)])
            assert sorted(spread) == [0, 1, 2]
            assert (await producer.send_and_wait("orders", b"v", key=b"key-1", partition=2)).partition == 2

    with_cluster(test, partitions=3)


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read_back(compression: str) -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, compression=compression, batch_size=4_000) as producer:
            await send_all(producer, numbered(2_000))
            await producer.flush()
        assert cluster.values(ORDERS) == numbered(2_000)

    with_cluster(test)


def test_many_partitions_share_a_message() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"warm")
            for number in range(30):
                await producer.send("orders", b"v", partition=number)
            await producer.flush()
        assert max(max(broker.messages, default=0) for broker in cluster.writers.values()) >= 5

    with_cluster(test, partitions=30)


def test_a_lingering_batch_waits_for_company_and_a_flush_ends_the_wait() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, linger_ms=60_000) as producer:
            deliveries = await send_all(producer, numbered(50), pause_every=10)
            assert not deliveries[0].done()
            with pytest.raises(InvalidRequest, match="await it"):
                deliveries[0].result()
            await producer.flush()
            assert deliveries[-1].result().offset == 49
            assert producer.stats.batches_sent == 1

    with_cluster(test)


# ---- What is refused at once ----


def test_impossible_records_are_refused_by_name_and_nothing_is_taken() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, max_request_size=1_000) as producer:
            with pytest.raises(MessageTooLarge, match="record of 2021 bytes for orders-0; max_request_size is 1000"):
                await producer.send("orders", b"x" * 2_000)
            with pytest.raises(UnknownTopicOrPartition, match="partition 7 of topic 'orders'"):
                await producer.send("orders", b"x", partition=7)
            with pytest.raises(UnknownTopicOrPartition, match="'nowhere'"):
                await producer.send("nowhere", b"x")
            with pytest.raises(InvalidRecord, match="-5"):
                await producer.send("orders", b"x", timestamp_ms=-5)
            with pytest.raises(InvalidRecord, match=r"1\.5"):
                await producer.send("orders", b"x", timestamp_ms=1.5)  # type: ignore[arg-type]
            with pytest.raises(InvalidRecord, match="header"):
                await producer.send("orders", b"x", headers=[("name", "text")])  # type: ignore[list-item]
            with pytest.raises(TypeError):
                await producer.send("orders", "text")  # type: ignore[arg-type]
            await producer.send("orders", b"good")
            with pytest.raises(TypeError):
                await producer.send("orders", b"v", key="text")  # type: ignore[arg-type]
            await producer.flush()
            assert producer.stats.records_sent == producer.stats.records_acked == 1
        assert cluster.values(ORDERS) == [b"good"]

    with_cluster(test)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"acks": 2}, "acks=2"),
        ({"acks": True}, "acks=True"),
        ({"compression": "brotli"}, "compression='brotli'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"name": "n", "acks": 1}, "acks=1"),
        ({"retry_backoff_ms": 100, "retry_backoff_max_ms": 50}, "retry_backoff_max_ms=50"),
        ({"delivery_timeout_ms": 0}, "delivery_timeout_ms=0"),
        ({"batch_size": "64k"}, "batch_size='64k'"),
        ({"linger_ms": True}, "linger_ms=True"),
        ({"name": 5}, "name=5"),
        ({"compression": None}, "compression=None"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(options: ProducerOptions, named: str) -> None:
    with pytest.raises(InvalidConfig, match=named):
        Producer("127.0.0.1:1", **options)


def test_the_typed_options_are_the_configurations_fields() -> None:
    assert list(ProducerOptions.__annotations__) == list(ProducerConfig.__dataclass_fields__)


def test_a_producer_outside_of_its_context_says_so() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        producer = Producer(cluster.bootstrap)
        with pytest.raises(InvalidRequest, match="not started"):
            await producer.send("orders", b"x")
        async with producer:
            await producer.send("orders", b"x")
        with pytest.raises(ProducerClosed):
            await producer.send("orders", b"x")
        with pytest.raises(ProducerClosed):
            await producer.flush()
        await producer.close()
        assert cluster.values(ORDERS) == [b"x"]

    with_cluster(test)


def test_a_producer_of_another_event_loop_says_so() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"here")

            def elsewhere() -> None:
                with pytest.raises(InvalidRequest, match="another event loop"):
                    asyncio.run(producer.send_and_wait("orders", b"there"))

            await asyncio.to_thread(elsewhere)
        assert cluster.values(ORDERS) == [b"here"]

    with_cluster(test)


def test_no_broker_and_no_producer_id_are_clear_errors() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.init_faults = [CoordinatorNotAvailable("the controller is away")] * 1_000
        with pytest.raises(CoordinatorNotAvailable, match=r"within 300 ms.*the controller is away"):
            async with Producer(cluster.bootstrap, max_block_ms=300):
                pass

    with_cluster(test)


# ---- Faults ----


def test_lost_acknowledgements_are_retried_and_recognised() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.faults[ORDERS] = [BREAK] * 3
        async with Producer(cluster.bootstrap, batch_size=300) as producer:
            deliveries = await send_all(producer, numbered(200), pause_every=5)
            places = [await delivery for delivery in deliveries]
            assert [place.offset for place in places] == list(range(200))
            assert producer.stats.retried_batches >= 3
            assert producer.stats.deduplicated_batches >= 1
            assert cluster.recognised >= 1
        assert cluster.values(ORDERS) == numbered(200)

    with_cluster(test)


def test_the_fault_switch_drops_answers_and_nothing_is_lost_or_doubled() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        wire = LossyWire(GrpcWire(), drop_acks=0.2)
        async with Producer(cluster.bootstrap, batch_size=300, host=Host(wire=wire)) as producer:
            await send_all(producer, numbered(1_500), pause_every=20)
            await producer.flush()
            stats = producer.stats
            assert stats.records_acked == 1_500
            assert wire.dropped_acks >= 3
            assert stats.deduplicated_batches >= 1
        assert cluster.values(ORDERS) == numbered(1_500)

    with_cluster(test)


def test_a_history_has_every_send_also_a_refused_one_and_is_complete_once_the_producer_is_closed() -> None:
    lines: list[str] = []

    async def test(cluster: FakeWriteCluster) -> None:
        history = History(lines.append, process="p")
        async with Producer(cluster.bootstrap, history=history) as producer:
            await producer.send_and_wait("orders", b"one", partition=0)
            with pytest.raises(UnknownTopicOrPartition):
                await producer.send("orders", b"two", partition=99)
            await producer.send("orders", b"three", partition=0)

    with_cluster(test)
    told = [from_line(line) for line in lines]
    assert [(line.type, line.id, line.value) for line in told if line.type == "invoke"] == [
        ("invoke", 1, "one"), ("invoke", 2, "two"), ("invoke", 3, "three"),
    ]  # fmt: skip
    completed = sorted((line.id, line.type, line.offset) for line in told if line.type != "invoke")
    assert completed == [(1, "ok", 0), (2, "fail", -1), (3, "ok", 1)]


def test_answers_in_any_order_are_matched() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.reverse_answers = True
        async with Producer(cluster.bootstrap, batch_size=200) as producer:
            cluster.answering.clear()
            deliveries = await send_all(producer, numbered(300), pause_every=7)
            cluster.answering.set()
            assert [(await delivery).offset for delivery in deliveries] == list(range(300))
        assert cluster.values(ORDERS) == numbered(300)

    with_cluster(test)


def test_records_follow_the_leader_through_a_failover() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, batch_size=300) as producer:
            deliveries = []
            for number, value in enumerate(numbered(600)):
                deliveries.append(await producer.send("orders", value))
                if number % 10 == 0:
                    await asyncio.sleep(0.001)
                if number == 200:
                    old = cluster.leader_of(ORDERS)
                    cluster.faults[ORDERS] = [BREAK]
                    await old.kill()
                    cluster.fence(old.id)
                if number == 400:
                    cluster.elect(ORDERS, next(b for b in (1, 2, 3) if b not in (old.id, cluster.leader_of(ORDERS).id)))
            assert [(await delivery).offset for delivery in deliveries] == list(range(600))
        assert cluster.values(ORDERS) == numbered(600)

    with_cluster(test)


def test_a_silent_leader_does_not_hold_back_what_the_new_one_can_take() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"before")
            old = cluster.leader_of(ORDERS)
            old.pause()
            waiting = await producer.send("orders", b"during")
            await until(lambda: producer.stats.batches_sent >= 2, "the second batch")
            cluster.fence(old.id)
            async with asyncio.timeout(10):
                assert (await waiting).offset == 1
            old.resume()

    with_cluster(test)


def test_an_answer_that_never_comes_breaks_the_stream_and_is_asked_for_again() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.faults[ORDERS] = [SWALLOW]
        async with Producer(cluster.bootstrap, request_timeout_ms=50) as producer:
            assert (await producer.send_and_wait("orders", b"once")).offset == 0
            assert producer.stats.deduplicated_batches == 1
        assert cluster.values(ORDERS) == [b"once"]

    with_cluster(test)


def test_refusals_that_pass_are_not_shown_to_the_application() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.faults[ORDERS] = [
            errors.NotEnoughReplicas("x"),
            errors.NotEnoughReplicasAfterAppend("x"),
            errors.CorruptMessage("x"),
            errors.UnknownServerError("x"),
            errors.RequestTimedOut("x"),
            errors.UnknownLeaderEpoch("x"),
        ]
        async with Producer(cluster.bootstrap, batch_size=100) as producer:
            await send_all(producer, numbered(60), pause_every=3)
            await producer.flush()
            assert producer.stats.records_acked == 60
        assert cluster.values(ORDERS) == numbered(60)

    with_cluster(test)


def test_forgotten_producer_state_is_no_error_and_no_duplicate() -> None:
    """idle-past-expiry and stuck-until-restart of the gauntlet, over the wire."""

    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"one")
            cluster.states[ORDERS].__init__()  # type: ignore[misc]
            await producer.send_and_wait("orders", b"two")
            await producer.send_and_wait("orders", b"three")
        assert cluster.values(ORDERS) == [b"one", b"two", b"three"]

    with_cluster(test)


def test_a_batch_too_large_for_the_topic_fails_alone() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.max_message_bytes = 5_000
        async with Producer(cluster.bootstrap, batch_size=1_000) as producer:
            deliveries = [
                await producer.send("orders", b"a" * 900),
                await producer.send("orders", b"b" * 6_000),
                await producer.send("orders", b"c" * 900),
                await producer.send("orders", b"d" * 900),
            ]
            await producer.flush()
            with pytest.raises(MessageTooLarge) as caught:
                await deliveries[1]
            assert not caught.value.may_have_been_appended
            assert [(await d).offset for d in (deliveries[0], *deliveries[2:])] == [0, 1, 2]
            assert producer.stats.records_failed == 1
        assert [value[:1] for value in cluster.values(ORDERS)] == [b"a", b"c", b"d"]

    with_cluster(test)


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("acks", ["all", 1])
def test_batches_that_a_leader_finds_too_large_are_split_and_all_arrive_in_order(
    acks: Literal["all", 1], compression: str
) -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.max_message_bytes = 3_000  # and the metadata says 4 MB
        chance = random.Random(7)
        values = [b"%03d" % n + chance.randbytes(900 if n != 57 else 5_000) for n in range(100)]
        async with Producer(
            cluster.bootstrap, acks=acks, compression=compression, batch_size=40_000, linger_ms=5
        ) as producer:
            deliveries = await send_all(producer, values)
            waiting = [asyncio.ensure_future(anext_of(delivery)) for delivery in deliveries]
            await producer.flush()
            assert all(delivery.done() for delivery in deliveries)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert producer.stats.split_batches > 5
            assert producer.stats.records_acked == 99
            assert producer._buffer.used == 0
        (failure,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert isinstance(failure, MessageTooLarge)
        assert outcomes.index(failure) == 57
        assert not failure.may_have_been_appended
        assert [value[:3] for value in cluster.values(ORDERS)] == [b"%03d" % n for n in range(100) if n != 57]
        offsets = [outcome.offset for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert offsets == list(range(99))
        if acks == "all":
            assert {delivery.stamp is not None for delivery in deliveries} == {True}

    with_cluster(test)


async def anext_of(delivery: Delivery) -> RecordMetadata:
    return await delivery


def test_a_batch_refused_as_a_part_of_too_large_a_message_goes_alone_and_is_split_only_then() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.faults[ORDERS] = [errors.RecordListTooLarge("all together"), errors.RecordListTooLarge("alone, too")]
        async with Producer(cluster.bootstrap) as producer:
            for delivery in await send_all(producer, numbered(10)):
                await delivery
            assert producer.stats.split_batches == 1
        assert cluster.values(ORDERS) == numbered(10)
        assert cluster.batches_appended == 2

    with_cluster(test)


def test_batches_are_no_larger_than_the_topic_takes_and_a_record_that_is_fails_at_once_by_itself() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.max_message_bytes = 2_000
        topic = cluster.image.topics[ORDERS[0]]
        cluster.change(replace(topic, config=replace(topic.config, max_message_bytes=2_000)))
        async with Producer(cluster.bootstrap) as producer:
            deliveries = await send_all(producer, numbered(500))
            largest = 2_000 - 61 - 9
            with pytest.raises(MessageTooLarge, match="a batch of 2001 bytes; the topic takes at most 2000"):
                await producer.send("orders", b"x" * (largest + 1))
            with pytest.raises(MessageTooLarge, match="the topic takes at most 2000"):
                await producer.send("orders", b"x", headers=[("ключ" * 300, b"")])
            deliveries.append(await producer.send("orders", b"x" * largest))
            await producer.flush()
            for delivery in deliveries:
                await delivery
            assert (producer.stats.split_batches, producer.stats.records_failed) == (0, 0)
        assert len(cluster.values(ORDERS)) == 501

    with_cluster(test)


def test_a_producer_goes_by_settings_that_change_and_uses_partitions_that_are_added() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        topic = cluster.image.topics[ORDERS[0]]
        key = next(b"%d" % n for n in range(100) if partition_for(b"%d" % n, 3) == 2)
        async with Producer(cluster.bootstrap) as producer:
            assert (await producer.send_and_wait("orders", b"one", key=key)).partition == 0
            smaller = replace(topic, config=replace(topic.config, max_message_bytes=2_000))
            added = [replace(cluster.image.partitions[ORDERS], index=index) for index in (1, 2)]
            cluster.logs |= {partition.id: Log() for partition in added}
            cluster.change(smaller, *added)

            async def added_is_known() -> bool:
                return (await producer.send_and_wait("orders", b"more", key=key)).partition == 2

            await until(added_is_known, "the key goes to the partition that it has among three")
            with pytest.raises(MessageTooLarge, match="the topic takes at most 2000"):
                await producer.send("orders", b"x" * 2_000)
            assert (await producer.send_and_wait("orders", b"explicit", partition=1)).partition == 1
            cluster.change(topic)

            async def larger_is_known() -> bool:
                try:
                    return bool(await producer.send_and_wait("orders", b"x" * 2_000))
                except MessageTooLarge:
                    return False

            await until(larger_is_known, "a record fits that did not fit before")
            assert producer.stats.records_failed == 0

    with_cluster(test)


def test_a_time_outside_of_the_topics_bounds_is_refused_by_value_before_anything_is_taken() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        topic = cluster.image.topics[ORDERS[0]]
        config = replace(topic.config, message_timestamp_before_max_ms=60_000, message_timestamp_after_max_ms=60_000)
        cluster.change(replace(topic, config=config))
        host = Host(wall_clock_ms=lambda: 1_000_000)
        async with Producer(cluster.bootstrap, host=host) as producer:
            for timestamp_ms in (939_999, 1_060_001, 2**62):
                with pytest.raises(InvalidTimestamp, match=f"timestamp_ms={timestamp_ms} .* it is 1000000 now"):
                    await producer.send("orders", b"x", timestamp_ms=timestamp_ms)
            for timestamp_ms in (940_000, 1_060_000):
                await producer.send("orders", b"x", timestamp_ms=timestamp_ms)
            assert producer.stats.records_sent == 2
            await producer.flush()
        assert [record.timestamp_ms for record in cluster.records(ORDERS)] == [940_000, 1_060_000]

    with_cluster(test)


def test_brokers_that_come_back_elsewhere_leave_no_connections_behind() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        def connections() -> int:
            return sum(task.get_name().startswith("producer-connection") for task in asyncio.all_tasks())

        async with Producer(cluster.bootstrap) as producer:
            for number in range(4):
                broker = cluster.leader_of(ORDERS)
                await broker.kill()
                cluster.fence(broker.id)
                assert (await producer.send_and_wait("orders", b"x")).offset == 2 * number
                broker.address = ""  # another port
                await broker.start()
                cluster.change(replace(cluster.image.brokers[broker.id], address=broker.address, fenced=False))
                cluster.elect(ORDERS, broker.id)
                assert (await producer.send_and_wait("orders", b"x")).offset == 2 * number + 1
            await until(lambda: connections() <= 3, "no more than three connections")

    with_cluster(test)


# ---- What brokers know a record by ----


def test_a_delivery_has_the_stamp_under_which_its_record_stands_in_the_log() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.faults[ORDERS] = [errors.UnknownProducerId("forgotten")]
        async with Producer(cluster.bootstrap, batch_size=200) as producer:
            deliveries = await send_all(producer, numbered(50))
            assert deliveries[-1].stamp is None, "nothing is numbered before it is sent"
            await producer.flush()
            stamps = [delivery.stamp for delivery in deliveries]
            identity = producer.producer_id
        stored = [
            (header.producer_id, header.producer_epoch, header.base_sequence + index)
            for header, _ in cluster.logs[ORDERS].batches
            for index in range(header.record_count)
        ]
        assert stamps == stored
        assert {stamp.epoch for stamp in stamps if stamp} == {1}, "all were numbered again"
        assert [stamp.sequence for stamp in stamps if stamp] == list(range(50))
        assert {stamp.producer_id for stamp in stamps if stamp} == {identity}

    with_cluster(test)


def test_without_idempotence_there_is_no_stamp() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, acks=1) as producer:
            delivery = await producer.send("orders", b"v")
            await delivery
            assert delivery.stamp is None

    with_cluster(test)


# ---- Timeouts ----


def test_a_record_that_is_not_acknowledged_in_time_fails_and_says_that_it_may_be_there() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.answering.clear()
        async with Producer(cluster.bootstrap, delivery_timeout_ms=300) as producer:
            sent = await producer.send("orders", b"sent", partition=0)
            with pytest.raises(DeliveryTimeout, match="orders-0: not acknowledged in time after 1 attempts") as caught:
                await sent
            assert caught.value.may_have_been_appended
            cluster.answering.set()
            assert (await producer.send_and_wait("orders", b"after", partition=0)).offset == 1
        assert cluster.values(ORDERS) == [b"sent", b"after"]
        assert [h.producer_epoch for h, _ in cluster.logs[ORDERS].batches] == [0, 1]

    with_cluster(test)


def test_a_partition_without_a_leader_leaves_no_doubt_either() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.elect(ORDERS, NO_LEADER)
        async with Producer(cluster.bootstrap, delivery_timeout_ms=300) as producer:
            with pytest.raises(DeliveryTimeout, match="it has no leader") as caught:
                await producer.send_and_wait("orders", b"x")
            assert not caught.value.may_have_been_appended
            waiting = await producer.send("orders", b"y")
            cluster.elect(ORDERS, 2)
            assert (await waiting).offset == 0

    with_cluster(test)


def told_of(lines: list[str]) -> int:
    """How many partitions these warnings are about."""
    return sum(int(line.partition("partitions=")[2].split()[0]) for line in lines)


def test_records_that_wait_for_a_leader_are_logged_once_with_the_reason_and_so_is_their_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accumulator, "WARN_AFTER_S", 0.5)
    monkeypatch.setattr(delivery_warnings, "WARN_AFTER_S", 0.5)

    def told(*words: str) -> list[str]:
        return [line for line in caplog.messages if all(word in line for word in words)]

    async def test(cluster: FakeWriteCluster) -> None:
        for number in range(6):
            cluster.elect((ORDERS[0], number), NO_LEADER)
        async with Producer(cluster.bootstrap) as producer:
            waiting = [await producer.send("orders", b"x", partition=n % 6) for n in range(60)]
            await until(lambda: told_of(told("records wait")) == 6, "warnings of all partitions")
            warned = len(told("records wait"))  # once, or more often where the sends took their time
            assert told(
                "orders-0: it has no leader: of the replicas that have all records (brokers 1, 2, 3) none is live"
            )
            await asyncio.sleep(0.3)
            assert len(told("records wait")) == warned
            for number in range(6):
                cluster.elect((ORDERS[0], number), 2)
            for delivery in waiting:
                await delivery
            assert len(told("records go out again")) == 6

            cluster.faults[ORDERS] = [errors.NotEnoughReplicas("1 of 2 in sync")] * 12
            delivery = await producer.send("orders", b"y", partition=0)
            await until(
                lambda: told("orders-0: its leader is at", "answers NOT_ENOUGH_REPLICAS: 1 of 2 in sync"), "the reason"
            )
            await delivery

    with_cluster(test, partitions=6)


def test_a_broker_that_stays_away_costs_few_attempts_and_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        caplog.set_level("INFO")
        async with (
            Producer(cluster.bootstrap, delivery_timeout_ms=1_500, batch_size=100) as producer,
            Consumer(cluster.bootstrap, "orders") as consumer,
        ):
            await producer.send_and_wait("orders", b"x")
            await consumer.poll(1)
            caplog.clear()
            for broker in cluster.writers.values():
                await broker.kill()
            waiting = [await producer.send("orders", b"x" * 90) for _ in range(50)]
            for delivery in waiting:
                with pytest.raises(DeliveryTimeout, match="cannot be reached"):
                    await delivery
            ours = [record.getMessage() for record in caplog.records if record.name.startswith("fencepost")]
            assert len(ours) < 15, "\n".join(ours)
            assert sum("batch failed" in line for line in ours) == 1

    with_cluster(test)


def test_a_forked_child_gets_an_error_that_the_clients_are_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs in a child is its process id, and that it counts a fork. (A real fork of a process with gRPC's threads is
    a matter of luck.)"""

    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap) as producer, Consumer(cluster.bootstrap, "orders") as consumer:
            await producer.send_and_wait("orders", b"before")
            cluster.answering.clear()
            old = await producer.send("orders", b"under way")
            await until(lambda: cluster.batches_appended == 2, "the second batch appended")
            parent = os.getpid()
            with monkeypatch.context() as child:
                child.setattr(os, "getpid", lambda: parent + 1)
                child.setattr(loop_guard, "_forks", 1)
                for use in (
                    lambda: producer.send("orders", b"child"),
                    lambda: anext_of(old),
                    producer.flush,
                    lambda: consumer.poll(1),
                    Producer(cluster.bootstrap).start,
                ):
                    with pytest.raises(InvalidRequest, match="forked from"):
                        await use()
                await producer.close()
                await consumer.close()
            cluster.answering.set()
            await old
            await producer.send_and_wait("orders", b"after")
        assert cluster.values(ORDERS) == [b"before", b"under way", b"after"]

    with_cluster(test)


def test_an_unreachable_leader_leaves_no_doubt_about_what_was_never_sent() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, delivery_timeout_ms=300) as producer:
            await cluster.leader_of(ORDERS).kill()
            with pytest.raises(DeliveryTimeout) as caught:
                await producer.send_and_wait("orders", b"x")
            assert not caught.value.may_have_been_appended

    with_cluster(test)


def test_the_buffer_is_bounded_and_sends_wait_for_room() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.answering.clear()
        async with Producer(cluster.bootstrap, batch_size=1_000, buffer_memory=10_000, max_block_ms=200) as producer:
            taken = -(-10_000 // 121)
            await send_all(producer, [b"x" * 100] * taken)
            with pytest.raises(BufferFull, match="buffer_memory is 10000"):
                await producer.send("orders", b"x" * 100)
            waiters = [asyncio.create_task(producer.send("orders", b"y" * 100)) for _ in range(20)]
            await asyncio.sleep(0)
            waiters[3].cancel()
            cluster.answering.set()
            done = await asyncio.gather(*waiters, return_exceptions=True)
            assert sum(isinstance(result, Delivery) for result in done) == 19
            await producer.flush()
            assert producer.stats.records_acked == taken + 19

    with_cluster(test)


def test_a_full_buffer_ends_lingering() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, linger_ms=60_000, buffer_memory=2_000, max_block_ms=5_000) as producer:
            for number in range(40):
                await producer.send("orders", b"x" * 100, partition=number % 4)

    with_cluster(test, partitions=4)


def test_close_fails_what_is_left_and_says_what_is_known() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.answering.clear()
        cluster.elect(("id-of-orders", 1), NO_LEADER)
        producer = Producer(cluster.bootstrap)
        await producer.start()
        sent = await producer.send("orders", b"sent", partition=0)
        await until(lambda: cluster.batches_appended == 1, "the batch appended")
        unsent = await producer.send("orders", b"unsent", partition=1)
        await producer.close(timeout_s=0.1)
        with pytest.raises(ProducerClosed) as caught:
            await sent
        assert caught.value.may_have_been_appended
        with pytest.raises(ProducerClosed) as caught:
            await unsent
        assert not caught.value.may_have_been_appended
        stats = producer.stats
        assert (stats.records_sent, stats.records_failed) == (2, 2)

    with_cluster(test, partitions=2)


def test_a_cancelled_block_waits_for_what_it_sent_only_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.elect(ORDERS, NO_LEADER)
        sent: list[Delivery] = []

        async def produce() -> None:
            async with Producer(cluster.bootstrap) as producer:
                sent.append(await producer.send("orders", b"x"))
                await asyncio.Event().wait()

        producing = asyncio.create_task(produce())
        await until(lambda: sent, "a send")
        producing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await producing
        with pytest.raises(ProducerClosed) as caught:
            await sent[0]
        assert not caught.value.may_have_been_appended

    monkeypatch.setattr(producer_module, "CANCELLED_CLOSE_TIMEOUT_S", 0.1)
    with_cluster(test)


def test_a_cancelled_wait_disturbs_no_one_else() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.answering.clear()
        async with Producer(cluster.bootstrap) as producer:
            delivery = await producer.send("orders", b"x")

            async def wait() -> int:
                return (await delivery).offset

            first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
            await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.sleep(0)
            cluster.answering.set()
            assert await second == 0

    with_cluster(test)


def test_a_deleted_topic_fails_its_records_at_once() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.answering.clear()
        async with Producer(cluster.bootstrap) as producer:
            sent = await producer.send("orders", b"x")
            await until(lambda: cluster.batches_appended == 1, "the batch appended")
            cluster.change(deleted=("topics/id-of-orders", "partitions/id-of-orders/0"))
            with pytest.raises(UnknownTopicOrPartition, match="deleted"):
                await sent
            cluster.answering.set()
            cluster.add_topic("orders", topic_id="another-id")
            assert (await producer.send_and_wait("orders", b"y")).offset == 0
        assert cluster.values(("another-id", 0)) == [b"y"]

    with_cluster(test)


# ---- Identity ----


def test_a_used_up_epoch_brings_a_new_producer_id() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        cluster.first_epoch = MAX_EPOCH
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"one")
            cluster.first_epoch = 0
            cluster.states[ORDERS].__init__()  # type: ignore[misc]
            assert (await producer.send_and_wait("orders", b"two")).offset == 1
        stamps = [(h.producer_id, h.producer_epoch, h.base_sequence) for h, _ in cluster.logs[ORDERS].batches]
        assert stamps == [(101, MAX_EPOCH, 0), (102, 0, 0)]

    with_cluster(test)


def test_a_named_producers_bump_drains_every_partition_first() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        other = ("id-of-orders", 1)
        async with Producer(cluster.bootstrap, name="loader") as producer:
            for partition in (0, 1):
                await producer.send_and_wait("orders", b"first", partition=partition)
            cluster.states[ORDERS].__init__()  # type: ignore[misc]
            cluster.faults[other] = [errors.NotEnoughReplicas("for a while")] * 3
            cluster.init_faults = [errors.RequestTimedOut("a leader does not answer")]
            deliveries = [await producer.send("orders", b"second", partition=p) for p in (0, 1)]
            assert [(await d).offset for d in deliveries] == [1, 1]
            assert producer.epoch == 1
            await producer.send_and_wait("orders", b"third", partition=1)
        for key in (ORDERS, other):
            for header, _ in cluster.logs[key].batches:
                assert header.producer_id == cluster.named["loader"][0]
        assert cluster.values(ORDERS) == [b"first", b"second"]
        assert cluster.values(other) == [b"first", b"second", b"third"]

    with_cluster(test, partitions=2)


def test_an_older_instance_is_fenced_for_good() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, name="loader") as old:
            await old.send_and_wait("orders", b"old")
            async with Producer(cluster.bootstrap, name="loader") as new:
                await new.send_and_wait("orders", b"new")
                late = await old.send("orders", b"too late")
                with pytest.raises(ProducerFenced, match="loader") as caught:
                    await late
                assert not caught.value.may_have_been_appended
                with pytest.raises(ProducerFenced):
                    await old.send("orders", b"never")
                await new.send_and_wait("orders", b"newer")
        assert cluster.values(ORDERS) == [b"old", b"new", b"newer"]

    with_cluster(test)


def test_a_fence_found_during_the_own_bump_is_final_too() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, name="loader") as old:
            await old.send_and_wait("orders", b"old")
            cluster.named["loader"] = (cluster.named["loader"][0], 7)
            cluster.states[ORDERS].__init__()  # type: ignore[misc]
            with pytest.raises(ProducerFenced, match="another instance"):
                await old.send_and_wait("orders", b"x")

    with_cluster(test)


def test_a_named_producer_resumes_after_its_predecessors_last_record() -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, name="loader") as first:
            assert await first.resume("orders", 0) is None
            for number in range(7):
                await first.send("orders", b"v%d" % number, key=b"k%d" % number)
            await first.flush()
        async with Producer(cluster.bootstrap, name="loader") as second:
            resumed = await second.resume("orders", 0)
            assert resumed is not None
            assert (resumed.epoch, resumed.last_sequence, resumed.last_offset) == (0, 6, 6)
            assert resumed.record is not None
            assert (resumed.record.key, resumed.record.value, resumed.record.offset) == (b"k6", b"v6", 6)
            cluster.logs[ORDERS].remove_before(7)
            await second.send_and_wait("orders", b"next")
        async with Producer(cluster.bootstrap) as anonymous:
            with pytest.raises(InvalidRequest, match="named"):
                await anonymous.resume("orders", 0)

    with_cluster(test)


# ---- Without stamps ----


@pytest.mark.parametrize("acks", [0, 1])
def test_without_stamps_order_is_kept_and_an_unknown_outcome_is_not_risked_twice(acks: int) -> None:
    async def test(cluster: FakeWriteCluster) -> None:
        async with Producer(cluster.bootstrap, acks=acks, batch_size=200) as producer:  # type: ignore[arg-type]
            assert producer.producer_id == -1
            cluster.faults[ORDERS] = [errors.NotLeaderOrFollower("x"), errors.NotLeaderOrFollower("x")]
            await send_all(producer, numbered(100), pause_every=5)
            await producer.flush()
            assert cluster.values(ORDERS) == numbered(100)
            cluster.faults[ORDERS] = [BREAK]
            with pytest.raises(NetworkException) as caught:
                await producer.send_and_wait("orders", b"perhaps")
            assert caught.value.may_have_been_appended
            await producer.send_and_wait("orders", b"after")
        assert cluster.values(ORDERS)[100:] == [b"perhaps", b"after"]
        assert all(header.producer_id == -1 for header, _ in cluster.logs[ORDERS].batches)

    with_cluster(test)
