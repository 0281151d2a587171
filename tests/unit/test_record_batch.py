"""Batches from outside: what is read of bytes that were sound once, and may be anything now."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost_proto.protocol.errors import CorruptMessage
from fencepost_proto.protocol.record_batch import last_end_offset, stamp
from tests.unit.batches import batch

COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def run_of(counts: list[int], offset: int) -> bytes:
    """Batches of so many records each, one behind the other."""
    stamped = []
    for count in counts:
        stamped.append(stamp(batch(count), offset, 3))
        offset += count
    return b"".join(stamped)


@given(COUNTS, st.integers(0, 2**40))
def test_the_end_of_sound_batches(counts: list[int], offset: int) -> None:
    assert last_end_offset(run_of(counts, offset), offset) == offset + sum(counts)


def test_no_batch_ends_where_it_is_looked_for() -> None:
    assert last_end_offset(b"", 7) == 7


@given(COUNTS, st.data())
def test_changed_bytes_have_an_end_behind_the_offset_or_are_corrupt(counts: list[int], draw: st.DataObject) -> None:
    changed = bytearray(run_of(counts, 100))
    for _ in range(draw.draw(st.integers(1, 4))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(CorruptMessage):
        assert last_end_offset(changed[: draw.draw(st.integers(1, len(changed)))], 100) > 100


@pytest.mark.parametrize("length", [-12, -13, 0, 48, 10_000, -(2**31)])
def test_a_length_that_cannot_be(length: int) -> None:
    changed = bytearray(run_of([2, 2], 0))
    changed[8:12] = length.to_bytes(4, "big", signed=True)
    with pytest.raises(CorruptMessage, match="at byte 0"):
        last_end_offset(changed, 0)
