"""What clients may take of a broker at once, as numbers; what a broker does with them is in test_greedy_clients.py."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node import client_limits
from fencepost_node.client_limits import AnswerBudget, ClientLimits, TooManyStreams
from tests.asynchronous import asynchronous

KIB = 1024


def test_streams_are_bounded_for_a_connection_for_a_broker_and_by_connections() -> None:
    with (
        patch.object(client_limits, "MAX_STREAMS_OF_A_CONNECTION", 2),
        patch.object(client_limits, "MAX_STREAMS", 3),
        patch.object(client_limits, "MAX_CONNECTIONS", 2),
    ):
        limits = ClientLimits(KIB)
        with ExitStack() as first:
            first.enter_context(limits.admit("Fetch", "a"))
            first.enter_context(limits.admit("Fetch", "a"))
            with pytest.raises(TooManyStreams, match="2 Fetch streams of one connection"):
                limits.admit("Fetch", "a")
            first.enter_context(limits.admit("Produce", "a"))  # of another method
            first.enter_context(limits.admit("Fetch", "b"))
            with pytest.raises(TooManyStreams, match="3 Fetch streams are the most"):
                limits.admit("Fetch", "b")
            with pytest.raises(TooManyStreams, match="2 connections have streams"):
                limits.admit("Produce", "c")
            assert TooManyStreams.retriable
        for peer in ("c", "d"):  # all have ended
            with limits.admit("Produce", peer):
                pass


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300) | st.none()), max_size=60),
    max_bytes=st.integers(0, 1_000),
)
def test_no_connection_takes_more_than_a_share_and_one_that_holds_nothing_always_gets_some(
    steps: list[tuple[int, int | None]], max_bytes: int
) -> None:
    budget = AnswerBudget(max_bytes)
    held: dict[str, list[int]] = {}
    least = 50
    for which, size in steps:
        peer = f"peer-{which}"
        mine = held.setdefault(peer, [])
        if size is None:
            if mine:
                budget.release(peer, mine.pop())
            continue
        allowance = budget.allowance(peer, least)
        if not mine:
            assert allowance >= least
        if allowance <= 0:
            continue
        taken = min(size, allowance)
        budget.take(peer, taken)
        mine.append(taken)
        assert sum(mine) <= max(least, max_bytes // 4)
        assert budget.used_bytes == sum(map(sum, held.values())) <= max(max_bytes, 6 * least) + 5 * least


@asynchronous
async def test_who_waits_for_its_own_memory_goes_on_when_some_is_released() -> None:
    budget = AnswerBudget(400)
    budget.take("a", 100)
    waiting = asyncio.create_task(budget.wait("a", 50))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await budget.wait("b", 50) >= 50  # another connection is not in its way
    budget.release("a", 100)
    assert await waiting == 100


@asynchronous
async def test_a_large_answer_waits_until_it_fits_beside_the_others() -> None:
    budget = AnswerBudget(400)
    await budget.wait_for_all(1_000)  # alone, it may be larger than all
    budget.take("a", 100)
    await budget.wait_for_all(300)
    waiting = asyncio.create_task(budget.wait_for_all(301))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.release("a", 1)
    await waiting
