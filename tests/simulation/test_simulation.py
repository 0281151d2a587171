"""Whole clusters under faults, from seeds; and one seed is one run, byte for byte."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from fencepost_testing.history_check import Anomaly, check_history
from tests.simulation.simulation import simulate

COSTLY = {2, 5, 6, 7, 9, 10, 11, 17, 20, 21, 24, 26, 30}  # more than seven seconds of a core; the others take three
SEEDS = [pytest.param(seed, marks=[pytest.mark.long] if seed in COSTLY else []) for seed in range(32)]
DIGEST = """
import hashlib
from tests.simulation.simulation import simulate
print(hashlib.sha256("\\n".join(simulate({seed}, kafka={kafka}).trace).encode()).hexdigest())
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds(seed: int) -> None:
    result = simulate(seed)
    assert result.ok, f"{result.problem}\nreplay: ./scripts/simulate --seed {seed} --trace"
    assert result.counts["committed batches"] > 20  # it was no empty run


@pytest.mark.parametrize(("seed", "kafka"), [(0, False), (8, True)])  # the first has a producer with gzip
def test_one_seed_is_one_trace_whatever_the_hash_seed_of_the_interpreter(seed: int, kafka: bool) -> None:
    digests = {hashlib.sha256("\n".join(simulate(seed, kafka=kafka).trace).encode()).hexdigest()}
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", DIGEST.format(seed=seed, kafka=kafka)]
        digests.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip())
    assert len(digests) == 1


def test_the_checker_of_histories_judges_what_a_runs_clients_recorded() -> None:
    """It found this run clean; with a record that no one reads any more it says which is lost."""
    history = simulate(1).history
    assert check_history(history).clean
    acked = next(told for told in history if (told.op, told.type) == ("send", "ok"))
    place = (acked.topic, acked.partition, acked.offset)
    without = [told for told in history if told.op != "poll" or (told.topic, told.partition, told.offset) != place]
    assert check_history(without).counts[Anomaly.LOST_WRITE] == 1
