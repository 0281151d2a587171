"""The command `fencepost`."""

from __future__ import annotations

from typing import Annotated

import typer

from fencepost_cli.commands import bench, chaos, check, cluster, demo, dump_log, lines, producers, topic, workload
from fencepost_cli.terminal import quiet_grpc


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("fencepost"))
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
app.add_typer(topic.app, name="topic")
app.add_typer(workload.app, name="workload")
app.command(epilog="Example: printf 'k1:v1\\nk2:v2\\n' | fencepost produce orders --key-separator :")(lines.produce)
app.command(epilog="Example: fencepost consume orders --key-separator : --until-end")(lines.consume)
app.command(epilog="Example: fencepost producers orders --partition 0")(producers.producers)
app.command(epilog="Example: fencepost dump-log .fencepost/broker-1/orders-0/00000000000000000000.log")(
    dump_log.dump_log
)
app.command(epilog="Example: fencepost demo --kills 5 --json")(demo.demo)
app.command(
    epilog="Example: fencepost chaos --duration 60s --seed 7; fencepost chaos --duration 10m --brokers 5 --rate 2000 --json"
)(chaos.chaos)
app.command(epilog="Example: fencepost bench --json")(bench.bench)
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
    quiet_grpc()
    app()
