"""Subscriptions that come before the leader has heard of its leadership: kept, answered, given up; never without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from fencepost_node.replication import early_subscriptions
from fencepost_node.replication.early_subscriptions import EarlySubscriptions, may_lead_soon
from fencepost_proto.protocol.errors import FencepostError, UnknownLeaderEpoch
from fencepost_proto.protocol.metadata import MetadataImage, Partition, PartitionKey, Topic
from fencepost_proto.protocol.v1 import replication_pb2 as pb
from fencepost_testing.waiting import until

ME, OTHER = 1, 2
KNOWN = MetadataImage().with_changes(
    5,
    {
        entity.key: entity
        for entity in (
            Topic("T", "orders"),
            Partition("T", 0, (1, 2), (1, 2), ME, 4, 4),
            Partition("T", 1, (1, 2), (1, 2), OTHER, 4, 4),
        )
    },
)


@pytest.mark.parametrize(
    ("key", "leader_epoch", "log_is_coming", "soon"),
    [
        (("T", 0), 5, False, True),  # an election that it has not heard of
        (("T", 1), 5, False, True),
        (("T", 0), 4, True, True),  # it leads, and makes the log
        (("T", 0), 4, False, False),  # it leads: whatever refuses, metadata will not mend it
        (("T", 0), 3, True, False),  # an epoch that is over
        (("T", 1), 4, True, False),  # another one leads
        (("T", 2), 4, True, False),  # a partition that the topic does not have
        (("new", 0), 0, False, True),  # a topic that it has not heard of
    ],
)
def test_what_may_be_led_here_soon(key: PartitionKey, leader_epoch: int, log_is_coming: bool, soon: bool) -> None:
    assert may_lead_soon(KNOWN, ME, key, leader_epoch, log_is_coming=log_is_coming) is soon


class FollowersStream:
    def __init__(self) -> None:
        self.refused: list[tuple[PartitionKey, int, str]] = []

    def refuse(self, key: PartitionKey, number: int, error: FencepostError) -> None:
        self.refused.append((key, number, error.message))


class Story:
    """Subscriptions of one broker, and which of them were looked at again."""

    def __init__(self) -> None:
        self.early = EarlySubscriptions()
        self.again: list[tuple[PartitionKey, int]] = []

    def hold(self, stream: FollowersStream, partition: int, number: int) -> bool:
        wanted = pb.Subscribe(topic_id="T", partition=partition, subscription=number, leader_epoch=9)
        key = (wanted.topic_id, wanted.partition)
        return self.early.hold(
            stream, wanted, UnknownLeaderEpoch("9 is newer"), lambda: self.again.append((key, number))
        )


def told(story: Callable[[Story], Coroutine[None, None, None]]) -> None:
    asyncio.run(story(Story()))


def test_it_is_looked_at_again_once_when_the_leadership_begins() -> None:
    async def story(kept: Story) -> None:
        one, two = FollowersStream(), FollowersStream()
        assert kept.hold(one, 0, 1)
        assert kept.hold(two, 0, 7)
        assert kept.hold(one, 1, 2)
        kept.early.leadership_began(("T", 0))
        kept.early.leadership_began(("T", 0))
        assert kept.again == [(("T", 0), 1), (("T", 0), 7)]
        assert len(kept.early) == 1
        assert one.refused == two.refused == []
        kept.early.close()

    told(story)


def test_one_that_is_still_too_early_is_kept_on() -> None:
    async def story(kept: Story) -> None:
        stream = FollowersStream()
        wanted = pb.Subscribe(topic_id="T", partition=0, subscription=1, leader_epoch=9)

        def again() -> None:
            kept.early.hold(stream, wanted, UnknownLeaderEpoch("9 is newer"), again)

        again()
        kept.early.leadership_began(("T", 0))
        assert len(kept.early) == 1
        kept.early.close()

    told(story)


def test_after_a_while_it_is_refused_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(kept: Story) -> None:
        stream, later = FollowersStream(), FollowersStream()
        for partition in range(5):
            kept.hold(stream, partition, partition)
        kept.hold(later, 0, 9)
        await until(lambda: not len(kept.early), "the time to be up")
        assert stream.refused == [(("T", partition), partition, "9 is newer") for partition in range(5)]
        assert later.refused == [(("T", 0), 9, "9 is newer")]
        kept.early.leadership_began(("T", 0))
        assert kept.again == []

    monkeypatch.setattr(early_subscriptions, "HOLD_S", 0.01)
    monkeypatch.setattr(early_subscriptions, "REFUSALS_IN_A_TURN", 2)
    told(story)


def test_what_the_follower_gives_up_wants_anew_or_leaves_with_its_stream_is_forgotten() -> None:
    async def story(kept: Story) -> None:
        one, two = FollowersStream(), FollowersStream()
        for partition in range(3):
            kept.hold(one, partition, partition)
        kept.early.forget(one, ("T", 0))
        kept.hold(one, 1, 11)  # instead of the one before
        kept.hold(two, 1, 7)
        kept.early.stream_ended(two)
        for partition in range(3):
            kept.early.leadership_began(("T", partition))
        assert kept.again == [(("T", 1), 11), (("T", 2), 2)]
        assert len(kept.early) == 0
        assert one.refused == two.refused == []

    told(story)


def test_no_stream_and_not_all_together_have_more_than_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(kept: Story) -> None:
        one, two = FollowersStream(), FollowersStream()
        assert [kept.hold(one, partition, 1) for partition in range(4)] == [True, True, True, False]
        assert kept.hold(one, 0, 2)  # the same partition again takes no more room
        assert [kept.hold(two, partition, 1) for partition in range(4)] == [True, True, False, False]
        kept.early.stream_ended(one)
        assert kept.hold(two, 2, 1)
        kept.early.close()

    monkeypatch.setattr(early_subscriptions, "MAX_HELD_OF_A_STREAM", 3)
    monkeypatch.setattr(early_subscriptions, "MAX_HELD", 5)
    told(story)
