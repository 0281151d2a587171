"""The demo's verdict, as a person reads it."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fencepost_cli.demo import TOPIC, DemoResult
from fencepost_testing.failover import ProducerView
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.log_check.findings import Kind

_STYLE: Any = {"title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
_STATE_HEADINGS = ("leader, epoch", "producer\nepoch", "last\nsequence", "batches known,\nfrom sequence")
_WRONG = {
    Kind.LOST: "acknowledged and not in the log",
    Kind.DUPLICATED: "in the log more than once",
    Kind.REORDERED: "behind something that was sent later",
    Kind.GAP: "holes in a producer's sequences",
}
_RARE = {
    Kind.RESURRECTED: "definitely refused, and in the log",
    Kind.MOVED: "not at the acknowledged offset",
    Kind.MISPLACED: "keys in two partitions",
    Kind.FOREIGN: "written by no one",
    Kind.CORRUPT: "damaged batches or offsets",
    Kind.DIVERGED: "replicas that differ",
}


def show_result(result: DemoResult, console: Console) -> None:
    _show_leader_changes(result, console)
    _show_failovers(result, console)
    _show_counts(result, console)
    for problem in (*result.problems, *result.findings.examples):
        console.print(f"  [red]✗[/] {problem}", markup=True)
    if result.ok:
        console.print(
            f"[bold green]EXACT[/]: all {result.records_sent} records are in the log exactly once and in order, on every "
            f"replica, through {len(result.failovers)} leader kills ({result.elapsed_s:.1f} s)"
        )
    else:
        console.print(f"[bold red]NOT EXACT[/] ({result.elapsed_s:.1f} s)")


def _show_leader_changes(result: DemoResult, console: Console) -> None:
    changes = [(number, change) for number, failover in enumerate(result.failovers, 1) for change in failover.changes]
    if not changes:
        return
    table = Table(
        "kill", "partition", "producer", title="Producer state on the leader, before and after each change", **_STYLE
    )
    for side in ("before", "after"):
        for heading in (f"{side}:\n{_STATE_HEADINGS[0]}", *_STATE_HEADINGS[1:]):
            table.add_column(heading, justify="right")
    for number, change in changes:
        after = {view.producer_id: view for view in change.producers_after}
        for view in change.producers_before:
            table.add_row(
                str(number),
                f"{TOPIC}-{change.partition}",
                str(view.producer_id),
                *_state(change.leader_before, change.epoch_before, view),
                *_state(change.leader_after, change.epoch_after, after.get(view.producer_id)),
                style="red" if view in change.forgotten() else None,
            )
    console.print(table)


def _state(leader: int, leader_epoch: int, view: ProducerView | None) -> list[str]:
    led = f"broker {leader}, {leader_epoch}"
    if view is None:
        return [led, "unknown", "", ""]
    return [led, str(view.epoch), str(view.last_sequence), f"{view.batches}, {view.first_sequence}"]


def _show_failovers(result: DemoResult, console: Console) -> None:
    if not result.failovers:
        return
    table = Table("kill", "broker", "partition", title="Time without writes, from kill -9", **_STYLE)
    table.add_column("unavailable ms", justify="right")
    several = any(failover.controller for failover in result.failovers)
    if several:
        table.add_column("with it")
        table.add_column("next controller after ms", justify="right")
    for number, failover in enumerate(result.failovers, 1):
        row = [str(number), str(failover.killed), f"{TOPIC}-{failover.partition}", f"{failover.unavailable_ms:.0f}"]
        if change := failover.controller:
            row += [str(change.killed), f"{change.within_ms:.0f}"]
        table.add_row(*row)
    console.print(table)


def _show_counts(result: DemoResult, console: Console) -> None:
    table = Table("verdict", "", "", show_header=False, title="Verdict", **_STYLE)
    counts = result.findings.counts

    def row(what: str, value: int, explanation: str, *, zero: bool = False) -> None:
        style = ("green" if value == 0 else "red") if zero else "bold"
        table.add_row(what, f"[{style}]{value}[/]", explanation)

    table.columns[1].justify = "right"
    met = result.counts
    row("records sent", result.records_sent, f"by one producer ({result.options.client}), with keys")
    row("acknowledged", result.records_acked, "with acks=all")
    row("in the log", result.records_in_log, f"read back; {result.records_read_along} read along while it was written")
    if result.options.client == FENCEPOST:
        share = f"{result.options.dropped_acks:.0%} of all"
        row("dropped answers", met.dropped_acks, f"thrown away by the client on purpose, {share}")
    else:
        row("lost answers", met.dropped_acks, "connections cut after an append, on purpose")
    if met.retried_batches is not None:
        row("retried batches", met.retried_batches, "sent again, with the same sequences")
    if met.deduplicated_batches is not None:
        explanation = "batches that a broker had already, and did not append again"
        row("duplicates recognised", met.deduplicated_batches, explanation)
    for kind, explanation in _WRONG.items():
        row(kind.value, counts[kind], explanation, zero=True)
    for kind, explanation in _RARE.items():
        if counts[kind]:
            row(kind.value, counts[kind], explanation, zero=True)
    row(
        "replicas checked",
        result.replicas_checked,
        "files on disk: CRCs, offsets, sequences, the same bytes everywhere",
    )
    console.print(table)
