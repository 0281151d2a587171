"""The disk of a broker, with faults: full, slow, or one whose syncs fail.

A rule meets files by the folder that they are in: a replica's folder is named after its topic and partition.

- *full*: what would take room (an append, a file that is written in one step, a new folder) is refused with ENOSPC; what is
  there can be read, overwritten and removed.
- *slow*: what waits for the disk itself takes longer: syncs, files that are written in one step, and reads that are not made
  on the event loop, where the page cache serves them.
- *failing syncs*: EIO, and what was written may never get to the disk.
"""

from __future__ import annotations

import asyncio
import os
import time

from fencepost_node.log.disk import Disk, File, OriginMark
from fencepost_node.log.open_files import Buffer
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.rules import DISK_ERRNO, DiskAction


class _Faulty:
    """What a disk and its files share."""

    def __init__(self, faults: FaultsInside) -> None:
        self._faults = faults

    def _fail(self, action: DiskAction, folder: str, what: str) -> None:
        """Raises OSError where a rule has this fail."""
        for _ in self._faults.fired(self._faults.disk_rules(action, folder), f"{what} in {folder}"):
            number = DISK_ERRNO[action]
            raise OSError(number, f"{os.strerror(number)}, by a fault", folder)

    def _take_time(self, folder: str, what: str) -> None:
        for posted in self._faults.fired(self._faults.disk_rules(DiskAction.SLOW, folder), f"{what} in {folder}"):
            time.sleep(self._faults.delay_s(posted.rule))


class FaultyFile(_Faulty):
    """One file. What no fault concerns is done by the file itself."""

    def __init__(self, file: File, path: str, faults: FaultsInside) -> None:
        super().__init__(faults)
        self._file = file
        self._folder = os.path.dirname(path)
        self.overwrite, self.truncate = file.overwrite, file.truncate
        self.redirty, self.forget = file.redirty, file.forget
        self.hold, self.release, self.close = file.hold, file.release, file.close

    @property
    def size(self) -> int:
        return self._file.size

    def append(self, data: Buffer) -> None:
        self._fail(DiskAction.FULL, self._folder, "append")
        self._file.append(data)

    def read(self, position: int, length: int) -> bytes:
        if asyncio._get_running_loop() is None:
            self._take_time(self._folder, "read")
        return self._file.read(position, length)

    def sync(self) -> None:
        self._take_time(self._folder, "sync")
        self._fail(DiskAction.FAIL_SYNC, self._folder, "sync")
        self._file.sync()


class FaultyDisk(_Faulty):
    """Another disk. What no fault concerns is done by the disk itself."""

    def __init__(self, disk: Disk, faults: FaultsInside) -> None:
        super().__init__(faults)
        self._disk = disk
        self.exists, self.is_folder, self.modified_ms, self.list = (
            disk.exists,
            disk.is_folder,
            disk.modified_ms,
            disk.list,
        )
        self.rename, self.remove, self.remove_tree = disk.rename, disk.remove, disk.remove_tree
        self.is_original, self.boot_id = disk.is_original, disk.boot_id
        self.crowding_folders, self.most_logs, self.sync_times = disk.crowding_folders, disk.most_logs, disk.sync_times

    def open(self, path: str, *, create: bool = False) -> File:
        return FaultyFile(self._disk.open(path, create=create), path, self._faults)

    def read_bytes(self, path: str) -> bytes:
        self._take_time(os.path.dirname(path), "read")
        return self._disk.read_bytes(path)

    def write_atomically(self, path: str, data: Buffer) -> None:
        folder = os.path.dirname(path)
        self._take_time(folder, "write")
        self._fail(DiskAction.FULL, folder, "write")
        self._fail(DiskAction.FAIL_SYNC, folder, "sync")
        self._disk.write_atomically(path, data)

    def make_directory(self, path: str) -> None:
        self._fail(DiskAction.FULL, path, "new folder")
        self._disk.make_directory(path)

    def sync_directory(self, path: str) -> None:
        self._take_time(path, "sync")
        self._fail(DiskAction.FAIL_SYNC, path, "sync")
        self._disk.sync_directory(path)

    def origin_mark(self, path: str) -> OriginMark:
        return self._disk.origin_mark(path)
