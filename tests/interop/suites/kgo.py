"""franz-go's tests of its client: `pkg/kgo` of a checkout, one process a test.

The test program is built once. Tests that need no broker run too: they take no time.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fencepost_testing.failures import CommandFailed
from tests.interop.clients import BUILT, run_command
from tests.interop.suites import excluded
from tests.interop.suites.suite import Choice, Job, Outcome, Stage, State, ended_badly

NEEDS = ("go",)
ETL = "TestGroupETL"  # groups in a chain, each record exactly once and in order
DEFAULT_RECORDS = 500_000  # of theirs
REPLICAS = 3
_TWICE = ("TestGroupSimple",)  # skips a part unless a test before it, in the same process, has asked for versions
_TIMEOUT_S = 240.0
_MARGIN_S = 10.0  # for the test program to say what was running at the end of its time
_TIMEOUT_S_PER_RECORD = 0.01  # on a machine that has other work
_ENDED = re.compile(r"^\s*--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)", re.MULTILINE)
_COMPLAINT = re.compile(r"^\s+\w+_test\.go:\d+: (.*)$", re.MULTILINE)
_STATES = {"PASS": State.PASSED, "FAIL": State.FAILED, "SKIP": State.SKIPPED}


class Kgo:
    """Raises CommandFailed where the folder is no checkout of franz-go, or does not build."""

    def __init__(self, checkout: Path) -> None:
        self._folder = checkout.absolute() / "pkg" / "kgo"
        if not (self._folder / "helpers_test.go").is_file():
            raise CommandFailed(f"{checkout} is no checkout of franz-go: it has no pkg/kgo/helpers_test.go")
        self._program = BUILT / "kgo.test"
        BUILT.mkdir(parents=True, exist_ok=True)
        run_command(["go", "test", "-c", "-o", str(self._program), "."], self._folder)

    def excluded(self, choice: Choice) -> Mapping[str, str]:
        return excluded.KGO

    def tests(self) -> list[str]:
        told = subprocess.run(
            [str(self._program), "-test.list", "^Test"], cwd=self._folder, check=True, capture_output=True, text=True
        )
        return told.stdout.split()

    def stages(self, choice: Choice, folder: Path) -> list[Stage]:
        chosen = [test for test in self.tests() if choice.has(test) and test not in self.excluded(choice)]
        chosen.sort(key=ETL.__eq__)  # it takes the longest: last, when nothing else is left to run beside it

        def jobs(bootstrap: str) -> list[Job]:
            return [self._job(test, bootstrap, choice) for test in chosen]

        return [Stage("kgo", jobs)]

    def _job(self, test: str, bootstrap: str, choice: Choice) -> Job:
        timeout_s = _TIMEOUT_S
        if test == ETL:
            timeout_s += _TIMEOUT_S_PER_RECORD * (choice.records or DEFAULT_RECORDS)
        environment = {"KGO_SEEDS": bootstrap, "KGO_TEST_RF": str(REPLICAS)}
        if choice.records:
            environment["KGO_TEST_RECORDS"] = str(choice.records)
        options = ["-test.run", f"^{test}$", "-test.v", f"-test.timeout={timeout_s:.0f}s"]
        if test in _TWICE:
            options.append("-test.count=2")

        def outcomes(said: str, status: int | None) -> list[Outcome]:
            return read(test, said, status)

        return Job(test, (str(self._program), *options), self._folder, environment, timeout_s + _MARGIN_S, outcomes)


def read(test: str, said: str, status: int | None) -> list[Outcome]:
    """The outcomes of a test and of its parts, from the program's output; of what ran twice the second, or a failure."""
    ended: dict[str, Outcome] = {}
    for word, name, seconds in _ENDED.findall(said):
        if name not in ended or ended[name].state is not State.FAILED:
            note = _complaint(said) if word != "PASS" else ""
            ended[name] = Outcome(name, _STATES[word], float(seconds), note)
    outcomes = list(ended.values())
    if status != 0 and not any(each.state is State.FAILED for each in outcomes):
        outcomes.append(ended_badly(test, status))
    return outcomes


def _complaint(said: str) -> str:
    found = _COMPLAINT.search(said)
    return found[1] if found else ""
