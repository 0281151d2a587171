"""`fencepost workload`: client workloads against a running cluster, and the check that what they wrote is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fencepost_cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_FAILED,
    EXIT_USAGE,
    LEDGERS,
    Bootstrap,
    DataDir,
    bootstrap_of,
    check_client,
    console,
    fail,
    run,
)
from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients import CLIENTS, FENCEPOST
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.ledger import MIN_RECORD_BYTES, Ledger

if TYPE_CHECKING:
    from rich.console import Console

    from fencepost import AdminClient, History
    from fencepost_cli.workload_clients import ReaderSpec
    from fencepost_testing.log_check.findings import Findings
    from fencepost_testing.read_log import ReadCheck, ReadLog
    from fencepost_testing.record_check import RecordCheck
    from fencepost_testing.workload import RecordSender, Workload, WorkloadSpec

DEFAULT_TOPIC = "workload"
_FIGURES_S = 1.0
DEFAULT_GROUP = "workload"  # of Kafka's clients
_POLL_RECORDS = 5_000
_LOOK_AT_GROUP_S = 0.5
_MEGABYTE = 1_000_000

app = typer.Typer(
    help="Run client workloads against a cluster, and check what they wrote.",
    epilog="Example: fencepost workload produce --duration 30 && fencepost workload verify",
    no_args_is_help=True,
)

Topic = Annotated[str, typer.Argument(help="The topic; 'produce' makes it where it is missing.")]
Client = Annotated[
    str,
    typer.Option(
        metavar="|".join(CLIENTS),
        help="Whose client it runs with; Kafka's come with pip install 'fencepost[kafka-clients]'.",
    ),
]
Ledgers = Annotated[
    Path | None,
    typer.Option(
        "--ledgers", help="Folder where runs keep what they sent.", show_default="workloads/ in the cluster's folder"
    ),
]


def _ledgers_of(ledgers: Path | None, data_dir: Path, topic: str) -> Path:
    """The folder of a topic's ledgers. Each topic that ever had the name has one of its own in it, by topic id: what was
    sent to one that has been deleted is not missing in its successor."""
    return (ledgers or data_dir / LEDGERS) / topic


@app.command(
    epilog="Example: fencepost workload produce orders --rate 1000 --keys 20 --duration 60; "
    "fencepost workload produce orders --client confluent-kafka --count 20000"
)
def produce(
    topic: Topic = DEFAULT_TOPIC,
    *,
    rate: Annotated[float, typer.Option(min=0, help="Records a second; 0: flat out.")] = 0,
    record_size: Annotated[int, typer.Option(min=MIN_RECORD_BYTES, max=1_000_000, help="Bytes of a value.")] = 100,
    keys: Annotated[int, typer.Option(min=0, help="How many different keys; 0: none.")] = 100,
    name: Annotated[
        str | None, typer.Option(help="Produce under this name: an older instance of it is fenced.")
    ] = None,
    duration: Annotated[float, typer.Option(min=0, help="Seconds to send for; 0: no limit.")] = 0,
    count: Annotated[int, typer.Option(min=0, help="Records to send; 0: no limit.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides the order of keys.")] = 0,
    client: Client = FENCEPOST,
    history: Annotated[
        Path | None, typer.Option(help="Also record every send there, for 'fencepost check'.", show_default="none")
    ] = None,
    ledgers: Ledgers = None,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send records until the count, the duration or Ctrl-C; then wait for every outcome.

    Each record carries what 'verify' needs, and a ledger of the run is kept. Exit code 1 where a record failed.
    """
    from fencepost_testing.workload import WorkloadSpec

    check_client(client)
    if name is not None and client != FENCEPOST:
        fail(f"--name is for Fencepost's own producer, not for {client}", EXIT_USAGE)
    brokers = bootstrap_of(bootstrap, data_dir)
    spec = WorkloadSpec(topic, record_size, keys, rate, count, duration, seed)
    ledger = Ledger(secrets.token_hex(4))
    folder = _ledgers_of(ledgers, data_dir, topic)
    out = console()
    workload = run(
        _produce(
            brokers=brokers,
            client=client,
            name=name,
            spec=spec,
            ledger=ledger,
            ledgers=folder,
            history_file=history,
            out=out,
        )
    )
    out.print(
        f"run {ledger.run}: {ledger.sent} sent, {ledger.acked} acknowledged, {workload.failed.total()} failed"
        f"{_retries(workload.producer)}; ledger in {folder}"
    )
    if workload.failed:
        failures = ", ".join(f"{count} with {error}" for error, count in sorted(workload.failed.items()))
        fail(f"{failures}; the last: {workload.last_error}")


