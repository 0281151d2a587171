"""`fencepost controller`: the controller's store, when it was lost or has gone back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.commands.cluster import _load, _locked
from fencepost_cli.terminal import DEFAULT_DATA_DIR, DataDir, fail, run
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node

if TYPE_CHECKING:
    from fencepost_controller.decisions.recovery import RecoveredMetadata

app = typer.Typer(
    help="Repair a controller's store.",
    epilog="Example: fencepost controller recover; fencepost cluster up",
    no_args_is_help=True,
)


@app.callback()
def controller() -> None:
    """Repair a controller's store."""


@app.command(
    epilog="Example: fencepost controller recover; fencepost controller recover --without 3; fencepost controller recover "
    "--config /etc/fencepost/controller.toml --bootstrap 10.0.0.1:9092,10.0.0.2:9092,10.0.0.3:9092"
)
def recover(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="CONTROLLER.toml",
            help="Of a controller that is no part of a local cluster; with --bootstrap.",
        ),
    ] = None,
    bootstrap: Annotated[
        str | None,
        typer.Option("--bootstrap", metavar="HOST:PORT,…", help="With --config: brokers, all that are known."),
    ] = None,
    without: Annotated[
        list[int] | None,
        typer.Option(
            "--without",
            metavar="BROKER",
            help="Go on though this broker does not answer: it is lost permanently. May be repeated.",
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make the controller's store whole from what the brokers hold, after its folder was lost or put back from a backup.

    The controller must be down. All brokers must be up (those of a local cluster are started, and stopped again); they
    report their metadata and logs. Producer ids and epochs, leader epochs and broker epochs continue beyond everything
    that they hold, topics on their disks are taken back, and running named producers are fenced once. What was done is
    printed and written to recovery-VERSION.txt beside the store; the store before it is kept as
    metadata.sqlite.before-VERSION.
    """
    missing = frozenset(without or ())
    if (config is None) != (bootstrap is None):
        fail("--config and --bootstrap go together", code=2)
    if config is not None and bootstrap is not None:
        folder = _data_dir_of(config)
        run(_recover(folder, bootstrap.split(","), missing))
        typer.echo("now start the controller")
        return
    with _locked(data_dir):
        cluster = _load(data_dir)
        if cluster.running(CONTROLLER):
            fail("the controller runs: 'fencepost cluster stop controller' first")
        run(_recover_local(cluster, missing))
    typer.echo("now start the controller: 'fencepost cluster up'")


def _data_dir_of(config: Path) -> Path:
    from fencepost_controller.config import ControllerConfig
    from fencepost_proto.runtime.config import ConfigError, load

    try:
        return Path(load(ControllerConfig, str(config)).data_dir)
    except ConfigError as error:
        fail(str(error), code=2)


async def _recover_local(cluster: AsyncLocalCluster, without: frozenset[int]) -> None:
    asked = [broker for broker in cluster.broker_ids if broker not in without]
    started: list[Node] = [broker for broker in asked if not cluster.running(broker)]
    try:
        await cluster.start(*started)
        addresses = [cluster.member(broker).address for broker in asked]
        await _recover(cluster.member(CONTROLLER).directory, addresses, without)
    finally:
        for broker in started:
            if cluster.running(broker):
                await cluster.stop(broker)


async def _recover(folder: Path, addresses: list[str], without: frozenset[int]) -> None:
    from fencepost_controller.__main__ import STORE_FILE
    from fencepost_controller.decisions.recovery import RecoveryRefused
    from fencepost_controller.recovery import recover_store
    from fencepost_controller.store import CommitFailed, StoreError
    from fencepost_controller.store.sqlite import SqliteStore
    from fencepost_proto.runtime.host import Host
    from fencepost_proto.runtime.process import _hold

    path = folder / STORE_FILE
    try:
        lock = _hold(str(folder))
    except OSError as error:
        fail(str(error))
    try:
        store = SqliteStore(str(path))
        try:
            kept = _keep(path, store.load()[0])
            done = await recover_store(store, Host(), addresses, without)
        finally:
            store.close()
    except StoreError as error:
        fail(f"{error}; move the file away, and recover from the brokers alone")
    except (RecoveryRefused, CommitFailed, OSError, sqlite3.Error) as error:
        fail(str(error))
    finally:
        os.close(lock)
    _tell(folder, done, kept)


def _keep(path: Path, version: int) -> Path:
    """A copy of the store as it is."""
    kept = path.with_name(f"{path.name}.before-{version}")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(kept)) as new:
        old.backup(new)
    return kept


def _tell(folder: Path, done: RecoveredMetadata, kept: Path) -> None:
    lines = [*done.report, f"the store as it was: {kept}"]
    report = folder / f"recovery-{done.image.version}.txt"
    try:
        report.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise CommandFailed(f"the store is whole, but {report} cannot be written: {error}") from error
    for line in lines:
        typer.echo(line)
