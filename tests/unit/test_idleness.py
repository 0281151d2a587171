"""How old the batches of a log are, by what a process has observed itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node.log.idleness import OBSERVATIONS, Idleness
from fencepost_proto.runtime.running_time import RunningTime

HORIZON_MS = 1_600


def test_nothing_is_old_before_it_was_observed_for_the_whole_time() -> None:
    idleness = Idleness()
    assert idleness.idle_below(10**12, HORIZON_MS) == 0
    idleness.observe(100, 5_000, HORIZON_MS)
    assert idleness.idle_below(5_000 + HORIZON_MS - 1, HORIZON_MS) == 0
    assert idleness.idle_below(5_000 + HORIZON_MS, HORIZON_MS) == 100


def test_what_was_cut_off_is_not_old_when_it_comes_again() -> None:
    idleness = Idleness()
    idleness.observe(100, 0, HORIZON_MS)
    idleness.truncate(40)
    assert idleness.idle_below(HORIZON_MS, HORIZON_MS) == 40


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=80))
def test_no_batch_counts_as_old_too_early_and_none_much_too_late(steps: list[tuple[int, int]]) -> None:
    """Time passes, the log grows, and it is looked at."""
    idleness, now_ms, end = Idleness(), 0, 0
    ends: list[tuple[int, int]] = []  # (end offset, when it was seen first)
    for passed_ms, appended in steps:
        now_ms, end = now_ms + passed_ms, end + appended
        ends.append((end, now_ms))
        idleness.observe(end, now_ms, HORIZON_MS)
        below = idleness.idle_below(now_ms, HORIZON_MS)
        assert below <= max((e for e, at in ends if at <= now_ms - HORIZON_MS), default=0)
        late_ms = HORIZON_MS + HORIZON_MS // OBSERVATIONS + 500  # the longest time between two looks
        assert below >= max((e for e, at in ends if at < now_ms - late_ms), default=0)
        assert len(idleness) <= OBSERVATIONS + 2


def test_a_pause_does_not_count_as_running() -> None:
    running = RunningTime(limit_s=2.0)
    assert [running.advance(now_s) for now_s in (100.0, 101.5, 5_000.0, 5_001.0)] == [0, 1_500, 3_500, 4_500]
    assert running.advance(4_000.0) == 4_500  # no clock goes back; if it did, so much the longer is remembered
