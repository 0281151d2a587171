"""The simulator can fail: every deliberate fault in the production code is caught, by a promise that it breaks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulation import Result

ON_GRPC = {"no-duplicate-check", "acknowledged-before-the-commit", "duplicate-acknowledged-before-the-commit"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_on_the_lean_carrier(mutant: Mutant[Result]) -> None:
    """Which is what brokers and Fencepost's clients speak by default."""
    check_caught(mutant, "lean")


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in ON_GRPC], ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_on_grpc(mutant: Mutant[Result]) -> None:
    """Three whose faults are in what is answered: the judge hears the answers on this carrier too."""
    check_caught(mutant, "grpc")


def check_caught(mutant: Mutant[Result], carrier: Literal["lean", "grpc"]) -> None:
    run: Any = mutant.run
    result = replace(mutant, run=partial(run, carrier=carrier)).caught()
    assert result is not None, f"{mutant.name} was not caught within {mutant.seeds} seeds"
    assert result.promise in mutant.promises, f"seed {result.seed}: {result.problem}"
