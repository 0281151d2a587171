"""A test suite of others as jobs: one child process each, whose output says how each of its tests ended."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.interop.program import WITH_PARENT


class State(enum.StrEnum):
    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"  # by the suite itself
    EXCLUDED = "excluded"  # by our table


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended. `note` says why, where it did not pass."""

    test: str
    state: State
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One process. `read` makes outcomes of (its output, its exit status); a status of None is a timeout."""

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    timeout_s: float
    read: Callable[[str, int | None], list[Outcome]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Jobs that share a cluster, and the settings of its brokers beside the usual ones."""

    name: str
    jobs: Callable[[str], list[Job]]  # by the addresses of the brokers
    broker_settings: Mapping[str, bool | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tests of a suite, and how."""

    only: Sequence[str] = ()  # parts of tests' names; none: all tests
    records: int = 0  # of a test that can be told; 0: as many as it has by itself
    idempotent: bool = False  # every producer of the suite, also those that are not by themselves

    def has(self, test: str) -> bool:
        return not self.only or any(part in test for part in self.only)


class Suite(Protocol):
    """One suite, built from a checkout."""

    def excluded(self, choice: Choice) -> Mapping[str, str]:
        """test → why it is not run."""
        ...

    def tests(self) -> list[str]: ...

    def stages(self, choice: Choice, folder: Path) -> list[Stage]:
        """The chosen tests but the excluded ones, in stages; the folder is for files of theirs."""
        ...


def ended_badly(name: str, status: int | None, seconds: float = 0.0) -> Outcome:
    """For a process that has not said how its tests ended."""
    if status is None:
        note = "has not ended in time"
    elif status < 0:
        note = f"killed by {signal.Signals(-status).name}"
    else:
        note = f"ended with status {status}"
    return Outcome(name, State.FAILED, seconds, note)


async def run_job(job: Job, log: Path) -> list[Outcome]:
    """Run it to its end or to its timeout, which kills it and its children."""
    began = time.monotonic()
    with log.open("w+b") as output:
        process = await asyncio.create_subprocess_exec(
            *WITH_PARENT,
            *job.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd=job.folder,
            env={**os.environ, **job.environment},
            start_new_session=True,
        )
        status: int | None = None
        try:
            async with asyncio.timeout(job.timeout_s):
                status = await process.wait()
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    outcomes = job.read(said, status)
    return outcomes or [ended_badly(job.name, status, time.monotonic() - began)]


async def run_jobs(
    jobs: Iterable[Job], at_once: int, folder: Path, on_outcome: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run them in order, so many at once. Each leaves its output in the folder, under its name."""
    waiting = list(jobs)
    outcomes: list[Outcome] = []

    async def work() -> None:
        while waiting:
            job = waiting.pop(0)
            for outcome in await run_job(job, folder / f"{job.name.replace('/', '-')}.log"):
                outcomes.append(outcome)
                on_outcome(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """The table that ends a run: how many ended in which way, and each that did not pass."""
    counts = {state: sum(each.state is state for each in outcomes) for state in State}
    lines = [", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no test was run"]
    for state in (State.FAILED, State.SKIPPED, State.EXCLUDED):
        for each in outcomes:
            if each.state is state:
                lines.append(f"  {state:<9} {each.test:<48} {each.note}".rstrip())
    return lines
