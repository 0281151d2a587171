"""The benchmark against another commit: both in turns on this machine, medians, spread, and the ratios of pairs.

A machine has better minutes and worse ones, so two figures say something about each other only when they were taken one
right after the other. Each pair is one run of either checkout, with the order changed from pair to pair; the ratio of a
figure is the median of its pairs' ratios.

The other commit is unpacked into a folder of its own and runs there as a process of its own, with this Python and its
packages. So it needs to have been one that today's dependencies still run, and to know `bench --json`; figures that only
one of the two has are left out.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fencepost_testing.failures import CommandFailed

REPEATS = 5
RUN_TIMEOUT_S = 900.0  # of one run of the benchmark
SOURCE_FOLDERS = ("proto", "node", "controller", "client", "scripts")

Figures = dict[str, float]  # by the names of the benchmark's JSON; of an object in it: name.key


@dataclass(frozen=True, slots=True)
class Checkout:
    """The files of one commit, or of this working tree."""

    root: Path
    name: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both checkouts, pair by pair."""

    name: str
    other: tuple[float, ...]
    this: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Of this to the other: the median of all pairs; None: the other's is 0 in each."""
        ratios = [ours / theirs for theirs, ours in zip(self.other, self.this, strict=True) if theirs]
        return median(ratios) if ratios else None


def this_checkout() -> Checkout:
    """The working tree that this program runs from. Raises CommandFailed where git does not know it."""
    root = Path(__file__).resolve().parents[2]
    return Checkout(root, _git(root, "describe", "--always", "--dirty").decode().strip())


def unpacked(root: Path, revision: str, folder: Path) -> Checkout:
    """The commit `revision` of the repository at `root`, in `folder`. Raises CommandFailed."""
    commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit, *SOURCE_FOLDERS))) as archive:
        archive.extractall(folder, filter="data")
    return Checkout(folder, commit[:7])


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise CommandFailed(f"a comparison needs git: {error}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise CommandFailed(f"git {' '.join(arguments)} in {root}: {said}") from error


def measure(checkout: Checkout, data_dir: Path) -> Figures:
    """One run of its benchmark. Raises CommandFailed."""
    path = os.pathsep.join(str(checkout.root / folder) for folder in SOURCE_FOLDERS)
    command = [sys.executable, "-m", "fencepost_cli", "bench", "--json", "--data-dir", str(data_dir)]
    try:
        done = subprocess.run(
            command,
            cwd=data_dir,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            check=True,
            timeout=RUN_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        raise CommandFailed(f"the benchmark of {checkout.name} failed: {error}") from error
    last_line = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        return figures_of(json.loads(last_line))
    except ValueError as error:
        raise CommandFailed(f"the benchmark of {checkout.name} ended with {last_line[:200]!r}: {error}") from error


def figures_of(told: Mapping[str, Any]) -> Figures:
    """Every number in what the benchmark has printed; of a list its median."""
    figures: Figures = {}
    for name, value in told.items():
        if isinstance(value, Mapping):
            figures.update({f"{name}.{key}": number for key, number in figures_of(value).items()})
        elif isinstance(value, list):
            if value and all(isinstance(item, int | float) for item in value):
                figures[name] = float(median(value))
        elif isinstance(value, int | float):
            figures[name] = float(value)
    return figures


def compare(
    other: Checkout,
    this: Checkout,
    pairs: int,
    run: Callable[[Checkout], Figures],
    tell: Callable[[str], None],
) -> list[Compared]:
    """Run both in turns, so many times; every figure that all of the runs have."""
    runs: dict[Checkout, list[Figures]] = {other: [], this: []}
    for number in range(pairs):
        for checkout in (other, this) if number % 2 == 0 else (this, other):
            tell(f"pair {number + 1} of {pairs}: {checkout.name}")
            runs[checkout].append(run(checkout))
    return compared(runs[other], runs[this])


def compared(other: Sequence[Figures], this: Sequence[Figures]) -> list[Compared]:
    names = [name for name in this[0] if all(name in figures for figures in (*other, *this))]
    return [
        Compared(name, tuple(figures[name] for figures in other), tuple(figures[name] for figures in this))
        for name in names
    ]


def to_json(other: Checkout, this: Checkout, figures: Sequence[Compared]) -> dict[str, object]:
    return {
        "other": other.name,
        "this": this.name,
        "figures": {one.name: {"other": one.other, "this": one.this, "ratio": one.ratio} for one in figures},
    }
