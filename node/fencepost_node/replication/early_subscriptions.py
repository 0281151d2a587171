"""Subscriptions that come before this broker knows that it leads.

Metadata reaches brokers at different moments, and a change of thousands of partitions takes each of them a while. A
follower that is ahead subscribes to a leader that does not know of its leadership yet, or is still making the log. Its
subscription is kept until the leadership begins, as if it had been longer on its way; refused, thousands of followers
would ask again and again.

What is kept is bounded by number, of one stream and of all, and by time: `HOLD_S` after it was looked at it is refused with
the error that it would have got at once. It goes when its stream ends, when the follower gives the partition up or
subscribes it again, and when the leadership begins; then it is looked at like any other, so that an epoch that has passed
meanwhile, a topic that was deleted, and an earlier process of the follower are refused by the same rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.v1 import replication_pb2 as pb

HOLD_S = 1.0
MAX_HELD_OF_A_STREAM = 10_000
MAX_HELD = 100_000  # of all streams
REFUSALS_IN_A_TURN = 256  # before others get a turn on the loop: a millisecond or two


def may_lead_soon(
    image: MetadataImage, broker_id: int, key: PartitionKey, leader_epoch: int, *, log_is_coming: bool
) -> bool:
    """Whether this broker does not know that leadership yet, or does not have its log yet. `image`: what it knows."""
    partition = image.partitions.get(key)
    if partition is None:
        return key[0] not in image.topics
    if leader_epoch == partition.leader_epoch:
        return partition.leader == broker_id and log_is_coming
    return leader_epoch > partition.leader_epoch


class Stream(Protocol):
    """Whose subscription is kept (`push.PushStream`)."""

    def refuse(self, key: PartitionKey, number: int, error: FencepostError) -> None: ...


@dataclass(frozen=True, slots=True)
class _Early:
    wanted: pb.Subscribe
    look_again: Callable[[], None]
    error: FencepostError  # that refuses it in the end
    until: float


class EarlySubscriptions:
    """Of one broker."""

    def __init__(self) -> None:
        self._by_key: dict[PartitionKey, dict[Stream, _Early]] = {}
        self._by_stream: dict[Stream, dict[PartitionKey, _Early]] = {}  # oldest first
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def hold(self, stream: Stream, wanted: pb.Subscribe, error: FencepostError, look_again: Callable[[], None]) -> bool:
        """Keep it; `look_again` is called when the leadership has begun. False: there are too many."""
        key = (wanted.topic_id, wanted.partition)
        self.forget(stream, key)
        of_stream = self._by_stream.get(stream, {})
        if self._count >= MAX_HELD or len(of_stream) >= MAX_HELD_OF_A_STREAM:
            return False
        early = _Early(wanted, look_again, error, asyncio.get_running_loop().time() + HOLD_S)
        self._by_stream.setdefault(stream, of_stream)[key] = early
        self._by_key.setdefault(key, {})[stream] = early
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(early.until, self._time_is_up)
        return True

    def forget(self, stream: Stream, key: PartitionKey) -> _Early | None:
        """The follower wants it no more, or wants another one there."""
        of_stream = self._by_stream.get(stream)
        early = of_stream.pop(key, None) if of_stream is not None else None
        if early is None:
            return None
        if not of_stream:
            del self._by_stream[stream]
        del self._by_key[key][stream]
        if not self._by_key[key]:
            del self._by_key[key]
        self._count -= 1
        return early

    def stream_ended(self, stream: Stream) -> None:
        for key in list(self._by_stream.get(stream, ())):
            self.forget(stream, key)

    def leadership_began(self, key: PartitionKey) -> None:
        for stream in list(self._by_key.get(key, ())):
            if (early := self.forget(stream, key)) is not None:
                early.look_again()

    def close(self) -> None:
        """No one is answered any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._by_key.clear()
        self._by_stream.clear()
        self._count = 0

    def _time_is_up(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        refused = 0
        for stream, of_stream in list(self._by_stream.items()):
            for key, early in list(islice(of_stream.items(), REFUSALS_IN_A_TURN)):
                if early.until > loop.time() or refused == REFUSALS_IN_A_TURN:
                    break
                self.forget(stream, key)
                stream.refuse(key, early.wanted.subscription, early.error)
                refused += 1
        oldest = [next(iter(of_stream.values())).until for of_stream in self._by_stream.values()]
        if oldest:
            self._timer = loop.call_at(min(oldest), self._time_is_up)
