"""librdkafka's tests: `tests/` of a checkout, one process of its test-runner a test number.

The checkout is copied and built there, without SSL, SASL and curl. The tests ask for two kinds of cluster: one that
creates topics when they are asked for, and one ("noautocreate") that does not. Tests that librdkafka marks as local
(they need no broker, or use its own mock) or as manual are left out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fencepost_testing.failures import CommandFailed
from tests.interop.clients import BUILT, run_command
from tests.interop.suites import excluded
from tests.interop.suites.kafka_topics import write_script
from tests.interop.suites.suite import Choice, Job, Outcome, Stage, State, ended_badly

NEEDS = ("cc", "c++", "make")
KAFKA_VERSION = "4.1.0.0"  # what the tests are told; those of share groups want 4.2
DEFAULT = "default"
_SCENARIOS: dict[str, dict[str, bool | int | str]] = {DEFAULT: {}, "noautocreate": {"auto_create_topics": False}}
_TIMEOUT_S = 1_500.0  # the runner has its own for each test, of a minute or so
_TIMEOUT_FACTOR = 3  # of theirs: others run beside it
_LEFT_OUT = ("TEST_F_LOCAL", "TEST_F_MANUAL")
# Tests whose parts need different things run one part a process: those that they announce, or those given here. The
# runner takes a part's name, or part of it.
_IN_PARTS: dict[str, tuple[str, ...]] = {
    "0011_produce_batch": (),
    "0055_producer_latency": (
        "standard settings",
        "low linger.ms",
        "microsecond linger.ms",
        "high linger.ms",
        "linger.ms < 1000",
        "no acks",
        "idempotence",
        "transactions",
        "test_producer_latency_first_message",
    ),
    "0081_admin": (),
    "0137_barrier_batch_consume": (),
}
_NARROWER = {  # without what these parts need ACLs for
    "0081_admin/do_test_DescribeTopics": "without authorized operations",
    "0081_admin/do_test_DescribeCluster": "without authorized operations",
}
_FIRST = ("0113", "0089", "0091", "0018")  # they take minutes, and others run beside them
_OF_KAFKA_TOPICS = ("0045", "0052")  # they call kafka-topics.sh
_VERSIONS = {"0109": "2.0.0.0"}  # of which it knows that there is no kafka-acls.sh, which half of it calls otherwise
_BUILD_OPTIONS = ("--disable-ssl", "--disable-gssapi", "--disable-curl", "--disable-lz4-ext")
_ROW = re.compile(r"^\| (\d{4}_\S+)\s+\|\s*([\w ]+?) \|\s*([\d.]+)s \| ?(.*)$", re.MULTILINE)
_STATES = {"PASSED": State.PASSED, "SKIPPED": State.SKIPPED}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_COMPLAINT = re.compile(r"^### Test .* failed at .*###\n(.*)$", re.MULTILINE)
_MAX_NOTE_CHARS = 160


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of librdkafka's list of tests. Its runner chooses by the number, which several may share."""

    name: str
    scenario: str  # or several

    @property
    def number(self) -> str:
        return self.name.split("_", 1)[0]


