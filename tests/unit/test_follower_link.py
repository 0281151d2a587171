"""The follower's side of a replication stream: what it does with each answer, and how soon it asks again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencepost_node.replication import follow
from fencepost_node.replication.follow import FollowerLink
from fencepost_node.replication.replica import Following, Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.protocol.v1 import replication_pb2 as pb
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.replicas import following, open_replica


class _Half(random.Random):
    """No pause is longer or shorter than it is on average."""

    def random(self) -> float:
        return 0.5


class Link:
    """A link without a stream: the test is the leader."""

    def __init__(self, replica: Replica) -> None:
        host = Host(random=_Half())
        self.replica = replica
        self.link = FollowerLink(host, replica._local, leader=2)
        self.link.follow(replica, following(replica))

    async def subscription(self) -> pb.Subscribe:
        """The next one, as it is to be written."""
        async with asyncio.timeout(10):
            while True:
                await self.link._wake.wait()
                await self.link._sync_subscribers()
                request = self.link._next_request()
                if request is not None and request.subscribe:
                    return request.subscribe[0]

    async def answer(self, **fields: Any) -> pb.Subscribe:
        """Answer the subscription that is asked for now; returns the one after it."""
        number = self.link._followed[self.replica.key].subscription
        push = pb.PartitionPush(topic_id="T", partition=0, subscription=number, **fields)
        await self.link._take(pb.ReplicateResponse(pushes=[push]))
        return await self.subscription()


def follower() -> Replica:
    """Of broker 2 under epoch 4, with ten records of leader epoch 3."""
    replica = open_replica(leader=2, epoch=4)
    replica.log.append_as_follower(b"".join(batch(1, base_offset=n, leader_epoch=3) for n in range(10)))
    return replica


@asynchronous
async def test_a_divergence_is_cut_and_where_nothing_agrees_the_leader_is_asked_for_a_reset() -> None:
    link = Link(follower())
    asked = await link.subscription()
    assert (asked.log_end_offset, asked.last_epoch, asked.nothing_agrees) == (10, 3, False)
    asked = await link.answer(divergence=pb.Divergence(epoch=3, end_offset=6))
    assert (asked.log_end_offset, asked.last_epoch, asked.nothing_agrees) == (6, 3, False)
    asked = await link.answer(divergence=pb.Divergence(epoch=2, end_offset=6))
    assert (asked.log_end_offset, asked.nothing_agrees) == (6, True), "the log is kept until there is another"
    reset = pb.Reset(start_offset=0, snapshot=link.replica.log.snapshot_at_base())
    asked = await link.answer(reset=reset)
    assert (asked.log_end_offset, asked.last_epoch, asked.nothing_agrees) == (0, -1, False)


@asynchronous
async def test_a_cut_that_would_cut_nothing_is_not_obeyed() -> None:
    link = Link(follower())
    await link.subscription()
    asked = await link.answer(divergence=pb.Divergence(epoch=3, end_offset=10))
    assert asked.log_end_offset == link.replica.log.log_end_offset == 10
    assert not link.replica.failure


def pauses_of(monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, Any]]) -> list[float]:
    """How long the link waits after each answer, in units of the first delay and without chance."""
    monkeypatch.setattr(follow, "RESUBSCRIBE", replace(follow.RESUBSCRIBE, first_s=0.001, most_s=0.008))
    found: list[float] = []

    async def story() -> None:
        link = Link(follower())
        await link.subscription()
        again = link.link._subscribe_again

        def noted(followed: Any, delay_s: float) -> None:
            found.append(delay_s * 1_000)
            again(followed, delay_s)

        link.link._subscribe_again = noted  # type: ignore[method-assign]
        for answer in answers:
            if "high_watermark" in answer:
                number = link.link._followed[link.replica.key].subscription
                push = pb.PartitionPush(topic_id="T", partition=0, subscription=number, **answer)
                await link.link._take(pb.ReplicateResponse(pushes=[push]))
            else:
                await link.answer(**answer)

    asyncio.run(story())
    return found


REFUSED = {"error": errors.to_proto(errors.UnknownLeaderEpoch("not yet"))}
OUT_OF_PLACE = {"base_offset": 3, "records": batch(1, base_offset=3, leader_epoch=4)}
CUTS_NOTHING = {"divergence": pb.Divergence(epoch=3, end_offset=10)}


@pytest.mark.parametrize("answer", [REFUSED, OUT_OF_PLACE, CUTS_NOTHING], ids=["refused", "out-of-place", "no-cut"])
def test_after_each_refusal_in_a_row_the_pause_is_twice_as_long_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    assert pauses_of(monkeypatch, [answer] * 6) == [1, 2, 4, 8, 8, 8]


def test_what_is_taken_ends_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [REFUSED, REFUSED, {"high_watermark": 4}, REFUSED]) == [1, 2, 1]


def test_an_exchange_that_does_not_end_pauses_like_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No history leads to it. A leader with a fault of its own might."""
    monkeypatch.setattr(follow, "RECONCILING_ROUNDS", 3)
    reset = {"reset": pb.Reset(start_offset=0, snapshot=empty_snapshot_bytes())}
    assert pauses_of(monkeypatch, [reset] * 6) == [0, 0, 0, 1, 2, 4]


