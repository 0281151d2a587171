"""`fencepost demo`: kills leaders under a running workload and proves that nothing was lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import EXIT_FAILED, EXIT_USAGE, check_client, check_controllers, console, fail, run
from fencepost_testing.cluster_folder import MAX_CONTROLLERS
from fencepost_testing.kafka_clients import CLIENTS, FENCEPOST
from fencepost_testing.log_check.ledger import MIN_RECORD_BYTES

if TYPE_CHECKING:
    from rich.console import Console

    from fencepost_cli.demo import Demo, DemoOptions, DemoResult

_PROGRESS_S = 0.1


def demo(
    *,
    brokers: Annotated[int, typer.Option(min=3, max=64, help="Broker processes.")] = 3,
    partitions: Annotated[int, typer.Option(min=1, max=100, help="Partitions of the topic.")] = 3,
    records: Annotated[int, typer.Option(min=1, help="Records to send.")] = 20_000,
    record_size: Annotated[int, typer.Option(min=MIN_RECORD_BYTES, max=1_000_000, help="Bytes of a value.")] = 100,
    kills: Annotated[int, typer.Option(min=0, help="Leaders to kill with SIGKILL, one after another.")] = 3,
    seed: Annotated[int, typer.Option(help="Decides the order of keys.")] = 0,
    controllers: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_CONTROLLERS,
            help="Of several the active one is killed with each leader. They need the program etcd.",
        ),
    ] = 1,
    client: Annotated[str, typer.Option(metavar="CLIENT", help=f"Whose clients: {', '.join(CLIENTS)}.")] = FENCEPOST,
    data_dir: Annotated[
        Path | None, typer.Option(help="An empty folder for the data.", show_default="a temporary folder")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data there at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object as the last line of standard output.")] = False,
) -> None:
    """Run the main job on real processes: leaders die, and the log is exact.

    Starts a controller and brokers, produces and consumes, kills the leader of one partition after another with
    SIGKILL, drops acknowledgements, then reads everything back, checks the history of all clients and every replica's files,
    and gives a verdict. With --client one of Kafka's clients produces, and consumes as a member of a group. The
    history is history.jsonl in the data folder (--keep; "fencepost check" reads it).
    With --controllers 3 the active controller dies in the same instant as each leader.
    Exit code 0 only if every record that was sent is in the log exactly once and in order.
    """
    from fencepost_cli.demo import DemoOptions
    from fencepost_cli.demo_report import show_result

    check_client(client)
    options = DemoOptions(brokers, partitions, records, record_size, kills, seed, client, controllers)
    check_controllers(controllers)
    with _folder(data_dir, keep=keep) as folder:
        out = console()
        result = run(_run(folder, options, out))
        show_result(result, out)
        if keep:
            typer.echo(f"The data are in {folder}")
        if as_json:
            typer.echo(json.dumps(result.to_json(str(folder))))
        if not result.ok:
            raise typer.Exit(EXIT_FAILED)


@contextlib.contextmanager
def _folder(given: Path | None, *, keep: bool) -> Iterator[Path]:
    """Where the data go. They are removed at the end, unless they are to be kept or something was not exact."""
    if given is None:
        folder = Path(tempfile.mkdtemp(prefix="fencepost-demo-"))
    else:
        folder = given.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                fail(f"{folder} is not empty: the demo wants a folder of its own", EXIT_USAGE)
        except OSError as error:
            fail(f"{folder}: {error.strerror}", EXIT_USAGE)
    try:
        yield folder
    except typer.Exit as end:
        if end.exit_code == EXIT_FAILED:
            typer.echo(f"fencepost: the data stay in {folder} for a closer look", err=True)
        elif not keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, options: DemoOptions, out: Console) -> DemoResult:
    """The demo on a cluster of its own; where it cannot go on, what there is so far, with the reason."""
    from fencepost_cli.demo import Demo
    from fencepost_proto.protocol.errors import FencepostError
    from fencepost_testing.cluster_folder import told_controllers
    from fencepost_testing.failures import CommandFailed
    from fencepost_testing.local_cluster import AsyncLocalCluster

    cluster = AsyncLocalCluster(folder, brokers=options.brokers, controllers=options.controllers)
    async with options.clients(cluster) as clients, cluster:
        out.print(f"{told_controllers(options.controllers)} and {options.brokers} brokers are up in {folder}")
        demo = Demo(cluster, clients, options, out.print)
        try:
            async with _progress_bar(demo, out):
                await demo.run()
            await cluster.down()
        except (FencepostError, CommandFailed) as error:
            demo.result.problems.append(f"the demo could not go on: {error}")
    return demo.result


@contextlib.asynccontextmanager
async def _progress_bar(demo: Demo, out: Console) -> AsyncIterator[None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        bar = progress.add_task("records acknowledged", total=demo.options.records)

        async def follow() -> None:
            while True:
                progress.update(bar, completed=demo.ledger.acked)
                await asyncio.sleep(_PROGRESS_S)

        follower = asyncio.create_task(follow())
        try:
            yield
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            progress.update(bar, completed=demo.ledger.acked)
