"""`fencepost faults`: faults on the local cluster's requests, links, disks and processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, DataDir, console, fail, table
from fencepost_testing.cluster_folder import Happening
from fencepost_testing.failures import CommandFailed
from fencepost_testing.faults.faults import Faults
from fencepost_testing.faults.handle import FaultHandle

T = TypeVar("T")

app = typer.Typer(
    help="Set faults on the local cluster: on requests of both protocols, on links, disks and processes.",
    epilog="Example: fencepost faults drop-answers --api Produce --topic orders --times 2; fencepost faults list",
    no_args_is_help=True,
)

Api = Annotated[str | None, typer.Option(help="As in Kafka's protocol: Produce, Fetch, …", show_default="any")]
Topic = Annotated[str | None, typer.Option(help="What concerns it only.", show_default="any")]
Partition = Annotated[int | None, typer.Option(help="What concerns it only.", show_default="any")]
Broker = Annotated[int | None, typer.Option(help="At this broker only.", show_default="every")]
Disk = Annotated[
    str | None, typer.Option("--broker", help="Of this broker, or controller.", show_default="every broker")
]
ClientId = Annotated[str | None, typer.Option(help="Of clients with this id only.", show_default="any")]
Protocol = Annotated[str | None, typer.Option(help="kafka or fencepost.", show_default="both")]
Times = Annotated[int | None, typer.Option(help="The next so many only.", show_default="no limit")]
Probability = Annotated[float, typer.Option(help="That it happens to one of them.")]
EveryMs = Annotated[int, typer.Option(help="No two are closer than so many milliseconds.")]
DelayMs = Annotated[int, typer.Option(help="So many milliseconds later.")]
JitterMs = Annotated[int, typer.Option(help="Up to so many milliseconds more.")]
Side = Annotated[
    str, typer.Argument(metavar="A", help="A broker's id, controller, clients, client:ID, or leader:TOPIC-PARTITION.")
]
Other = Annotated[str | None, typer.Argument(metavar="[B]", help="The other side.", show_default="everyone else")]
Target = Annotated[str, typer.Argument(help="A broker's id, controller, or leader:TOPIC-PARTITION.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def _try(action: Callable[[], T]) -> T:
    try:
        return action()
    except CommandFailed as error:
        fail(str(error))


def _set(data_dir: Path, name: str, as_json: bool, **arguments: Any) -> None:
    handle = _try(lambda: Faults(data_dir).set(name, arguments))
    if as_json:
        typer.echo(json.dumps(handle.to_json()))
    else:
        typer.echo(f"{handle.id}  {handle.description}")


# ---- Requests ----


@app.command("drop-answers", epilog="Example: fencepost faults drop-answers --api Produce --topic orders --times 2")
def drop_answers(
    *,
    api: Api = None,
    topic: Topic = None,
    partition: Partition = None,
    broker: Broker = None,
    client_id: ClientId = None,
    protocol: Protocol = None,
    times: Times = None,
    probability: Probability = 1.0,
    every_ms: EveryMs = 0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Handle requests, lose their answers, and close the connection."""
    _set(data_dir, "drop-answers", as_json, **_conditions(locals()))


