"""The leader's side of a replication stream: a subscription that cannot be served ends alone, and is told so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from fencepost_node.log.snapshot import decode_snapshot
from fencepost_node.producers.producer_state import ProducerEntry, ProducerState, RememberedBatch
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.push import PushStream, Subscription
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import ErrorCode, OffsetOutOfRange
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, Partition
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from fencepost_proto.protocol.v1 import replication_pb2 as pb
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.logs import snapshot_bytes
from tests.unit.replicas import leading, open_replica


def one_batch() -> bytes:
    builder = BatchBuilder(Compression.NONE, 1_000)
    builder.append(0, None, b"value", [])
    return builder.build(-1, -1, -1)


def subscribed(stream: PushStream, topic_id: str, read: Any) -> Subscription:
    """A subscription to a partition whose log is read by `read`, in a thread, with one record to send."""
    leadership = SimpleNamespace(
        high_watermark=0,
        read=lambda *asked, **how: asyncio.to_thread(read, *asked, **how),
        log=SimpleNamespace(log_end_offset=1, log_start_offset=0),
        remove_subscription=lambda _: None,
    )
    subscription = Subscription((topic_id, 0), 1, cast(Leadership, leadership), stream, sent_offset=0, acked_offset=0)
    stream._subscriptions[subscription.key] = subscription
    stream.mark(subscription)
    return subscription


def test_where_retention_has_passed_a_follower_only_that_subscription_ends() -> None:
    def passed(*_: object) -> bytes:
        raise OffsetOutOfRange("offset 0 is below the log start 7")

    async def story() -> list[pb.PartitionPush]:
        stream = PushStream(2, 1, 65_536)
        subscribed(stream, "passed", passed)
        subscribed(stream, "there", lambda *_: one_batch())
        pushes: list[pb.PartitionPush] = []
        async with asyncio.timeout(5):
            async for message in stream.messages():
                pushes.extend(message.pushes)
                if len(pushes) == 2:
                    break
        stream.close()
        return pushes

    by_topic = {push.topic_id: push for push in asyncio.run(story())}
    assert by_topic["passed"].error.code == ErrorCode.OFFSET_OUT_OF_RANGE
    assert by_topic["there"].records == one_batch()


def test_bytes_that_have_changed_since_they_were_checked_are_read_again_and_checked() -> None:
    """A batch's length as it may become: short of its header, as if the next one stood at the same place, beyond the end."""
    asked: list[bool] = []
    for length in (0, -12, 1_000, -(2**31)):
        changed = bytearray(one_batch())
        changed[8:12] = length.to_bytes(4, "big", signed=True)

        def read(*_: object, mismatch: bool = False, changed: bytes = bytes(changed)) -> bytes:
            asked.append(mismatch)
            return one_batch() if mismatch else changed

        async def story(read: Any = read) -> pb.ReplicateResponse:
            stream = PushStream(2, 1, 65_536)
            subscribed(stream, "T", read)
            async with asyncio.timeout(5):
                message = await anext(stream.messages())
            stream.close()
            return message

        (push,) = asyncio.run(story()).pushes
        assert push.records == one_batch()
    assert asked == [False, True] * 4


# ---- Who may subscribe ----


def ask(end: int, **changes: Any) -> pb.Subscribe:
    fields: dict[str, Any] = {"topic_id": "T", "subscription": 1, "leader_epoch": 0, "last_epoch": 0}
    return pb.Subscribe(log_end_offset=end, **fields | changes)


def leader_of_ten() -> Leadership:
    leadership = leading(open_replica(leader=1))
    for sequence in range(10):
        leadership.append_batch(batch(1, producer_id=7, epoch=0, sequence=sequence), 1, 0.0)
    return leadership


@asynchronous
async def test_what_a_followers_earlier_process_says_late_does_not_count() -> None:
    leadership = leader_of_ten()
    new, old = PushStream(2, 9, 65_536), PushStream(2, 4, 65_536)
    new.subscribe(leadership, ask(5))
    old.subscribe(leadership, ask(10))
    assert leadership.high_watermark == 5
    assert leadership.state.broker_epoch_of(2) == 9
    assert leadership.subscribers == {2}
    (refusal,) = (await anext(old.messages())).pushes
    assert refusal.error.code == ErrorCode.STALE_BROKER_EPOCH
    assert "broker epoch 4 of follower 2 is older than 9" in refusal.error.message
    for stream in (new, old):
        stream.close()


