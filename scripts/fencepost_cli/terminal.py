"""What all commands share: their common options, how they run, fail and are interrupted.

Exit codes: 0 success; 1 what was asked for could not be done, or is not so; 2 wrong use; 130 and 143 interrupted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Container, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from fencepost_testing.failures import CommandFailed, leaves
from fencepost_testing.kafka_clients import CLIENTS
from fencepost_testing.local_cluster import AsyncLocalCluster, ClusterError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_PIPE_WIDTH = 160  # of tables that go to a file or a pipe

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="FENCEPOST_DATA_DIR",
        help="The local cluster's folder.",
        show_default=".fencepost in the current folder",
    ),
]
DEFAULT_DATA_DIR = Path(".fencepost")
LEDGERS = "workloads"  # in it: the folder of what workloads sent

Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        envvar="FENCEPOST_BOOTSTRAP",
        metavar="HOST:PORT,…",
        help="Brokers to ask first.",
        show_default="those of the local cluster in --data-dir",
    ),
]


def check_client(client: str, known: Sequence[str] = CLIENTS) -> None:
    """Exit with EXIT_USAGE where that is none of the clients that a command knows."""
    if client not in known:
        fail(f"--client {client!r}: {', '.join(known)} are known", EXIT_USAGE)


def check_controllers(controllers: int) -> None:
    """Exit, with what to install, where so many cannot run on this machine."""
    from fencepost_testing.etcd_member import NoEtcd, find_etcd

    try:
        if controllers > 1:
            find_etcd()
    except NoEtcd as error:
        fail(str(error))


def seconds_of(text: str) -> float:
    """Seconds: "90", "60s", "10m", "2h", "7d". Raises typer.BadParameter."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if matched is None:
        raise typer.BadParameter(f"{text!r} is not a time like 60s, 10m or 2h")
    return float(matched[1]) * _UNIT_S[matched[2]]


def console(*, stderr: bool = False) -> Console:
    """For tables and progress. Plain and wide where no one looks."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def table(*headings: str, numbers: Container[str] = ()) -> Table:
    """One whose cells are folded, never cut, where the terminal is narrow: half an offset is worse than two lines.

    `numbers`: the headings of the columns that stand to the right.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        made.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    return made


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """End the command with an error for its user."""
    typer.secho(f"fencepost: {message}", err=True, fg="red" if sys.stderr.isatty() else None)
    raise typer.Exit(code)


def bootstrap_of(bootstrap: str | None, data_dir: Path) -> str:
    """As given, else from the local cluster's state, where some of it runs: no one waits for one that cannot answer.

    Ends the command with one line, which says what to type next, where there is no cluster in the folder, where it is down
    or paused, and where nothing listens at any address that was given, or only what is for Kafka's clients.
    """
    if bootstrap:
        from fencepost_cli.reachability import why_unreachable

        if reason := why_unreachable(filter(None, (address.strip() for address in bootstrap.split(",")))):
            fail(reason)
        return bootstrap
    try:
        cluster = AsyncLocalCluster.load(data_dir)
    except ClusterError as error:
        fail(f"{error} (or name one with --bootstrap)")
    running = [broker for broker in cluster.broker_ids if cluster.running(broker)]
    if not running:
        fail(f"no broker of the cluster in {data_dir} runs: start it with 'fencepost cluster up'")
    if all(cluster.paused(broker) for broker in running):
        which = " ".join(map(str, running))
        fail(f"every broker of the cluster in {data_dir} that runs is paused: 'fencepost cluster resume {which}'")
    return cluster.bootstrap


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end; what a user did wrong, or broke off, ends it without a traceback."""
    from fencepost_proto.protocol.errors import FencepostError
    from fencepost_proto.runtime.event_loop import new_event_loop

    terminated = False

    async def until_terminated() -> T:
        nonlocal terminated
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, terminate)
        return await main

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(until_terminated())
    except (FencepostError, CommandFailed) as error:
        fail(_told(error))
    except BaseExceptionGroup as group:
        foreseen, bugs = group.split((FencepostError, CommandFailed))
        if foreseen is None or bugs is not None:
            raise
        fail(_told(leaves(foreseen)[0]))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except asyncio.CancelledError:
        if not terminated:
            raise
        raise typer.Exit(EXIT_TERMINATED) from None


def _told(error: BaseException) -> str:
    """What went wrong, and where no broker answers, what to type next."""
    from fencepost.errors import NoBrokerAnswered

    if not isinstance(error, NoBrokerAnswered):
        return str(error)
    from fencepost_cli.reachability import NO_ANSWER

    return f"{error}: {NO_ANSWER}"


def quiet_grpc() -> None:
    """Hide gRPC's own notes about broken connections: who kills brokers expects them."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
