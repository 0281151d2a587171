"""The command `fencepost`."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from fencepost_cli.commands import (
    bench,
    broker,
    chaos,
    check,
    cluster,
    controller,
    demo,
    dump_log,
    faults,
    group,
    lines,
    producer_name,
    producers,
    serve_tests,
    topic,
    ui,
    verify_disk,
    workload,
)
from fencepost_cli.terminal import EXIT_FAILED, quiet_grpc
from fencepost_proto.runtime.standard_streams import ensure_standard_streams


def _show_version(asked: bool) -> None:
    if asked:
        from fencepost import __version__

        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    name="fencepost",
    epilog="Example: fencepost cluster up && fencepost topic create orders && echo hello | fencepost produce orders",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cluster.app, name="cluster")
app.add_typer(controller.app, name="controller")
app.add_typer(topic.app, name="topic")
app.add_typer(group.app, name="group")
app.add_typer(broker.app, name="broker")
app.add_typer(producer_name.app, name="producer-name")
app.add_typer(workload.app, name="workload")
app.add_typer(faults.app, name="faults")
app.command(epilog="Example: printf 'k1:v1\\nk2:v2\\n' | fencepost produce orders --key-separator :")(lines.produce)
app.command(epilog="Example: fencepost consume orders --key-separator : --until-end")(lines.consume)
app.command(epilog="Example: fencepost producers orders --partition 0")(producers.producers)
app.command(epilog="Example: fencepost dump-log .fencepost/broker-1/orders-0/00000000000000000000.log")(
    dump_log.dump_log
)
app.command(epilog="Example: fencepost verify-disk .fencepost/broker-1")(verify_disk.verify_disk)
app.command(epilog="Example: fencepost demo --kills 5 --json")(demo.demo)
app.command(
    epilog="Example: fencepost chaos --duration 60s --seed 7; fencepost chaos --duration 10m --brokers 5 --rate 2000 --json"
)(chaos.chaos)
app.command(epilog="Example: fencepost bench --json")(bench.bench)
app.command("serve-tests", epilog="Example: fencepost serve-tests --port 8090; fencepost serve-tests -- go test ./...")(
    serve_tests.serve_tests
)
app.command(epilog="Example: fencepost ui; fencepost ui --bootstrap 10.0.0.7:9092 --no-browser --port 8080")(ui.ui)
app.command(epilog="Example: fencepost check chaos-reports/*-seed-7/history/*.jsonl")(check.check)


@app.callback()
def fencepost(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """A replicated, partitioned commit log: local clusters, topics, workloads, the demo and the benchmark."""


def main() -> None:
    """Run the command line. What cannot be written to standard output is an error like any other; a reader that has
    gone is none."""
    ensure_standard_streams()
    quiet_grpc()
    code: int | str | None = 0
    try:
        try:
            app()
        except SystemExit as ending:
            code = ending.code
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        if error.errno != errno.EPIPE:
            print(f"fencepost: standard output cannot be written: {error.strerror}", file=sys.stderr)
        code = code or EXIT_FAILED
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
    sys.exit(code)
