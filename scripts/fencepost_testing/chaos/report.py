"""Writes what a run found out into its folder, and shows it on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fencepost_testing.chaos.measure import Silence
from fencepost_testing.chaos.page import summary, write_page
from fencepost_testing.chaos.pictures import NoPictures, draw
from fencepost_testing.chaos.result import ChaosResult

MAX_FAULTS_TOLD = 4  # kinds that fell into the longest silence; the page has all

_STYLE: Any = {"title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}


def write_report(result: ChaosResult, report: Path) -> None:
    """verdict.json, the pictures and index.html; the rest of the folder is written while a run goes on."""
    pictures: list[Path] = []
    try:
        pictures = draw(result, report)
    except NoPictures as none:
        result.no_pictures_because = str(none)
    (report / "verdict.json").write_text(json.dumps(result.to_json(str(report)), indent=1) + "\n", encoding="utf-8")
    write_page(result, pictures, report / "index.html")


def show_result(result: ChaosResult, out: Console) -> None:
    faults = Table("faults by kind", "", show_header=False, title="Faults by kind", **_STYLE)
    faults.columns[1].justify = "right"
    for kind, count in sorted(result.faults.items()):
        faults.add_row(kind, str(count))
    out.print(faults)
    if result.cuts_by:
        out.print(f"  the network was cut by {result.cuts_by}", markup=False)
    if result.no_cuts_because:
        out.print(f"  no network cuts: {result.no_cuts_because}", markup=False)
    out.print(_figures(result))
    for problem in (*result.problems, *result.findings.examples):
        out.print("  [red]✗[/]", end=" ")
        out.print(problem, markup=False, soft_wrap=True)
    for finding in result.history.findings if result.history else ():
        out.print(f"  [red]✗ {finding.anomaly.value}[/]", end=" ")
        out.print(finding.text, markup=False, soft_wrap=True)
    if result.no_pictures_because:
        out.print(f"  no pictures: {result.no_pictures_because}", markup=False)
    verdict = "[bold green]EXACT[/]" if result.exact else "[bold red]NOT EXACT[/]"
    out.print(f"{verdict} ({result.elapsed_s:.0f} s)", end=" ")
    out.print(summary(result), markup=False, soft_wrap=True)


def _during(result: ChaosResult, silence: Silence) -> str:
    kinds = list(dict.fromkeys(happened.fault.kind.value for happened in result.during(silence)))
    more = f" and {len(kinds) - MAX_FAULTS_TOLD} other kinds" if len(kinds) > MAX_FAULTS_TOLD else ""
    return f"during {', '.join(kinds[:MAX_FAULTS_TOLD])}{more}" if kinds else "without a fault"


def _figures(result: ChaosResult) -> Table:
    said = result.to_json("")
    table = Table("figures", "", "", show_header=False, title="Verdict", **_STYLE)
    table.columns[1].justify = "right"

    def row(what: str, value: object, explanation: str, *, zero: bool = False) -> None:
        style = ("green" if value == 0 else "red") if zero else "bold"
        table.add_row(what, f"[{style}]{value}[/]", explanation)

    row("operations", said["operations"], "sends and polls")
    row("acknowledged", said["acknowledged"], "sends, with acks=all")
    row("failed", said["failed"], "sends that certainly are not in the log")
    row("unknown", said["unknown"], "sends that may be in the log or not: given up, or their process was killed")
    row("in the log", said["records_in_log"], f"read whole at the end; {said['records_read']} records read in all")
    row("lost", said["lost"], "acknowledged and not in the log", zero=True)
    if said["unclean_elections"]:
        told = f"acknowledged, to {said['unclean_elections']} unclean elections: exactly what the operator was shown"
        row("lost as told", said["lost_as_told"], told)
    if said["commits"]:
        row("commits", said["commits"], "by members of groups")
    row("duplicated", said["duplicated"], "in the log more than once", zero=True)
    row("reordered", said["reordered"], "behind something that was sent later", zero=True)
    for kind, count in result.wrong.items():
        row(kind, count, "", zero=True)
    row(
        "replicas checked",
        said["replicas_checked"],
        "files on disk: CRCs, offsets, sequences, the same bytes everywhere",
    )
    row("resumed", said["named_producers_resumed"], "answers to named producers about their predecessors")
    row("fenced", said["clients_fenced"], f"of {said['clients']} client processes")
    silence = result.longest_unavailability()
    if silence is not None:
        row(
            "longest silence",
            f"{silence.duration_s:.1f} s",
            f"of partition {silence.partition}, {_during(result, silence)}",
        )
    for name, value in said["latency_ms"].items():
        row(f"latency {name}", f"{value:.0f} ms", "from send to acknowledgement" if name == "p50" else "")
    return table
