"""`fencepost bench`: what a cluster on this machine does."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import console, fail, run
from fencepost_cli.terminal import table as table_of
from fencepost_testing.failures import CommandFailed

if TYPE_CHECKING:
    from rich.console import Console

    from fencepost_cli.bench import BenchResult, Recovery
    from fencepost_cli.kafka_bench import KafkaBenchResult
    from fencepost_cli.scale import ScaleResult


class Peer(StrEnum):
    KAFKA = "kafka"


_CLOSED_LOOP_GOALS = {"1": "≥ 2,500 acks/s, ≤ 0.35 ms", "8": "", "64": "≥ 6,000 acks/s"}
SCALES = [300, 1_000, 3_000, 10_000]  # partitions


def bench(
    *,
    recovery: Annotated[
        bool, typer.Option("--recovery", help="Instead: recovery after kill -9, of a log of 100 MB and of 1 GB.")
    ] = False,
    scale: Annotated[
        bool,
        typer.Option(
            "--scale", help="Instead: kills and restarts of brokers with 300 to 10,000 partitions; minutes each."
        ),
    ] = False,
    many: Annotated[
        bool,
        typer.Option(
            "--many",
            help="Instead: up to 500 producers, 1,000 partitions with traffic and 2,000 connections; what grows with what. "
            "Four minutes.",
        ),
    ] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Instead: through the Kafka port, with librdkafka (confluent-kafka).")
    ] = False,
    peer: Annotated[
        Peer | None,
        typer.Option(
            "--peer",
            help="Instead: the same as --kafka, and Apache Kafka beside it, row by row. Needs a JDK (17 or newer) and "
            "Maven, which fetches Kafka at the first time (150 MB); takes five minutes and 4 GB of memory.",
        ),
    ] = None,
    connections: Annotated[
        bool,
        typer.Option(
            "--connections",
            help="Instead: one broker's memory with 2,000 idle connections of Kafka's clients, and with 200 that do not "
            "read what they ask for.",
        ),
    ] = False,
    testing: Annotated[
        bool,
        typer.Option(
            "--testing", help="Instead: what the testing kit costs a test suite: first use, each test, a kill, memory."
        ),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Instead: the same figures of this working tree and of another commit, in turns; medians, spread and the "
            "median of the pairs' ratios. Three minutes a pair.",
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="With --compare: how many runs of each.", show_default="5")] = 5,
    partitions: Annotated[
        list[int] | None,
        typer.Option(help="With --scale: how many; may be given again.", show_default="300, 1000, 3000, 10000"),
    ] = None,
    seed: Annotated[int, typer.Option(help="With --scale: of the choice of partitions that are written to.")] = 1,
    plot: Annotated[
        Path | None, typer.Option(help="With --scale or --many: draw what grows with what into this .svg or .png.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder for the data, removed afterwards.", show_default="a temporary one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object as the last line of standard output.")] = False,
) -> None:
    """Measure throughput, latency, unavailability, start and memory on a cluster of its own, in about a minute."""
    out = console()
    try:
        parent = Path(tempfile.mkdtemp(prefix="fencepost-bench-", dir=data_dir))
    except OSError as error:
        fail(f"{data_dir}: {error.strerror}")
    try:
        measures: list[tuple[bool, Callable[[], dict[str, object]]]] = [
            (scale, partial(_measure_scales, parent, partitions or SCALES, seed, plot, out)),
            (many, partial(_measure_many, parent, plot, out)),
            (compare is not None, partial(_compare, parent, compare or "", pairs, out)),
            (peer is not None, partial(_measure_beside, parent, out)),
            (kafka, partial(_measure_kafka, parent, out)),
            (testing, partial(_measure_testing, out)),
            (connections, partial(_measure_connections, parent, out)),
            (recovery, partial(_measure_recovery, parent, out)),
        ]
        measure = next((measure for is_wanted, measure in measures if is_wanted), partial(_measure, parent, out))
        told = measure()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    if as_json:
        typer.echo(json.dumps(told))


def _compare(parent: Path, revision: str, pairs: int, out: Console) -> dict[str, object]:
    from fencepost_cli import comparison

    def run_one(checkout: comparison.Checkout) -> comparison.Figures:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            return comparison.measure(checkout, Path(folder))

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def spread(values: Sequence[float]) -> str:
        return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"

    try:
        this = comparison.this_checkout()
        other = comparison.unpacked(this.root, revision, parent / "other")
        figures = comparison.compare(other, this, pairs, run_one, out.print)
    except CommandFailed as error:
        fail(str(error))
    rows = table_of("figure", other.name, this.name, "ratio", numbers=[other.name, this.name, "ratio"])
    for one in figures:
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        rows.add_row(one.name, spread(one.other), spread(one.this), ratio)
    out.print(rows)
    return comparison.to_json(other, this, figures)


def _measure(parent: Path, out: Console) -> dict[str, object]:
    from fencepost_cli.bench import Bench

    result = run(Bench(parent / "cluster", out.print).run())
    _show(result, out)
    return result.to_json()


def _measure_recovery(parent: Path, out: Console) -> dict[str, object]:
    from fencepost_cli.bench import measure_recovery

    recoveries = run(measure_recovery(parent / "cluster", out.print))
    _show_recoveries(recoveries, out)
    return {"recoveries": [{key: round(value, 3) for key, value in asdict(one).items()} for one in recoveries]}


def _measure_many(parent: Path, plot: Path | None, out: Console) -> dict[str, object]:
    from fencepost_cli.many import Many

    steps = run(Many(parent / "cluster", out.print).run())
    columns = [
        "acks/s",
        "p50, ms",
        "p99, ms",
        "CPU of an ack, ms: brokers",
        "client",
        "MB",
        "at rest, %",
        "connections",
    ]
    rows = table_of("", *columns, numbers=columns)
    for one in steps:
        rows.add_row(
            f"{one.number:,} {one.what}",
            f"{one.acks_per_s:,.0f}",
            f"{one.p50_ms:.2f}",
            f"{one.p99_ms:.1f}",
            f"{one.brokers_cpu_ms_per_ack:.2f}",
            f"{one.client_cpu_ms_per_ack:.2f}",
            f"{one.broker_rss_mb:.0f}",
            f"{one.rest_cpu_percent:.1f}",
            f"{one.broker_connections:,}",
        )
    out.print(rows)
    if plot is not None:
        from fencepost_cli.many_plot import draw

        draw(steps, plot)
    return {"many": [one.to_json() for one in steps]}


def _measure_kafka(parent: Path, out: Console) -> dict[str, object]:
    _require_librdkafka()
    from fencepost_cli.kafka_bench import measure, own_cluster

    result = run(measure(partial(own_cluster, parent / "cluster"), out.print))
    _show_kafka([("measured", result)], out)
    return result.to_json()


def _measure_beside(parent: Path, out: Console) -> dict[str, object]:
    _require_librdkafka()
    from fencepost_cli import apache_kafka
    from fencepost_cli.bench import BROKERS
    from fencepost_cli.kafka_bench import measure_beside, own_cluster

    async def assemble_and_measure() -> tuple[KafkaBenchResult, KafkaBenchResult]:
        out.print(f"assembling {apache_kafka.NAME}, where that has not been done yet")
        jars = await asyncio.to_thread(apache_kafka.assembled)
        make_peer = partial(apache_kafka.ApacheKafka, jars, parent / "apache-kafka", BROKERS)
        return await measure_beside(partial(own_cluster, parent / "cluster"), apache_kafka.NAME, make_peer, out.print)

    own, peers = run(assemble_and_measure())
    _show_kafka([("Fencepost", own), (apache_kafka.NAME, peers)], out)
    return {"fencepost": own.to_json(), "peer": {"name": apache_kafka.NAME, **peers.to_json()}}


def _measure_testing(out: Console) -> dict[str, object]:
    from fencepost_cli.testing_bench import measure_testing

    figures = measure_testing(out.print)
    rows = table_of("what", "measured")
    for figure in figures:
        rows.add_row(figure.name, str(figure))
    out.print(rows)
    return {"testing": [figure.to_json() for figure in figures]}


def _measure_connections(parent: Path, out: Console) -> dict[str, object]:
    from fencepost_cli.kafka_connections import measure_connections

    result = run(measure_connections(parent / "cluster", out.print))
    rows = table_of("what", "measured", numbers=["measured"])
    rows.add_row("resident memory before", f"{result.rss_before_mb:.0f} MB")
    rows.add_row(f"… with {result.idle_connections:,} idle connections", f"{result.rss_idle_mb:.0f} MB")
    rows.add_row("each of them", f"{result.idle_connection_kb:.1f} kB")
    rows.add_row("processor time while they are idle", f"{result.idle_cpu_percent:.1f} % of a core")
    rows.add_row(f"the most with {result.slow_readers} clients that do not read", f"{result.rss_slow_most_mb:.0f} MB")
    rows.add_row("… after them", f"{result.rss_after_mb:.0f} MB")
    rows.add_row("another client's small request meanwhile, p50", f"{result.ask_ms_p50:.2f} ms")
    rows.add_row("… p99", f"{result.ask_ms_p99:.2f} ms")
    rows.add_row("… the first, while the system's buffers fill", f"{result.ask_ms_first:.2f} ms")
    out.print(rows)
    return result.to_json()


def _require_librdkafka() -> None:
    if find_spec("confluent_kafka") is None:
        fail("confluent_kafka is missing: pip install 'fencepost[kafka-clients]'")


def _measure_scales(
    parent: Path, sizes: Sequence[int], seed: int, plot: Path | None, out: Console
) -> dict[str, object]:
    from fencepost_cli.scale import Scale

    results = []
    for size in sizes:
        result = run(Scale(parent / f"cluster-{size}", size, seed, out.print).run())
        _show_scale(result, out)
        results.append(result)
        shutil.rmtree(parent / f"cluster-{size}", ignore_errors=True)
    if plot is not None:
        from fencepost_cli.scale_plot import draw

        draw(results, plot)
    return {"scale": [result.to_json() for result in results]}


def _show_scale(result: ScaleResult, out: Console) -> None:
    from rich.table import Table

    table = Table(
        f"{result.partitions:,} partitions",
        "all led, s",
        "all in sync, s",
        "slowest write, s",
        "declared dead",
        "versions",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in result.disturbances:
        table.add_row(
            one.what,
            f"{one.leaders_s:.2f}",
            f"{one.in_sync_s:.2f}",
            f"{one.slowest_write_s:.2f} ({one.slowest_blocked_write_s:.2f} else)",
            str(one.declared_dead),
            str(one.versions),
        )
    out.print(table)
    out.print(
        f"made in {result.create_s:.1f} s; down in {result.down_s:.1f} s, up in {result.up_s:.1f} s; for each replica "
        f"{result.rss_per_partition_kb:.1f} kB and {result.files_per_partition:.2f} open files; at rest "
        f"{', '.join(f'{percent:.0f} %' for percent in result.idle_cpu_percent)} of a core (controller, brokers)"
    )


def _show(result: BenchResult, out: Console) -> None:
    from rich.table import Table

    def list_of(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.0f}" for value in values)

    table = Table("what", "measured", "goal")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row("throughput, 100 B records", f"{result.records_per_s_100b:,.0f} records/s", "≥ 200,000 records/s")
    table.add_row("", f"{result.mb_per_s_100b:.1f} MB/s", "")
    table.add_row("throughput, 1 KB records", f"{result.mb_per_s_1kb:.1f} MB/s", "≥ 45 MB/s")
    table.add_row("", f"{result.records_per_s_1kb:,.0f} records/s", "")
    table.add_row("latency at 500 records/s, p50", f"{result.latency_ms_p50:.2f} ms", "≤ 2.5 ms")
    table.add_row("latency at 500 records/s, p99", f"{result.latency_ms_p99:.2f} ms", "≤ 15 ms")
    for producers, acks_per_s in result.closed_loop_acks_per_s.items():
        what = "1 producer" if producers == "1" else f"{producers} producers"
        p50 = f"p50 {result.closed_loop_p50_ms[producers]:.2f} ms"
        table.add_row(
            f"{what}, one record on its way each", f"{acks_per_s:,.0f} acks/s, {p50}", _CLOSED_LOOP_GOALS[producers]
        )
    cpu = f"{result.cpu_ms_per_ack:.2f}, {result.client_cpu_ms_per_ack:.2f} ms"
    table.add_row("CPU of an acknowledgement, all brokers; client", cpu, "≤ 0.20 ms")
    table.add_row(
        "throughput, 16 KB batches of 100 B",
        f"{result.records_per_s_16kb_batches:,.0f} records/s",
        "≥ 350,000 records/s",
    )
    table.add_row("throughput, 16 KB batches of 1 KB", f"{result.mb_per_s_1kb_16kb_batches:.1f} MB/s", "")
    table.add_row("one consumer reads 100 B records", f"{result.read_records_per_s:,.0f} records/s", "")
    table.add_row("unavailable after kill -9", f"{list_of(result.unavailable_ms)} ms", "≤ 500 ms each")
    table.add_row("cluster up to first acknowledged write", f"{result.first_ack_s:.2f} s", "≤ 2.5 s")
    table.add_row("brokers' resident memory after throughput", f"{list_of(result.broker_rss_mb)} MB", "≤ 120 MB")
    table.add_row(
        "controller's, client's resident memory", f"{result.controller_rss_mb:.0f}, {result.client_rss_mb:.0f} MB", ""
    )
    out.print(table)


def _show_kafka(results: Sequence[tuple[str, KafkaBenchResult]], out: Console) -> None:
    """A column for each result."""
    from rich.table import Table

    def list_of(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.0f}" for value in values)

    rows: list[tuple[str, Callable[[KafkaBenchResult], str], str]] = [
        ("throughput, 100 B records", lambda r: f"{r.kafka_records_per_s_100b:,.0f} records/s", "≥ 330,000 records/s"),
        ("throughput, 1 KB records", lambda r: f"{r.kafka_mb_per_s_1kb:.1f} MB/s", "≥ 80 MB/s"),
        ("one consumer reads 100 B records", lambda r: f"{r.kafka_read_records_per_s:,.0f} records/s", ""),
        ("latency at 500 records/s, p50", lambda r: f"{r.kafka_latency_ms_p50:.2f} ms", "≤ 0.8 ms"),
        ("latency at 500 records/s, p99", lambda r: f"{r.kafka_latency_ms_p99:.2f} ms", "≤ 4 ms"),
        ("64 producers, one record each", lambda r: f"{r.kafka_closed_loop_acks_per_s:,.0f} acks/s", "≥ 4,400 acks/s"),
        ("unavailable after kill -9", lambda r: f"{list_of(r.kafka_unavailable_ms)} ms", "≤ 100 ms each"),
        ("cluster up to first acknowledged write", lambda r: f"{r.kafka_first_ack_s:.2f} s", "≤ 1.5 s"),
        ("brokers' resident memory after throughput", lambda r: f"{list_of(r.broker_rss_mb)} MB", "≤ 130 MB"),
    ]
    table = Table("what, with librdkafka", *(name for name, _ in results), "goal")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, of, goal in rows:
        table.add_row(what, *(of(result) for _, result in results), goal)
    out.print(table)


def _show_recoveries(recoveries: list[Recovery], out: Console) -> None:
    from rich.table import Table

    table = Table("log", "recovery of the log", "process start to listening")
    for column in table.columns:
        column.justify = "right"
    for one in recoveries:
        table.add_row(f"{one.log_mb:.0f} MB", f"{one.recovery_s * 1000:.0f} ms", f"{one.ready_s * 1000:.0f} ms")
    out.print(table)
