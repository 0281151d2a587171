"""`fencepost check`: says whether a history can be that of a correct log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import EXIT_FAILED, EXIT_USAGE, console, fail

if TYPE_CHECKING:
    from rich.console import Console

    from fencepost_testing.history_check import Finding, Verdict


def check(
    history: Annotated[list[Path], typer.Argument(help="Files of JSON lines; several are merged by time.")],
    *,
    foreign_records: Annotated[
        bool,
        typer.Option("--foreign-records", help="Others write to the same topics: do not wonder who sent a record."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object as the last line of standard output.")] = False,
) -> None:
    """Check recorded histories: lost, doubled, reordered or wrongly read records, with the operations around them.

    Clients record histories (`history=` of Producer and Consumer in the library; `fencepost workload produce` and `consume`
    with --history), and so do those of chaos runs and of the simulator (`simulate --seed N --history FILE`). An unclean
    election may take what its operator was shown, and nothing else (`fencepost topic elect --history`). Exit code 0:
    clean; 1: something is wrong; 2: a history cannot be read.
    """
    from fencepost_testing.history_files import UnreadableHistory

    try:
        verdict, torn = _check(history, foreign_records=foreign_records)
    except UnreadableHistory as error:
        fail(str(error), EXIT_USAGE)
    _show(verdict, torn, console())
    if as_json:
        typer.echo(json.dumps({**verdict.to_json(), "torn": torn}))
    if not verdict.clean:
        raise typer.Exit(EXIT_FAILED)


def _check(paths: list[Path], *, foreign_records: bool) -> tuple[Verdict, list[str]]:
    """The verdict, and what was left out of it."""
    from fencepost_testing.history_files import HistoryFiles, check_history_files

    files = HistoryFiles(paths)
    with _progress(files.size_bytes) as files.on_read:
        verdict = check_history_files(files, foreign_records=foreign_records)
    return verdict, [files.torn[index] for index in sorted(files.torn)]


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """A bar for who looks; it takes the bytes read since the last call."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total_bytes)
        yield lambda bytes_read: progress.advance(task, bytes_read)


def _show(verdict: Verdict, torn: list[str], out: Console) -> None:
    from rich.table import Table

    from fencepost_testing.history_check import MEANING, Anomaly

    for note in torn:
        out.print(f"left out: {note}", markup=False, soft_wrap=True)
    if not verdict.clean:
        table = Table("anomaly", "count", "what it is")
        table.columns[1].justify = "right"
        for anomaly in Anomaly:
            if verdict.counts.get(anomaly):
                table.add_row(anomaly.value, str(verdict.counts[anomaly]), MEANING[anomaly])
        for finding in verdict.findings:
            _show_finding(finding, out)
        out.print(table)
    finals = f"final reads of {verdict.final_reads}" if verdict.final_reads else "no final read"
    out.print(
        f"{verdict.lines} lines; {verdict.sends} sends: {verdict.acked} acknowledged, {verdict.failed} failed, "
        f"{verdict.unknown} unknown, {verdict.stamped} with a known sequence number; {verdict.records_read} records read "
        f"from {verdict.partitions} partitions, {finals}",
        soft_wrap=True,
    )
    if verdict.elections:
        out.print(
            f"{verdict.elections} unclean elections, which took {verdict.lost_as_told} acknowledged records, as was shown "
            "when they were ordered",
            soft_wrap=True,
        )
    out.print("[bold green]CLEAN[/]" if verdict.clean else "[bold red]NOT CLEAN[/]")


def _show_finding(finding: Finding, out: Console) -> None:
    out.print(f"[bold red]{finding.anomaly.value}[/]", end=" ")
    out.print(finding.text, markup=False, soft_wrap=True)
    width = max((len(line.where) for line in finding.operations), default=0)
    for line in finding.operations:
        mark, style = (">", None) if line.evidence else (" ", "dim")
        out.print(f"  {mark} {line.where:{width}}  {line.text}", style=style, markup=False, soft_wrap=True)
