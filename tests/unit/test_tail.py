"""The in-memory tail gives what the log would, or says that it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node.replication.tail import Tail
from fencepost_proto.errors import InvariantBroken


def filled(sizes: list[int], max_bytes: int) -> tuple[Tail, list[tuple[int, int, bytes]]]:
    """A tail of batches of `sizes` bytes, each holding as many offsets as its index + 1."""
    tail = Tail(100, max_bytes)
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
