"""A broker's data folder: whose it is, and whether something in it may have been lost.

``meta.properties``
    broker.id, cluster.id; boot.id: the boot of the machine up to which every loss has been accounted for;
    broker.epoch: of the last registration.
``clean-shutdown``
    Written last by a clean shutdown, once everything is synced; removed, synced, before the next start writes anything.
``origin-mark``, ``origin-mark-synced``
    Distinguish this folder from a copy of it; see `fencepost_node.log.origin_mark`. The first is renewed while the broker
    runs, and counts until the machine starts again; then the second does.

**May the tail be lost?** The kernel keeps what a killed process wrote; a machine that goes down does not. So unsynced
data may be gone exactly if the machine has booted since (its boot id is not the one in meta.properties) and the last
shutdown was not clean. The new boot id is recorded only when the loss has been reported, that is when the controller
has acknowledged the registration: a process killed between its start and that moment leaves the question open for the
next one. After a clean shutdown it is recorded before the marker goes, for the same reason turned round: a start that
is killed early must not make a clean folder look suspect.

**Is it an older copy?** Folders are put back from backups, and then lack what was acknowledged since.

- One from before the last registration has an earlier broker epoch than the controller knows. The epoch is written when a
  registration is acknowledged, before anything is done under it, and reported with the next registration; the controller
  decides (see its `decisions/brokers.py`).
- One that was copied while the broker was running, or after it was killed, and put back after the broker had gone on under
  the same epoch, has no clean-shutdown marker, and its origin mark is a copy. As with a loss of power, what follows from
  that is recorded (the marks are made again) only when the controller has acknowledged it.
- After a clean shutdown the folder may be copied and moved: its broker can go on only by registering again. The marker names
  the mark beside which it was written, so it confirms no older files that a backup was mixed with.

A folder without meta.properties has lost everything there ever was (a disk was replaced), or is new; it counts as
having lost its tail, which costs a new broker nothing.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from fencepost_node.log.disk import Disk, OriginMark
from fencepost_proto.protocol.errors import InconsistentClusterId

META: Final = "meta.properties"
CLEAN_SHUTDOWN: Final = "clean-shutdown"
ORIGIN_MARK: Final = "origin-mark"
SYNCED_MARK: Final = "origin-mark-synced"
NO_EPOCH: Final = 0  # below every broker epoch: never registered, or only with a version that did not write it

_KEYS: Final = {"broker.id", "cluster.id", "boot.id", "broker.epoch"}
_LATER_KEYS: Final = {"broker.epoch"}  # not in the folders of earlier versions


class DataFolderError(Exception):
    """The folder cannot be this broker's; the message names both sides."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The content of meta.properties."""

    broker_id: int
    cluster_id: str = ""  # empty: never registered
    boot_id: str = ""
    broker_epoch: int = NO_EPOCH

    def encode(self) -> bytes:
        lines = [
            f"broker.id={self.broker_id}",
            f"cluster.id={self.cluster_id}",
            f"boot.id={self.boot_id}",
            f"broker.epoch={self.broker_epoch}",
        ]
        return ("\n".join(lines) + "\n").encode()

    @staticmethod
    def decode(data: bytes) -> Meta:
        """Raises ValueError for anything that encode() does not write."""
        pairs = dict(line.split("=", 1) for line in data.decode().splitlines() if line)
        if not _KEYS - _LATER_KEYS <= pairs.keys() <= _KEYS:
            raise ValueError(f"keys {sorted(pairs)}")
        broker_epoch = int(pairs.get("broker.epoch", NO_EPOCH))
        return Meta(int(pairs["broker.id"]), pairs["cluster.id"], pairs["boot.id"], broker_epoch)


