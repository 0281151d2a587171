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


def never(peer: str, reason: str) -> bool:
    """A carrier that cannot close its connections."""
    return False


def test_streams_are_bounded_for_a_connection_for_a_broker_and_by_connections() -> None:
    with (
        patch.object(client_limits, "MAX_STREAMS_OF_A_CONNECTION", 2),
        patch.object(client_limits, "MAX_STREAMS", 3),
        patch.object(client_limits, "MAX_CONNECTIONS", 2),
    ):
        limits = ClientLimits(KIB, never)
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
    budget = AnswerBudget(max_bytes, never)
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
            assert allowance >= least or budget.used_bytes > client_limits.OVERDRAFT * max_bytes
        if allowance <= 0:
            continue
        taken = min(size, allowance)
        budget.take(peer, taken)
        mine.append(taken)
        assert sum(mine) <= max(least, max_bytes // 4)
        assert budget.used_bytes == sum(map(sum, held.values())) <= max(max_bytes, 6 * least) + 5 * least


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 300) | st.none()), max_size=80),
    max_bytes=st.integers(100, 400),
)
def test_beyond_the_overdraft_those_are_closed_that_have_held_something_for_the_longest_time(
    steps: list[tuple[int, int | None]], max_bytes: int
) -> None:
    """Answers are as large as batches are. A connection that is closed gives back what it held some time later."""
    most = client_limits.OVERDRAFT * max_bytes
    held: dict[str, int] = {}  # in the order of their beginning
    closing: list[str] = []

    def close(peer: str, reason: str) -> bool:
        assert peer == next(other for other in held if other not in closing)
        closing.append(peer)
        return True

    budget = AnswerBudget(max_bytes, close)
    for which, size in steps:
        peer = f"peer-{which}"
        if size is None or peer in closing:
            if peer in held:
                budget.release(peer, held.pop(peer))
            if peer in closing:
                closing.remove(peer)
        elif budget.allowance(peer, 50) > 0:
            held[peer] = held.get(peer, 0) + size
            budget.take(peer, size)
        left = sum(size for peer, size in held.items() if peer not in closing)
        assert left <= max(most, max(held.values(), default=0))
        assert budget.used_bytes == sum(held.values())


def test_where_connections_cannot_be_closed_those_that_hold_nothing_get_nothing_beyond_the_overdraft() -> None:
    budget = AnswerBudget(100, never)
    for number in range(4):
        assert budget.allowance(f"peer-{number}", 50) >= 50
        budget.take(f"peer-{number}", 110)
    assert budget.allowance("new", 50) == 0
    budget.release("peer-2", 110)
    assert budget.allowance("new", 50) >= 50


@asynchronous
async def test_who_holds_nothing_goes_on_when_anything_is_released_beyond_the_overdraft() -> None:
    budget = AnswerBudget(100, never)
    budget.take("a", 401)
    waiting = asyncio.create_task(budget.wait("b", 50))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.release("a", 1)
    assert await waiting == 50


@asynchronous
async def test_who_waits_for_its_own_memory_goes_on_when_some_is_released() -> None:
    budget = AnswerBudget(400, never)
    budget.take("a", 100)
    waiting = asyncio.create_task(budget.wait("a", 50))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await budget.wait("b", 50) >= 50  # another connection is not in its way
    budget.release("a", 100)
    assert await waiting == 100


@asynchronous
async def test_a_large_answer_waits_until_it_fits_beside_the_others() -> None:
    budget = AnswerBudget(400, never)
    await budget.wait_for_all(1_000)  # alone, it may be larger than all
    budget.take("a", 100)
    await budget.wait_for_all(300)
    waiting = asyncio.create_task(budget.wait_for_all(301))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.release("a", 1)
    await waiting
