"""A cluster that is kept in a folder and belongs to no process.

Commands, the live page and the control server may all change it, so whoever does holds a lock on the folder, and reads the
cluster's file again first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from fencepost_testing.async_cluster import AsyncLocalCluster
from fencepost_testing.cluster_file import STATE_FILE
from fencepost_testing.member import ClusterError

LOCK_WITHIN_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05


class LockFailed(ClusterError):
    """Nothing may be changed in the folder now."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The folder's lock is held meanwhile. Raises LockFailed at once where another process holds it."""
    with _opened(directory) as folder:
        if not _try_lock(folder):
            raise _is_taken(directory)
        yield


class KeptCluster:
    """The cluster in a folder, for a program that lives on while others change it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state_file = str(directory / STATE_FILE)  # looked at many times a second
        self._known: AsyncLocalCluster | None = None
        self._file_time_ns = 0
        self._lock = asyncio.Lock()

    def look(self) -> AsyncLocalCluster:
        """As its file says now. Raises ClusterError where there is none."""
        try:
            changed_ns = os.stat(self._state_file).st_mtime_ns
        except OSError:
            changed_ns = 0  # what is wrong, `load` says
        if self._known is None or not changed_ns or changed_ns != self._file_time_ns:
            self._known = None
            self._known, self._file_time_ns = AsyncLocalCluster.load(self._directory), changed_ns
        return self._known

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncLocalCluster]:
        """One change at a time, also of other processes'. Raises ClusterError; LockFailed where another takes too long."""
        async with self._lock:
            self.look()
            with _opened(self._directory) as folder:
                await self._wait_locked(folder)
                yield AsyncLocalCluster.load(self._directory)

    async def _wait_locked(self, folder: int) -> None:
        deadline = asyncio.get_running_loop().time() + LOCK_WITHIN_S
        while not _try_lock(folder):
            if asyncio.get_running_loop().time() > deadline:
                raise _is_taken(self._directory)
            await asyncio.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LockFailed(f"{directory} cannot hold a cluster: {error.strerror}") from error
    try:
        yield folder
    finally:
        os.close(folder)


def _try_lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_taken(directory: Path) -> LockFailed:
    return LockFailed(f"another command is at work on the cluster in {directory}")
