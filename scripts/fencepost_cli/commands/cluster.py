"""`fencepost cluster`: a local cluster that stays up between commands."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.commands.serve_tests import TOKEN, control_server, said_by, show_control
from fencepost_cli.terminal import DEFAULT_DATA_DIR, EXIT_USAGE, LEDGERS, DataDir, console, fail, run
from fencepost_testing.cluster_folder import MAX_CONTROLLERS
from fencepost_testing.kept_cluster import KeptCluster, LockFailed, locked
from fencepost_testing.local_cluster import CONTROLLER, STATE_FILE, AsyncLocalCluster, ClusterError, Node, name_of
from fencepost_testing.member import TARGETS, target_of

if TYPE_CHECKING:
    from fencepost_proto.protocol.metadata import MetadataImage

DEFAULT_BROKERS = 3
_METADATA_TIMEOUT_S = 2.0
UP_TIMEOUT_S = 120.0  # brokers may have to check what they appended last; one that has ended is reported at once

app = typer.Typer(
    help="Run a local cluster that stays up between commands.",
    epilog="Example: fencepost cluster up --brokers 3; fencepost cluster kill leader:orders-0; fencepost cluster status",
    no_args_is_help=True,
)

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET…",
        help="A broker's id, 'controller', or 'leader:<topic>-<partition>'. Of a cluster with several controllers: "
        "'controller-1', 'controller:active', 'etcd-2', 'etcd:leader'.",
    ),
]


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One command at a time changes a cluster: it holds a lock on the folder."""
    if not data_dir.exists():
        _load(data_dir)  # says so
    try:
        with locked(data_dir):
            yield
    except LockFailed as error:
        fail(str(error))


def _load(data_dir: Path) -> AsyncLocalCluster:
    try:
        return AsyncLocalCluster.load(data_dir)
    except ClusterError as error:
        fail(str(error))


async def _image(cluster: AsyncLocalCluster) -> MetadataImage | None:
    """The newest of the running brokers' metadata."""
    from fencepost_testing.cluster_metadata import newest_image

    asked = [cluster.member(broker).address for broker in cluster.broker_ids if cluster.running(broker)]
    return await newest_image(asked, timeout_s=_METADATA_TIMEOUT_S)


async def _resolve(cluster: AsyncLocalCluster, target: str) -> Node:
    """The node that a target names now. Raises ClusterError."""
    named = target_of(target)
    if named is None:
        raise ClusterError(f"target {target!r} is not {TARGETS}")
    if not isinstance(named, tuple):
        return await cluster.resolve(named)
    topic_name, index = named
    image = await _image(cluster)
    if image is None:
        raise ClusterError(f"target {target!r}: no broker answers who leads")
    partition = image.partitions.get((image.topic_ids.get(topic_name, ""), index))
    if partition is None:
        raise ClusterError(f"target {target!r}: the cluster has no such partition")
    if partition.leader not in cluster.members:
        raise ClusterError(f"target {target!r}: the partition has no leader now")
    return partition.leader


def _for_each(
    data_dir: Path, targets: list[str], act: Callable[[AsyncLocalCluster, Node], Awaitable[None]], done: str
) -> None:
    """All targets are looked up before anything is done to the first."""
    with _locked(data_dir):
        cluster = _load(data_dir)

        async def act_on_all() -> None:
            nodes = [await _resolve(cluster, target) for target in targets]
            for node in dict.fromkeys(nodes):
                await act(cluster, node)
                typer.echo(f"{name_of(node)} {done}")

        run(act_on_all())