def empty_snapshot_bytes() -> bytes:
    async def snapshot() -> bytes:
        return follower().log.snapshot_at_base()

    return asyncio.run(snapshot())


def test_a_refusal_is_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        link = Link(follower())
        await link.subscription()
        for _ in range(4):
            await link.answer(**REFUSED)
        assert link.link._followed[link.replica.key].refused_with == ErrorCode.UNKNOWN_LEADER_EPOCH

    with caplog.at_level("INFO"):
        asyncio.run(story())
    assert caplog.text.count("subscription refused") == 1


def crowd(monkeypatch: pytest.MonkeyPatch, in_sync: set[int], count: int) -> FollowerLink:
    """A link of broker 1 that follows `count` partitions; it is in sync for those."""
    monkeypatch.setattr(follow, "MAX_CATCHING_UP", 3)
    owner = SimpleNamespace(broker_id=1, broker_epoch=1, image=None)
    link = FollowerLink(Host(), cast(Any, owner), leader=2)
    for index in range(count):
        log = SimpleNamespace(log_end_offset=0, last_epoch=-1)
        partition = SimpleNamespace(isr=(1, 2) if index in in_sync else (2,))
        replica = SimpleNamespace(
            key=("T", index), log=log, partition=partition, failure="", leader_told=lambda *_: None
        )
        replica.topic = SimpleNamespace(name="orders", config=SimpleNamespace(flush_always=False))
        link.follow(cast(Any, replica), Following(2, 4))
    return link


async def subscribes(link: FollowerLink) -> list[int]:
    """Which partitions the next request subscribes."""
    await link._sync_subscribers()
    request = link._next_request()
    return [] if request is None else [wanted.partition for wanted in request.subscribe]


async def pushed(link: FollowerLink, index: int, **fields: Any) -> None:
    number = link._followed["T", index].subscription
    push = pb.PartitionPush(topic_id="T", partition=index, subscription=number, **fields)
    await link._take(pb.ReplicateResponse(pushes=[push]))


@asynchronous
async def test_replicas_in_sync_subscribe_at_once_and_the_others_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    link = crowd(monkeypatch, in_sync={8, 9}, count=10)
    assert await subscribes(link) == [8, 9, 0, 1, 2]
    assert await subscribes(link) == [], "three are catching up"
    await pushed(link, 1, high_watermark=5)
    assert await subscribes(link) == [], "1 does not have all that is committed yet"
    await link._wake.wait()
    await pushed(link, 0, high_watermark=0)
    assert link._wake.is_set
    assert await subscribes(link) == [3]
    await pushed(link, 2, error=pb_error(ErrorCode.NOT_LEADER_OR_FOLLOWER))
    assert await subscribes(link) == [4], "2 waits for its turn again"
    link.unfollow(("T", 1))
    assert await subscribes(link) == [5]


@asynchronous
async def test_one_that_does_not_catch_up_does_not_keep_the_others_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = crowd(monkeypatch, in_sync=set(), count=8)
    assert await subscribes(link) == [0, 1, 2]
    monkeypatch.setattr(follow, "CATCH_UP_S", -1.0)
    assert await subscribes(link) == [3, 4, 5]


def pb_error(code: ErrorCode) -> Any:
    return common_pb2.Error(code=code)


@asynchronous
async def test_with_flush_always_a_replica_subscribes_once_its_log_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    link = crowd(monkeypatch, in_sync={0, 1, 2}, count=3)
    synced: list[int] = []

    async def on_disk(work: Any) -> None:
        await asyncio.sleep(0)
        synced.append(work())
        if synced == [1]:
            link.unfollow(("T", 2))

    for index in (1, 2):
        replica: Any = link._followed["T", index].replica
        replica.topic = SimpleNamespace(name="orders", config=SimpleNamespace(flush_always=True))
        replica.log.sync = lambda index=index: index
        replica.on_disk = on_disk
        link.follow(replica, Following(2, 5))
    assert await subscribes(link) == [0, 1], "2 follows no more"
    assert synced == [1]


@asynchronous
async def test_with_flush_always_one_sync_is_for_all_that_was_stored_meanwhile() -> None:
    link = Link(follower())
    replica: Any = link.replica
    replica.topic = replace(replica.topic, config=replace(replica.topic.config, flush_always=True))
    may_sync = asyncio.Event()
    syncs: list[int] = []

    async def on_disk(work: Any) -> int:
        syncs.append(replica.log.log_end_offset)
        await may_sync.wait()
        return syncs[-1]

    replica.on_disk = on_disk
    await link.subscription()
    task = asyncio.create_task(link.link._sync_stored())
    for offset in range(10, 15):
        await pushed(link.link, 0, base_offset=offset, records=batch(1, base_offset=offset, leader_epoch=4))
        await asyncio.sleep(0)
    assert (replica.log.log_end_offset, syncs, link.link._to_ack) == (15, [11], {}), "stored while the first is synced"
    may_sync.set()
    await until(lambda: link.link._to_ack == {("T", 0): 15}, "everything acknowledged")
    assert syncs == [11, 15]
    task.cancel()