class DataFolder:
    """All methods block: call them in a thread, one at a time; only `renew_mark` may run beside another."""

    def __init__(self, disk: Disk, path: str, broker_id: int) -> None:
        self._disk = disk
        self._path = path
        self._meta = Meta(broker_id)
        self._lock = threading.Lock()
        self._marks: tuple[OriginMark, OriginMark] | None = None  # the one that is renewed, the one that is synced
        self.may_have_lost_tail = True  # until open() knows better, or a registration has reported it
        self.is_copy = False  # likewise
        self.was_clean = False

    @property
    def cluster_id(self) -> str:
        """Empty: this folder has not been in a cluster."""
        return self._meta.cluster_id

    @property
    def broker_epoch(self) -> int:
        """Of the last registration that this folder knows of; NO_EPOCH: of none."""
        return self._meta.broker_epoch

    def open(self) -> None:
        """Check that the folder is this broker's, and take away the clean-shutdown marker.

        Raises DataFolderError, or OSError where the disk refuses.
        """
        self._disk.make_directory(self._path)
        has_marker = self._disk.exists(self._file(CLEAN_SHUTDOWN))
        if self._disk.exists(self._file(META)):
            self._meta = self._read_meta()
            self.was_clean = has_marker and self._marker_fits()
            if not self.was_clean:
                rebooted = self._meta.boot_id != self._disk.boot_id()
                mark = self._file(SYNCED_MARK if rebooted else ORIGIN_MARK)
                self.is_copy = self._meta.broker_epoch > NO_EPOCH and not self._disk.is_original(mark)
                self.may_have_lost_tail = rebooted or self.is_copy
            else:
                self.may_have_lost_tail = False
        if self.was_clean:
            self._write_meta(self._meta.cluster_id, self._meta.broker_epoch)
            self._make_marks()  # after which the marker does not fit any more
        if has_marker:
            self._disk.remove(self._file(CLEAN_SHUTDOWN))
        # Where there is no marker, too: a start that was killed may have removed it, and not come to this.
        self._disk.sync_directory(self._path)

    def registered(self, cluster_id: str, broker_epoch: int) -> None:
        """The controller has acknowledged a registration: record cluster and epoch, and that it knows of any loss.

        Raises InconsistentClusterId where the folder belongs to another cluster, OSError.
        """
        if self.cluster_id and self.cluster_id != cluster_id:
            raise InconsistentClusterId(
                f"data folder {self._path!r} belongs to cluster {self.cluster_id}; the controller's is {cluster_id}"
            )
        if self._marks is not None and (cluster_id, broker_epoch) == (self.cluster_id, self.broker_epoch):
            return  # another session of this process: all of that stands, and a full disk need not take it again
        self._make_marks()  # before the epoch: a folder with an epoch and without a mark is a copy
        self._write_meta(cluster_id, broker_epoch)
        self.may_have_lost_tail = self.is_copy = False

    def renew_mark(self) -> None:
        """Again and again while the broker runs. Raises OSError."""
        with self._lock:
            if self._marks is not None:
                renewed, synced = self._marks
                renewed.renew()
                _make_original(synced)  # its owner may have been changed

    def mark_clean(self) -> None:
        """Everything in the folder is synced and nothing will be written any more.

        A loss that the controller does not know stays open: the marker would say that there was none.
        """
        if self.may_have_lost_tail:
            return
        with self._lock:
            for mark in self._marks or ():
                mark.sync()
        self.close()
        content = f"{self._disk.boot_id()}\n".encode() + self._mark_content()
        self._disk.write_atomically(self._file(CLEAN_SHUTDOWN), content)

    def close(self) -> None:
        """Renew the origin mark no more. May be called again."""
        with self._lock:
            for mark in self._marks or ():
                mark.close()
            self._marks = None

    # ---- Origin marks ----

    def _make_marks(self) -> None:
        with self._lock:
            if self._marks is not None:
                return
            with ExitStack() as opened:
                synced = self._disk.origin_mark(self._file(SYNCED_MARK))
                opened.callback(synced.close)
                _make_original(synced)
                renewed = self._disk.origin_mark(self._file(ORIGIN_MARK))
                opened.callback(renewed.close)
                renewed.renew()
                self._disk.sync_directory(self._path)
                opened.pop_all()
            self._marks = renewed, synced

    def _mark_content(self) -> bytes:
        path = self._file(ORIGIN_MARK)
        return self._disk.read_bytes(path) if self._disk.exists(path) else b""

    def _marker_fits(self) -> bool:
        """Whether the clean-shutdown marker was written for the files that are here."""
        _, _, mark = self._disk.read_bytes(self._file(CLEAN_SHUTDOWN)).partition(b"\n")
        return mark == self._mark_content() or self._meta.broker_epoch == NO_EPOCH

    # ---- meta.properties ----

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

    def _write_meta(self, cluster_id: str, broker_epoch: int) -> None:
        meta = Meta(self._meta.broker_id, cluster_id, self._disk.boot_id(), broker_epoch)
        if meta != self._meta:
            self._disk.write_atomically(self._file(META), meta.encode())
            self._meta = meta

    def _file(self, name: str) -> str:
        return f"{self._path}/{name}"


def _make_original(mark: OriginMark) -> None:
    """And synced. Raises OSError."""
    if not mark.is_original:
        mark.renew()
        mark.sync()
