"""Several controllers on etcd under faults of each, from seeds: every promise, and G15. And the simulation can fail."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from tests.simulation.controller_stories import (
    MUTANTS,
    Mutant,
    a_controller_stops_while_brokers_register,
    tell,
)
from tests.simulation.judged import Violation
from tests.simulation.simulation import simulate

QUICK = (0, 8)
SEEDS = [pytest.param(seed, marks=[] if seed in QUICK else [pytest.mark.long]) for seed in range(40)]
with_controllers = partial(simulate, controllers=3)
OF_CONTROLLERS = (
    "kill controller",
    "pause controller",
    "kill controller and leader",
    "isolate controller",
    "kill etcd",
    "pause etcd",
    "isolate etcd",
    "etcd loses answers",
    "etcd is late",
    "most of etcd away",
    "etcd's clock is fast",
    "controller's clock is slow",
)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds_with_several_controllers(seed: int) -> None:
    result = with_controllers(seed)
    assert result.ok, f"{result.promise} {result.problem}"
    assert result.counts["committed batches"] > 20


@pytest.mark.parametrize(
    "seed",
    [pytest.param(3, marks=pytest.mark.long), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 24))],
)
def test_every_promise_holds_under_faults_of_controllers_and_etcd(seed: int) -> None:
    result = with_controllers(seed, OF_CONTROLLERS)
    assert result.ok, f"{result.promise} {result.problem}"


def test_a_controller_that_stops_while_brokers_register_is_left() -> None:
    """With the session timeout that is the default: with a shorter one a broker needs longer to notice."""
    tell(a_controller_stops_while_brokers_register, session_timeout_ms=3_000)


@pytest.mark.long
def test_one_seed_is_one_trace() -> None:
    assert with_controllers(8).trace == with_controllers(8).trace


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(one, marks=[] if n < 3 else [pytest.mark.long]) for n, one in enumerate(MUTANTS)],
    ids=lambda mutant: mutant.story.__name__,
)
def test_the_story_ends_well(mutant: Mutant) -> None:
    tell(mutant.story)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    patches: list[Any] = []

    def replace(*args: Any) -> None:
        patches.append(patch.object(*args))
        patches[-1].start()

    mutant.apply(replace)
    try:
        with pytest.raises(Violation) as caught:
            tell(mutant.story)
    finally:
        for one in patches:
            one.stop()
    assert caught.value.promise in mutant.promises, str(caught.value)
