"""The page of a report: one HTML file that stands beside its pictures and needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fencepost_testing.chaos.measure import NOTICEABLE_S
from fencepost_testing.chaos.result import ChaosResult

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 .exact { color: #18794e; } h1 .wrong { color: #c62828; }
table { border-collapse: collapse; margin: .5em 0 1.5em; } td, th { padding: .2em .8em .2em 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #eee; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: .6em; overflow-x: auto; } .note { color: #666; }
"""


def write_page(result: ChaosResult, pictures: Sequence[Path], path: Path) -> None:
    path.write_text(_page(result, pictures), encoding="utf-8")


def _page(result: ChaosResult, pictures: Sequence[Path]) -> str:
    said = result.to_json("")
    verdict = '<span class="exact">exact</span>' if result.exact else '<span class="wrong">not exact</span>'
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>Chaos run, seed {result.options.seed}</title><style>{_STYLE}</style>",
        f"<h1>Chaos run, seed {result.options.seed}: {verdict}</h1>",
        f"<p>{escape(summary(result))}</p>",
        *_problems(result),
        "<h2>Figures</h2>",
        _table((), _figures(said)),
        *(f"<p><img src='{escape(picture.name)}' alt='{escape(picture.stem)}'></p>" for picture in pictures),
        f"<p class='note'>No pictures: {escape(result.no_pictures_because)}</p>" if result.no_pictures_because else "",
        *_outages(result),
        "<h2>Faults by kind</h2>",
        _table(("kind", "carried out"), said["faults_by_kind"].items()),
        f"<p class='note'>The network was cut by {escape(result.cuts_by)}.</p>" if result.cuts_by else "",
        f"<p class='note'>No network cuts: {escape(result.no_cuts_because)}</p>" if result.no_cuts_because else "",
        "<h2>Faults in order</h2>",
        _table(("from s", "to s", "fault", "on", ""), _faults(result)),
        *_findings(result),
        "<p class='note'>Beside this page: verdict.json, nemesis.jsonl, history/ (check it with <code>fencepost check "
        "history/*.jsonl</code>), logs/.</p></html>",
    ]
    return "\n".join(part for part in parts if part)


def summary(result: ChaosResult) -> str:
    """The verdict in two sentences."""
    said = result.to_json("")
    if not result.exact:
        wrong = ", ".join(f"{count} {kind}" for kind, count in result.wrong.items()) or "see the problems"
        return f"Something is not as it must be: {wrong}."
    silence = result.longest_unavailability()
    told = (
        f" The longest time in which one partition acknowledged nothing was {silence.duration_s:.1f} s."
        if silence
        else ""
    )
    lost = said["lost_as_told"]
    if said["unclean_elections"]:
        told += (
            f" {said['unclean_elections']} unclean elections took {lost} acknowledged records, of which the operator was "
            "told beforehand."
        )
    return (
        f"{said['acknowledged'] - lost} acknowledged records are in the log exactly once and in order, on every replica, "
        f"through {said['faults']} faults. Nothing of the {said['failed']} sends that certainly failed is in the log, and "
        f"none of the {said['unknown']} sends of unknown outcome is in it twice or out of order.{told}"
    )


def _figures(said: dict[str, Any]) -> list[tuple[str, object]]:
    names = {
        "operations": "operations (sends and polls)",
        "acknowledged": "sends acknowledged",
        "failed": "sends that certainly failed",
        "unknown": "sends of unknown outcome",
        "lost": "lost",
        "unclean_elections": "unclean elections",
        "lost_as_told": "lost to them, as the operator was shown",
        "duplicated": "duplicated",
        "reordered": "reordered",
        "records_in_log": "records in the log at the end",
        "records_read": "records read, by all consumers",
        "replicas_checked": "replicas' files checked",
        "named_producers_resumed": "answers to resuming producers, all held",
        "clients": "client processes",
        "clients_fenced": "of them fenced",
        "longest_unavailability_s": "longest unavailability of a partition, s",
        "healed_in_s": "from the last fault to writes everywhere, s",
    }
    rows: list[tuple[str, object]] = [(text, said[name]) for name, text in names.items()]
    return rows + [(f"latency {name}, ms", value) for name, value in said["latency_ms"].items()]


def _faults(result: ChaosResult) -> Iterable[tuple[object, ...]]:
    for happened in result.happened:
        yield (
            f"{happened.began_at - result.started_at:.1f}",
            f"{happened.ended_at - result.started_at:.1f}",
            happened.fault.kind.value,
            ", ".join(happened.targets),
            happened.note,
        )


def _outages(result: ChaosResult) -> list[str]:
    rows = [
        (
            f"{outage.began_s:.1f}",
            f"{outage.ended_s:.1f}",
            f"{outage.longest_s:.1f}",
            ", ".join(map(str, outage.partitions)),
            "; ".join(f"{happened.fault.kind} {', '.join(happened.targets)}" for happened in result.during(outage)),
        )
        for outage in result.outages
    ]
    if not rows:
        return []
    return [
        "<h2>Times without acknowledgements</h2>",
        f"<p class='note'>At least {NOTICEABLE_S:g} s in which no one got one from a partition, and the faults of that "
        "time, those that cover most of it first.</p>",
        _table(("from s", "to s", "longest s", "partitions", "faults"), rows),
    ]


def _problems(result: ChaosResult) -> list[str]:
    problems = [*result.problems, *result.findings.examples]
    if not problems:
        return []
    return ["<h2>Problems</h2><ul>", *(f"<li>{escape(problem)}</li>" for problem in problems), "</ul>"]


def _findings(result: ChaosResult) -> list[str]:
    if result.history is None or result.history.clean:
        return []
    parts = ["<h2>Findings in the history</h2>"]
    for finding in result.history.findings:
        lines = "\n".join(f"{'>' if line.evidence else ' '} {line.where} {line.text}" for line in finding.operations)
        parts.append(f"<h3>{finding.anomaly.value}</h3><p>{escape(finding.text)}</p><pre>{escape(lines)}</pre>")
    return parts


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _cell(value: object) -> str:
    number = isinstance(value, int | float)
    return f"<td{' class=n' if number else ''}>{escape(str(value))}</td>"
