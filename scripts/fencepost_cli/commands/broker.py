"""`fencepost broker`: show brokers, move everything off one, and have the cluster forget one that is gone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, Bootstrap, DataDir, bootstrap_of, console, run, table

if TYPE_CHECKING:
    from fencepost import AdminClient
    from fencepost.descriptions import BrokerDescription, SettingDescription

_WAIT_POLL_S = 0.2
_REPORT_S = 2.0

app = typer.Typer(
    help="Show, drain and remove the brokers of a cluster.",
    epilog="Example: fencepost broker drain 3 --wait; fencepost broker remove 3",
    no_args_is_help=True,
)

BrokerId = Annotated[int, typer.Argument(min=0, help="The broker's id.")]


@app.command("list", epilog="Example: fencepost broker list")
def list_brokers(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show every registered broker, whether it lives, and how many replicas it holds and leads."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> tuple[tuple[BrokerDescription, ...], Counter[int], Counter[int]]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            topics = await admin.describe_topics()
            partitions = [partition for topic in topics.values() for partition in topic.partitions]
            held = Counter(broker for partition in partitions for broker in partition.replicas)
            return (await admin.describe_cluster()).brokers, held, Counter(p.leader for p in partitions)

    found, held, led = run(work())
    if as_json:
        rows = [{**asdict(broker), "replicas": held[broker.id], "leads": led[broker.id]} for broker in found]
        typer.echo(json.dumps(rows))
        return
    shown = table("broker", "address", "state", "replicas", "leads", numbers=("broker", "replicas", "leads"))
    for broker in found:
        state = "fenced" if broker.fenced else "shutting down" if broker.shutting_down else "live"
        shown.add_row(str(broker.id), broker.address, state, str(held[broker.id]), str(led[broker.id]))
    console().print(shown)


@app.command(epilog="Example: fencepost broker config 1; fencepost broker config 1 --changed")
def config(
    broker_id: BrokerId,
    *,
    changed: Annotated[bool, typer.Option("--changed", help="Only those that are not the default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show the settings of a broker's process as it runs, with their defaults."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> list[SettingDescription]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.describe_broker_config(broker_id)

    found = [setting for setting in run(work()) if not (changed and setting.is_default)]
    if as_json:
        typer.echo(json.dumps([asdict(setting) for setting in found]))
        return
    shown = table("setting", "value", "default")
    for setting in found:
        default = "required" if setting.default is None else "" if setting.is_default else setting.default
        shown.add_row(setting.name, setting.value, default)
    console().print(shown)


@app.command(epilog="Example: fencepost broker drain 3 --wait")
def drain(
    broker: BrokerId,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return once the broker holds no replica any more.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move all replicas of a broker to other live brokers. Running it again goes on where it was broken off."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> int:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await drain_and_wait(admin, broker) if wait else await admin.drain_broker(broker)

    left = run(work())
    typer.echo(f"broker {broker} holds no replica" if left == 0 else f"{left} replicas of broker {broker} are moving")


async def drain_and_wait(admin: AdminClient, broker: int) -> int:
    """Until nothing is left there; how far it is stands on standard error from time to time. Returns 0."""
    loop = asyncio.get_running_loop()
    reported_at = loop.time()
    while left := await admin.drain_broker(broker):
        if loop.time() - reported_at >= _REPORT_S:
            reported_at = loop.time()
            typer.echo(f"{left} replicas of broker {broker} are moving", err=True)
        await asyncio.sleep(_WAIT_POLL_S)
    return 0


@app.command(epilog="Example: fencepost broker remove 3")
def remove(broker: BrokerId, *, bootstrap: Bootstrap = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Make the cluster forget a broker that is down and holds no replica: its id and its place are free again."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> None:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            await admin.unregister_broker(broker)

    run(work())
    typer.echo(f"broker {broker} is removed")
