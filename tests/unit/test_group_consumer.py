"""Fencepost's own consumer as a member of a group: on a whole broker in this process, whose controller is scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fencepost import AdminClient, Consumer, ConsumerRecord, TopicPartition
from fencepost.errors import GroupIdNotFound, InvalidConfig, InvalidRequest, PartitionLost
from fencepost_proto.kafka.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.test_broker import produce_batch
from tests.unit.test_group_admin import OFFSETS
from tests.unit.test_kafka_edge import ID, NONE, Edge, edge

ORDERS_0, ORDERS_1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
QUICK = {"group_consumer_heartbeat_interval_ms": 30, "group_consumer_session_timeout_ms": 600}


class Group:
    """A broker that leads two partitions of "orders", with records in each, and the topic of groups."""

    def __init__(self, it: Edge) -> None:
        self.it = it
        self.told: list[tuple[str, list[TopicPartition]]] = []

    def member(self, name: str = "a", **options: Any) -> Consumer:
        def note(what: str) -> Any:
            return lambda tps: self.told.append((f"{name} {what}", tps))

        callbacks = {"on_assigned": note("has"), "on_revoked": note("gives"), "on_lost": note("lost")}
        address = self.it.running.broker.address
        return Consumer(address, "orders", group="billing", client_id=name, **{**callbacks, **options})

    async def append(self, partition: int, count: int) -> None:
        asked = produce_batch(batch(count), partition=partition)
        asked.topic_id = ID
        (result,) = await self.it.running.produce(asked)
        assert result.error.code == NONE

    async def committed(self) -> dict[TopicPartition, int]:
        async with AdminClient(self.it.running.broker.address) as admin:
            return {tp: each.offset for tp, each in (await admin.list_group_offsets("billing")).items()}


@asynccontextmanager
async def group_of(tmp_path: Path) -> AsyncIterator[Group]:
    async with edge(tmp_path, group_initial_rebalance_delay_ms=0, **QUICK) as it:
        await it.leads(partitions=2)
        await it.leads(topic=OFFSETS, partitions=4)
        group = Group(it)
        await group.append(0, 5)
        await group.append(1, 5)
        yield group


async def read(consumer: Consumer, count: int) -> list[ConsumerRecord]:
    found: list[ConsumerRecord] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await consumer.poll(count - len(found))
    return found


@asynchronous
async def test_a_group_goes_on_where_it_has_come_to(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        async with group.member() as consumer:
            assert len(await read(consumer, 7)) == 7
            assert consumer.assignment == [ORDERS_0, ORDERS_1]
            with pytest.raises(InvalidRequest, match="assigned by its coordinator"):
                await consumer.assign([ORDERS_0])
        assert sum((await group.committed()).values()) == 7
        async with group.member("b") as consumer:
            assert len(await read(consumer, 3)) == 3
            assert await consumer.poll(timeout_ms=50) == []
        assert group.told == [("a has", [ORDERS_0, ORDERS_1]), ("b has", [ORDERS_0, ORDERS_1])]


@asynchronous
async def test_what_the_application_works_on_is_not_committed(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        async with group.member(auto_commit_ms=20) as consumer:
            async for record in consumer:
                if (record.partition, record.offset) == (0, 3):
                    await asyncio.sleep(0.1)  # some commits long
                    assert (await group.committed())[ORDERS_0] == 3
                    await consumer.poll(1, timeout_ms=0)  # it is done
                    await until_committed(group, ORDERS_0, 4)
                    break
        with contextlib.suppress(ZeroDivisionError):
            async with group.member(auto_commit_ms=10_000) as consumer:
                (first,) = await read(consumer, 1)
                (second,) = await read(consumer, 1)
                raise ZeroDivisionError
        committed = await group.committed()
        assert committed[TopicPartition("orders", second.partition)] == second.offset
        assert first.offset < second.offset or first.partition != second.partition


async def until_committed(group: Group, tp: TopicPartition, offset: int) -> None:
    async def is_so() -> bool:
        return (await group.committed()).get(tp) == offset

    await until(is_so, f"a commit of {offset}", 10)


@asynchronous
async def test_members_share_partitions_and_each_gives_up_what_it_has_committed(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group, group.member(auto_commit_ms=None) as a:
        assert len(await read(a, 10)) == 10
        async with group.member("b", auto_commit_ms=None) as b:
            polling = asyncio.create_task(b.poll(timeout_ms=20_000))
            await asyncio.sleep(0.2)
            assert a.assignment == [ORDERS_0, ORDERS_1]  # it works on what it has read: nothing is taken from it
            await a.commit()
            while len(a.assignment) == 2:
                assert await a.poll(timeout_ms=50) == []
            (kept,) = a.assignment
            with pytest.raises(PartitionLost, match="is not assigned to this member"):
                await a.commit({(ORDERS_1 if kept == ORDERS_0 else ORDERS_0): 1})
            await until(lambda: b.assignment, "b's partition")
            (given,) = b.assignment
            assert {kept, given} == {ORDERS_0, ORDERS_1}
            await group.append(given.partition, 1)
            assert [(r.partition, r.offset) for r in await polling] == [(given.partition, 5)]
            await b.commit()
        while len(a.assignment) == 1:
            assert await a.poll(timeout_ms=50) == []
        assert await a.committed() == {kept: 5, given: 6}
        assert group.told == [
            ("a has", [ORDERS_0, ORDERS_1]),
            ("a gives", [given]),
            ("b has", [given]),
            ("a has", [given]),
        ]


@asynchronous
async def test_a_member_that_was_away_too_long_commits_nothing_and_reads_on_from_what_is_committed(
    tmp_path: Path,
) -> None:
    async with group_of(tmp_path) as group, group.member(auto_commit_ms=None) as a:
        assert len(await read(a, 10)) == 10
        membership = a._group
        assert membership is not None
        alive = membership._send
        stopped = asyncio.Event()

        async def silent(beat: Any) -> None:
            await stopped.wait()
            await alive(beat)

        membership._send = silent  # type: ignore[method-assign]  # as if its process were paused
        async with group.member("b", auto_commit_ms=None) as b:
            assert len(await read(b, 10)) == 10
            await b.commit()
            assert not membership.may_hand_out
            with pytest.raises(PartitionLost):
                await a.commit()
            with pytest.raises(PartitionLost):
                await a.commit({ORDERS_0: 2})
            assert await group.committed() == {ORDERS_0: 5, ORDERS_1: 5}
            await group.append(0, 1)
            await group.append(1, 1)
            assert await a.poll(timeout_ms=20) == []
            stopped.set()
            both: list[ConsumerRecord] = []
            while len(both) < 2:
                both += await a.poll(timeout_ms=30)
                both += await b.poll(timeout_ms=30)
            assert sorted((r.partition, r.offset) for r in both) == [(0, 5), (1, 5)]
        assert ("a lost", [ORDERS_0, ORDERS_1]) in group.told


@asynchronous
async def test_an_application_that_does_not_read_leaves_until_it_reads_again(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group, group.member(max_poll_interval_ms=100) as a:
        assert len(await read(a, 10)) == 10
        async with group.member("b") as b:
            assert len(await read(b, 10)) == 10
            with pytest.raises(PartitionLost):
                await a.commit()
        assert await a.poll(timeout_ms=1_000) == []
        assert ("a lost", [ORDERS_0, ORDERS_1]) in group.told


@asynchronous
async def test_from_the_latest_a_group_misses_nothing_that_comes_after_its_first_member(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        async with group.member(start="latest", auto_commit_ms=None) as a:
            assert await a.poll(timeout_ms=300) == []
            assert await group.committed() == {ORDERS_0: 5, ORDERS_1: 5}
        await group.append(0, 1)
        async with group.member("b", start="latest") as b:
            assert [(r.partition, r.offset) for r in await read(b, 1)] == [(0, 5)]


@asynchronous
async def test_a_callback_may_commit_and_what_it_raises_comes_out_of_the_read(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        consumers: list[Consumer] = []

        async def commits(_: list[TopicPartition]) -> None:
            await consumers[0].commit({ORDERS_0: 2, ORDERS_1: 2})
            raise ZeroDivisionError

        async with group.member(on_revoked=commits, auto_commit_ms=None) as a:
            consumers.append(a)
            await read(a, 10)
            async with group.member("b") as b:
                waiting = asyncio.create_task(read(b, 1))
                with pytest.raises(ZeroDivisionError):
                    await read(a, 1)
                (record,) = await waiting
                assert record.offset == 2


@asynchronous
async def test_a_subscription_includes_partitions_that_come_later(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        address = group.it.running.broker.address
        async with group.member() as member, Consumer(address, "orders", start="latest") as alone:
            await read(member, 10)
            await group.it.leads(partitions=3)
            await group.append(2, 3)
            for consumer in (alone, member):
                assert [(r.partition, r.offset) for r in await read(consumer, 3)] == [(2, 0), (2, 1), (2, 2)]


@asynchronous
async def test_a_group_of_classic_members_takes_no_other(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        protocols = [JoinGroupRequestProtocol("range", b"subscription")]
        join = JoinGroupRequest("billing", 10_000, 10_000, protocol_type="consumer", protocols=protocols)
        joined = await group.it.ask(join, 3)
        assert joined.error_code == NONE
        async with group.member() as consumer:
            with pytest.raises(GroupIdNotFound, match="has members of the classic protocol"):
                await consumer.poll(timeout_ms=5_000)


@pytest.mark.parametrize(
    "options",
    [{"group": ""}, {"group": "g" * 256}, {"group": "g", "auto_commit_ms": 0}, {"on_assigned": print}],
    ids=str,
)
def test_options_that_are_impossible_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Consumer("127.0.0.1:1", **options)