async def _produce(
    *,
    brokers: str,
    client: str,
    name: str | None,
    spec: WorkloadSpec,
    ledger: Ledger,
    ledgers: Path,
    history_file: Path | None,
    out: Console,
) -> Workload[RecordSender]:
    from fencepost import AdminClient
    from fencepost_testing.workload import Workload

    stop = _stop_on_interrupt("waiting for the outcome of what was sent")
    async with AdminClient(brokers) as admin:
        await _make_topic(admin, spec.topic)
    folder = await _ledger_folder(brokers, spec.topic, ledgers)
    async with _producer(client, brokers, name or "", history_file, f"workload-{ledger.run}") as producer:
        workload = Workload(producer, spec, ledger)
        try:
            async with _figures(out, lambda elapsed_s: _produce_figures(workload, elapsed_s)):
                await workload.run(stop)
        finally:
            _save(ledger, folder)
    return workload


async def _ledger_folder(brokers: str, topic: str, ledgers: Path) -> Path:
    from fencepost import AdminClient

    async with AdminClient(brokers) as admin:
        folder = ledgers / (await admin.describe_topic(topic)).topic_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"{folder} cannot hold ledgers: {error.strerror}") from error
    return folder


@contextlib.asynccontextmanager
async def _producer(
    client: str, brokers: str, name: str, history_file: Path | None, process: str
) -> AsyncIterator[RecordSender]:
    """One that records its history where there is a file for it."""
    from fencepost import Producer
    from fencepost_cli.workload_clients import kafka_bootstrap
    from fencepost_testing.kafka_clients.factory import kafka_producer

    with _history(history_file, process) as history:
        if client == FENCEPOST:
            async with Producer(brokers, name=name, history=history) as producer:
                yield producer
        else:
            async with kafka_producer(client, await kafka_bootstrap(brokers), history) as other:
                yield other


def _retries(producer: RecordSender) -> str:
    """Of Fencepost's own; other clients do not say."""
    from fencepost import Producer

    return f", {producer.stats.retried_batches} batches sent again" if isinstance(producer, Producer) else ""


def _stop_on_interrupt(told: str) -> asyncio.Event:
    """Set by the first Ctrl-C, for an end in good order; the second one breaks off."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        if told:
            typer.echo(f"fencepost: {told}; Ctrl-C again breaks it off", err=True)
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop


async def _make_topic(admin: AdminClient, topic: str) -> None:
    """Where it is missing: three partitions, three replicas as far as there are so many brokers."""
    from fencepost_cli.commands.topic import default_replication
    from fencepost_proto.protocol.errors import TopicAlreadyExists

    if topic in await admin.list_topics():
        return
    replicas, in_sync = await default_replication(admin)
    with contextlib.suppress(TopicAlreadyExists):  # another workload was quicker
        await admin.create_topic(topic, partitions=3, replication_factor=replicas, min_insync_replicas=in_sync)


def _save(ledger: Ledger, folder: Path) -> None:
    draft = folder / f".{ledger.run}.json"
    draft.write_text(json.dumps(ledger.to_json()))
    draft.replace(folder / f"{ledger.run}.json")


def _produce_figures(workload: Workload[RecordSender], elapsed_s: float) -> str:
    from fencepost_testing.workload import percentile

    latencies = sorted(workload.latencies_s)
    p50, p99 = percentile(latencies, 0.5) * 1000, percentile(latencies, 0.99) * 1000
    rate = workload.acked / elapsed_s
    return (
        f"{elapsed_s:6.0f} s  {workload.ledger.sent} sent  {workload.acked} acknowledged  "
        f"{rate:.0f} records/s  {rate * workload.spec.record_size_bytes / _MEGABYTE:.2f} MB/s  "
        f"p50 {p50:.1f} ms  p99 {p99:.1f} ms{_retries(workload.producer)}  {workload.failed.total()} failed"
    )


@contextlib.asynccontextmanager
async def _figures(out: Console, figures: Callable[[float], str]) -> AsyncIterator[None]:
    """One line that is kept current on a terminal; elsewhere a line a second, and one at the end."""
    from rich.live import Live
    from rich.text import Text

    started = time.monotonic()

    async def follow(show: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(_FIGURES_S)
            show(figures(time.monotonic() - started))

    with contextlib.ExitStack() as stack:
        show: Callable[[str], None] = out.print
        if out.is_terminal:
            live = stack.enter_context(Live(console=out, auto_refresh=False))

            def show(text: str) -> None:
                live.update(Text(text), refresh=True)

        follower = asyncio.create_task(follow(show))
        try:
            yield
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            show(figures(max(time.monotonic() - started, 1e-9)))


@app.command(
    epilog="Example: fencepost workload consume orders --until-end; "
    "fencepost workload consume orders --client aiokafka --group billing"
)
def consume(
    topic: Topic = DEFAULT_TOPIC,
    *,
    count: Annotated[int, typer.Option(min=0, help="Records to read; 0: no limit.")] = 0,
    duration: Annotated[float, typer.Option(min=0, help="Seconds to read for; 0: no limit.")] = 0,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop at what is the end now.")] = False,
    latest: Annotated[bool, typer.Option("--latest", help="Begin at the end instead of the beginning.")] = False,
    client: Client = FENCEPOST,
    group: Annotated[
        str | None,
        typer.Option(
            help="Read as a member of this group, and go on where it has come to.",
            show_default=f"none; of Kafka's clients {DEFAULT_GROUP}",
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="Record what is read there, for 'fencepost check'.", show_default="none")
    ] = None,
    ledgers: Ledgers = None,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Read as fast as it goes, and show how fast that is, until the count, the duration, the end or Ctrl-C.

    What a member of a group was given is kept beside the ledgers of what was sent, for 'verify'.
    """
    from fencepost_cli.workload_clients import ReaderSpec

    check_client(client)
    brokers = bootstrap_of(bootstrap, data_dir)
    group = group or (DEFAULT_GROUP if client != FENCEPOST else "")
    spec = ReaderSpec(client, brokers, topic, group, "latest" if latest else "earliest")
    folder = _ledgers_of(ledgers, data_dir, topic) if group else None
    with _history(history, "workload-consumer") as recorded:
        run(_consume(spec, recorded, folder, count=count, duration_s=duration, until_end=until_end))


