"""The disk of one simulated machine: a file system with a page cache, which can fail in every way a log must survive.

Theory of operation. A file's content is what readers see: the page cache. Beside it the file remembers what is on the
disk: everything up to `_clean_bytes`, then, if the file was cut below that since the last sync, the old tail. A folder
likewise keeps its entries as seen, and as they are on disk, with the changes between the two in order.

- A process that dies leaves the page cache as it is.
- A power failure keeps of each folder a seeded prefix of its unsynced changes, and of each file what was synced plus a
  seeded prefix of what was not; the last block of that may hold zeros or noise, as a file system that journals sizes
  before data leaves it. A failed sync, too, leaves the pages clean and not on disk (as Linux does), so a later
  sync that succeeds saves nothing of them that was not written again. Such pages may also leave the cache without a
  power failure (`drop_lost_pages`): what is read then is what the disk holds, no bytes of theirs.

`SimDisk` is the machine's; each process mounts it (`mount`), and once the process is dead every operation on its mount
raises ProcessEnded. Faults to come are set on the machine's disk, by kind of operation and path.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fencepost_proto.transport.latencies import Latencies
from tests.simulation.process import SimProcess

BLOCK_BYTES = 512
MAX_NAME_BYTES = 255

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Fault:
    """The next `count` operations of one of the `kinds` on a path that contains `where` fail with `code`."""

    kinds: tuple[str, ...]
    code: int
    where: str = ""
    count: int = 1
    skip: int = 0


class FileNode:
    """One file: what readers see, and what would be left after a power failure."""

    __slots__ = (
        "_again_from",
        "_clean_bytes",
        "_lost",
        "_old_tail",
        "_overwritten",
        "content",
        "cuts",
        "modified_ms",
        "name",
        "origin",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.content = bytearray()
        self.modified_ms = 0
        self.cuts = 0  # how often anything but an append changed it
        self.origin = 0  # the number of its last origin mark, which no copy of the file has
        self._clean_bytes = 0  # content below this is on disk …
        self._old_tail = b""  # … and after it, on disk, this
        self._lost: list[tuple[int, int]] = []  # ranges that a failed sync threw away …
        self._again_from: int | None = None  # … and from where on they were written again since
        self._overwritten: list[tuple[int, bytes]] = []  # position and old bytes of what was written over since a sync

    def append(self, data: Buffer) -> None:
        self.content += data

    def truncate(self, size: int) -> None:
        self.cuts += 1
        if size < self._clean_bytes:
            self._old_tail = bytes(self.content[size : self._clean_bytes]) + self._old_tail
            self._clean_bytes = size
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))
        self._lost = [(start, min(end, size)) for start, end in self._lost if start < size]

    def overwrite(self, position: int, data: Buffer) -> None:
        """Over bytes that are there."""
        self.cuts += 1
        end = position + len(data)
        self._overwritten.append((position, bytes(self.content[position:end])))
        self.content[position:end] = data

    def redirty(self, position: int) -> None:
        self._again_from = position if self._again_from is None else min(self._again_from, position)

    def sync(self) -> None:
        if self._again_from is not None:
            again_from, self._again_from = self._again_from, None
            self._lost = [(start, min(end, again_from)) for start, end in self._lost if start < again_from]
        self._clean_bytes = len(self.content)
        self._old_tail = b""
        self._overwritten = []

    def fail_sync(self) -> None:
        self._again_from = None
        if self._clean_bytes < len(self.content):
            self._lost.append((self._clean_bytes, len(self.content)))
        self.sync()

    def drop_lost_pages(self) -> None:
        self.cuts += 1
        for start, end in self._lost:
            self.content[start:end] = bytes(end - start)
        self._lost = []

    @property
    def unsynced_bytes(self) -> int:
        return len(self.content) - self._clean_bytes

    def lose_power(self, chance: random.Random) -> None:
        self.drop_lost_pages()
        if self._overwritten:
            for position, old in self._overwritten[chance.randint(0, len(self._overwritten)) :][::-1]:
                self.content[position : position + len(old)] = old
        unsynced = len(self.content) - self._clean_bytes
        if self._old_tail and chance.random() < 0.5:  # the cut never reached the disk
            self.content[self._clean_bytes :] = self._old_tail
        elif unsynced:
            kept = chance.choice((0, unsynced, chance.randint(0, unsynced)))
            del self.content[self._clean_bytes + kept :]
            if kept and chance.random() < 0.5:  # the size was journalled, the last block was not written
                torn = min(kept, chance.randint(1, BLOCK_BYTES))
                noise = bytes(torn) if chance.random() < 0.5 else chance.randbytes(torn)
                self.content[len(self.content) - torn :] = noise
        self.sync()


class FolderNode:
    """One folder: its entries as seen and as they are on disk."""

    __slots__ = ("_changes", "_on_disk", "entries", "name", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0  # of the entries: rises with every change of them
        self.entries: dict[str, FileNode | FolderNode] = {}
        self._on_disk: dict[str, FileNode | FolderNode] = {}
        self._changes: list[dict[str, FileNode | FolderNode | None]] = []

    def put(self, changes: dict[str, FileNode | FolderNode | None]) -> None:
        """One change, whole or not at all (a rename inside a folder is two entries)."""
        self.version += 1
        self._changes.append(changes)
        _apply(self.entries, changes)

    def sync(self) -> None:
        self._on_disk = dict(self.entries)
        self._changes = []

    def lose_power(self, chance: random.Random) -> None:
        self.version += 1
        kept = chance.randint(0, len(self._changes))
        for changes in self._changes[:kept]:
            _apply(self._on_disk, changes)
        self.entries = dict(self._on_disk)
        self._changes = []
        for node in list(self.entries.values()):
            node.lose_power(chance)


def _apply(entries: dict[str, FileNode | FolderNode], changes: dict[str, FileNode | FolderNode | None]) -> None:
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


@dataclass(slots=True)
class DiskCounters:
    """What happened on a disk, for the coverage report."""

    faults: dict[str, int] = field(default_factory=dict)
    power_failures: int = 0
    bytes_lost: int = 0


class SimDisk:
    """The disk of one machine."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self.name = name
        self.root = FolderNode("/")
        self.capacity_bytes: int | None = None  # None: no limit
        self.faults: list[Fault] = []
        self.counters = DiskCounters()
        self.boot = 1
        self.origin_marks = 0
        self.operations = 0
        self.crash_at_operation = 0  # 0: never; else the process dies in the middle of that operation
        self.on_crash: Callable[[], None] = lambda: None
        self.clock: Callable[[], int] = lambda: 0  # the machine's, in ms
        self._random = chance

    def mount(self, process: SimProcess) -> MountedDisk:
        return MountedDisk(self, process)

    # ---- What happens to it ----

    def lose_power(self) -> None:
        self.counters.power_failures += 1
        before = self.used_bytes()
        self.root.lose_power(self._random)
        self.counters.bytes_lost += max(0, before - self.used_bytes())
        self.boot += 1

    def used_bytes(self) -> int:
        return sum(len(node.content) for _, node in self.files())

    def files(self) -> list[tuple[str, FileNode]]:
        """Every file with its path, in order of path."""
        found: list[tuple[str, FileNode]] = []

        def walk(prefix: str, folder: FolderNode) -> None:
            for name, node in sorted(folder.entries.items()):
                if isinstance(node, FileNode):
                    found.append((f"{prefix}/{name}", node))
                else:
                    walk(f"{prefix}/{name}", node)

        walk("", self.root)
        return found

    def corrupt(self, path: str, position: int, bits: int = 0xFF) -> None:
        """Flip these bits of one byte of a file, on disk as in the cache."""
        node = self.find(path)
        assert isinstance(node, FileNode)
        node.content[position] ^= bits
        node.cuts += 1
        self.folder(path.rpartition("/")[0]).version += 1

    # ---- Copies ----

    def copy_of(self, path: str) -> FolderNode:
        """A folder as readers see it now. No copy of a file passes for the file."""
        return _copy(self.folder(path))

    def put_back(self, path: str, copy: FolderNode) -> None:
        """A copy in the place of whatever is there, synced."""
        parent, name = _split(path)
        folder = self.folder(parent)
        folder.put({name: _copy(copy)})
        folder.sync()

    def content(self, path: str) -> dict[str, bytes]:
        """Every file below `path`."""
        return {file: bytes(node.content) for file, node in self.files() if file.startswith(f"{path}/")}

    # ---- Paths ----

    def find(self, path: str) -> FileNode | FolderNode | None:
        node: FileNode | FolderNode = self.root
        for part in _parts(path):
            if not isinstance(node, FolderNode) or part not in node.entries:
                return None
            node = node.entries[part]
        return node

    def folder(self, path: str) -> FolderNode:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        if isinstance(node, FileNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
        return node

    def file(self, path: str) -> FileNode:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if isinstance(node, FolderNode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", path)
        return node

    # ---- Faults ----

    def check(self, kind: str, path: str) -> None:
        """Raises OSError where a fault is due, and for a name that no file system takes."""
        if len(path.rpartition("/")[2].encode()) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "file name too long", path)
        for fault in self.faults:
            if kind in fault.kinds and fault.where in path:
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.count -= 1
                if fault.count <= 0:
                    self.faults.remove(fault)
                self.note(f"{errno.errorcode[fault.code]} on {kind}")
                raise OSError(fault.code, f"simulated fault on {kind}", path)

    def note(self, what: str) -> None:
        self.counters.faults[what] = self.counters.faults.get(what, 0) + 1

    def room(self, wanted: int) -> int:
        """How many of `wanted` bytes still fit."""
        if self.capacity_bytes is None:
            return wanted
        return max(0, min(wanted, self.capacity_bytes - self.used_bytes()))

    def step(self, process: SimProcess) -> None:
        """Before every operation: count it; the process may be dead, or die here."""
        process.check_alive()
        self.operations += 1
        if self.crash_at_operation and self.operations >= self.crash_at_operation:
            self.crash_at_operation = 0
            self.on_crash()
            process.check_alive()

    @property
    def chance(self) -> random.Random:
        return self._random


class MountedFile:
    """One open file of one process. Implements fencepost_node.log.disk.File."""

    __slots__ = ("_closed", "_disk", "_held", "_node", "_path", "_process")

    def __init__(self, disk: SimDisk, process: SimProcess, path: str, node: FileNode) -> None:
        self._disk = disk
        self._process = process
        self._path = path
        self._node = node
        self._held = 0
        self._closed = False

    def _step(self, kind: str) -> None:
        self._disk.step(self._process)
        if self._closed:
            raise OSError(errno.EBADF, "the file is closed", self._path)
        self._disk.check(kind, self._path)

    @property
    def size(self) -> int:
        return len(self._node.content)

    def append(self, data: Buffer) -> None:
        try:
            self._step("append")
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EROFS):  # a part may have been written
                self._node.append(bytes(data)[: self._disk.chance.randint(0, len(data))])
            raise
        room = self._disk.room(len(data))
        self._node.modified_ms = self._disk.clock()
        if room < len(data):
            self._node.append(bytes(data)[:room])
            self._disk.note("ENOSPC on append")
            raise OSError(errno.ENOSPC, "no space left on the simulated disk", self._path)
        self._node.append(data)

    def overwrite(self, position: int, data: Buffer) -> None:
        self._step("overwrite")
        self._node.overwrite(position, data)

    def read(self, position: int, length: int) -> bytes:
        self._step("read")
        return bytes(self._node.content[position : position + length])

    def truncate(self, size: int) -> None:
        self._step("truncate")
        self._node.truncate(size)

    def redirty(self, position: int) -> None:
        self._step("append")
        self._node.redirty(position)

    def sync(self) -> None:
        try:
            self._step("sync")
        except OSError as error:
            if error.errno != errno.EBADF:
                self._node.fail_sync()
            raise
        self._node.sync()

    def forget(self, position: int, length: int) -> None:
        """What is read is always what is on disk, or not there yet."""

    def hold(self) -> None:
        self._held += 1

    def release(self) -> None:
        self._held -= 1

    def close(self) -> None:
        self._closed = True