@app.command("drop-requests", epilog="Example: fencepost faults drop-requests --api Fetch --probability 0.1")
def drop_requests(
    *,
    api: Api = None,
    topic: Topic = None,
    partition: Partition = None,
    broker: Broker = None,
    client_id: ClientId = None,
    protocol: Protocol = None,
    times: Times = None,
    probability: Probability = 1.0,
    every_ms: EveryMs = 0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Close the connection before requests are handled."""
    _set(data_dir, "drop-requests", as_json, **_conditions(locals()))


@app.command(
    "delay-requests", epilog="Example: fencepost faults delay-requests --api Produce --delay-ms 200 --broker 1"
)
def delay_requests(
    *,
    delay_ms: DelayMs,
    jitter_ms: JitterMs = 0,
    api: Api = None,
    topic: Topic = None,
    partition: Partition = None,
    broker: Broker = None,
    client_id: ClientId = None,
    protocol: Protocol = None,
    times: Times = None,
    probability: Probability = 1.0,
    every_ms: EveryMs = 0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Handle requests later, and what comes behind them on their connection."""
    _set(data_dir, "delay-requests", as_json, **_conditions(locals()))


@app.command("fail-requests", epilog="Example: fencepost faults fail-requests Produce NOT_ENOUGH_REPLICAS --times 3")
def fail_requests(
    api: Annotated[str, typer.Argument(help="As in Kafka's protocol.")],
    error: Annotated[str, typer.Argument(help="The error's name in Kafka's protocol.")],
    *,
    topic: Topic = None,
    partition: Partition = None,
    broker: Broker = None,
    client_id: ClientId = None,
    protocol: Protocol = None,
    times: Times = None,
    probability: Probability = 1.0,
    every_ms: EveryMs = 0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Answer requests with an error, and do not handle them."""
    _set(data_dir, "fail-requests", as_json, **_conditions(locals()))


def _conditions(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("as_json", "data_dir")}


# ---- Links ----


@app.command(epilog="Example: fencepost faults cut 1 controller; fencepost faults cut leader:orders-0")
def cut(
    a: Side,
    b: Other = None,
    one_way: Annotated[bool, typer.Option("--one-way", help="Only what A sends to B.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Hold back what A and B send to each other."""
    _set(data_dir, "cut", as_json, a=a, b=b, one_way=one_way)


@app.command(epilog="Example: fencepost faults delay clients 1 --delay-ms 50 --jitter-ms 20")
def delay(
    a: Side,
    b: Other = None,
    *,
    delay_ms: DelayMs,
    jitter_ms: JitterMs = 0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Let what A and B send to each other arrive later."""
    _set(data_dir, "delay", as_json, a=a, b=b, delay_ms=delay_ms, jitter_ms=jitter_ms)


@app.command(epilog="Example: fencepost faults limit 1 2 --bytes-per-second 100000")
def limit(
    a: Side,
    b: Other = None,
    *,
    bytes_per_second: Annotated[int, typer.Option(help="Of each connection, in each direction.")],
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Let A and B exchange so many bytes a second."""
    _set(data_dir, "limit", as_json, a=a, b=b, bytes_per_second=bytes_per_second)


@app.command(epilog="Example: fencepost faults reset clients leader:orders-0 --times 1")
def reset(
    a: Side,
    b: Other = None,
    times: Times = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Break the connections between A and B."""
    _set(data_dir, "reset", as_json, a=a, b=b, times=times)


# ---- Disks ----


def _on_disk(given: dict[str, Any]) -> dict[str, Any]:
    """The conditions, with a broker's id as a number."""
    conditions = _conditions(given)
    broker = conditions["broker"]
    return {**conditions, "broker": int(broker) if broker is not None and broker.isdecimal() else broker}


@app.command("fill-disk", epilog="Example: fencepost faults fill-disk --broker 1")
def fill_disk(
    *,
    broker: Disk = None,
    topic: Topic = None,
    partition: Partition = None,
    times: Times = None,
    probability: Probability = 1.0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Refuse whatever would take room on a broker's disk, or in the controller's store."""
    _set(data_dir, "fill-disk", as_json, **_on_disk(locals()))


@app.command("slow-disk", epilog="Example: fencepost faults slow-disk --broker 1 --delay-ms 200")
def slow_disk(
    *,
    delay_ms: DelayMs,
    jitter_ms: JitterMs = 0,
    broker: Disk = None,
    topic: Topic = None,
    partition: Partition = None,
    times: Times = None,
    probability: Probability = 1.0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make syncs and reads of a broker's disk slow, or commits of the controller's store."""
    _set(data_dir, "slow-disk", as_json, **_on_disk(locals()))


@app.command("fail-syncs", epilog="Example: fencepost faults fail-syncs --broker controller --times 1")
def fail_syncs(
    *,
    broker: Disk = None,
    topic: Topic = None,
    partition: Partition = None,
    times: Times = None,
    probability: Probability = 1.0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make syncs of a broker's disk fail, or of the controller's store."""
    _set(data_dir, "fail-syncs", as_json, **_on_disk(locals()))


# ---- Processes ----


@app.command(epilog="Example: fencepost faults kill leader:orders-0")
def kill(target: Target, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Kill a process; 'fencepost cluster restart' brings it back."""
    _set(data_dir, "kill", as_json, target=target)


@app.command(epilog="Example: fencepost faults pause controller; fencepost faults clear")
def pause(target: Target, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Pause a process, until the fault is removed."""
    _set(data_dir, "pause", as_json, target=target)


# ---- All of them ----


@app.command("list", epilog="Example: fencepost faults list --json")
def list_faults(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show the faults that are set, and how often each has fired."""
    handles = _try(lambda: Faults(data_dir).active())
    if as_json:
        typer.echo(json.dumps([handle.to_json() for handle in handles]))
        return
    shown = table("ID", "FAULT", "FIRED", numbers=("FIRED",))
    for handle in handles:
        shown.add_row(handle.id, handle.description, str(handle.fired))
    console().print(shown if handles else "no fault is set")


@app.command(epilog="Example: fencepost faults remove drop-answers-1")
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="As 'fencepost faults list' shows them.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take faults back."""
    faults = Faults(data_dir)
    handles: list[FaultHandle] = [_try(lambda name=name: faults.find(name)) for name in ids]  # type: ignore[misc]
    for handle in handles:
        typer.echo(f"{handle.id} removed; it has fired {handle.remove()} times")


@app.command(epilog="Example: fencepost faults clear")
def clear(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Take all faults back."""
    _try(lambda: Faults(data_dir).clear())
    typer.echo("no fault is set")


@app.command(epilog="Example: fencepost faults timeline")
def timeline(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show when faults were set, fired and were removed."""
    lines = _try(lambda: Faults(data_dir).timeline())
    if as_json:
        typer.echo(json.dumps(lines))
        return
    for line in lines:
        typer.echo(str(Happening(line["at"], f"{line['what']:<8} {line['id']}  {line['text']}")))
