"""`fencepost group`: show groups of consumers and their lag, move their offsets, forget them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fencepost_cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    Bootstrap,
    DataDir,
    bootstrap_of,
    console,
    fail,
    run,
    seconds_of,
    table,
)

if TYPE_CHECKING:
    from fencepost.group_descriptions import GroupDescription, GroupListing, GroupPartition, OffsetReset, ResetTo

app = typer.Typer(
    help="Show groups of consumers and their lag, move their offsets, forget them.",
    epilog="Example: fencepost group list; fencepost group describe billing",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="GROUP", help="The group's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command("list", epilog="Example: fencepost group list --json")
def list_groups(*, as_json: AsJson = False, bootstrap: Bootstrap = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """List the groups, of Fencepost's consumers and of Kafka's clients: id, kind, state."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> list[GroupListing]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.list_groups()

    groups = run(work())
    if as_json:
        typer.echo(json.dumps([asdict(group) for group in groups]))
        return
    for group in groups:
        typer.echo(f"{group.group_id}: {group.type}, {group.state}")


@app.command(epilog="Example: fencepost group describe billing --json")
def describe(
    group: Name, *, as_json: AsJson = False, bootstrap: Bootstrap = None, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Show a group's state and members and, for each partition, what is committed, how much is left to read, and who reads
    it.

    The lag is that of committed offsets: a partition without one counts from the start of its log.
    """
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> tuple[GroupDescription, list[GroupPartition]]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            found = await admin.describe_group(group)
            return found, await admin.describe_group_partitions(found)

    found, partitions = run(work())
    if as_json:
        shown = asdict(found) | {"partitions": [asdict(each) | {"lag": each.lag} for each in partitions]}
        typer.echo(json.dumps(shown))
        return
    out = console()
    total = None if any(each.lag is None for each in partitions) else sum(each.lag or 0 for each in partitions)
    out.print(
        f"group {found.group_id}: {found.type}, {found.state}, {len(found.members)} members, "
        f"coordinator broker {found.coordinator}, lag {'unknown' if total is None else total}",
        soft_wrap=True,
    )
    headings = ("topic", "partition", "committed", "log end", "lag", "member", "client")
    rows = table(*headings, numbers=("partition", "committed", "log end", "lag"))
    for each in partitions:
        numbers = (_number(each.committed), _number(each.log_end), _number(-1 if each.lag is None else each.lag))
        rows.add_row(each.topic, str(each.partition), *numbers, each.member_id or "-", each.client_id)
    out.print(rows)
    idle = [member.member_id for member in found.members if not member.assigned]
    if idle:
        out.print(f"members without a partition: {', '.join(idle)}", soft_wrap=True)


def _number(value: int) -> str:
    return str(value) if value >= 0 else "-"


@app.command(
    "reset-offsets",
    epilog="Example: fencepost group reset-offsets billing --topic orders --to-earliest --execute; "
    "fencepost group reset-offsets billing --topic orders:0,2 --shift-by -100; "
    "fencepost group reset-offsets billing --all-topics --by-duration 2h",
)
def reset_offsets(
    group: Name,
    *,
    topic: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC[:N,N,…]", help="A topic, or these of its partitions; may be given several times."),
    ] = None,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="Every partition for which the group has a committed offset.")
    ] = False,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="To the start of each log.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="To the end of each log.")] = False,
    to_offset: Annotated[int | None, typer.Option(min=0, help="To this offset.")] = None,
    shift_by: Annotated[int | None, typer.Option(help="So many records on; with a minus sign, back.")] = None,
    to_datetime: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="To the first record of that time or later: 2026-11-28T09:30, with +02:00 or Z behind it or in local time.",
        ),
    ] = None,
    by_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="To the first record that is no older: 90s, 30m, 2h, 7d.")
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it. Without this it is only shown what would be done.")
    ] = False,
    create: Annotated[
        bool, typer.Option("--create", help="The group need not be there: its members will begin at these offsets.")
    ] = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move the committed offsets of a group that has no members. Without --execute nothing is changed, only shown.

    An offset below the log's start becomes its start, one beyond its end becomes its end. The group's consumers have to be
    stopped first.
    """
    brokers = bootstrap_of(bootstrap, data_dir)
    if bool(topic) == all_topics:
        fail("either --topic or --all-topics is needed", EXIT_USAGE)
    to = _target(
        {
            "--to-earliest": ("earliest", 0) if to_earliest else None,
            "--to-latest": ("latest", 0) if to_latest else None,
            "--to-offset": ("offset", to_offset) if to_offset is not None else None,
            "--shift-by": ("shift", shift_by) if shift_by is not None else None,
            "--to-datetime": ("time", _milliseconds(to_datetime)) if to_datetime is not None else None,
            "--by-duration": ("time", _ago_ms(by_duration)) if by_duration is not None else None,
        }
    )
    named = [_topic_and_numbers(text) for text in topic or ()]

    async def work() -> list[OffsetReset]:
        from fencepost import AdminClient, TopicPartition

        async with AdminClient(brokers) as admin:
            wanted: list[tuple[str, int]] | None = None if all_topics else []
            for name, numbers in named:
                count = len((await admin.describe_topic(name)).partitions)
                assert wanted is not None
                wanted += [(name, number) for number in numbers or range(count)]
            plan = await admin.plan_group_reset(group, to, wanted, create=create)
            if execute:
                offsets = {TopicPartition(each.topic, each.partition): each.after for each in plan}
                await admin.alter_group_offsets(group, offsets)
            return plan

    plan = run(work())
    if as_json:
        typer.echo(json.dumps({"executed": execute, "offsets": [asdict(each) for each in plan]}))
        return
    rows = table("topic", "partition", "committed", "new", "", numbers=("partition", "committed", "new"))
    for each in plan:
        rows.add_row(each.topic, str(each.partition), _number(each.before), str(each.after), each.note)
    console().print(rows)
    typer.echo("done" if execute else "nothing is changed: --execute does it")


def _target(named: dict[str, tuple[Any, int] | None]) -> ResetTo:
    from fencepost.group_descriptions import ResetTo

    given = [(kind, value) for kind, value in filter(None, named.values())]
    if len(given) != 1:
        fail(f"exactly one of {', '.join(named)} is needed", EXIT_USAGE)
    return ResetTo(*given[0])


def _milliseconds(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is not a time such as 2026-11-28T09:30 or 2026-11-28T09:30:00+02:00", EXIT_USAGE)
    if when.timestamp() < 0:
        fail(f"{text!r} is before 1970", EXIT_USAGE)
    return int(when.timestamp() * 1000)


def _ago_ms(text: str) -> int:
    return max(0, int((time.time() - seconds_of(text)) * 1000))


def _topic_and_numbers(text: str) -> tuple[str, list[int]]:
    name, colon, numbers = text.partition(":")
    try:
        found = [int(word) for word in numbers.split(",")] if colon else []
    except ValueError:
        found = [-1]
    if not name or min(found, default=0) < 0:
        fail(f"{text!r} is not a topic, or a topic and partitions such as orders:0,2", EXIT_USAGE)
    return name, found


@app.command(epilog="Example: fencepost group delete billing --yes")
def delete(
    group: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Forget a group that has no members, and its committed offsets."""
    brokers = bootstrap_of(bootstrap, data_dir)
    if not yes:
        typer.confirm(f"Forget group {group} and its offsets?", abort=True)

    async def work() -> None:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            await admin.delete_group(group)

    run(work())
    typer.echo(f"group {group} is deleted")
