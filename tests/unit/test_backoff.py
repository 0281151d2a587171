"""Pauses between attempts: how they grow, where they end, and what chance does to them."""

from __future__ import annotations

import random
from itertools import islice

from fencepost_proto.runtime.backoff import Backoff


def test_pauses_double_from_the_first_one_up_to_the_limit() -> None:
    backoff = Backoff(first_s=0.1, most_s=0.5)
    assert list(islice(backoff.pauses_s(), 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert [backoff.pause_s(failures) for failures in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.5]


def test_a_row_of_failures_without_end_does_not_overflow() -> None:
    assert Backoff(first_s=0.02, most_s=60.0).pause_s(1_000_000) == 60.0


def test_jitter_multiplies_a_pause_by_a_number_between_its_two() -> None:
    backoff, chance = Backoff(first_s=1.0, most_s=4.0, jitter=(0.5, 1.5)), random.Random(7)
    found = [backoff.jittered_pause_s(2, chance) for _ in range(200)]
    assert 1.0 <= min(found) < 1.2
    assert 2.8 < max(found) <= 3.0
