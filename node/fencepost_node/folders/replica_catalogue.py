"""Which logs a broker's data folder has to hold, so that one which is gone, or is an older copy, is missed at the start.

The file ``replicas`` has a line for each log that was made (`+`) or left the folder (`-`), appended in this order: first the
folder, then its line, synced, then the first record; first the line, then the folder goes. So a kill between folder and line
leaves a folder without a line, which the next start adds; it also syncs what a kill may have left in the page cache.
A clean end writes the file again, with where each log ends. Where there are no logs there is no file.

Without it, a log that is gone would look like one of a partition that has just been created, and an empty one would be
made for it, while this broker may be the last in sync: everything that it acknowledged would be lost silently.

A power failure may take lines that were not synced, or parts of them: of logs without a record yet, and of logs that left,
which may seem to be there still. What is no line is passed over, and the file is written again, so that no later line is
joined to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fencepost_node.log.disk import Disk
from fencepost_proto.protocol.metadata import PartitionKey

log = logging.getLogger(__name__)

CATALOGUE: Final = "replicas"
UNKNOWN_OFFSET: Final = -1
UNKNOWN_EPOCH: Final = -1
_FIELDS: Final = 6  # of a line: + topic id, partition, end offset, last epoch, folder
_FIELDS_REMOVED: Final = 3  # - topic id, partition


@dataclass(frozen=True, slots=True)
class Entry:
    """One log. `end_offset` and `last_epoch` as a clean end left it; UNKNOWN_OFFSET: made since."""

    topic_id: str
    partition: int
    folder: str  # its name in the data folder
    end_offset: int = UNKNOWN_OFFSET
    last_epoch: int = UNKNOWN_EPOCH

    @property
    def key(self) -> PartitionKey:
        return self.topic_id, self.partition

    def encode(self) -> str:
        return f"+ {self.topic_id} {self.partition} {self.end_offset} {self.last_epoch} {self.folder}\n"


class ReplicaCatalogue:
    """All methods block: call them in a thread."""

    def __init__(self, disk: Disk, data_dir: str) -> None:
        self.entries: dict[PartitionKey, Entry] = {}
        self.torn = False  # what was loaded had parts that are no lines
        self._disk = disk
        self._data_dir = data_dir
        self._path = f"{data_dir}/{CATALOGUE}"
        self._lock = threading.Lock()
        self._appended = 0  # lines of new logs, since the start …
        self._synced = 0  # … and how many of them are on disk
        self._is_new = False  # the file was made since the last sync
        self._sync_lock = threading.Lock()  # taken before the other one

    def load(self) -> None:
        """Raises OSError."""
        if not self._disk.exists(self._path):
            return
        content = self._disk.read_bytes(self._path).decode(errors="replace")
        self.torn = bool(content) and not content.endswith("\n")
        for line in content.splitlines():
            try:
                self._take(line.split(" ", _FIELDS - 1))
            except ValueError as error:
                self.torn = True
                log.warning("line is passed over path=%s line=%r error=%s", self._path, line[:200], error)

    def _take(self, fields: list[str]) -> None:
        match fields:
            case ["+", topic_id, partition, end_offset, last_epoch, folder]:
                entry = Entry(topic_id, int(partition), folder, int(end_offset), int(last_epoch))
                self.entries[entry.key] = entry
            case ["-", topic_id, partition]:
                self.entries.pop((topic_id, int(partition)), None)
            case _:
                raise ValueError(f"{len(fields)} fields; {_FIELDS} begin with +, {_FIELDS_REMOVED} with -")

    def add(self, entry: Entry) -> None:
        """A log has been made, and nothing written into it. Returns once the catalogue has it on disk."""
        with self._lock:
            known = self.entries.get(entry.key)
            self.entries[entry.key] = entry
            if known is not None and known.folder == entry.folder:
                return
            self._append(entry.encode())
            self._appended += 1
            line = self._appended
        with self._sync_lock:
            if self._synced < line:  # else another thread has synced this one, too
                self._sync()

    def sync_again(self) -> None:
        """Put the whole file on disk, whatever an earlier process left unsynced, or synced in vain."""
        with self._sync_lock:
            self._sync(from_start=True)

    def _sync(self, *, from_start: bool = False) -> None:
        with self._lock:
            appended, is_new, self._is_new = self._appended, self._is_new, False
            if not self.entries:
                return
        try:
            file = self._disk.open(self._path)
            try:
                if from_start:
                    file.redirty(0)
                file.sync()
            finally:
                file.close()
            if is_new or from_start:
                self._disk.sync_directory(self._data_dir)
        except OSError as error:
            log.warning("catalogue cannot be synced path=%s error=%s", self._path, error)
        self._synced = appended

    def remove_folder(self, folder: str) -> None:
        """Whatever log that was, it is about to leave."""
        with self._lock:
            for key in [key for key, entry in self.entries.items() if entry.folder == folder]:
                del self.entries[key]
                if self.entries:
                    self._append(f"- {key[0]} {key[1]}\n")
                else:
                    self._remove()

    def write(self, entries: Iterable[Entry]) -> None:
        """These, and no others; synced. Raises OSError."""
        with self._lock:
            self.entries = {entry.key: entry for entry in entries}
            if not self.entries:
                self._remove()
                return
            content = "".join(entry.encode() for _, entry in sorted(self.entries.items()))
            self._disk.write_atomically(self._path, content.encode())

    def _remove(self) -> None:
        try:
            if self._disk.exists(self._path):
                self._disk.remove(self._path)
        except OSError as error:
            log.warning("catalogue cannot be removed path=%s error=%s", self._path, error)

    def _append(self, line: str) -> None:
        """Where the disk refuses, the catalogue is behind what there is, and the next start adds to it."""
        try:
            self._is_new |= not self._disk.exists(self._path)
            file = self._disk.open(self._path, create=True)
            size = file.size
            try:
                file.append(line.encode())
            except OSError:
                file.truncate(size)
                raise
            finally:
                file.close()
        except OSError as error:
            log.warning("catalogue cannot be written path=%s error=%s", self._path, error)
