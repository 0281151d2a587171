"""`fencepost producer-name`: show and remove the names of named producers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, Bootstrap, DataDir, bootstrap_of, console, run, table

if TYPE_CHECKING:
    from fencepost.descriptions import ProducerName

app = typer.Typer(
    help="Show and remove the names of named producers.",
    epilog="Example: fencepost producer-name list; fencepost producer-name remove orders-loader",
    no_args_is_help=True,
)


@app.command("list", epilog="Example: fencepost producer-name list --json")
def list_names(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show every name, with its producer id, its current epoch, and for how long it has not been used.

    A name that is not used for `producer_name_expiration_ms` (a setting of the controller, 7 days by default) expires. A
    producer that runs uses its name, also while it sends nothing.
    """
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> list[ProducerName]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.list_producer_names()

    names = run(work())
    if as_json:
        typer.echo(json.dumps([asdict(name) for name in names]))
        return
    shown = table("name", "producer id", "epoch", "unused for", "state", numbers=("producer id", "epoch", "unused for"))
    for name in names:
        state = "expired" if name.expired else "known"
        shown.add_row(name.name, str(name.producer_id), str(name.epoch), _hours(name.idle_ms), state)
    console().print(shown)


@app.command(epilog="Example: fencepost producer-name remove orders-loader")
def remove(
    name: Annotated[str, typer.Argument(help="The name.")],
    *,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Forget a name: a producer that still runs under it is fenced, and one that takes it next begins from nothing."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> None:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            await admin.remove_producer_name(name)

    run(work())
    typer.echo(f"removed {name}")


def _hours(idle_ms: int) -> str:
    hours = idle_ms // 3_600_000
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h"