@contextlib.contextmanager
def _history(file: Path | None, process: str) -> Iterator[History | None]:
    """Of one client; None where there is no file for it."""
    from fencepost import History

    if file is None:
        yield None
        return
    try:
        history = History(file, process=process)
    except OSError as error:
        fail(f"{file} cannot hold a history: {error.strerror}")
    with contextlib.closing(history):
        yield history


async def _consume(
    spec: ReaderSpec, history: History | None, ledgers: Path | None, *, count: int, duration_s: float, until_end: bool
) -> None:
    from fencepost_cli.workload_clients import EndOfTopic, open_reader

    stop = _stop_on_interrupt("")
    read = size_bytes = 0

    def figures(elapsed_s: float) -> str:
        return (
            f"{elapsed_s:6.0f} s  {read} records  {read / elapsed_s:.0f} records/s  "
            f"{size_bytes / elapsed_s / _MEGABYTE:.2f} MB/s"
        )

    async with contextlib.AsyncExitStack() as stack:
        end = await stack.enter_async_context(EndOfTopic.of(spec)) if until_end else None
        noted = stack.enter_context(contextlib.closing(await _read_log(spec, ledgers))) if ledgers is not None else None
        poll = await stack.enter_async_context(open_reader(spec, history))
        until = time.monotonic() + duration_s if duration_s else float("inf")
        look_at = time.monotonic() + _LOOK_AT_GROUP_S
        await stack.enter_async_context(_figures(console(), figures))
        while not stop.is_set() and time.monotonic() < until and not (count and read >= count):
            if end is not None and not end.left:
                break
            records = await poll(min(_POLL_RECORDS, count - read) if count else _POLL_RECORDS)
            if noted is not None:
                noted.add(records)
            for record in records:
                read += 1
                size_bytes += len(record.key or b"") + len(record.value or b"")
            if end is not None:
                end.read(records)
                if spec.group and time.monotonic() >= look_at:
                    await end.look_at_group()
                    look_at = time.monotonic() + _LOOK_AT_GROUP_S


async def _read_log(spec: ReaderSpec, ledgers: Path) -> ReadLog:
    from fencepost_testing.read_log import SUFFIX, ReadLog

    folder = await _ledger_folder(spec.brokers, spec.topic, ledgers)
    return ReadLog(folder / f"{secrets.token_hex(4)}{SUFFIX}", spec.group)


