"""A bounded number of open files for a whole process: opened when they are used, closed when others need the room.

Theory of operation. A broker has some files for each segment of each partition, and few of them are in use at a time. So a
`PooledFile` is a path with a size; its descriptor is opened by the first call that needs it. Where more than `budget`
descriptors are open, the least recently used ones are closed.

- A file is never closed under a call that uses it, nor while a reader holds it (`hold`): the reader of a segment that leaves
  the log meanwhile goes on with the bytes that it began with.
- A file with data that is not synced is not closed: between close and open the system may forget that writing back has
  failed, and the next sync would confirm what is lost. Such files may exceed the budget; `crowding_folders` names those
  to sync then. Beyond `limit` an open is refused (EMFILE), before the process has no descriptor left for its sockets.
- A file that is opened again must be the one that it was (device and inode): another one in its place is an error.

Thread-safe. The lock is held over bookkeeping only, never over a system call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import time
from collections import OrderedDict

from fencepost_proto.runtime.fsync import redirty
from fencepost_proto.transport.latencies import Latencies

Buffer = bytes | bytearray | memoryview

RESERVED = 64  # descriptors of connections and of what else a process has open, at least
LEAST = 32
DEFAULT_BUDGET = 8_192  # more than that is not worth keeping open
_MOST = 1 << 20

CLOSED = -1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE)
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_FILE_MODE = 0o600


def open_files_for(max_open_files: int = 0) -> OpenFiles:
    """As many as the process may open (RLIMIT_NOFILE), less what its connections need; or `max_open_files`, unless 0.

    Raises ValueError where the system allows fewer than that.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        allowed = _MOST
    limit = max(allowed - max(RESERVED, allowed // 8), LEAST)
    if max_open_files > limit:
        raise ValueError(
            f"max_open_files = {max_open_files}: at most {limit} where the system allows {allowed} (ulimit -n)"
        )
    budget = max_open_files or min(limit * 3 // 4, DEFAULT_BUDGET)
    return OpenFiles(budget, limit)


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows without asking anyone: the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (soft, resource.RLIM_INFINITY):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class OpenFiles:
    """The open files of one process: at most `budget`, but for those with unsynced data; never more than `limit`."""

    def __init__(self, budget: int, limit: int) -> None:
        self.budget = budget
        self.limit = limit
        self.sync_times = Latencies()  # of data; threads sync side by side, see `synced`
        self._lock = threading.Lock()
        self._count = 0
        self._idle: OrderedDict[PooledFile, None] = OrderedDict()  # may be closed; the least recently used first
        self._unsynced: dict[PooledFile, None] = {}  # may not; those that have been so for longest first

    @property
    def count(self) -> int:
        return self._count

    def crowding_folders(self) -> list[str]:
        """Where more than the budget is open for want of syncs: folders of such files, those that wait for longest first."""
        if self._count <= self.budget:
            return []
        with self._lock:
            surplus = self._count - self.budget
            oldest = [file for file, _ in zip(self._unsynced, range(surplus), strict=False)]
        return list(dict.fromkeys(os.path.dirname(file.path) for file in oldest))

    # ---- For PooledFile ----

    def synced(self, seconds: float) -> None:
        """[any thread] A file's data have gone to disk."""
        with self._lock:
            self.sync_times.add(seconds)

    def acquire(self, file: PooledFile) -> int:
        """Its descriptor, open until `release`. Raises OSError."""
        with self._lock:
            if file.closed:
                file.check_usable()
            file.users += 1
            acquired = file.descriptor
            if acquired != CLOSED:
                if file.is_idle:
                    file.is_idle = False
                    del self._idle[file]
                return acquired
        try:
            descriptor = self._open(file)
        except BaseException:
            self.release(file)
            raise
        with self._lock:
            if file.descriptor == CLOSED:  # else another thread was faster
                file.descriptor, descriptor = descriptor, CLOSED
                self._count += 1
            acquired = file.descriptor
        if descriptor != CLOSED:
            os.close(descriptor)
        self._close_surplus(0)
        return acquired

    def release(self, file: PooledFile) -> None:
        closed = CLOSED
        with self._lock:
            file.users -= 1
            if not file.users and file.descriptor != CLOSED:
                if file.closed:
                    closed = self._let_go(file)
                elif file.unsynced:
                    self._unsynced[file] = None  # where it may be already: appends come many to a sync
                else:
                    self._unsynced.pop(file, None)
                    self._idle[file] = None
                    file.is_idle = True
            is_over = self._count > self.budget
        if closed != CLOSED:
            os.close(closed)
        if is_over:
            self._close_surplus(0)

    def close(self, file: PooledFile) -> None:
        """Permanently; where it is in use, when that ends."""
        closed = CLOSED
        with self._lock:
            file.closed = True
            if not file.users and file.descriptor != CLOSED:
                closed = self._let_go(file)
        if closed != CLOSED:
            os.close(closed)

    def _let_go(self, file: PooledFile) -> int:
        """The lock is held."""
        self._idle.pop(file, None)
        self._unsynced.pop(file, None)
        file.is_idle = False
        descriptor, file.descriptor = file.descriptor, CLOSED
        self._count -= 1
        return descriptor

    def _open(self, file: PooledFile) -> int:
        if self._count >= self.limit:
            self._close_surplus(1)
            if self._count >= self.limit:
                told = f"{self._count} files are open and have unsynced data or readers; this process may have {self.limit}"
                raise OSError(errno.EMFILE, told, file.path)
        try:
            return file.open_descriptor()
        except OSError as error:
            if error.errno not in _EXHAUSTED or not self._close_surplus(max(self._count - self.budget // 2, 1)):
                raise
            return file.open_descriptor()

    def _close_surplus(self, wanted: int) -> int:
        """Close idle files beyond the budget, or `wanted` of them where that is more. Returns how many were closed."""
        if self._count <= self.budget and not wanted:
            return 0
        with self._lock:
            number = min(max(self._count - self.budget, wanted), len(self._idle))
            closed = [self._let_go(next(iter(self._idle))) for _ in range(number)]
        for descriptor in closed:
            os.close(descriptor)
        return len(closed)


class PooledFile:
    """A file of the operating system whose descriptor is opened on demand. Implements `disk.File`."""

    __slots__ = (
        "_create",
        "_identity",
        "_pool",
        "_size",
        "_synced_writes",
        "_writes",
        "closed",
        "descriptor",
        "is_idle",
        "path",
        "users",
    )

    def __init__(self, pool: OpenFiles, path: str, *, create: bool) -> None:
        """Raises FileNotFoundError unless the file is there or `create` is set, OSError."""
        self._pool = pool
        self._writes = 0  # counted when each is over: a sync that runs meanwhile, in another thread, may not meet it
        self._synced_writes = 0
        self.path = path
        self.descriptor = CLOSED  # the pool guards this and the next three
        self.users = 0
        self.closed = False
        self.is_idle = False  # open, and may be closed
        self._size = 0
        self._identity: tuple[int, int] | None = None  # (device, inode), once it is known
        self._create = create
        if create:
            pool.acquire(self)
            pool.release(self)
        else:
            self._recognise(os.stat(path))

    def _recognise(self, status: os.stat_result) -> None:
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size

    def open_descriptor(self) -> int:
        descriptor = os.open(self.path, _FLAGS | (os.O_CREAT if self._create else 0), _FILE_MODE)
        status = os.fstat(descriptor)
        if self._identity is None:
            self._create = False
            self._recognise(status)
        elif (status.st_dev, status.st_ino) != self._identity:
            os.close(descriptor)
            raise OSError(errno.ESTALE, "another file stands in its place", self.path)
        return descriptor

    def check_usable(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "the file is closed", self.path)

    @property
    def unsynced(self) -> bool:
        return self._writes != self._synced_writes

    @property
    def size(self) -> int:
        return self._size

    def hold(self) -> None:
        self._pool.acquire(self)

    def release(self) -> None:
        self._pool.release(self)

    def append(self, data: Buffer) -> None:
        descriptor = self._pool.acquire(self)
        try:
            written = os.pwrite(descriptor, data, self._size)
            self._size += written
            if written < len(data):
                self._append_rest(descriptor, memoryview(data)[written:])
        finally:
            self._writes += 1
            self._pool.release(self)

    def _append_rest(self, descriptor: int, rest: memoryview) -> None:
        while rest:
            written = os.pwrite(descriptor, rest, self._size)
            self._size += written
            rest = rest[written:]

    def overwrite(self, position: int, data: Buffer) -> None:
        descriptor = self._pool.acquire(self)
        try:
            written = os.pwrite(descriptor, data, position)
            if written != len(data):
                raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written")
        finally:
            self._writes += 1
            self._pool.release(self)

    def read(self, position: int, length: int) -> bytes:
        descriptor = self._pool.acquire(self)
        try:
            data = os.pread(descriptor, length, position)
            if len(data) == length or not data:
                return data
            parts = [data]
            missing = length - len(data)
            while missing:
                data = os.pread(descriptor, missing, position + length - missing)
                if not data:
                    break
                parts.append(data)
                missing -= len(data)
            return b"".join(parts)
        finally:
            self._pool.release(self)

    def forget(self, position: int, length: int) -> None:
        descriptor = self._pool.acquire(self)
        try:
            os.posix_fadvise(descriptor, position, length, os.POSIX_FADV_DONTNEED)
        finally:
            self._pool.release(self)

    def truncate(self, size: int) -> None:
        descriptor = self._pool.acquire(self)
        try:
            os.ftruncate(descriptor, size)
            self._size = size
        finally:
            self._writes += 1
            self._pool.release(self)

    def redirty(self, position: int) -> None:
        descriptor = self._pool.acquire(self)
        try:
            redirty(descriptor, position)
        finally:
            self._writes += 1
            self._pool.release(self)

    def sync(self) -> None:
        descriptor = self._pool.acquire(self)
        try:
            writes = self._writes
            began = time.perf_counter()
            os.fdatasync(descriptor)
            self._synced_writes = writes
            self._pool.synced(time.perf_counter() - began)
        finally:
            self._pool.release(self)

    def close(self) -> None:
        self._pool.close(self)
