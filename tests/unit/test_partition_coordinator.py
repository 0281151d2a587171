"""The shell of a coordinator on a real leadership: answers wait for commits, and end with the leadership."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

from fencepost_node.coordination import limits
from fencepost_node.coordination.messages import (
    Alive,
    Commit,
    Committed,
    Deleted,
    DeleteGroup,
    FetchedOffsets,
    FetchOffsets,
    Heartbeat,
    Join,
    Joined,
    OffsetToCommit,
    Sync,
    Synced,
)
from fencepost_node.coordination.moment import NoTopics
from fencepost_node.coordination.records import NO_TOPIC_ID
from fencepost_node.coordination.table import TABLE
from fencepost_node.coordinators import partition_coordinator
from fencepost_node.coordinators.partition_coordinator import GroupSettings, PartitionCoordinator
from fencepost_node.replication.leadership import ALL_ACKS, AppendOrigin
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC, group_hash
from fencepost_proto.protocol.metadata import Partition, Topic, TopicConfig
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.replicas import leading, open_replica

SETTINGS = GroupSettings(initial_rebalance_delay_ms=0, offsets_retention_ms=7 * 24 * 3600 * 1000)


class Story:
    """Broker 1 leads; broker 2 is in sync and acknowledges when it is told to, unless there is no such broker."""

    def __init__(self, *, alone: bool = False, min_insync_replicas: int = 1) -> None:
        topic = Topic("T", OFFSETS_TOPIC, TopicConfig(min_insync_replicas=min_insync_replicas))
        self.replicas = (1,) if alone else (1, 2)
        self.replica = open_replica(leader=1, replicas=self.replicas, topic=topic, segment_bytes=1 << 20)
        self.began()
        self._ids = count(1)

    def began(self) -> None:
        self.coordinator = PartitionCoordinator(leading(self.replica), SETTINGS, lambda: 1_000, NoTopics)

    def acknowledge(self) -> None:
        leadership = leading(self.replica)
        leadership.follower_acked(2, leadership.log.log_end_offset)

    async def acknowledging(self, asked: asyncio.Future[Any]) -> Any:
        while not asked.done():
            await asyncio.sleep(0)
            self.acknowledge()
        return await asked

    def ask(self, question: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.coordinator.ask(question))

    def commit(self, offset: int, group: str = "g") -> asyncio.Future[Any]:
        return self.ask(Commit(group, -1, "", None, (OffsetToCommit("orders", 0, NO_TOPIC_ID, offset, -1, ""),)))

    def fetch(self) -> asyncio.Future[Any]:
        return self.ask(FetchOffsets("g", (("orders", 0),)))

    def join(self, name: str, member_id: str = "") -> asyncio.Future[Any]:
        protocols = (("range", b""),)
        return self.ask(
            Join("g", member_id, None, "consumer", protocols, 10_000, 10_000, name, "h", f"{name}-{next(self._ids)}")
        )


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynchronous
async def test_nothing_is_answered_before_it_is_committed() -> None:
    story = Story()
    assert isinstance(await story.commit(1), errors.CoordinatorLoadInProgress)
    await story.coordinator.load()
    committed = story.commit(5)
    await settled()
    fetched = story.fetch()  # what it would answer is not committed either
    await settled()
    assert not committed.done()
    assert not fetched.done()
    story.acknowledge()
    assert await committed == Committed((None,))
    answer = await fetched
    assert isinstance(answer, FetchedOffsets)
    assert answer.offsets[0].offset == 5


@asynchronous
async def test_a_generation_and_an_assignment_are_told_once_they_are_committed() -> None:
    story = Story()
    await story.coordinator.load()
    joining = story.join("a")
    await settled()
    assert not joining.done()
    story.acknowledge()
    joined = await joining
    assert isinstance(joined, Joined)
    syncing = story.ask(Sync("g", 1, joined.member_id, None, None, None, ((joined.member_id, b"all"),)))
    alive = story.ask(Heartbeat("g", 1, joined.member_id, None))
    assert await alive == Alive()  # it does not wait
    assert not syncing.done()
    story.acknowledge()
    assert await syncing == Synced("consumer", "range", b"all")


@asynchronous
async def test_whoever_waits_when_the_leadership_ends_is_sent_to_another_coordinator() -> None:
    story = Story()
    await story.coordinator.load()
    first = await story.acknowledging(story.join("a"))
    commit, waits_for_rebalance = story.commit(1, "h"), story.join("b")
    await settled()
    story.replica.apply(Partition("T", 0, story.replicas, story.replicas, 2, 1, 2))
    assert isinstance(await commit, errors.NotCoordinator)
    assert isinstance(await waits_for_rebalance, errors.NotCoordinator)
    assert isinstance(await story.commit(2), errors.NotCoordinator)
    assert first.generation == 1


@asynchronous
async def test_the_next_leadership_reads_what_the_one_before_has_written() -> None:
    story = Story()
    await story.coordinator.load()
    joined = await story.acknowledging(story.join("a"))
    await story.acknowledging(story.ask(Sync("g", 1, joined.member_id, None, None, None, ((joined.member_id, b"x"),))))
    offset = OffsetToCommit("orders", 0, NO_TOPIC_ID, 9, -1, "")
    asked = story.ask(Commit("g", 1, joined.member_id, None, (offset,)))
    assert await story.acknowledging(asked) == Committed((None,))
    story.replica.apply(Partition("T", 0, story.replicas, story.replicas, 2, 1, 2))
    story.replica.apply(Partition("T", 0, story.replicas, story.replicas, 1, 2, 3))
    story.began()
    await story.coordinator.load()
    assert (await story.fetch()).offsets[0].offset == 9
    assert await story.ask(Heartbeat("g", 1, joined.member_id, None)) == Alive()
    assert isinstance(await story.ask(Commit("g", 0, joined.member_id, None, (offset,))), errors.IllegalGeneration)


@asynchronous
async def test_too_few_in_sync_is_told_at_once_and_changes_nothing() -> None:
    story = Story(min_insync_replicas=2)
    await story.coordinator.load()
    await story.acknowledging(story.commit(1))
    partition = replace(leading(story.replica).state.partition, isr=(1,), partition_epoch=5)
    story.replica.apply(partition)
    assert isinstance(await story.commit(2), errors.CoordinatorNotAvailable)
    assert isinstance(await story.join("a"), errors.CoordinatorNotAvailable)
    assert (await story.fetch()).offsets[0].offset == 1  # what is committed can be read
    story.replica.apply(replace(partition, isr=(1, 2), partition_epoch=6))
    assert await story.acknowledging(story.commit(3)) == Committed((None,))


@asynchronous
async def test_a_commit_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(partition_coordinator, "COMMIT_TIMEOUT_S", 0.05)
    story = Story()
    await story.coordinator.load()
    assert isinstance(await story.commit(1), errors.CoordinatorNotAvailable)
    story.acknowledge()
    assert (await story.fetch()).offsets[0].offset == 1


@asynchronous
async def test_a_member_that_is_not_heard_of_leaves_by_the_clock() -> None:
    story = Story(alone=True)
    await story.coordinator.load()
    protocols = (("range", b""),)
    asked = Join("g", "", None, "consumer", protocols, 100, 100, "a", "h", "a-1")
    assert isinstance(await story.ask(asked), Joined)
    while (answer := await story.ask(Heartbeat("other", 1, "a-1", None))) and story.coordinator.list_groups():
        assert isinstance(answer, errors.UnknownMemberId)
        await asyncio.sleep(0.01)
        if story.coordinator.list_groups()[0].state == "Empty":
            break
    assert story.coordinator.list_groups()[0].state == "Empty"


@asynchronous
async def test_a_full_table_takes_no_more_but_can_be_emptied(monkeypatch: Any) -> None:
    story = Story(alone=True)
    await story.coordinator.load()
    await story.commit(1)
    monkeypatch.setattr(partition_coordinator, "MAX_TABLE_BYTES", story.replica.log.states[TABLE].size_bytes)
    assert isinstance(await story.commit(1, "h"), errors.InvalidCommitOffsetSize)
    assert isinstance(await story.join("a"), errors.GroupMaxSizeReached)
    assert await story.commit(2) == Committed((None,))


def many_offsets(count: int) -> Commit:
    return Commit("g", -1, "", None, tuple(OffsetToCommit("orders", p, NO_TOPIC_ID, 1, -1, "") for p in range(count)))


@asynchronous
async def test_a_large_group_is_deleted_in_parts_and_no_one_sees_half_of_it() -> None:
    story = Story()
    await story.coordinator.load()
    count = 2 * limits.MAX_OFFSETS_FORGOTTEN_AT_ONCE + 1
    await story.acknowledging(story.ask(many_offsets(count)))
    log = leading(story.replica).log
    ends = [log.log_end_offset]
    deleting = story.ask(DeleteGroup("g"))
    while not deleting.done():
        await settled()
        if deleting.done():
            break
        if log.log_end_offset != ends[-1]:
            ends.append(log.log_end_offset)
        for other in (story.join("a"), story.fetch(), story.commit(7), story.ask(DeleteGroup("g"))):
            assert isinstance(await other, errors.CoordinatorLoadInProgress)
        story.acknowledge()
    assert await deleting == Deleted()
    parts = [after - before for before, after in pairwise(ends)]
    assert parts == [limits.MAX_OFFSETS_FORGOTTEN_AT_ONCE] * 2 + [1]
    answer = await story.fetch()
    assert isinstance(answer, FetchedOffsets)
    assert answer.offsets[0].offset == -1
    assert isinstance(await story.ask(DeleteGroup("g")), errors.GroupIdNotFound)


@asynchronous
async def test_a_deletion_that_the_end_of_a_leadership_cuts_short_can_be_asked_again() -> None:
    story = Story()
    await story.coordinator.load()
    count = limits.MAX_OFFSETS_FORGOTTEN_AT_ONCE + 1
    await story.acknowledging(story.ask(many_offsets(count)))
    deleting = story.ask(DeleteGroup("g"))
    await settled()
    story.replica.apply(Partition("T", 0, story.replicas, story.replicas, 2, 1, 2))
    assert isinstance(await deleting, errors.NotCoordinator)
    story.replica.apply(Partition("T", 0, story.replicas, story.replicas, 1, 2, 3))
    story.began()
    await story.coordinator.load()
    assert await story.acknowledging(story.ask(DeleteGroup("g"))) == Deleted()


@asynchronous
async def test_offsets_of_a_deleted_topic_are_forgotten_in_parts(monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "MAX_OFFSETS_FORGOTTEN_AT_ONCE", 2)
    story = Story(alone=True)
    await story.coordinator.load()
    await story.ask(many_offsets(5))
    log = leading(story.replica).log
    before = log.log_end_offset
    await story.coordinator.sweep(lambda topic, _: topic == "orders")
    assert log.log_end_offset - before == 5
    assert story.coordinator.list_groups() == []


@asynchronous
async def test_a_record_that_cannot_be_read_keeps_the_coordinator_from_answering_wrongly() -> None:
    story = Story(alone=True)
    unreadable = batch(1)  # key b"0"
    leading(story.replica).append_batch(unreadable, ALL_ACKS, 0.0, origin=AppendOrigin.COORDINATOR)
    await story.coordinator.load()
    assert isinstance(await story.fetch(), errors.CoordinatorNotAvailable)


def test_a_group_belongs_to_the_partition_that_kafka_would_take() -> None:
    # Java: "".hashCode(), "billing".hashCode(), "console-consumer-12345".hashCode(), "ärger😀".hashCode()
    assert [group_hash(name) for name in ("", "a", "billing", "polygenelubricants")] == [0, 97, 109_829_509, 0]
