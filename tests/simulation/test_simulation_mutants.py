"""The simulator can fail: every deliberate fault in the production code is caught, by a promise that it breaks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulation import Result


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant[Result]) -> None:
    result = mutant.caught()
    assert result is not None, f"{mutant.name} was not caught within {mutant.seeds} seeds"
    assert result.promise in mutant.promises, f"seed {result.seed}: {result.problem}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_on_the_lean_carrier(mutant: Mutant[Result]) -> None:
    """Where every message of every process goes by it."""
    run: Any = mutant.run
    result = replace(mutant, run=partial(run, carrier="lean")).caught()
    assert result is not None, f"{mutant.name} was not caught within {mutant.seeds} seeds"
    assert result.promise in mutant.promises, f"seed {result.seed}: {result.problem}"
