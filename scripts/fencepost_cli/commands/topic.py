"""`fencepost topic`: make, show, move and delete topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    Bootstrap,
    DataDir,
    bootstrap_of,
    fail,
    run,
)

if TYPE_CHECKING:
    from fencepost import AdminClient

DEFAULT_REPLICATION_FACTOR = 3
DEFAULT_PARTITIONS = 3

app = typer.Typer(
    help="Make, show, move and delete topics.",
    epilog="Example: fencepost topic create orders --partitions 6; fencepost topic describe orders",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The topic's name.")]
Partition = Annotated[int, typer.Argument(min=0, help="The partition's number.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


async def default_replication(admin: AdminClient) -> tuple[int, int]:
    """(replication factor, min.insync.replicas) for as many brokers as there are: 3 and 2 where possible."""
    brokers = sum(not broker.fenced for broker in (await admin.describe_cluster()).brokers)
    replicas = max(1, min(DEFAULT_REPLICATION_FACTOR, brokers))
    return replicas, max(1, replicas - 1)


@app.command(epilog="Example: fencepost topic create orders --partitions 6 --retention-ms 86400000")
def create(
    name: Name,
    *,
    partitions: Annotated[int, typer.Option(min=1, help="How many partitions.")] = DEFAULT_PARTITIONS,
    replication_factor: Annotated[
        int | None,
        typer.Option(min=1, help="Replicas of each partition.", show_default="3, or as many as brokers live"),
    ] = None,
    min_insync_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="In-sync replicas that acks=all needs.", show_default="one less than the replicas"),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID,ID,…", help="A partition's brokers, in order; once for each partition, instead of counts."
        ),
    ] = None,
    retention_ms: Annotated[int | None, typer.Option(help="-1: no limit.", show_default="7 days")] = None,
    retention_bytes: Annotated[
        int | None, typer.Option(help="Of a partition; -1: no limit.", show_default="-1")
    ] = None,
    segment_bytes: Annotated[int | None, typer.Option(help="Of a segment file.", show_default="128 MB")] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Of one batch.", show_default="4 MB")] = None,
    flush_always: Annotated[
        bool, typer.Option("--flush-always", help="Acknowledge only what is synced to disk.")
    ] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a topic."""
    brokers = bootstrap_of(bootstrap, data_dir)
    assignments = [broker_list(text) for text in assign or ()]

    async def work() -> str:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            replicas, in_sync = await default_replication(admin)
            if replication_factor or assignments:
                replicas = replication_factor or len(assignments[0])
                in_sync = max(1, replicas - 1)
            config = {
                "min_insync_replicas": min_insync_replicas or in_sync,
                "retention_ms": retention_ms,
                "retention_bytes": retention_bytes,
                "segment_bytes": segment_bytes,
                "max_message_bytes": max_message_bytes,
                "flush_always": flush_always or None,
            }
            raise NotImplementedError(config, replicas)

    typer.echo(run(work()))


def broker_list(text: str) -> list[int]:
    """ "1,2,3" as numbers."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        fail(f"{text!r} is not a list of broker ids such as 1,2,3", EXIT_USAGE)
