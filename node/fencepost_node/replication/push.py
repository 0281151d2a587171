"""The leader's side of one Replicate stream: one follower broker, many partitions.

The follower subscribes partitions; the leader compares histories (`reconciliation.py`, pure) and from then on pushes what
is appended, with its high watermark, several partitions to a message. Acknowledgements come back on the same
stream. At most `window_bytes` are on their way unacknowledged, so a slow follower costs no memory.

A subscription ends when the leadership does, when the follower says so, or when the stream breaks; the follower then
subscribes again, wherever the leader now is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.reconciliation import (
    FollowerPosition,
    Push,
    StartOver,
    Truncate,
    answer_subscribe,
)
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import last_end_offset
from fencepost_proto.protocol.v1 import replication_pb2 as pb
from fencepost_proto.runtime.signal import Signal

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    Pushes = RepeatedCompositeFieldContainer[pb.PartitionPush]

log = logging.getLogger(__name__)

MESSAGE_BYTES = 1024 * 1024  # of records in one message; one larger batch still goes alone
HIGH_WATERMARK_DELAY_S = 0.05  # a high watermark that no batch carries is pushed this much later
MAX_PUSHES = 500  # of partitions in one message
PUSHES_IN_A_TURN = 64  # looked for before others get a turn on the loop: a millisecond or two
MAX_SUBSCRIPTIONS = 100_000  # of one stream


@dataclass(slots=True, eq=False)
class Subscription:
    """One partition on one stream. acked_offset <= sent_offset <= the leader's log end."""

    key: PartitionKey
    number: int
    leadership: Leadership
    stream: PushStream
    sent_offset: int
    acked_offset: int
    sent_high_watermark: int = -1
    unacked: deque[tuple[int, int]] = field(default_factory=deque)  # (end offset, bytes) of each push

    @property
    def broker_id(self) -> int:
        return self.stream.broker_id

    @property
    def broker_epoch(self) -> int:
        return self.stream.broker_epoch

    def appended(self) -> None:
        self.stream.mark(self)

    def high_watermark_moved(self) -> None:
        self.stream.mark_high_watermark(self)

    def ended(self, error: FencepostError) -> None:
        self.stream.leadership_ended(self, error)


@dataclass(frozen=True, slots=True)
class _Reset:
    """A subscription whose answer is to start over. The snapshot is read when there is room for it on the stream."""

    number: int
    leadership: Leadership


