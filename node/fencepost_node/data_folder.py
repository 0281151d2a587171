"""A broker's data folder: whose it is, and whether something in it may have been lost.

``meta.properties``
    broker.id, cluster.id, and boot.id: the boot of the machine up to which every loss has been accounted for.
``clean-shutdown``
    Written last by a clean shutdown, once everything is synced; removed, synced, before the next start writes anything.

**May the tail be lost?** The kernel keeps what a killed process wrote; a machine that goes down does not. So unsynced
data may be gone exactly if the machine has booted since (its boot id is not the one in meta.properties) and the last
shutdown was not clean. The new boot id is recorded only when the loss has been reported, that is when the controller
has acknowledged the registration: a process killed between its start and that moment leaves the question open for the
next one. After a clean shutdown it is recorded before the marker goes, for the same reason turned round: a start that
is killed early must not make a clean folder look suspect.

A folder without meta.properties has lost everything there ever was (a disk was replaced), or is new; it counts as
having lost its tail, which costs a new broker nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fencepost_node.log.disk import Disk
from fencepost_proto.errors import InconsistentClusterId

META: Final = "meta.properties"
CLEAN_SHUTDOWN: Final = "clean-shutdown"


class DataFolderError(Exception):
    """The folder cannot be this broker's; the message names both sides."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The content of meta.properties."""

    broker_id: int
    cluster_id: str = ""  # empty: never registered
    boot_id: str = ""

    def encode(self) -> bytes:
        lines = [f"broker.id={self.broker_id}", f"cluster.id={self.cluster_id}", f"boot.id={self.boot_id}"]
        return ("\n".join(lines) + "\n").encode()

    @staticmethod
    def decode(data: bytes) -> Meta:
        """Raises ValueError for anything that encode() does not write."""
        pairs = dict(line.split("=", 1) for line in data.decode().splitlines() if line)
        if pairs.keys() != {"broker.id", "cluster.id", "boot.id"}:
            raise ValueError(f"keys {sorted(pairs)}")
        return Meta(int(pairs["broker.id"]), pairs["cluster.id"], pairs["boot.id"])


class DataFolder:
    """All methods block: call them in a thread, one at a time."""

    def __init__(self, disk: Disk, path: str, broker_id: int) -> None:
        self._disk = disk
        self._path = path
        self._meta = Meta(broker_id)
        self.may_have_lost_tail = True  # until open() knows better, or a registration has told the controller
        self.was_clean = False

    @property
    def cluster_id(self) -> str:
        """Empty: this folder has not been in a cluster."""
        return self._meta.cluster_id

    def open(self) -> None:
        """Check that the folder is this broker's, and take away the clean-shutdown marker.

        Raises DataFolderError, or OSError where the disk refuses.
        """
        self._disk.make_directory(self._path)
        self.was_clean = self._disk.exists(self._file(CLEAN_SHUTDOWN))
        if self._disk.exists(self._file(META)):
            self._meta = self._read_meta()
            self.may_have_lost_tail = not self.was_clean and self._meta.boot_id != self._disk.boot_id()
        if self.was_clean:
            self._write_meta(self._meta.cluster_id)
            self._disk.remove(self._file(CLEAN_SHUTDOWN))
        # Where there is no marker, too: a start that was killed may have removed it, and not come to this.
        self._disk.sync_directory(self._path)

    def registered(self, cluster_id: str) -> None:
        """The controller has acknowledged a registration: record its cluster, and that it knows of any loss.

        Raises InconsistentClusterId where the folder belongs to another cluster.
        """
        if self.cluster_id and self.cluster_id != cluster_id:
            raise InconsistentClusterId(
                f"data folder {self._path!r} belongs to cluster {self.cluster_id}; the controller's is {cluster_id}"
            )
        self._write_meta(cluster_id)
        self.may_have_lost_tail = False

    def mark_clean(self) -> None:
        """Everything in the folder is synced and nothing will be written any more.

        A loss that the controller has not heard of stays open: the marker would say that there was none.
        """
        if self.may_have_lost_tail:
            return
        self._disk.write_atomically(self._file(CLEAN_SHUTDOWN), f"{self._disk.boot_id()}\n".encode())

    def _read_meta(self) -> Meta:
        path = self._file(META)
        try:
            meta = Meta.decode(self._disk.read_bytes(path))
        except ValueError as error:
            raise DataFolderError(f"{path!r} is not readable: {error}") from error
        if meta.broker_id != self._meta.broker_id:
            raise DataFolderError(
                f"data folder {self._path!r} belongs to broker {meta.broker_id}; "
                f"the configuration says broker_id = {self._meta.broker_id}"
            )
        return meta

    def _write_meta(self, cluster_id: str) -> None:
        meta = Meta(self._meta.broker_id, cluster_id, self._disk.boot_id())
        if meta != self._meta:
            self._disk.write_atomically(self._file(META), meta.encode())
            self._meta = meta

    def _file(self, name: str) -> str:
        return f"{self._path}/{name}"
