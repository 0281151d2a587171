"""The leader's side of a replication stream: a subscription that cannot be served ends alone, and is told so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.push import PushStream, Subscription
from fencepost_proto.errors import ErrorCode, OffsetOutOfRange
from fencepost_proto.records import BatchBuilder, Compression
from fencepost_proto.v1 import replication_pb2 as pb


def one_batch() -> bytes:
    builder = BatchBuilder(Compression.NONE, 1_000)
    builder.append(0, None, b"value", [])
    return builder.build(-1, -1, -1)


def subscribed(stream: PushStream, topic_id: str, read: Any) -> Subscription:
    """A subscription to a partition whose log is read by `read`, in a thread, with one record to send."""
    leadership = SimpleNamespace(
        high_watermark=0,
        read=lambda *asked: asyncio.to_thread(read, *asked),
        replica=SimpleNamespace(log=SimpleNamespace(log_end_offset=1, log_start_offset=0)),
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