class PushStream:
    """One stream's subscriptions and what is to be sent on it."""

    def __init__(self, broker_id: int, broker_epoch: int, window_bytes: int) -> None:
        self.broker_id = broker_id
        self.broker_epoch = broker_epoch
        self._window_bytes = window_bytes
        self._in_flight_bytes = 0
        self._subscriptions: dict[PartitionKey, Subscription] = {}
        # Leader epoch, end offset and last epoch, as last logged.
        self._told: dict[PartitionKey, tuple[int, int, int]] = {}
        self._dirty: dict[Subscription, None] = {}  # has batches to send, oldest first
        self._stale_high_watermark: dict[Subscription, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._answers: deque[pb.PartitionPush] = deque()  # errors, divergences: at most one for each subscription
        self._resets: dict[PartitionKey, _Reset] = {}  # oldest first
        self._wake = Signal()

    # ---- From the follower ----

    def subscribe(self, leadership: Leadership, request: pb.Subscribe) -> None:
        """Answer a subscription. Raises InvalidRequest where the follower's numbers are impossible."""
        key = (request.topic_id, request.partition)
        self.unsubscribe(key)
        if len(self._subscriptions) + len(self._resets) >= MAX_SUBSCRIPTIONS:
            raise errors.InvalidRequest(f"more than {MAX_SUBSCRIPTIONS} subscriptions on one stream")
        try:
            leadership.check_incarnation(self.broker_id, self.broker_epoch)
        except errors.StaleBrokerEpoch as error:
            self.refuse(key, request.subscription, error)
            return
        replica_log = leadership.log
        if request.mismatch:
            replica_log.distrust(request.log_end_offset)
        answer = answer_subscribe(
            FollowerPosition(request.log_end_offset, request.last_epoch, request.nothing_agrees),
            replica_log.leader_epochs,
            replica_log.base_offset,
            replica_log.log_end_offset,
        )
        push = pb.PartitionPush(topic_id=key[0], partition=key[1], subscription=request.subscription)
        match answer:
            case Truncate(epoch, end_offset):
                push.divergence.epoch = epoch
                push.divergence.end_offset = end_offset
                self.answer(push)
            case StartOver():
                self._resets[key] = _Reset(request.subscription, leadership)
                self._wake.set()
            case Push():
                subscription = Subscription(
                    key,
                    request.subscription,
                    leadership,
                    self,
                    sent_offset=request.log_end_offset,
                    acked_offset=request.log_end_offset,
                )
                self._subscriptions[key] = subscription
                leadership.add_subscription(subscription, request.log_end_offset)
                self.mark(subscription)
                if leadership.high_watermark > 0:  # an idle partition has no other occasion, and retention needs it
                    self.mark_high_watermark(subscription)
        position = (leadership.epoch, request.log_end_offset, request.last_epoch)
        again, self._told[key] = self._told.get(key) == position, position
        log.log(
            logging.DEBUG if again else logging.INFO,  # a follower that comes no further asks again and again
            "follower subscribed topic=%s partition=%d epoch=%d follower=%d end=%d last_epoch=%d answer=%s",
            leadership.topic.name, key[1], leadership.epoch, self.broker_id,
            request.log_end_offset, request.last_epoch, answer,
        )  # fmt: skip

    def unsubscribe(self, key: PartitionKey) -> None:
        self._resets.pop(key, None)
        subscription = self._subscriptions.pop(key, None)
        if subscription is not None:
            self._forget(subscription)
            subscription.leadership.remove_subscription(subscription)

    def acked(self, ack: pb.Ack) -> None:
        """Raises InvalidRequest for an acknowledgement of what was never sent."""
        subscription = self._subscriptions.get((ack.topic_id, ack.partition))
        if subscription is None or subscription.number != ack.subscription:
            return  # of a subscription that is over
        if not subscription.acked_offset <= ack.log_end_offset <= subscription.sent_offset:
            raise errors.InvalidRequest(
                f"broker {self.broker_id} acknowledges offset {ack.log_end_offset} of {ack.topic_id}-{ack.partition}; "
                f"it had acknowledged {subscription.acked_offset} and was sent up to {subscription.sent_offset}"
            )
        subscription.acked_offset = ack.log_end_offset
        while subscription.unacked and subscription.unacked[0][0] <= ack.log_end_offset:
            self._in_flight_bytes -= subscription.unacked.popleft()[1]
        if self._dirty:
            self._wake.set()
        subscription.leadership.follower_acked(self.broker_id, ack.log_end_offset)

    def close(self) -> None:
        """The stream is over."""
        if self._timer is not None:
            self._timer.cancel()
        for key in list(self._subscriptions):
            self.unsubscribe(key)

    # ---- From the leader ----

    def mark(self, subscription: Subscription) -> None:
        self._dirty[subscription] = None
        self._wake.set()

    def mark_high_watermark(self, subscription: Subscription) -> None:
        self._stale_high_watermark[subscription] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HIGH_WATERMARK_DELAY_S, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._wake.set()

    def _end(self, subscription: Subscription, error: FencepostError) -> None:
        """Unless it has ended meanwhile."""
        if self._subscriptions.get(subscription.key) is subscription:
            self.unsubscribe(subscription.key)
            self.refuse(subscription.key, subscription.number, error)

    def leadership_ended(self, subscription: Subscription, error: FencepostError) -> None:
        if self._subscriptions.get(subscription.key) is subscription:
            del self._subscriptions[subscription.key]
            self._forget(subscription)
            self.refuse(subscription.key, subscription.number, error)

    def refuse(self, key: PartitionKey, number: int, error: FencepostError) -> None:
        """There is no such subscription (any more)."""
        self.answer(
            pb.PartitionPush(topic_id=key[0], partition=key[1], subscription=number, error=errors.to_proto(error))
        )

    def answer(self, push: pb.PartitionPush) -> None:
        self._answers.append(push)
        self._wake.set()

    def _forget(self, subscription: Subscription) -> None:
        self._in_flight_bytes -= sum(size for _, size in subscription.unacked)
        subscription.unacked.clear()
        self._dirty.pop(subscription, None)
        self._stale_high_watermark.pop(subscription, None)

    # ---- What goes out ----

    async def messages(self) -> AsyncIterator[pb.ReplicateResponse]:
        """What to write on the stream, for as long as it lives."""
        while True:
            await self._wake.wait()
            while self._has_news and (message := await self._next_message()) is not None:
                yield message

    @property
    def _has_news(self) -> bool:
        """There may be something to send."""
        stale = self._stale_high_watermark and self._timer is None
        return bool(self._dirty or self._answers or self._resets or stale)

    async def _next_message(self) -> pb.ReplicateResponse | None:
        message = pb.ReplicateResponse()
        pushes = message.pushes
        size = self._take_answers(pushes) if self._answers else 0
        if self._resets:
            reset = await self._next_reset()
            pushes.append(reset)
            size += reset.ByteSize()
        room = min(MESSAGE_BYTES - size, self._window_bytes - self._in_flight_bytes)
        for looked_at in count(1):
            if looked_at % PUSHES_IN_A_TURN == 0:
                await asyncio.sleep(0)
            if not self._dirty or room <= 0 or len(pushes) >= MAX_PUSHES:
                break
            subscription = next(iter(self._dirty))
            leadership = subscription.leadership
            try:
                records, end_offset = await self._read(subscription, room)
            except FencepostError as error:
                self._end(subscription, error)  # retention has passed it, or the disk refuses: it is to ask again
                continue
            if subscription not in self._dirty:
                continue  # it ended while the disk was read
            del self._dirty[subscription]
            if records or subscription.sent_high_watermark < 0:  # the first one answers the subscription
                self._push(pushes, subscription, records, end_offset)
                room -= len(records)
                if subscription.sent_offset < leadership.log.log_end_offset:
                    self._dirty[subscription] = None  # behind the others
        if self._timer is None:
            while self._stale_high_watermark and len(pushes) < MAX_PUSHES:
                subscription = next(iter(self._stale_high_watermark))
                del self._stale_high_watermark[subscription]
                if subscription.sent_high_watermark < subscription.leadership.high_watermark:
                    self._push(pushes, subscription, b"", subscription.sent_offset)
        return message if pushes else None

    async def _read(self, subscription: Subscription, max_bytes: int) -> tuple[bytes, int]:
        """The next batches to send, and where they end. Raises FencepostError; StorageError where the disk has others."""
        leadership, offset = subscription.leadership, subscription.sent_offset
        log_end_offset = leadership.log.log_end_offset
        records = await leadership.read(offset, max_bytes, log_end_offset)
        try:
            end_offset = last_end_offset(records, offset)
            if end_offset <= log_end_offset:
                return records, end_offset
        except errors.CorruptMessage:
            pass
        # Bytes have changed since they were checked: now they are again, as if the follower had found it.
        records = await leadership.read(offset, max_bytes, log_end_offset, mismatch=True)
        return records, last_end_offset(records, offset)

    def _take_answers(self, pushes: Pushes) -> int:
        """Adds as many of the answers as fit a message, one at least. Returns their size."""
        size = 0
        while self._answers and (not pushes or size + self._answers[0].ByteSize() <= MESSAGE_BYTES):
            answer = self._answers.popleft()
            pushes.append(answer)
            size += answer.ByteSize()
        return size

    async def _next_reset(self) -> pb.PartitionPush:
        """The answer to the oldest reset: one to a message, of which its snapshot may take most; or an error."""
        key = next(iter(self._resets))
        reset = self._resets.pop(key)
        leadership = reset.leadership
        push = pb.PartitionPush(topic_id=key[0], partition=key[1], subscription=reset.number)
        try:
            start_offset = leadership.log.base_offset
            snapshot = await leadership.snapshot_at_base()
            if leadership.is_over or leadership.log.base_offset != start_offset:
                raise errors.OffsetNotAvailable(f"the log that starts at {start_offset} has changed meanwhile")
        except FencepostError as error:
            push.error.CopyFrom(errors.to_proto(error))
        else:
            push.reset.start_offset = start_offset
            push.reset.snapshot = snapshot
        return push

    def _push(self, pushes: Pushes, subscription: Subscription, records: bytes, end_offset: int) -> None:
        """Add one. Made in its place: a message that is appended to another is encoded and decoded for it."""
        leadership = subscription.leadership
        high_watermark = leadership.high_watermark
        base_offset = subscription.sent_offset
        if records:
            subscription.sent_offset = end_offset
            subscription.unacked.append((subscription.sent_offset, len(records)))
            self._in_flight_bytes += len(records)
        subscription.sent_high_watermark = high_watermark
        pushes.add(
            topic_id=subscription.key[0],
            partition=subscription.key[1],
            subscription=subscription.number,
            high_watermark=high_watermark,
            log_start_offset=leadership.log.log_start_offset,
            base_offset=base_offset,
            records=records,
        )
