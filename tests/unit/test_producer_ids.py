"""Blocks of producer ids: each id once, fetched ahead, refused only where none is left."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fencepost_node.producers import producer_ids
from fencepost_node.producers.producer_ids import PREFETCH_BELOW, ProducerIds
from fencepost_proto.protocol.errors import CoordinatorNotAvailable, InvariantBroken, NotController
from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous


class Blocks:
    """A controller's allocation: rising blocks, or trouble."""

    def __init__(self, size: int = 1_000) -> None:
        self.size = size
        self.given = 0
        self.calls = 0
        self.trouble: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def allocate(self) -> range:
        self.calls += 1
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        first = self.given
        self.given += self.size
        return range(first, self.given)


@asynccontextmanager
async def ids_from(blocks: Blocks, failures: list[BaseException] | None = None) -> AsyncIterator[ProducerIds]:
    kept: list[BaseException] = [] if failures is None else failures
    tasks = Tasks(kept.append)
    try:
        yield ProducerIds(blocks.allocate, tasks)
    finally:
        await tasks.close()
    assert failures is not None or not kept


@asynchronous
async def test_ids_are_handed_out_once_and_in_order_over_many_blocks_and_callers() -> None:
    blocks = Blocks(size=7)
    async with ids_from(blocks) as ids:
        got = await asyncio.gather(*(ids.next_id() for _ in range(100)))
        assert sorted(got) == list(range(100))


@asynchronous
async def test_the_next_block_is_fetched_before_the_last_id_is_gone() -> None:
    blocks = Blocks()
    async with ids_from(blocks) as ids:
        for _ in range(1_000 - PREFETCH_BELOW):
            await ids.next_id()
        assert blocks.calls == 1
        await ids.next_id()
        await until(lambda: blocks.calls == 2, "a fetch ahead")
        blocks.gate.clear()  # from here on nothing more can be fetched, and nothing more need be
        for expected in range(1_000 - PREFETCH_BELOW + 1, 2_000 - PREFETCH_BELOW):
            assert await ids.next_id() == expected
        assert blocks.calls == 2


@asynchronous
async def test_without_a_controller_the_block_is_used_up_and_then_the_error_says_so() -> None:
    blocks = Blocks()
    async with ids_from(blocks) as ids:
        await ids.next_id()
        blocks.trouble = NotController("controller 127.0.0.1:9 cannot be reached")
        for _ in range(999):
            await ids.next_id()
        with pytest.raises(CoordinatorNotAvailable, match=r"no producer ids left.*127\.0\.0\.1:9"):
            await ids.next_id()
        blocks.trouble = None  # it is back
        assert await ids.next_id() == 1_000


@asynchronous
async def test_waiters_share_one_fetch_and_its_failure() -> None:
    blocks = Blocks()
    blocks.trouble = NotController("away")
    blocks.gate.clear()
    async with ids_from(blocks) as ids:
        waiting = [asyncio.create_task(ids.next_id()) for _ in range(20)]
        await until(lambda: blocks.calls == 1, "the fetch")
        blocks.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, CoordinatorNotAvailable) for result in results)
        assert blocks.calls == 1


@asynchronous
async def test_a_caller_that_gives_up_does_not_take_the_others_block_with_it() -> None:
    blocks = Blocks()
    blocks.gate.clear()
    async with ids_from(blocks) as ids:
        impatient = asyncio.create_task(ids.next_id())
        patient = asyncio.create_task(ids.next_id())
        await until(lambda: blocks.calls == 1, "the fetch")
        impatient.cancel()
        await asyncio.wait([impatient])
        blocks.gate.set()
        assert await patient == 0


@asynchronous
async def test_the_number_of_waiters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_ids, "MAX_WAITERS", 3)
    blocks = Blocks()
    blocks.gate.clear()
    async with ids_from(blocks) as ids:
        waiting = [asyncio.create_task(ids.next_id()) for _ in range(4)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.exception()) for task in done] == [CoordinatorNotAvailable]
        blocks.gate.set()
        rest = await asyncio.gather(*(task for task in waiting if task not in done))
        assert sorted(rest) == [0, 1, 2]


@asynchronous
async def test_a_broken_invariant_in_a_fetch_ahead_is_not_lost() -> None:
    blocks = Blocks(size=PREFETCH_BELOW)
    failures: list[BaseException] = []
    async with ids_from(blocks, failures) as ids:
        await ids.next_id()
        blocks.trouble = InvariantBroken("a block of -1 ids")
        await until(lambda: blocks.calls == 2, "a fetch ahead")
        for _ in itertools.takewhile(lambda _: not failures, range(50)):
            await ids.next_id()
            await asyncio.sleep(0)
        assert [str(error) for error in failures] == ["a block of -1 ids"]
