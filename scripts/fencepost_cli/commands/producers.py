"""`fencepost producers`: what a topic's partitions know of their producers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, Bootstrap, DataDir, bootstrap_of, console, run, table

if TYPE_CHECKING:
    from fencepost.descriptions import PartitionProducers


def producers(
    topic: Annotated[str, typer.Argument(help="The topic.")],
    *,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show, for each partition, every producer's epoch and the last batches that its leader would recognise."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> list[PartitionProducers]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            count = len((await admin.describe_topic(topic)).partitions)
            wanted = range(count) if partition is None else [partition]
            return [await admin.describe_producers(topic, number) for number in wanted]

    told = run(work())
    if as_json:
        typer.echo(json.dumps([asdict(described) for described in told]))
        return
    numbers = ("producer id", "epoch", "last sequence", "last offset", "batches known", "sequences known")
    shown = table("partition", *numbers, numbers=numbers)
    for described in told:
        for producer in described.producers:
            first, last = producer.batches[0], producer.batches[-1]
            last_offset = last.base_offset + (last.last_sequence - last.first_sequence) % 2**31
            shown.add_row(
                f"{topic}-{described.partition}",
                str(producer.producer_id),
                str(producer.producer_epoch),
                str(last.last_sequence),
                str(last_offset),
                str(len(producer.batches)),
                f"{first.first_sequence}-{last.last_sequence}",
            )
    console().print(shown)
