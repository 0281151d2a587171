"""A copy of a broker's data folder, as people make backups of it, and such a copy in the place of what is there.

What belongs to the process of the local cluster and not to the broker's data (its configuration, its log, its lock) is left
out of both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from fencepost_proto.runtime.process import LOCK_FILE, PROCESS_FILE

OF_THE_PROCESS = {LOCK_FILE, PROCESS_FILE, "broker.toml", "server.log"}


def copy_folder(folder: Path, copy: Path) -> None:
    """File by file, also while the broker writes: what goes meanwhile is not in the copy."""
    copy.mkdir()
    for source in _data(folder):
        if source.is_dir():
            copy_folder(source, copy / source.name)
        else:
            try:
                shutil.copy2(source, copy / source.name)
            except FileNotFoundError:
                continue


def put_back(copy: Path, folder: Path) -> None:
    """The broker is down."""
    for old in _data(folder):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    shutil.copytree(copy, folder, dirs_exist_ok=True)


def _data(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.name not in OF_THE_PROCESS)
