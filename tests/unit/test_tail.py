"""The in-memory tail gives what the log would, or says that it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node.replication.tail import Tail, TailBudget
from fencepost_proto.protocol.errors import InvariantBroken


def filled(sizes: list[int], max_bytes: int) -> tuple[Tail, list[tuple[int, int, bytes]]]:
    """A tail of batches of `sizes` bytes, each holding as many offsets as its index + 1."""
    tail = Tail(100, TailBudget(max_bytes))
    batches = []
    for index, size in enumerate(sizes):
        base, end = tail.end_offset, tail.end_offset + index + 1
        batch = bytes([index % 256]) * size
        tail.append(base, end, batch)
        batches.append((base, end, batch))
    return tail, batches


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    max_bytes=st.integers(1, 400),
    offset=st.integers(90, 600),
    read_bytes=st.integers(1, 200),
    end_offset=st.integers(100, 600),
)
def test_a_read_is_the_contiguous_run_of_whole_batches_that_was_asked_for(
    sizes: list[int], max_bytes: int, offset: int, read_bytes: int, end_offset: int
) -> None:
    tail, batches = filled(sizes, max_bytes)
    records = tail.read(offset, read_bytes, end_offset)
    wanted = [batch for base, end, batch in batches if end > offset and end <= end_offset]
    if records is None:
        kept = sum(len(batch) for _, _, batch in batches) <= max_bytes
        assert not kept or offset < 100, "nothing was dropped, and yet the tail says it is too old"
    elif records == b"":
        assert offset >= tail.end_offset or offset >= end_offset or not wanted or batches[-1][1] > end_offset
    else:
        assert b"".join(wanted).startswith(records)
        assert len(records) <= max(read_bytes, len(wanted[0]))


def test_the_last_batch_is_kept_whatever_its_size() -> None:
    tail, batches = filled([10, 10, 500], max_bytes=20)
    assert tail.read(batches[-1][0], 1, tail.end_offset) == batches[-1][2]
    assert tail.read(batches[0][0], 1, tail.end_offset) is None


def test_compaction_loses_nothing_that_is_kept() -> None:
    tail, batches = filled([10] * 5_000, max_bytes=100)
    assert tail.read(batches[-5][0], 1_000, tail.end_offset) == b"".join(batch for _, _, batch in batches[-5:])


def test_a_gap_breaks_an_invariant() -> None:
    tail, _ = filled([10], max_bytes=100)
    with pytest.raises(InvariantBroken, match="batch at 105"):
        tail.append(105, 106, b"x")


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 3)), max_size=80),
    max_bytes=st.integers(0, 400),
    closed=st.lists(st.integers(0, 3), max_size=2),
)
def test_tails_that_share_a_budget_drop_what_was_appended_first_of_all(
    steps: list[tuple[int, int, int]], max_bytes: int, closed: list[int]
) -> None:
    budget = TailBudget(max_bytes)
    tails = [Tail(0, budget) for _ in range(4)]
    kept: list[tuple[int, int, int, bytes]] = []  # (tail, base offset, end offset, batch): the oldest first
    for number, (which, size, records) in enumerate(steps):
        base, batch = tails[which].end_offset, bytes([number % 256]) * size
        tails[which].append(base, base + records, batch)
        kept.append((which, base, base + records, batch))
        while sum(len(batch) for *_, batch in kept) > max_bytes and len(kept) > 1:
            del kept[0]
        if number == len(steps) // 2:
            for gone in dict.fromkeys(closed):
                tails[gone].close()
                kept = [entry for entry in kept if entry[0] != gone]
                tails[gone] = Tail(0, budget)
    assert budget.used_bytes == sum(len(batch) for *_, batch in kept)
    for which, tail in enumerate(tails):
        mine = [entry for entry in kept if entry[0] == which]
        assert len(tail) == len(mine)
        assert b"".join(batch for *_, batch in mine) == (tail.read(mine[0][1], 10**9, tail.end_offset) if mine else b"")
        if not mine and tail.end_offset:
            assert tail.read(0, 1, tail.end_offset) is None  # not empty: it is on the disk
            assert tail.available(0, tail.end_offset) is None


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    max_bytes=st.integers(1, 400),
    offset=st.integers(90, 600),
    end_offset=st.integers(100, 600),
)
def test_what_is_available_is_what_an_unbounded_read_gives(
    sizes: list[int], max_bytes: int, offset: int, end_offset: int
) -> None:
    tail, _ = filled(sizes, max_bytes)
    records = tail.read(offset, 10**9, end_offset)
    assert tail.available(offset, end_offset) == (None if records is None else len(records))


def test_closed_tails_leave_nothing_in_the_budget() -> None:
    budget = TailBudget(10**9)
    for _ in range(20):
        tail = Tail(0, budget)
        for n in range(500):
            tail.append(n, n + 1, b"x" * 10)
        tail.close()
    assert budget.used_bytes == 0
    assert budget.places <= 2_000  # of 10,000 batches


def test_a_tail_that_is_emptied_keeps_no_memory_for_what_it_dropped() -> None:
    budget = TailBudget(100)
    tails = [Tail(0, budget) for _ in range(10)]
    for n in range(1_000):
        for tail in tails:
            tail.append(n, n + 1, b"x" * 10)
    assert sum(tail.entries for tail in tails) < 200