@asynchronous
async def test_a_process_that_is_known_to_have_a_successor_does_not_count_before_that_one_has_subscribed() -> None:
    leadership = leader_of_ten()
    registered = BrokerRegistration(2, "broker-2:1", 9, "incarnation", fenced=True)
    image = MetadataImage().with_changes(1, {registered.key: registered})
    leadership._local.image = image
    old = PushStream(2, 4, 65_536)
    old.subscribe(leadership, ask(10))
    assert leadership.high_watermark == 0
    assert leadership.subscribers == frozenset()
    old.close()


# ---- Resets ----


def full_state(producers: int) -> ProducerState:
    five = tuple(RememberedBatch(n, n, n, 1_700_000_000_000) for n in range(5))
    return ProducerState({n: ProducerEntry(0, False, five) for n in range(producers)})


def test_answers_go_out_in_as_many_messages_as_they_need() -> None:
    async def story() -> list[pb.ReplicateResponse]:
        stream = PushStream(2, 1, 65_536)
        snapshot = snapshot_bytes(100, full_state(45_000))
        assert len(snapshot) < MAX_MESSAGE_BYTES < 3 * len(snapshot)
        for partition in range(3):
            push = pb.PartitionPush(topic_id="T", partition=partition, subscription=1)
            push.reset.start_offset = 100
            push.reset.snapshot = snapshot
            stream.answer(push)
        for partition in range(3, 1_000):
            stream.refuse(("T", partition), 1, OffsetOutOfRange("retention has passed the follower"))
        messages: list[pb.ReplicateResponse] = []
        async with asyncio.timeout(10):
            async for message in stream.messages():
                messages.append(message)
                if sum(len(m.pushes) for m in messages) == 1_000:
                    break
        return messages

    messages = asyncio.run(story())
    assert all(message.ByteSize() <= MAX_MESSAGE_BYTES for message in messages)
    assert [push.partition for message in messages for push in message.pushes] == list(range(1_000))


@asynchronous
async def test_a_snapshot_is_read_when_its_turn_has_come_and_goes_with_the_epoch_before_the_start() -> None:
    leadership = leader_of_ten()
    log = leadership.log
    log.close(clean=True)
    replica = open_replica(leader=1, epoch=6, segment_bytes=300, retention_bytes=400)
    leadership, log = leading(replica), replica.log
    for sequence in range(20):
        leadership.append_batch(batch(1, producer_id=7, epoch=0, sequence=sequence), 1, 0.0)
    log.apply_retention(1_000, 20)
    start = log.log_start_offset
    assert start > 0
    stream = PushStream(2, 1, 65_536)
    stream.subscribe(leadership, ask(0, last_epoch=-1, leader_epoch=6))
    reads = log.snapshot_at_base
    (answer,) = (await anext(stream.messages())).pushes
    assert answer.reset.snapshot == reads()
    told = decode_snapshot(answer.reset.snapshot, STATE_MACHINES)
    assert (told.offset, told.last_epoch) == (start, 6)

    stream.subscribe(leadership, ask(0, last_epoch=-1, leader_epoch=6))
    replica.apply(Partition("T", 0, (1, 2), (1, 2), 2, 7, 2))
    (answer,) = (await anext(stream.messages())).pushes
    assert answer.error.code == ErrorCode.OFFSET_NOT_AVAILABLE, "its leader does not lead any more"
    stream.close()


def test_a_subscription_is_answered_though_there_is_nothing_to_send() -> None:
    """A follower has to learn that it lacks nothing: then others may begin."""

    async def story() -> list[pb.PartitionPush]:
        stream = PushStream(2, 1, 65_536)
        subscribed(stream, "there", lambda *_: b"")
        async with asyncio.timeout(5):
            async for message in stream.messages():
                stream.close()
                return list(message.pushes)
        return []

    (push,) = asyncio.run(story())
    assert (push.topic_id, push.records, push.high_watermark, push.error.code) == ("there", b"", 0, 0)