class Librdkafka:
    """Raises CommandFailed where the folder is no checkout of librdkafka, or does not build."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / "tests" / "test.c").is_file():
            raise CommandFailed(f"{checkout} is no checkout of librdkafka: it has no tests/test.c")
        self._root = BUILT / "librdkafka"
        shutil.copytree(checkout, self._root, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        self._folder = self._root / "tests"
        if not (self._root / "Makefile.config").is_file():
            run_command(["./configure", *_BUILD_OPTIONS], self._root)
        if not _is_built(self._root):
            run_command(["make", "-j2", "libs"], self._root)
            run_command(["make", "-j2", "build"], self._folder)
        self._listed = listed((self._folder / "test.c").read_text())

    def excluded(self, choice: Choice) -> Mapping[str, str]:
        return excluded.LIBRDKAFKA | (excluded.LIBRDKAFKA_IDEMPOTENT if choice.idempotent else {})

    def tests(self) -> list[str]:
        names: list[str] = []
        for each in self._listed:
            names += self._parts(each) or [each.name]
        return names

    def _parts(self, test: Listed) -> list[str]:
        """`test/part` for each part of the test that the runner can choose."""
        if test.name not in _IN_PARTS:
            return []
        if given := _IN_PARTS[test.name]:
            return [f"{test.name}/{part}" for part in given]
        source = next(self._folder.glob(f"{test.number}-*.c")).read_text()
        return [f"{test.name}/{part}" for part in parts_of(source)]

    def stages(self, choice: Choice, folder: Path) -> list[Stage]:
        stages = []
        for scenario, settings in _SCENARIOS.items():
            tests = self._chosen(scenario, choice)
            if tests:
                stages.append(Stage(scenario, self._jobs(scenario, tests, choice, folder), settings))
        return stages

    def _chosen(self, scenario: str, choice: Choice) -> dict[str, list[str]]:
        """number, or test and part → the tests that are wanted of it."""
        chosen: dict[str, list[str]] = {}
        for each in self._listed:
            if scenario not in each.scenario.split(","):
                continue
            parts = self._parts(each)
            for name in parts or [each.name]:
                if choice.has(name) and name not in self.excluded(choice):
                    chosen.setdefault(name if parts else each.number, []).append(name)
        return chosen

    def _jobs(
        self, scenario: str, tests: Mapping[str, list[str]], choice: Choice, folder: Path
    ) -> Callable[[str], list[Job]]:
        def jobs(bootstrap: str) -> list[Job]:
            config = folder / f"{scenario}.conf"
            config.write_text(f"bootstrap.servers={bootstrap}\ntest.timeout.multiplier={_TIMEOUT_FACTOR}\n")
            environment = {
                "RDKAFKA_TEST_CONF": str(config),
                "LD_LIBRARY_PATH": f"{self._root / 'src'}:{self._root / 'src-cpp'}",
                "KAFKA_PATH": str(write_script(folder / "kafka")),
                "BROKERS": bootstrap,
            }
            options = ["-p1", "-L", "-s", scenario, *(["-P"] if choice.idempotent else [])]
            names = sorted(tests, key=lambda name: name not in _FIRST)
            return [self._job(name, tests[name], options, environment) for name in names]

        return jobs

    def _job(self, name: str, wanted: list[str], options: list[str], common: Mapping[str, str]) -> Job:
        test, _, part = name.partition("/")
        number = test.split("_", 1)[0]
        environment = {**common, "TESTS": number, "TEST_KAFKA_VERSION": _VERSIONS.get(number, KAFKA_VERSION)}
        if number not in _OF_KAFKA_TOPICS:
            del environment["KAFKA_PATH"]  # with it others would look for more of Kafka's programs
        if part:
            is_function = not _IN_PARTS[test]
            environment["SUBTESTS"] = _NARROWER.get(name, f"{part}:" if is_function else part)

        def outcomes(said: str, status: int | None) -> list[Outcome]:
            return read(name, wanted, said, status)

        command = ("./test-runner", *options)
        return Job(name, command, self._folder, environment, _TIMEOUT_S, outcomes)


def _is_built(root: Path) -> bool:
    """Whether the test runner is newer than all sources: make itself would compile a part of it each time."""
    runner = root / "tests" / "test-runner"
    sources = (path for folder in ("src", "src-cpp", "tests") for path in (root / folder).glob("*.[ch]*"))
    return runner.is_file() and runner.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def listed(source: str) -> list[Listed]:
    """The tests that need a broker, of the list in tests/test.c."""
    found = []
    for match in re.finditer(r"^ {4}_TEST\((\d{4}_\w+),", source, re.MULTILINE):
        entry = source[match.end() : _closing(source, match.end())]
        if not any(flag in entry for flag in _LEFT_OUT):
            scenario = re.search(r'\.scenario = "([^"]+)"', entry)
            found.append(Listed(match[1], scenario[1] if scenario else DEFAULT))
    return found


def parts_of(source: str) -> list[str]:
    """The functions of one test that announce themselves as parts of it."""
    functions = re.split(r"^(?:static )?(?:void|int)\s+(\w+)\(", source, flags=re.MULTILINE)
    return [name for name, body in zip(functions[1::2], functions[2::2], strict=True) if "SUB_TEST_PASS()" in body]


def _closing(source: str, at: int) -> int:
    """Where the parenthesis closes that is open at this place."""
    depth = 1
    for index in range(at, len(source)):
        depth += {"(": 1, ")": -1}.get(source[index], 0)
        if depth == 0:
            return index
    return len(source)


def read(name: str, wanted: list[str], said: str, status: int | None) -> list[Outcome]:
    """The outcomes of the wanted tests, from the table that ends the runner's output."""
    rows = {row[0]: row[1:] for row in _ROW.findall(_COLOURS.sub("", said))}
    outcomes = []
    complaint = _COMPLAINT.search(_COLOURS.sub("", said))
    for test in wanted:
        if (row := rows.get(test.partition("/")[0])) is not None:
            state, seconds, note = row
            outcomes.append(
                Outcome(test, _STATES.get(state, State.FAILED), float(seconds), note.strip()[:_MAX_NOTE_CHARS])
            )
    failed = any(each.state is State.FAILED for each in outcomes)
    if len(outcomes) < len(wanted) or (status != 0 and not failed):
        outcome = ended_badly(name, status)
        outcomes.append(replace(outcome, note=complaint[1][:_MAX_NOTE_CHARS]) if complaint else outcome)
    return outcomes