class MountedOriginMark:
    """Implements fencepost_node.log.disk.OriginMark."""

    def __init__(self, disk: SimDisk, process: SimProcess, path: str, node: FileNode) -> None:
        self._disk = disk
        self._process = process
        self._path = path
        self._node = node

    @property
    def is_original(self) -> bool:
        self._disk.step(self._process)
        self._disk.check("read", self._path)
        return _is_original(self._node)

    def renew(self) -> None:
        self._disk.step(self._process)
        self._disk.check("append", self._path)
        self._disk.origin_marks += 1
        self._node.origin = self._disk.origin_marks
        self._node.truncate(0)
        self._node.append(b"%020d\n" % self._node.origin)

    def sync(self) -> None:
        self._disk.step(self._process)
        self._disk.check("sync", self._path)
        self._node.sync()

    def close(self) -> None:
        pass


class MountedDisk:
    """The disk as one process sees it. Implements fencepost_node.log.disk.Disk."""

    def __init__(self, disk: SimDisk, process: SimProcess) -> None:
        self.sync_times = Latencies()  # stays empty: a sync takes no time here
        self._disk = disk
        self._process = process

    def _step(self, kind: str, path: str) -> None:
        self._disk.step(self._process)
        self._disk.check(kind, path)

    def open(self, path: str, *, create: bool = False) -> MountedFile:
        self._step("open", path)
        node = self._disk.find(path)
        if node is None and create:
            parent, name = _split(path)
            folder = self._disk.folder(parent)
            if self._disk.room(1) == 0:
                self._disk.note("ENOSPC on create")
                raise OSError(errno.ENOSPC, "no space left on the simulated disk", path)
            node = FileNode(name)
            folder.put({name: node})
        return MountedFile(self._disk, self._process, path, self._disk.file(path))

    def read_bytes(self, path: str) -> bytes:
        self._step("read", path)
        return bytes(self._disk.file(path).content)

    def write_atomically(self, path: str, data: Buffer) -> None:
        """In the steps of the real one, so that a crash can come between them."""
        temporary = f"{path}.tmp"
        self._step("create", temporary)
        parent, name = _split(temporary)
        node = FileNode(name)
        self._disk.folder(parent).put({name: node})
        self._step("append", temporary)
        room = self._disk.room(len(data))
        node.append(bytes(data)[:room])
        if room < len(data):
            self._disk.note("ENOSPC on write_atomically")
            raise OSError(errno.ENOSPC, "no space left on the simulated disk", path)
        self._step("sync", temporary)
        node.sync()
        self.rename(temporary, path)
        self.sync_directory(parent)

    def exists(self, path: str) -> bool:
        self._step("stat", path)
        return self._disk.find(path) is not None

    def is_folder(self, path: str) -> bool:
        self._step("stat", path)
        return isinstance(self._disk.find(path), FolderNode)

    def modified_ms(self, path: str) -> int:
        self._step("stat", path)
        return self._disk.file(path).modified_ms

    def list(self, path: str) -> list[str]:
        self._step("list", path)
        return sorted(self._disk.folder(path).entries)

    def make_directory(self, path: str) -> None:
        self._step("mkdir", path)
        folder = self._disk.root
        for part in _parts(path):
            child = folder.entries.get(part)
            if child is None:
                child = FolderNode(part)
                folder.put({part: child})
                folder.sync()
            if isinstance(child, FileNode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            folder = child

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory", path)
        self._disk.folder(path).sync()

    def rename(self, old: str, new: str) -> None:
        self._step("rename", new)
        old_parent, old_name = _split(old)
        new_parent, new_name = _split(new)
        source, target = self._disk.folder(old_parent), self._disk.folder(new_parent)
        node = source.entries.get(old_name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "nothing to rename", old)
        in_the_way = target.entries.get(new_name)
        if isinstance(in_the_way, FolderNode) and in_the_way.entries:
            raise OSError(errno.ENOTEMPTY, "folder is not empty", new)
        if source is target:
            source.put({old_name: None, new_name: node})
        else:
            target.put({new_name: node})
            source.put({old_name: None})

    def remove(self, path: str) -> None:
        self._step("remove", path)
        self._disk.file(path)
        parent, name = _split(path)
        self._disk.folder(parent).put({name: None})

    def remove_tree(self, path: str) -> None:
        self._step("remove_tree", path)
        folder = self._disk.folder(path)
        for name in sorted(folder.entries):
            child = f"{path}/{name}"
            if isinstance(folder.entries[name], FolderNode):
                self.remove_tree(child)
            else:
                self.remove(child)
        parent, name = _split(path)
        self._disk.folder(parent).put({name: None})

    def origin_mark(self, path: str) -> MountedOriginMark:
        self._step("open", path)
        parent, name = _split(path)
        folder = self._disk.folder(parent)
        if name not in folder.entries:
            if self._disk.room(1) == 0:
                self._disk.note("ENOSPC on create")
                raise OSError(errno.ENOSPC, "no space left on the simulated disk", path)
            folder.put({name: FileNode(name)})
        return MountedOriginMark(self._disk, self._process, path, self._disk.file(path))

    def is_original(self, path: str) -> bool:
        self._step("read", path)
        node = self._disk.find(path)
        return isinstance(node, FileNode) and _is_original(node)

    def boot_id(self) -> str:
        self._step("boot_id", "")
        return f"boot-{self._disk.name}-{self._disk.boot}"

    def crowding_folders(self) -> Sequence[str]:
        return ()

    def most_logs(self) -> int:
        return 1_000_000


def _is_original(node: FileNode) -> bool:
    return node.origin > 0 and node.content == b"%020d\n" % node.origin


def _copy(folder: FolderNode) -> FolderNode:
    copy = FolderNode(folder.name)
    for name, node in folder.entries.items():
        if isinstance(node, FolderNode):
            copy.entries[name] = _copy(node)
        else:
            file = FileNode(name)
            file.append(node.content)
            file.modified_ms = node.modified_ms
            file.sync()
            copy.entries[name] = file
    copy.sync()
    return copy


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name
