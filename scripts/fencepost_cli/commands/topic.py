"""`fencepost topic`: make, show, change, move and delete topics."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from pathlib import Path
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
    table,
)

if TYPE_CHECKING:
    from fencepost import AdminClient
    from fencepost.descriptions import ElectionCandidate, TopicDescription

DEFAULT_REPLICATION_FACTOR = 3
DEFAULT_PARTITIONS = 3
_WAIT_POLL_S = 0.1

app = typer.Typer(
    help="Make, show, change, move and delete topics.",
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
    retention_ms: Annotated[
        int | None,
        typer.Option(
            help="A segment goes when its newest record is older, and its last append is as long ago; "
            "timestamps of the future do not count. -1: no limit.",
            show_default="7 days",
        ),
    ] = None,
    retention_bytes: Annotated[
        int | None, typer.Option(help="Of a partition; -1: no limit.", show_default="-1")
    ] = None,
    segment_bytes: Annotated[
        int | None, typer.Option(help="Of a segment file; 16384 at least.", show_default="128 MB")
    ] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Of one batch.", show_default="4 MB")] = None,
    flush_always: Annotated[
        bool, typer.Option("--flush-always", help="Acknowledge only what is synced to disk.")
    ] = False,
    message_timestamp_type: Annotated[
        str | None,
        typer.Option(
            metavar="create|append",
            help="Timestamps are the producer's, or the leader's at the append.",
            show_default="create",
        ),
    ] = None,
    message_timestamp_before_max_ms: Annotated[
        int | None,
        typer.Option(
            help="How far the producer's may lie in the past, by the leader's clock. -1: no limit.",
            show_default="-1",
        ),
    ] = None,
    message_timestamp_after_max_ms: Annotated[
        int | None, typer.Option(help="How far in the future. -1: no limit.", show_default="1 hour")
    ] = None,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="One that is there already is left as it is, and no error.")
    ] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a topic. It is there, with a leader for every partition, when this returns."""
    brokers = bootstrap_of(bootstrap, data_dir)
    assignments = [broker_list(text) for text in assign or ()]

    async def work() -> TopicDescription:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            replicas, _ = await default_replication(admin)
            replicas = len(assignments[0]) if assignments else replication_factor or replicas
            return await admin.create_topic(
                name,
                partitions=partitions,
                replication_factor=replicas,
                assignments=assignments or None,
                min_insync_replicas=min_insync_replicas or max(1, replicas - 1),
                retention_ms=retention_ms,
                retention_bytes=retention_bytes,
                segment_bytes=segment_bytes,
                max_message_bytes=max_message_bytes,
                flush_always=flush_always,
                message_timestamp_type=message_timestamp_type,
                message_timestamp_before_max_ms=message_timestamp_before_max_ms,
                message_timestamp_after_max_ms=message_timestamp_after_max_ms,
                exist_ok=if_not_exists,
            )

    made = run(work())
    replicas = len(made.partitions[0].replicas)
    typer.echo(
        f"topic {made.name}: {len(made.partitions)} partitions, {replicas} replicas, "
        f"min.insync.replicas {made.config.min_insync_replicas}"
    )


def broker_list(text: str) -> list[int]:
    """Broker ids such as "1,2,3"; wrong use where it is not."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        fail(f"{text!r} is not a list of broker ids such as 1,2,3", EXIT_USAGE)


@app.command(
    epilog="Example: fencepost topic alter orders --set retention_ms=86400000 --reset segment_bytes --partitions 12"
)
def alter(
    name: Name,
    *,
    set_to: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting and its new value; may be given several times."),
    ] = None,
    reset: Annotated[
        list[str] | None,
        typer.Option("--reset", metavar="NAME", help="A setting that gets its default; may be given several times."),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many partitions the topic is to have: more than now. Keys are spread over all of them then.",
        ),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(metavar="ID,ID,…", help="A new partition's brokers, in order; once for each new partition."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check whether it is possible.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Change a topic's settings, or raise its number of partitions, while it runs.

    The settings are those that 'fencepost topic describe' shows.
    """
    brokers = bootstrap_of(bootstrap, data_dir)
    if not set_to and not reset and partitions is None:
        fail("one of --set, --reset and --partitions is needed", EXIT_USAGE)
    if assign and partitions is None:
        fail("--assign goes with --partitions only", EXIT_USAGE)
    settings = dict(_pair(text) for text in set_to or ())
    assignments = [broker_list(text) for text in assign or ()]

    async def work() -> TopicDescription:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            if settings or reset:
                await admin.alter_topic(name, reset=reset or (), validate_only=dry_run, **settings)
            if partitions is not None:
                await admin.create_partitions(name, partitions, assignments=assignments or None, validate_only=dry_run)
            return await admin.describe_topic(name)

    topic = run(work())
    if dry_run:
        typer.echo(f"topic {topic.name}: possible")
        return
    shown = asdict(topic.config)
    changed = "".join(f", {key} {shown[key]}" for key in (*settings, *(reset or ())))
    typer.echo(f"topic {topic.name}: {len(topic.partitions)} partitions{changed}")


