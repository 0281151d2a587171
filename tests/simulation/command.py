"""The command line of the simulator: many seeds with a progress bar, one as a story, or as long as there is time."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fencepost.history_format import to_line
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.plan import plan
from tests.simulation.simulation import Result, simulate

EPILOG = """examples:
  ./scripts/simulate --seeds 0:200 --jobs 2     200 runs; coverage, speed, and every seed that failed
  ./scripts/simulate --seed 17 --trace          one run as a story, a line for each event
  ./scripts/simulate --seed 17 --history H      what its clients recorded, for `fencepost check H`
  ./scripts/simulate --until 10m                new seeds for ten minutes
  ./scripts/simulate --controllers 3 --seed 17  one run with three controllers on etcd, which fail too
  ./scripts/simulate --mutants --jobs 2         the deliberate faults, and the promise that catches each"""

DURATION = re.compile(r"(\d+)([smh]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
FAILOVERS = "elections"


@dataclass(slots=True)
class Totals:
    """Over all runs."""

    runs: int = 0
    failed: list[Result] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.counts.update(result.counts)
        self.faults.update(result.faults)
        self.virtual_s += result.virtual_s
        self.cpu_s += result.cpu_s
        if not result.ok:
            self.failed.append(result)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="simulate",
        description="Run the production code of a whole cluster under faults drawn from a seed, and check every promise.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", default="0:100", metavar="A:B", help="seeds A to B-1 (default 0:100)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them in")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--history", type=Path, metavar="FILE", help="with --seed: write what the clients recorded")
    parser.add_argument("--until", metavar="10m", help="go on with new seeds for so long (s, m or h)")
    parser.add_argument("--controllers", type=int, default=1, metavar="N", help="more than one: N controllers, on etcd")
    parser.add_argument("--mutants", action="store_true", help="put deliberate faults into the code; catch each")
    parser.add_argument("--trace-dir", type=Path, default=Path(), help="where traces of failed seeds are written")
    arguments = parser.parse_args()
    if arguments.mutants:
        sys.exit(_mutants(arguments.jobs))
    if arguments.seed is not None:
        sys.exit(_one(arguments.seed, arguments.trace, arguments.history, arguments.controllers))
    first, _, last = arguments.seeds.partition(":")
    if not first.isdecimal() or (last and not last.isdecimal()):
        parser.error(f"--seeds {arguments.seeds!r}: two numbers with a colon are expected, such as 0:100")
    until_s = _duration(parser, arguments.until) if arguments.until else None
    seeds = count(int(first)) if until_s is not None else iter(range(int(first), int(last or int(first) + 1)))
    total = None if until_s is not None else int(last or int(first) + 1) - int(first)
    run = partial(_run, controllers=arguments.controllers)
    sys.exit(_many(seeds, total, until_s, arguments.jobs, trace_dir=arguments.trace_dir, run=run))


def _duration(parser: argparse.ArgumentParser, text: str) -> float:
    match = DURATION.fullmatch(text)
    if match is None:
        parser.error(f"--until {text!r}: a number with s, m or h is expected, such as 10m")
    return int(match[1]) * SECONDS[match[2]]


def _one(seed: int, trace: bool, history: Path | None, controllers: int) -> int:
    result = simulate(seed, controllers=controllers)
    if history is not None:
        history.write_text("".join(f"{to_line(operation)}\n" for operation in result.history), encoding="utf-8")
    for line in result.trace if trace else []:
        print(line)
    console = Console(stderr=trace)
    console.print(str(result.plan), highlight=False, markup=False)
    if result.ok:
        console.print(f"every promise held; {result.virtual_s:.0f} s of virtual time in {result.cpu_s:.1f} s of a core")
    else:
        console.print(result.problem, style="red", markup=False)
    return 0 if result.ok else 1


def _mutants(jobs: int) -> int:
    """A table, in Markdown, of the deliberate faults."""
    print("| deliberate fault | caught by | in run | of at most |\n|---|---|---|---|")
    missed = 0
    with multiprocessing.get_context("forkserver").Pool(jobs) as pool:
        for mutant, (promise, runs) in zip(MUTANTS, pool.imap(_caught, range(len(MUTANTS))), strict=True):
            missed += promise not in mutant.promises
            wrong = "" if promise in mutant.promises else f" instead of {', '.join(sorted(mutant.promises))}"
            print(f"| {mutant.name} | {promise}{wrong} | {runs or '-'} | {mutant.seeds} |", flush=True)
    return 1 if missed else 0


def _caught(number: int) -> tuple[str, int]:
    """(promise that caught it, number of runs that it took)"""
    mutant: Mutant[Result] = MUTANTS[number]
    result = mutant.caught()
    return ("nothing", 0) if result is None else (result.promise, result.seed - mutant.first_seed + 1)


def _many(
    seeds: Iterator[int],
    total: int | None,
    until_s: float | None,
    jobs: int,
    *,
    trace_dir: Path,
    run: Callable[[int], Result],
) -> int:
    console = Console()
    totals = Totals()
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        multiprocessing.get_context("forkserver").Pool(jobs) as pool,
    ):
        bar = progress.add_task("simulating", total=total)

        def wanted() -> Iterator[int]:
            for seed in seeds:
                if until_s is not None and time.monotonic() - began > until_s:
                    return
                yield seed

        for result in pool.imap_unordered(run, _paced(wanted(), lambda: totals.runs, 4 * jobs)):
            totals.add(result)
            elapsed = time.monotonic() - began
            failovers = totals.counts[FAILOVERS] / elapsed
            description = (
                f"{totals.runs / elapsed:.2f} runs/s, {failovers:.1f} failovers/s, {len(totals.failed)} failed"
            )
            progress.update(bar, advance=1, description=description)
            if not result.ok:
                path = trace_dir / f"simulation-{result.seed}.trace"
                trace_dir.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(result.trace) + "\n", encoding="utf-8")
                console.print(f"seed {result.seed}: {result.problem}", style="red", markup=False)
                console.print(
                    f"  replay: ./scripts/simulate --seed {result.seed} --trace   (trace: {path})", markup=False
                )
    _report(console, totals, time.monotonic() - began)
    return 1 if totals.failed else 0


def _paced(seeds: Iterator[int], done: object, ahead: int) -> Iterator[int]:
    """The pool's feeder takes all it can get; with a time limit it must not run far ahead of what is done."""
    for number, seed in enumerate(seeds):
        while number - done() > ahead:  # type: ignore[operator]
            time.sleep(0.01)
        yield seed


def _run(seed: int, controllers: int) -> Result:
    """In a process of the pool: what goes wrong with the simulator itself is a failed run, and the others go on."""
    try:
        result = simulate(seed, controllers=controllers)
    except Exception as error:  # noqa: BLE001 - whatever it is, its seed is told
        return Result(seed, plan(seed), [], problem=f"the simulator failed: {error!r}", promise="simulator")
    if result.ok:
        result.trace = []
    result.history = []
    return result


def _report(console: Console, totals: Totals, elapsed_s: float) -> None:
    for title, counter in (("faults", totals.faults), ("what happened", totals.counts)):
        table = Table(title=title, show_header=False)
        for name, number in sorted(counter.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(name, f"{number:,}")
        console.print(table)
    failovers = totals.counts[FAILOVERS]
    console.print(
        f"{totals.runs} runs, {totals.virtual_s:,.0f} s of virtual time in {elapsed_s:.1f} s; "
        f"{failovers:,} elections, {failovers / max(totals.cpu_s, 0.001):.1f} a second of one core; "
        f"{len(totals.failed)} runs failed"
    )