@app.command(epilog="Example: fencepost workload verify orders --json")
def verify(
    topic: Topic = DEFAULT_TOPIC,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object as the last line.")] = False,
    ledgers: Ledgers = None,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Read the whole topic and compare it with what the workloads sent and the outcomes, and with what members of groups
    were given. Of a local cluster that runs, every replica's files are checked too.

    Exit code 1 where an acknowledged record is missing, or any record is there twice or out of order, where a group was
    given something else or skipped a record, or where the files are not the same. Of a run that left no ledger only order
    and uniqueness are checked. Records that retention has removed count as lost.
    """
    from fencepost_testing.log_check.findings import Kind

    brokers = bootstrap_of(bootstrap, data_dir)
    cluster = None if bootstrap else AsyncLocalCluster.load(data_dir)
    if cluster is not None and not all(cluster.running(broker) for broker in cluster.broker_ids):
        cluster = None
    verified = run(_verify(brokers, topic, _ledgers_of(ledgers, data_dir, topic), cluster))
    known, check, findings = verified.ledgers, verified.check, verified.findings
    acked = sum(ledger.acked for ledger in known)
    out = console()
    out.print(f"{len(known)} runs sent {sum(ledger.sent for ledger in known)} records, {acked} acknowledged")
    if verified.earlier_runs:
        out.print(f"[yellow]left out: {verified.earlier_runs} runs to a topic of this name that is gone[/]")
    out.print(f"{check.records} records in the log, {verified.reads.records} read by members of groups")
    if cluster is not None:
        out.print(f"files of {verified.replicas} replicas checked")
    elif not bootstrap:
        out.print("[yellow]log files are not checked: not every broker runs[/]")
    for run_name in check.runs_without_ledger:
        out.print(f"[yellow]run {run_name} left no ledger: only its order and uniqueness are checked[/]")
    for kind in Kind:
        if findings.counts[kind] or kind in (Kind.LOST, Kind.DUPLICATED, Kind.REORDERED):
            out.print(f"{kind.value}: {findings.counts[kind]}")
    for example in findings.examples:
        out.print(f"  {example}", markup=False)
    if findings.clean:
        out.print("[green]EXACT: every acknowledged record is in the log, exactly once and in order[/]")
    else:
        out.print("[red]NOT EXACT[/]")
    if as_json:
        told = {kind.value: findings.counts[kind] for kind in Kind}
        typer.echo(json.dumps({"ok": findings.clean, "records_acked": acked, "records_in_log": check.records, **told}))
    if not findings.clean:
        raise typer.Exit(EXIT_FAILED)


class Verified(NamedTuple):
    """What a topic holds, held against what was sent to it."""

    ledgers: list[Ledger]
    earlier_runs: int  # whose topic had the same name and is gone
    check: RecordCheck
    reads: ReadCheck
    replicas: int  # whose files were checked
    findings: Findings


async def _verify(brokers: str, topic: str, ledgers: Path, cluster: AsyncLocalCluster | None) -> Verified:
    from fencepost import AdminClient, Consumer, ConsumerRecord
    from fencepost_testing.exactly_once import judge
    from fencepost_testing.read_back import read_to_end
    from fencepost_testing.read_log import SUFFIX, ReadCheck
    from fencepost_testing.record_check import RecordCheck
    from fencepost_testing.topic_waits import wait_settled

    async with AdminClient(brokers) as admin:
        described = await admin.describe_topic(topic)
        known, earlier_runs = _load_ledgers(ledgers, described.topic_id)
        check = RecordCheck(topic, known)
        reads = ReadCheck(topic, sorted((ledgers / described.topic_id).glob(f"*{SUFFIX}")))

        def take(record: ConsumerRecord) -> None:
            check.add_record(record)
            reads.add(record.partition, record.offset, record.value)

        async with Consumer(brokers, topic) as consumer:
            await read_to_end(consumer, take)
        findings, replicas = check.finish(), 0
        findings.merge(reads.finish())
        if cluster is not None:
            found = await judge(cluster, topic, settled=await wait_settled(admin, topic))
            findings.merge(found.findings)
            replicas = found.replicas_checked
    return Verified(known, earlier_runs, check, reads, replicas, findings)


def _load_ledgers(folder: Path, topic_id: str) -> tuple[list[Ledger], int]:
    """Those of the topic, and how many there are of earlier ones."""
    known = []
    paths = sorted(folder.glob("*/*.json"))
    for path in paths:
        if path.parent.name == topic_id:
            try:
                known.append(Ledger.from_json(json.loads(path.read_text())))
            except (ValueError, OSError) as error:
                raise CommandFailed(f"{path}: {error}") from error
    return known, len(paths) - len(known)
