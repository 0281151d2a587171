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
from pathlib import Path
from typing import Protocol

from fencepost_proto.medium import write_again

Buffer = bytes | bytearray | memoryview


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

    def read(self, position: int, length: int) -> bytes:
        """Up to `length` bytes from `position`; fewer only at the end of the file."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def write_again(self, position: int) -> None:
        """Write what is there from `position` on once more: `sync` has all of it to put on the medium, whatever an
        earlier one that failed has left behind."""
        ...

    def sync(self) -> None:
        """Return once all that was appended, cut or written again is on the medium (fdatasync). On OSError what was
        written may never get there, though it is read from the cache, and a later `sync` succeeds."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """The files of one machine."""

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

    def list(self, path: str) -> list[str]:
        """Names in the folder, sorted."""
        ...

    def make_directory(self, path: str) -> None:
        """With its parents; synced. No error where it exists."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return once files created, renamed and removed in the folder are so on the medium."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None: ...

    def boot_id(self) -> str:
        """Changes whenever the machine starts anew, and with it unsynced data may be gone."""
        ...


class RealFile:
    """A file of the operating system."""

    __slots__ = ("_descriptor", "_size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self._size)
            self._size += written
            view = view[written:]

    def read(self, position: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, position)
        if len(data) == length or not data:
            return data
        parts = [data]
        missing = length - len(data)
        while missing:
            data = os.pread(self._descriptor, missing, position + length - missing)
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self._size = size

    def write_again(self, position: int) -> None:
        write_again(self._descriptor, position)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class RealDisk:
    """The machine's file system."""

    def open(self, path: str, *, create: bool = False) -> File:
        return RealFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644))

    def read_bytes(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def write_atomically(self, path: str, data: Buffer) -> None:
        temporary = f"{path}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
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
        return os.path.isdir(path) and not os.path.islink(path)

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
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

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
