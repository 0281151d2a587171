"""`fencepost chaos`: real processes are killed, paused, restarted and cut off while clients go on; is the log exact?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    check_client,
    check_controllers,
    console,
    fail,
    run,
    seconds_of,
)
from fencepost_testing.cluster_folder import MAX_CONTROLLERS
from fencepost_testing.kafka_clients import CLIENTS, FENCEPOST, MIXED

if TYPE_CHECKING:
    from rich.console import Console

    from fencepost_testing.chaos.result import ChaosOptions, ChaosResult
    from fencepost_testing.chaos.run import Chaos

REPORTS = "chaos-reports"
_CLIENTS = (*CLIENTS, MIXED)
MIN_DURATION_S = 5.0
MAX_DURATION_S = 24 * 3600.0
_PROGRESS_S = 0.2


def duration_of(text: str) -> float:
    """Seconds, within bounds."""
    seconds = seconds_of(text)
    if not MIN_DURATION_S <= seconds <= MAX_DURATION_S:
        raise typer.BadParameter(f"{text!r}: from {MIN_DURATION_S:g} s to 24 h")
    return seconds


def chaos(
    *,
    duration: Annotated[str, typer.Option(metavar="TIME", help="Of the faults: 60s, 10m, 2h.")] = "60s",
    seed: Annotated[int, typer.Option(help="Decides which faults come when.")] = 0,
    brokers: Annotated[int, typer.Option(min=3, max=16, help="Broker processes.")] = 3,
    partitions: Annotated[int, typer.Option(min=1, max=100, help="Partitions of the topic.")] = 4,
    rate: Annotated[float, typer.Option(min=10, max=50_000, help="Records a second, of all producers.")] = 300.0,
    client: Annotated[
        str,
        typer.Option(
            metavar="|".join(_CLIENTS),
            help="Whose clients: with others than Fencepost's there are members of groups too, which are killed and paused, "
            "and no unclean elections.",
        ),
    ] = FENCEPOST,
    controllers: Annotated[
        int, typer.Option(min=1, max=MAX_CONTROLLERS, help="Several have an etcd, which is harmed too.")
    ] = 1,
    cuts: Annotated[bool, typer.Option("--cuts/--no-cuts", help="Cut the network, where that can be done.")] = True,
    report: Annotated[
        Path | None, typer.Option(help="An empty folder for the report.", show_default=f"{REPORTS}/TIME-seed-SEED")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the brokers' data of an exact run too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object as the last line of standard output.")] = False,
) -> None:
    """Harm a real cluster for a while, and prove that its log is exact.

    Brokers, a controller and clients run as processes of their own. They are killed (-9), stopped cleanly, paused and
    started again, alone and together, and as root on Linux with iproute2 the network between chosen pairs is cut, one way
    or both. Older copies of data folders are put back, bits of stored batches change, disks are full for a while, and an
    operator orders unclean elections. In the end all is healed, everything is read, the clients' histories and every
    replica's files are checked, and a report is written. Exit code 0 only if every acknowledged record is in the log exactly
    once and in order, but for those that an unclean election took as its operator was shown beforehand. With --client also
    only if groups have one owner for each partition, no commit went back or was lost, and all that they committed was read.
    """
    from fencepost_testing.chaos.report import show_result
    from fencepost_testing.chaos.result import ChaosOptions

    check_client(client, _CLIENTS)
    options = ChaosOptions(seed, duration_of(duration), brokers, partitions, rate, cuts, client, controllers)
    check_controllers(controllers)
    folder = _folder(report, seed)
    out = console()
    try:
        result = run(_run(folder, options, out))
    except typer.Exit:
        typer.echo(f"The run was broken off; what its processes recorded and logged is in {folder}", err=True)
        raise
    show_result(result, out)
    if result.exact and not keep:
        shutil.rmtree(folder / "cluster", ignore_errors=True)
    typer.echo(f"The report is {folder / 'index.html'}")
    if as_json:
        typer.echo(json.dumps(result.to_json(str(folder))))
    if not result.exact:
        typer.echo(_what_next(folder, options), err=True)
        raise typer.Exit(EXIT_FAILED)


def _what_next(folder: Path, options: ChaosOptions) -> str:
    """How to look at a run that went wrong, and how to have its faults again."""
    again = f"fencepost chaos --duration {options.duration_s:g}s --seed {options.seed} --brokers {options.brokers}"
    again += f" --partitions {options.partitions} --rate {options.rate:g}{'' if options.cuts else ' --no-cuts'}"
    again += f" --controllers {options.controllers}" if options.controllers > 1 else ""
    again += f" --client {options.client}" if options.client != FENCEPOST else ""
    return (
        f"To look at it: {folder / 'index.html'}; what each process logged is in {folder / 'logs'}, brokers' data in "
        f"{folder / 'cluster'}; fencepost check {folder / 'history'}/*.jsonl\n"
        f"The same faults again (what they meet depends on timing, so it may take several runs): {again}"
    )


def _folder(given: Path | None, seed: int) -> Path:
    if given is None:
        given = Path(REPORTS) / f"{datetime.now():%Y%m%d-%H%M%S}-seed-{seed}"
    folder = given.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            fail(f"{folder} is not empty: a report wants a folder of its own", EXIT_USAGE)
    except OSError as error:
        fail(f"{folder}: {error.strerror}", EXIT_USAGE)
    return folder


async def _run(folder: Path, options: ChaosOptions, out: Console) -> ChaosResult:
    from fencepost_testing.chaos.report import write_report
    from fencepost_testing.chaos.run import Chaos

    started = time.monotonic()
    chaos = Chaos(folder, options, lambda line: out.print(f"{time.monotonic() - started:6.1f} {line}", markup=False))
    async with _progress_bar(chaos, out):
        result = await chaos.run()
        await asyncio.to_thread(write_report, result, folder)
    return result


@contextlib.asynccontextmanager
async def _progress_bar(chaos: Chaos, out: Console) -> AsyncIterator[None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[acked]} acknowledged"))
    with Progress(*columns, TimeElapsedColumn(), console=out) as progress:
        bar = progress.add_task("", total=chaos.result.options.duration_s, acked=0)

        async def follow() -> None:
            while True:
                harmed_s = time.monotonic() - chaos.result.started_at if chaos.result.started_at else 0.0
                progress.update(bar, completed=harmed_s, description=chaos.phase, acked=chaos.count_acked())
                await asyncio.sleep(_PROGRESS_S)

        follower = asyncio.create_task(follow())
        try:
            yield
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
