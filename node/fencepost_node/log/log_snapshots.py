"""The snapshots of one log: those in files, and those that are captured and wait for the disk.

A snapshot is captured in memory when the log's end is at its offset: that takes references only. It is written to a file
later, by `Log.maintain`, when everything below its offset has been synced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from fencepost_node.log.errors import CorruptLog
from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.recovery import fold
from fencepost_node.log.segment import Segment
from fencepost_node.log.snapshot import Snapshot, SnapshotFiles, empty_snapshot, encode_snapshot, snapshots_to_keep
from fencepost_node.log.state_machine import AnyMachine, States

log = logging.getLogger(__name__)


class LogSnapshots:
    """`files` are guarded by the log's `_maintenance`, `captured` by its `_lock`; a method that needs one says so."""

    def __init__(self, files: SnapshotFiles, captured: list[Snapshot], lock: threading.Lock) -> None:
        self.files = files
        self.captured = captured  # not yet written
        self._lock = lock

    # ---- Captured ones ----

    def drop_captured_above(self, end_offset: int) -> None:
        """The log was cut there. `_lock` is held."""
        self.captured = [snapshot for snapshot in self.captured if snapshot.offset <= end_offset]

    def write(self, captured: Iterable[Snapshot]) -> None:
        """Put into files what was captured; everything below must be synced. `_maintenance` is held. Raises OSError."""
        for snapshot in captured:
            self.files.write_snapshot(snapshot)
            with self._lock:
                self.captured.remove(snapshot)

    # ---- Files; `_maintenance` is held ----

    def remove_surplus(self, segments: Sequence[Segment], log_start_offset: int) -> None:
        """Raises OSError."""
        bases = [segment.base_offset for segment in segments]
        self.files.keep(snapshots_to_keep(self.files.offsets, bases, log_start_offset))

    def remove_above(self, end_offset: int) -> None:
        """Raises OSError."""
        self.files.keep([offset for offset in self.files.offsets if offset <= end_offset])

    def check(self, offset: int, log_start_offset: int) -> None:
        """Read the snapshot at `offset`, if it is still there. A damaged one is removed: the log's batches say the same.

        Only for the one at the log's start there are no such batches. Raises CorruptLog for it, OSError.
        """
        if offset not in self.files.offsets or self.files.load(offset) is not None:
            return
        if 0 < offset == log_start_offset:
            raise CorruptLog(self.files.path(offset), 0, offset, "the snapshot cannot be read")
        log.warning("damaged snapshot is removed path=%s", self.files.path(offset))
        self.files.keep([kept for kept in self.files.offsets if kept != offset])

    def encoded_at_start(
        self, log_start_offset: int, machines: Sequence[AnyMachine], leader_epochs: LeaderEpochs
    ) -> bytes:
        """The states at the log's start and the epoch before it, in the file's format. Raises CorruptLog, OSError."""
        if log_start_offset == 0:
            return empty_snapshot(machines)
        snapshot = self.files.load(log_start_offset)
        if snapshot is None:
            path = self.files.path(log_start_offset)
            raise CorruptLog(path, 0, log_start_offset, "the snapshot at the log's start cannot be read")
        if snapshot.last_epoch < 0:  # of an older version of this file
            snapshot = snapshot._replace(last_epoch=leader_epochs.epoch_before(snapshot.offset))
        return encode_snapshot(snapshot)

    # ---- States of an earlier end ----

    def states_at(self, end_offset: int, segments: Sequence[Segment], log_start_offset: int) -> tuple[States, int]:
        """(the states at `end_offset`, bytes folded for it): the newest snapshot at or below it, and the batches from there.

        `_maintenance` is held and appends are stopped. Raises CorruptLog, OSError.
        """
        snapshot = self.files.newest(log_start_offset, end_offset)
        for captured in self.captured:
            if snapshot.offset < captured.offset <= end_offset:
                snapshot = captured._replace(states=captured.states.copy())
        states, folded_bytes = snapshot.states, 0
        for segment in segments:
            if segment.end_offset <= snapshot.offset or segment.base_offset >= end_offset:
                continue
            for placed in segment.scan_from(snapshot.offset):
                if placed.header.base_offset >= end_offset:
                    break
                if placed.header.base_offset >= snapshot.offset:
                    fold(segment, placed, states)
                    folded_bytes += placed.header.size_bytes
        return states, folded_bytes
