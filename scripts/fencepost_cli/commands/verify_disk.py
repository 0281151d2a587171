"""`fencepost verify-disk`: reads every byte of brokers' data folders, and reports what is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, EXIT_FAILED, EXIT_USAGE, DataDir, fail

if TYPE_CHECKING:
    from fencepost_node.log.verify import VerifiedLog


def verify_disk(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Data folders of brokers.", show_default="those of the local cluster in --data-dir"),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each partition.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Read every byte of brokers' data folders, and report what is damaged. Changes nothing; brokers may run meanwhile.

    Exit code 1 where something is damaged. A broker that runs finds the same by itself, in its next scrub or when it is
    read, and heals it from the leader.
    """
    from fencepost_node.log.disk import RealDisk
    from fencepost_node.log.verify import verify_log
    from fencepost_node.state_machines import machines_of_folder
    from fencepost_testing.member import is_in_use

    disk = RealDisk()
    damaged = partitions = size = 0
    for folder in folders or _of_cluster(data_dir):
        in_use = is_in_use(folder)
        try:
            for partition in _partitions(folder):
                told = verify_log(disk, str(partition), machines_of_folder(partition.name), in_use=in_use)
                partitions, size, damaged = partitions + 1, size + told.bytes, damaged + bool(told.damage)
                _show(told, as_json)
        except OSError as error:
            fail(f"{error.filename or folder}: {error.strerror or error}", EXIT_USAGE)
    if not as_json:
        typer.echo(f"{partitions} partitions, {size} bytes of batches read, {damaged} partitions damaged")
    if damaged:
        raise typer.Exit(EXIT_FAILED)


def _of_cluster(data_dir: Path) -> list[Path]:
    folders = sorted(path for path in data_dir.glob("broker-*") if path.is_dir())
    if not folders:
        fail(f"{data_dir} holds no broker's data folder: name one", EXIT_USAGE)
    return folders


def _partitions(folder: Path) -> Iterator[Path]:
    """Raises OSError."""
    from fencepost_node.log.names import LOG_FOLDER

    for name in sorted(os.listdir(folder)):
        path = folder / name
        if LOG_FOLDER.fullmatch(name) and path.is_dir() and not path.is_symlink():
            yield path


def _show(told: VerifiedLog, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(told)))
        return
    for problem in told.damage:
        typer.echo(f"damaged: {problem}")
    for note in told.notes:
        typer.echo(f"note: {note}")