@app.command(
    epilog="Example: fencepost cluster up --brokers 5; fencepost cluster up --controllers 3; fencepost cluster up --faults "
    "--control-port 8090"
)
def up(
    *,
    brokers: Annotated[
        int | None, typer.Option("--brokers", min=1, help="How many, for a new cluster.", show_default="3")
    ] = None,
    controllers: Annotated[
        int | None,
        typer.Option(
            "--controllers",
            min=1,
            max=MAX_CONTROLLERS,
            help="How many, for a new cluster. More than one keep their metadata in etcd, of which three members "
            "are started too, from the system's package.",
            show_default="1",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65_535,
            help="Broker 1's, of a new cluster; the others' follow.",
            show_default="any free",
        ),
    ] = None,
    kafka_port: Annotated[
        int | None,
        typer.Option(
            "--kafka-port",
            min=1,
            max=65_535,
            help="Broker 1's for Kafka's clients, of a new cluster; the others' follow.",
            show_default="any free",
        ),
    ] = None,
    faults: Annotated[
        bool | None,
        typer.Option(
            "--faults/--no-faults",
            help="Start its processes so that 'fencepost faults' can set faults on them, or as production does.",
            show_default="as they were started before; a new cluster: without",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, as 'status --json' has it.")
    ] = False,
    with_page: Annotated[
        bool, typer.Option("--ui", help="Show it in a browser, until Ctrl-C; the cluster stays up. See 'fencepost ui'.")
    ] = False,
    control_port: Annotated[
        int | None,
        typer.Option(
            "--control-port",
            min=0,
            max=65_535,
            help="Let tests in other languages control it by HTTP at this port of loopback (0: any free one), until Ctrl-C; "
            "the cluster stays up. See 'fencepost serve-tests'.",
            show_default="none",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN, help="What requests to --control-port have to carry.", show_default="a random one, printed"
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start a cluster, or what is down of the one in the data folder."""
    if with_page and control_port is not None:
        fail("--ui and --control-port both run until Ctrl-C: run 'fencepost ui' beside this command", EXIT_USAGE)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{data_dir} cannot hold a cluster: {error.strerror}")
    server = None if control_port is None else control_server(control_port, token)
    with _locked(data_dir):
        new = not (data_dir / STATE_FILE).exists()
        try:
            cluster = (
                AsyncLocalCluster(
                    data_dir,
                    brokers=brokers or DEFAULT_BROKERS,
                    controllers=controllers or 1,
                    owned=False,
                    first_port=port,
                    first_kafka_port=kafka_port,
                    faults=bool(faults),
                )
                if new
                else AsyncLocalCluster.load(data_dir)
            )
            if faults is not None:
                cluster.switch_faults(faults)
        except (ClusterError, OSError) as error:
            fail(str(error))
        _check_is_that(cluster, data_dir, brokers=brokers, controllers=controllers, port=port, kafka_port=kafka_port)

        async def start() -> list[str]:
            try:
                await cluster.up(timeout_s=UP_TIMEOUT_S)
            except BaseException:
                if new:  # what never came up is not left half running
                    cluster.close()
                    cluster.remove()
                raise
            image = await _image(cluster)
            lost = (
                [p for p in image.partitions.values() if p.leader < 0 and not p.isr and not p.eligible] if image else []
            )
            return [f"{image.topics[p.topic_id].name}-{p.index}" for p in lost] if image else []

        leaderless = run(start())
    if server is not None:
        said = said_by(server, cluster.kafka_bootstrap)
        show_control(said, cluster.bootstrap, as_json)
    elif as_json:
        typer.echo(json.dumps(run(cluster.status()).to_json()))
    else:
        several = f" and {len(cluster.controllers)} controllers" if cluster.has_etcd else ""
        typer.echo(
            f"cluster of {len(cluster.broker_ids)} brokers{several} is up in {data_dir}; bootstrap {cluster.bootstrap}"
        )
        typer.echo(f"for Kafka's clients: bootstrap.servers={cluster.kafka_bootstrap}")
    if leaderless:
        typer.echo(
            f"fencepost: no broker may lead {', '.join(leaderless)}: 'fencepost cluster status' says why, and what to do",
            err=True,
        )
    if with_page:
        from fencepost_cli.commands.ui import show_page

        show_page(data_dir, "", 0, browser=True)
    if server is not None:
        run(server.serve(KeptCluster(data_dir)))


def _check_is_that(
    cluster: AsyncLocalCluster,
    data_dir: Path,
    *,
    brokers: int | None,
    controllers: int | None,
    port: int | None,
    kafka_port: int | None,
) -> None:
    """End the command where the cluster that is there is not the one that was asked for."""
    if brokers not in (None, len(cluster.broker_ids)):
        fail(f"the cluster in {data_dir} has {len(cluster.broker_ids)} brokers, not {brokers}")
    if controllers not in (None, len(cluster.controllers)):
        fail(f"the cluster in {data_dir} has {len(cluster.controllers)} controllers, not {controllers}")
    if port not in (None, cluster.member(cluster.broker_ids[0]).port):
        fail(f"the cluster in {data_dir} listens on {cluster.bootstrap}, not from port {port} on")
    if kafka_port not in (None, cluster.member(cluster.broker_ids[0]).kafka_port):
        fail(
            f"the cluster in {data_dir} listens for Kafka's clients on {cluster.kafka_bootstrap}, not from port "
            f"{kafka_port} on"
        )
    for node in cluster.nodes:
        if cluster.paused(node):
            fail(f"{name_of(node)} is paused: 'fencepost cluster resume {node}'")


@app.command(epilog="Example: fencepost cluster kill leader:orders-0; fencepost cluster kill controller:active 2")
def kill(targets: Targets, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End processes with SIGKILL: what a crash is like."""
    _for_each(data_dir, targets, AsyncLocalCluster.kill, "killed")


@app.command(epilog="Example: fencepost cluster pause 2")
def pause(targets: Targets, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop processes in their tracks with SIGSTOP; they keep everything and say nothing."""
    _for_each(data_dir, targets, AsyncLocalCluster.pause, "paused")


@app.command(epilog="Example: fencepost cluster resume 2")
def resume(targets: Targets, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Let paused processes go on, with SIGCONT."""
    _for_each(data_dir, targets, AsyncLocalCluster.resume, "resumed")


@app.command(epilog="Example: fencepost cluster restart 1 controller")
def restart(targets: Targets, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Start processes again, one after another: those that run are shut down cleanly first."""
    with _locked(data_dir):
        cluster = _load(data_dir)

        async def restart_all() -> None:
            nodes = dict.fromkeys([await _resolve(cluster, target) for target in targets])
            for node in sorted(nodes, key=lambda node: isinstance(node, int)):  # brokers need the others
                await cluster.restart(node, timeout_s=UP_TIMEOUT_S)
                if absent := _deciding_absent(cluster):
                    typer.echo(f"{name_of(node)} restarted; it serves once {absent}")
                else:
                    await cluster.wait_registered([node] if isinstance(node, int) else [])
                    typer.echo(f"{name_of(node)} restarted")

        run(restart_all())


def _deciding_absent(cluster: AsyncLocalCluster) -> str:
    """What has to come back before anything is decided; empty: enough is there."""

    def serving(nodes: list[Node]) -> list[Node]:
        return [node for node in nodes if cluster.running(node) and not cluster.paused(node)]

    if cluster.etcd and len(serving(cluster.etcd)) <= len(cluster.etcd) // 2:
        return "most members of etcd do"
    if serving(cluster.controllers):
        return ""
    if cluster.has_etcd:
        return "a controller does"
    return f"the controller does, which is {'paused' if cluster.paused(CONTROLLER) else 'down'}"


@app.command(epilog="Example: fencepost cluster stop 3")
def stop(targets: Targets, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Shut processes down cleanly: a broker hands its leaderships over first."""
    with _locked(data_dir):
        cluster = _load(data_dir)

        async def stop_all() -> None:
            nodes = [await _resolve(cluster, target) for target in targets]
            for node in dict.fromkeys(nodes):
                await cluster.stop(node)
                typer.echo(f"{name_of(node)} stopped")

        run(stop_all())


@app.command(epilog="Example: fencepost cluster add-broker")
def add_broker(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Start one more broker, with the lowest free id. It gets replicas of new topics, and what 'topic reassign' moves."""
    with _locked(data_dir):
        cluster = _load(data_dir)

        async def add() -> int:
            broker = cluster.add_broker()
            try:
                await cluster.start(broker, timeout_s=UP_TIMEOUT_S)
                await cluster.wait_registered([broker])
            except BaseException:  # it has no place where it never came up
                if cluster.running(broker):
                    await cluster.kill(broker)
                    await cluster.wait_gone(broker)
                cluster.drop_broker(broker)
                raise
            return broker

        broker = run(add())
    typer.echo(f"broker {broker} is up; bootstrap {cluster.bootstrap}")


@app.command(epilog="Example: fencepost cluster remove-broker 4")
def remove_broker(
    broker: Annotated[int, typer.Argument(min=0, help="The broker's id.")], data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Move all replicas of a broker to the others, shut it down, and delete it with its folder.

    Broken off, it can be run again: it goes on where it was.
    """
    from fencepost_cli.commands.broker import drain_and_wait

    with _locked(data_dir):
        cluster = _load(data_dir)

        async def remove() -> None:
            from fencepost import AdminClient
            from fencepost_proto.protocol.errors import BrokerIdNotRegistered

            cluster.member(broker)
            others = [cluster.member(b).address for b in cluster.broker_ids if b != broker and cluster.running(b)]
            if not others:
                raise ClusterError(f"broker {broker} is the only one that runs: nothing can take its replicas")
            async with AdminClient(others) as admin:
                await drain_and_wait(admin, broker)
                if cluster.running(broker):
                    await cluster.stop(broker)
                with contextlib.suppress(BrokerIdNotRegistered):  # it was removed before this was broken off
                    await admin.unregister_broker(broker)
            cluster.drop_broker(broker)

        run(remove())
    typer.echo(f"broker {broker} is removed; bootstrap {cluster.bootstrap}")


@app.command(epilog="Example: fencepost cluster down --remove")
def down(
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the cluster's data too, and the ledgers of its workloads.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Shut the whole cluster down cleanly; 'up' starts it again with its data."""
    with _locked(data_dir):
        cluster = _load(data_dir)
        run(cluster.down())
        if remove:
            cluster.remove()
            shutil.rmtree(data_dir / LEDGERS, ignore_errors=True)
            with contextlib.suppress(OSError):  # someone else keeps something there
                data_dir.rmdir()
    typer.echo(f"cluster in {data_dir} is down{' and removed' if remove else ''}")


@app.command(epilog="Example: fencepost cluster status --json | jq .partitions")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show processes, topics and partitions; of several controllers, which is active under which epoch, and etcd's health.

    Exit code 1 where a process does not serve, a partition has no leader, or a replica has failed.
    """
    from fencepost_cli.status import show_status

    told = run(_load(data_dir).status())
    if as_json:
        typer.echo(json.dumps(told.to_json()))
    else:
        show_status(told, console())
    if not told.healthy:
        raise typer.Exit(1)