@app.command(
    "delete-records",
    epilog="Example: fencepost topic delete-records orders 0 --before 1000; fencepost topic delete-records orders --all",
)
def delete_records(
    name: Name,
    partitions: Annotated[list[int] | None, typer.Argument(help="Numbers of partitions.", show_default="all")] = None,
    *,
    before: Annotated[int | None, typer.Option(min=0, help="Delete the records below this offset.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all that is there now.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Delete the records at the beginning of a topic's partitions, on every replica and permanently.

    Offsets stay as they are: the partition begins later. Disk space is free a moment later, by whole segments.
    """
    brokers = bootstrap_of(bootstrap, data_dir)
    if (before is None) != everything:
        fail("either --before or --all is needed", EXIT_USAGE)
    if not yes:
        what = "all its records" if everything else f"its records below offset {before}"
        where = f"partitions {', '.join(map(str, partitions))}" if partitions else "all partitions"
        typer.confirm(f"Delete of topic {name}, in {where}, {what}?", abort=True)

    async def work() -> dict[int, int]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            numbers = partitions or [p.partition for p in (await admin.describe_topic(name)).partitions]
            return await admin.delete_records(name, dict.fromkeys(numbers, before))

    for partition, offset in run(work()).items():
        typer.echo(f"{name}-{partition} begins at offset {offset}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        fail(f"{text!r} is not NAME=VALUE, such as retention_ms=86400000", EXIT_USAGE)
    return name, value


@app.command("list", epilog="Example: fencepost topic list")
def list_topics(*, as_json: AsJson = False, bootstrap: Bootstrap = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """List the topics, a line each: name, partitions, replicas."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> dict[str, TopicDescription]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.describe_topics()

    topics = run(work())
    if as_json:
        typer.echo(json.dumps([topic_json(topic) for topic in topics.values()]))
        return
    for topic in topics.values():
        replicas = len(topic.partitions[0].replicas)
        typer.echo(f"{topic.name}: {len(topic.partitions)} partitions, {replicas} replicas")


@app.command(epilog="Example: fencepost topic describe orders --json")
def describe(
    name: Name, *, as_json: AsJson = False, bootstrap: Bootstrap = None, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Show a topic's settings and, for each partition, who leads, holds it, is in sync, and who else may be elected."""
    brokers = bootstrap_of(bootstrap, data_dir)

    async def work() -> TopicDescription:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.describe_topic(name)

    topic = run(work())
    if as_json:
        typer.echo(json.dumps(topic_json(topic)))
        return
    settings = "  ".join(f"{key}={value}" for key, value in asdict(topic.config).items())
    out = console()
    out.print(f"topic {topic.name} ({topic.topic_id})  {settings}", soft_wrap=True)
    shown = table("partition", "leader", "epoch", "replicas", "in sync", "eligible", "being added", "being removed")
    for p in topic.partitions:
        ids = [",".join(map(str, brokers)) for brokers in (p.replicas, p.isr, p.eligible, p.adding, p.removing)]
        shown.add_row(str(p.partition), str(p.leader) if p.leader >= 0 else "none", str(p.leader_epoch), *ids)
    out.print(shown)


def topic_json(topic: TopicDescription) -> dict[str, Any]:
    return {
        "name": topic.name,
        "topic_id": topic.topic_id,
        "config": asdict(topic.config),
        "partitions": [asdict(partition) for partition in topic.partitions],
    }


@app.command(epilog="Example: fencepost topic delete orders --yes")
def delete(
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Delete a topic and all its records."""
    brokers = bootstrap_of(bootstrap, data_dir)
    if not yes:
        typer.confirm(f"Delete topic {name} and all its records?", abort=True)

    async def work() -> None:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            await admin.delete_topic(name)

    run(work())
    typer.echo(f"topic {name} is deleted")


@app.command(epilog="Example: fencepost topic reassign orders 0 --replicas 2,3,4 --wait")
def reassign(
    name: Name,
    partition: Partition,
    *,
    replicas: Annotated[
        str | None,
        typer.Option(metavar="ID,ID,…", help="The brokers to hold it from now on, the preferred leader first."),
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Go back to the replicas of before.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return only when it is done.")] = False,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move a partition to other brokers, or cancel the move under way.

    The new replicas copy the leader's log and its producer state, join the in-sync set, and only then the old ones leave.
    """
    brokers = bootstrap_of(bootstrap, data_dir)
    if (replicas is None) != cancel:
        fail("either --replicas or --cancel is needed", EXIT_USAGE)
    target = broker_list(replicas) if replicas is not None else []

    async def work() -> None:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            if cancel:
                await admin.cancel_reassignment(name, partition)
            else:
                await admin.reassign_partitions(name, {partition: target})
            while wait and any((r.topic, r.partition) == (name, partition) for r in await admin.list_reassignments()):  # noqa: ASYNC110 - asked, not told
                await asyncio.sleep(_WAIT_POLL_S)

    run(work())
    state = "cancelled" if cancel else "done" if wait else "under way: 'fencepost topic describe' shows it"
    typer.echo(f"reassignment of {name}-{partition}: {state}")


@app.command(epilog="Example: fencepost topic elect orders 0; fencepost topic elect orders 0 --unclean")
def elect(
    name: Name,
    partition: Partition,
    *,
    unclean: Annotated[
        bool, typer.Option("--unclean", help="An out-of-sync replica, where none is left in sync: records may be lost.")
    ] = False,
    leader: Annotated[
        int | None, typer.Option(help="Which broker; with --unclean only.", show_default="the one with the longest log")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --unclean: record what was shown as lost, for 'fencepost check'."),
    ] = None,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Elect a partition's preferred leader: the first of its replicas.

    With --unclean, where no replica is left in sync: ask every live replica how much of the log it holds, show that, and
    make the one with the longest log the leader. What it does not hold is lost.
    """
    brokers = bootstrap_of(bootstrap, data_dir)
    if leader is not None and not unclean:
        fail("--leader goes with --unclean only: otherwise the preferred leader is elected", EXIT_USAGE)
    if history is not None and not unclean:
        fail("--history goes with --unclean only", EXIT_USAGE)
    chosen = _chosen(brokers, name, partition, leader, yes=yes) if unclean else None

    async def work() -> int:
        from fencepost import AdminClient
        from fencepost.history import History
        from fencepost_testing.recorded_election import OPERATOR, elect_recorded

        async with AdminClient(brokers) as admin:
            if chosen is not None and history is not None:
                with contextlib.closing(History(history, process=OPERATOR)) as record:
                    await elect_recorded(admin, name, partition, chosen, record)
            else:
                await admin.elect_leader(name, partition, unclean=unclean, leader=chosen)
            return (await admin.describe_topic(name)).partitions[partition].leader

    typer.echo(f"{name}-{partition} is led by broker {run(work())}")


def _chosen(brokers: str, name: str, partition: int, leader: int | None, *, yes: bool) -> ElectionCandidate:
    """Whom the operator agrees to elect, knowing the alternatives as they were when they agreed."""

    async def look() -> list[ElectionCandidate]:
        from fencepost import AdminClient

        async with AdminClient(brokers) as admin:
            return await admin.unclean_candidates(name, partition)

    found = run(look())
    while True:
        chosen = next((c for c in found if leader in (None, c.broker_id)), None)
        if chosen is None:
            fail(f"broker {leader} is none of the replicas of {name}-{partition}")
        _show_candidates(found, chosen)
        if chosen.failure:
            fail(f"broker {chosen.broker_id} cannot be elected: {chosen.failure}")
        if yes:
            return chosen
        typer.confirm(f"Make broker {chosen.broker_id} the leader of {name}-{partition}?", abort=True)
        before, found = found, run(look())
        if found == before:
            return chosen
        typer.echo("This has changed meanwhile:")


def _what_is_lost(chosen: ElectionCandidate) -> str:
    kept, end = chosen.kept_end_offset, chosen.log_end_offset
    told = f"What was acknowledged at offset {end} and above is lost"
    if kept < end:
        told += f"; from offset {kept} to {end - 1} it may be, since other brokers have led after that part was written"
    return f"{told}. Everything below offset {kept} is kept."


def _show_candidates(found: list[ElectionCandidate], chosen: ElectionCandidate) -> None:
    shown = table("broker", "last epoch", "log end", "was in sync", "", numbers=("last epoch", "log end"))
    for candidate in found:
        asked = candidate.log_end_offset >= 0
        shown.add_row(
            str(candidate.broker_id),
            str(candidate.last_epoch) if asked else "?",
            str(candidate.log_end_offset) if asked else "?",
            "yes" if candidate.was_in_sync else "",
            "to lead" if candidate == chosen else candidate.failure,
        )
    console().print(shown)
    typer.echo(
        f"An unclean election: acknowledged records may be lost, permanently. Whatever broker {chosen.broker_id} does "
        f"not hold is cut from the other replicas."
    )
    if chosen.kept_end_offset >= 0:
        typer.echo(_what_is_lost(chosen))
    if not found[0].failure and chosen.log_ends < found[0].log_ends:
        typer.echo(f"Broker {found[0].broker_id} has the longest log, not broker {chosen.broker_id}.")
    for candidate in found:
        if candidate.log_end_offset < 0:
            typer.echo(
                f"Broker {candidate.broker_id} cannot be asked, and may hold more: if it can come back, wait for it."
            )
