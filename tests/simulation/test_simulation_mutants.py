"""The simulator can fail: every deliberate fault in the production code is caught, by a promise that it breaks."""

from __future__ import annotations

import pytest
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulation import simulate


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    with mutant.applied():
        for seed in range(mutant.first_seed, mutant.first_seed + mutant.seeds):
            result = simulate(seed, mutant.kinds)
            if not result.ok:
                assert result.promise in mutant.promises, f"seed {seed}: {result.problem}"
                return
    pytest.fail(f"{mutant.name} was not caught within {mutant.seeds} seeds")
