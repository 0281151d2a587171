"""The seam between the log and the disk.

Everything that a broker keeps goes through a `Disk`. The one here is the machine's file system; the simulation has one
that loses what was not synced, tears writes, fills up and fails. Every method may raise OSError, and a failed write may
have written a part.

Paths are absolute strings. Calls block; `sync`, `write_atomically`, `remove_tree` and reads of cold data can take long
and belong in a thread.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fencepost_node.log.open_files import Buffer, OpenFiles, PooledFile, open_files_for
from fencepost_node.log.origin_mark import RealOriginMark, is_original
from fencepost_proto.transport.latencies import Latencies

_READ_BYTES = 1024 * 1024  # of a whole file, at a time
LOGS_PER_FILE = 4  # a log that is written to needs one file open, one that is not needs none


class File(Protocol):
    """One file, open for appending and for reading anywhere."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        ...

    def append(self, data: Buffer) -> None:
        """Write all of `data` at the end, to the page cache. On OSError a part of it may have been written and is
        counted in `size`; the caller truncates."""
        ...

    def overwrite(self, position: int, data: Buffer) -> None:
        """Write over bytes that are there, to the page cache: it takes no room on the disk."""
        ...

    def read(self, position: int, length: int) -> bytes:
        """Up to `length` bytes from `position`; fewer only at the end of the file."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def redirty(self, position: int) -> None:
        """Write what is there from `position` on once more: `sync` has all of it to put on disk, whatever an
        earlier one that failed has left behind."""
        ...

    def sync(self) -> None:
        """Return once all that was appended, cut or written again is on disk (fdatasync). On OSError what was
        written may never get there, though it is read from the cache, and a later `sync` succeeds."""
        ...

    def forget(self, position: int, length: int) -> None:
        """A hint: drop this from the page cache, so that the next `read` shows what is on disk. It must be synced."""
        ...

    def hold(self) -> None:
        """Keep the bytes in reach until `release`, whatever removes or renames the file meanwhile."""
        ...

    def release(self) -> None: ...

    def close(self) -> None: ...


class OriginMark(Protocol):
    """A file that no copy of it passes for; see `origin_mark`."""

    @property
    def is_original(self) -> bool: ...

    def renew(self) -> None:
        """Write it again, so that it is original, and differs from all copies of before. On OSError it may be neither."""
        ...

    def sync(self) -> None:
        """Return once its content is on disk."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """The files of one machine."""

    @property
    def sync_times(self) -> Latencies:
        """How long syncs of files took, for the metrics."""
        ...

    def open(self, path: str, *, create: bool = False) -> File:
        """Raises FileNotFoundError unless the file is there or `create` is set."""
        ...

    def read_bytes(self, path: str) -> bytes: ...

    def write_atomically(self, path: str, data: Buffer) -> None:
        """Put `data` at `path`, synced: after a crash at any moment the old content or the new is there, whole."""
        ...

    def exists(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool:
        """A folder itself, not a link to one. False where there is nothing."""
        ...

    def modified_ms(self, path: str) -> int:
        """When the file was last written to, by the machine's clock at that time."""
        ...

    def list(self, path: str) -> list[str]:
        """Names in the folder, sorted."""
        ...

    def make_directory(self, path: str) -> None:
        """With its parents; synced. No error where it exists."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return once files created, renamed and removed in the folder are so on disk."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None: ...

    def origin_mark(self, path: str) -> OriginMark:
        """The origin mark at `path`, to be renewed; where there is none, a file that is not original yet."""
        ...

    def is_original(self, path: str) -> bool:
        """Whether `path` is an origin mark, and no copy of one."""
        ...

    def boot_id(self) -> str:
        """Changes whenever the machine starts again, and with it unsynced data may be gone."""
        ...

    def crowding_folders(self) -> Sequence[str]:
        """Where files with unsynced data keep more files open than there should be: their folders, to be synced soon."""
        ...

    def most_logs(self) -> int:
        """How many logs this process can keep: beyond that it would spend its time on opening and closing files."""
        ...


class RealDisk:
    """The machine's file system. Keeps few files open, whatever the logs have open: see `open_files`."""

    def __init__(self, open_files: OpenFiles | None = None) -> None:
        self.open_files = open_files or open_files_for()

    @property
    def sync_times(self) -> Latencies:
        return self.open_files.sync_times

    def open(self, path: str, *, create: bool = False) -> File:
        return PooledFile(self.open_files, path, create=create)

    def read_bytes(self, path: str) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, min(size + 1, _READ_BYTES))
            if len(data) == size:  # it ends there, as far as a read has shown
                return data
            parts = [data]
            while part := os.read(descriptor, _READ_BYTES):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write_atomically(self, path: str, data: Buffer) -> None:
        temporary = f"{path}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        self.sync_directory(os.path.dirname(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (OSError, ValueError):
            return False

    def modified_ms(self, path: str) -> int:
        return os.stat(path).st_mtime_ns // 1_000_000

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self.sync_directory(os.path.dirname(path))  # where it exists, too: who made it may not have come to this

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_tree(self, path: str) -> None:
        shutil.rmtree(path)

    def origin_mark(self, path: str) -> OriginMark:
        return RealOriginMark(path)

    def is_original(self, path: str) -> bool:
        return is_original(path)

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def crowding_folders(self) -> Sequence[str]:
        return self.open_files.crowding_folders()

    def most_logs(self) -> int:
        return self.open_files.budget * LOGS_PER_FILE
