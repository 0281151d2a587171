"""The demo's verdict, as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fencepost_cli.demo import DROPPED_ACKS, TOPIC, DemoResult
from fencepost_cli.failover import LeaderChange, ProducerView
from fencepost_cli.verdict import Kind

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
    Kind.FOREIGN: "written by nobody",
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
    table = Table("kill", "partition", title="Producer state on the leader, before and after", title_justify="left")
    for side in ("before", "after"):
        table.add_column(f"leader {side}")
        table.add_column(f"producer state {side}")
    for number, change in changes:
        table.add_row(
            str(number),
            f"{TOPIC}-{change.partition}",
            f"broker {change.leader_before}, epoch {change.epoch_before}",
            _views(change.producers_before),
            f"broker {change.leader_after}, epoch {change.epoch_after}",
            _views(change.producers_after) + _forgotten(change),
        )
    console.print(table)


def _views(views: list[ProducerView]) -> str:
    return "\n".join(
        f"producer {view.producer_id} epoch {view.epoch}: last sequence {view.last_sequence} at offset {view.last_offset}, "
        f"{view.batches} batches from sequence {view.first_sequence} on"
        for view in views
    )


def _forgotten(change: LeaderChange) -> str:
    return "".join(f"\n[red]producer {view.producer_id}: forgotten[/]" for view in change.forgotten())


def _show_failovers(result: DemoResult, console: Console) -> None:
    if not result.failovers:
        return
    table = Table("kill", "broker", "partition", title="Time without writes, from kill -9", title_justify="left")
    table.add_column("unavailable ms", justify="right")
    for number, failover in enumerate(result.failovers, 1):
        row = (str(number), str(failover.killed), f"{TOPIC}-{failover.partition}", f"{failover.unavailable_ms:.0f}")
        table.add_row(*row)
    console.print(table)


def _show_counts(result: DemoResult, console: Console) -> None:
    table = Table("verdict", "", "", show_header=False, title="Verdict", title_justify="left")
    counts = result.findings.counts

    def row(what: str, value: int, explanation: str, *, zero: bool = False) -> None:
        style = ("green" if value == 0 else "red") if zero else "bold"
        table.add_row(what, f"[{style}]{value}[/]", explanation)

    table.columns[1].justify = "right"
    row("records sent", result.records_sent, "by one producer, with keys")
    row(
        "acknowledged", result.records_acked, f"acks=all; {DROPPED_ACKS:.0%} of the answers were thrown away on purpose"
    )
    row("in the log", result.records_in_log, f"read back; {result.records_read_along} read along while it was written")
    row("retried batches", result.retried_batches, "sent again, with the same sequences")
    row(
        "duplicates recognised",
        result.deduplicated_batches,
        "batches that a broker had already, and did not append again",
    )
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
