"""Groups under faults in the simulator: G12 and G13 hold, and each mutant of the coordinators is caught."""

from __future__ import annotations

import pytest

from tests.simulation.consumer_group import simulate_consumer_group
from tests.simulation.group_mutants import GROUP_MUTANTS
from tests.simulation.groups import GroupResult, simulate_group
from tests.simulation.mutants import Mutant


@pytest.mark.parametrize("seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(10, 40))])
def test_one_owner_and_every_commit_through_faults(seed: int) -> None:
    result = simulate_group(seed)
    assert result.ok, f"{result.promise}: {result.problem}"
    assert result.counts["assigned"] > 3
    assert result.counts["committed"] > 50


def test_a_seed_is_one_history() -> None:
    first, second = simulate_group(2, faults_for_s=5), simulate_group(2, faults_for_s=5)
    assert first.trace == second.trace
    assert first.counts == second.counts


@pytest.mark.parametrize("mutant", GROUP_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant[GroupResult]) -> None:
    result = mutant.caught()
    assert result is not None, f"{mutant.name} has survived"
    assert result.promise in mutant.promises, f"{result.promise}: {result.problem}"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(10, 40))])
def test_own_consumers_share_a_group_and_read_everything_through_faults(seed: int) -> None:
    result = simulate_consumer_group(seed)
    assert result.ok, f"{result.promise}: {result.problem}"
    assert result.counts["assigned"] > 3
    assert result.counts["committed"] > 50
