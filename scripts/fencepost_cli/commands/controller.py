"""`fencepost controller`: the controller's store, when it was lost or has gone back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.commands.cluster import _load, _locked
from fencepost_cli.terminal import DEFAULT_DATA_DIR, DataDir, fail, run
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node

if TYPE_CHECKING:
    from fencepost_controller.config import ControllerConfig
    from fencepost_controller.decisions.recovery import RecoveredMetadata
    from fencepost_controller.store.etcd.shared import SharedMetadata
    from fencepost_controller.store.sqlite import SqliteStore
    from fencepost_proto.runtime.host import Host

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
        settings = _settings_of(config)
        if settings.store == "etcd":
            run(_recover_shared(settings, bootstrap.split(","), missing))
            typer.echo("now start the controllers")
            return
        run(_recover(Path(settings.data_dir), bootstrap.split(","), missing))
        typer.echo("now start the controller")
        return
    with _locked(data_dir):
        cluster = _load(data_dir)
        if cluster.has_etcd:
            fail(
                f"the metadata of {data_dir} is in etcd: give --config {cluster.member(cluster.controllers[0]).config_file} "
                "and --bootstrap"
            )
        if cluster.running(CONTROLLER):
            fail("the controller runs: 'fencepost cluster stop controller' first")
        run(_recover_local(cluster, missing))
    typer.echo("now start the controller: 'fencepost cluster up'")


@app.command(
    epilog="Example: fencepost controller migrate --from old/controller.toml --to new/controller.toml, where the one has "
    "store = 'sqlite' and the other store = 'etcd'"
)
def migrate(
    *,
    source: Annotated[
        Path, typer.Option("--from", metavar="CONTROLLER.toml", help="Of a controller on the old store.")
    ],
    target: Annotated[Path, typer.Option("--to", metavar="CONTROLLER.toml", help="Of one on the new store.")],
) -> None:
    """Copy all metadata from one store to another: from SQLite to etcd, or back.

    The whole cluster must be down, and the new store must be empty. What was copied is read again and compared. The old
    store stays as it is: do not start a controller on it any more.
    """
    run(_migrate(_settings_of(source), _settings_of(target)))


def _settings_of(config: Path) -> ControllerConfig:
    from fencepost_controller.config import ControllerConfig
    from fencepost_proto.runtime.config import ConfigError, load

    try:
        return load(ControllerConfig, str(config))
    except ConfigError as error:
        fail(str(error), code=2)


@contextlib.asynccontextmanager
async def _opened(config: ControllerConfig, host: Host) -> AsyncIterator[SqliteStore | SharedMetadata]:
    """The store that is configured; no process on this machine uses its folder meanwhile. Raises StoreError, OSError."""
    from fencepost_controller.__main__ import open_store
    from fencepost_controller.store.etcd.shared import SharedMetadata
    from fencepost_proto.runtime.process import hold_folder

    with contextlib.ExitStack() as stack:
        if config.store == "sqlite":
            stack.callback(os.close, hold_folder(config.data_dir))
        store = open_store(config, host)
        try:
            yield store
        finally:
            if isinstance(store, SharedMetadata):
                await store.etcd.close()
            else:
                store.close()


async def _migrate(source: ControllerConfig, target: ControllerConfig) -> None:
    from fencepost_controller.decisions.lineage import MetadataWentBack
    from fencepost_controller.migration import migrate
    from fencepost_controller.store import CommitFailed, StoreError
    from fencepost_proto.runtime.host import Host

    host = Host()
    try:
        async with _opened(source, host) as old, _opened(target, host) as new:
            image = await migrate(old, new, host.random)
    except (StoreError, CommitFailed, MetadataWentBack, OSError) as error:
        fail(str(error))
    typer.echo(
        f"metadata version {image.version} is in the new store: {len(image.topics)} topics, {len(image.partitions)} "
        f"partitions, {len(image.brokers)} brokers, {len(image.producers)} names of producers"
    )


async def _recover_shared(config: ControllerConfig, addresses: list[str], without: frozenset[int]) -> None:
    from fencepost_controller.decisions.lineage import MetadataWentBack
    from fencepost_controller.decisions.recovery import RecoveryRefused
    from fencepost_controller.recovery import recover_shared
    from fencepost_controller.store import CommitFailed, StoreError
    from fencepost_controller.store.etcd.shared import SharedMetadata
    from fencepost_proto.runtime.host import Host

    host = Host()
    try:
        async with _opened(config, host) as store:
            assert isinstance(store, SharedMetadata)
            done = await recover_shared(store, host, addresses, without)
    except (StoreError, RecoveryRefused, CommitFailed, MetadataWentBack, OSError) as error:
        fail(str(error))
    for line in done.report:
        typer.echo(line)


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
    from fencepost_proto.runtime.process import hold_folder

    path = folder / STORE_FILE
    try:
        lock = hold_folder(str(folder))
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
