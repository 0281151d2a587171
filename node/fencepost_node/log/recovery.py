"""What is done to a log's folder before the first append: one step, that ends with a log that is whole.

Theory of operation. The existence of a snapshot at offset N says that every byte below N was synced, with the indexes and
the leader-epoch checkpoint for it. So:

- below the newest snapshot the log must be whole. Segments there are taken as they are, their indexes checked for
  plausibility only. A bad batch that is met there is damage, never a crash's doing: CorruptLog;
- from the newest snapshot that can be read, every batch is checked (length, magic, CRC, offset, leader epoch) and folded
  into the states, the epochs and the indexes. At the first bad batch above the newest snapshot the log is cut;
- before that, where a sync may have failed (`sync_mark`), all from that snapshot on is put on disk.

The work is bounded by what was written since the newest snapshot, not by the size of the log. If that snapshot is
damaged the next older one does, and finally the log's start.

A segment is removed by renaming it, then making that so on disk, then removing the file. Going from the end
backwards, a crash leaves a log that ends earlier, at a border; going from the start forwards, one that starts later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fencepost_node.log.config import LogConfig
from fencepost_node.log.disk import Disk, File
from fencepost_node.log.errors import CorruptLog
from fencepost_node.log.leader_epochs import NO_EPOCH, LeaderEpochs
from fencepost_node.log.names import (
    DAMAGED,
    DELETED_SUFFIX,
    EPOCH_CHECKPOINT,
    INDEX_SUFFIX,
    LOG_SUFFIX,
    PARTITION_METADATA,
    RESET,
    SNAPSHOT_SUFFIX,
    SYNC_BEGUN,
    TEMPORARY_SUFFIX,
    TIME_INDEX_SUFFIX,
    file_name,
    offsets_by_suffix,
)
from fencepost_node.log.segment import PlacedBatch, Segment, scan, walk
from fencepost_node.log.snapshot import Snapshot, SnapshotFiles, decode_snapshot
from fencepost_node.log.state_machine import AnyMachine, States
from fencepost_node.log.sync_mark import sync_announced
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken
from fencepost_proto.protocol.record_batch import HEADER_BYTES, LENGTH_END

log = logging.getLogger(__name__)

Reader = Callable[[File, str, int, int, int], Iterator[PlacedBatch]]  # walk or scan


@dataclass(slots=True)
class RecoveredLog:
    """A log as it was found: segments in offset order, at least one, and what follows from their batches."""

    segments: list[Segment]
    states: States
    leader_epochs: LeaderEpochs
    snapshots: SnapshotFiles
    checked_bytes: int  # from there to the end
    missing_snapshots: list[Snapshot] = field(default_factory=list)  # at segment bases that were checked; to be written


def recover(
    disk: Disk, directory: str, config: LogConfig, machines: Sequence[AnyMachine], *, power_lost: bool = True
) -> RecoveredLog:
    """Make the folder's log whole and read it; an empty folder becomes an empty log. Raises CorruptLog, OSError.

    `power_lost`: what was not synced may be gone or garbled, and is cut. Where it is False, a killed process is all that
    may have happened, and a batch that was not written to its end is all that is cut; anything else is damage. Damage that
    was found stays damage: a file says so, or the next loss of power would pass for what has done it.
    """
    names = disk.list(directory)  # once: a broker has thousands of folders to open
    was_damaged = DAMAGED in names
    try:
        recovered = _recover(disk, directory, config, machines, names, power_lost=power_lost and not was_damaged)
    except CorruptLog:
        if not was_damaged:
            note_damage(disk, directory)
        raise
    if was_damaged and disk.exists(path := f"{directory}/{DAMAGED}"):  # a log that started over has none
        disk.remove(path)
    return recovered


def note_damage(disk: Disk, directory: str) -> None:
    """The log is damaged, whatever becomes of its machine until it is opened again."""
    try:
        disk.open(f"{directory}/{DAMAGED}", create=True).close()
        disk.sync_directory(directory)
    except OSError as error:
        log.warning("it cannot be noted that a log is damaged directory=%s error=%s", directory, error)


def _recover(
    disk: Disk,
    directory: str,
    config: LogConfig,
    machines: Sequence[AnyMachine],
    names: list[str],
    *,
    power_lost: bool,
) -> RecoveredLog:
    if RESET in names:
        finish_reset(disk, directory, machines)
        names = disk.list(directory)
    offsets = offsets_by_suffix(names)
    bases, snapshots = offsets.get(LOG_SUFFIX, []), offsets.get(SNAPSHOT_SUFFIX, [])
    names = _without_leftovers(disk, directory, names, offsets)
    held = frozenset(names)  # of a log with thousands of segments each is looked for
    if not bases:
        if snapshots:
            path = f"{directory}/{file_name(snapshots[-1], SNAPSHOT_SUFFIX)}"
            raise CorruptLog(path, 0, snapshots[-1], "the folder has this snapshot, and no segment")
        Segment.create(disk, directory, 0, config.index_interval_bytes).close()
        disk.sync_directory(directory)
        bases = [0]
    segments = [Segment.open(disk, directory, base, config.index_interval_bytes, held) for base in bases]
    try:
        files = SnapshotFiles(disk, directory, snapshots, machines)
        return _LogRecovery(disk, directory, held, segments, files, power_lost=power_lost).run()
    except BaseException:
        for segment in segments:
            segment.close()
        raise


class _LogRecovery:
    """One recovery, with what it carries from step to step."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        names: Collection[str],
        segments: list[Segment],
        snapshots: SnapshotFiles,
        *,
        power_lost: bool,
    ) -> None:
        self._disk = disk
        self._names = names  # of the folder's files
        self._directory = directory
        self._segments = segments
        self._snapshots = snapshots
        self._power_lost = power_lost
        self._log_start_offset = segments[0].base_offset
        self._synced_below = max(*snapshots.offsets, self._log_start_offset, 0)
        self._missing: list[Snapshot] = []

    def run(self) -> RecoveredLog:
        start = self._snapshots.newest(self._log_start_offset)
        self._states = start.states
        first = max(n for n, segment in enumerate(self._segments) if segment.base_offset <= start.offset)
        for segment, following in zip(self._segments[:first], self._segments[1:], strict=False):
            self._take_synced(segment, following.base_offset)
            if segment.size != segment.file.size:
                raise CorruptLog(segment.path, segment.size, segment.end_offset, "bytes after a sealed segment's end")
        self._take_synced(self._segments[first], start.offset)
        if SYNC_BEGUN in self._names:
            self._redirty(self._segments[first:])
        self._epochs = self._load_epochs(self._segments[: first + 1], start)
        checked_bytes = self._check_from(first)
        last = self._segments[-1]
        if last.end_offset < self._synced_below:
            raise CorruptLog(last.path, last.size, last.end_offset, self._lost())
        # Gone are those below the log start, where retention died before it did, and those that could not be read.
        self._snapshots.keep([n for n in self._snapshots.offsets if self._log_start_offset <= n <= start.offset])
        log.info(
            "log recovered directory=%s segments=%d start=%d end=%d checked_from=%d checked_bytes=%d %s",
            self._directory, len(self._segments), self._log_start_offset, last.end_offset, start.offset,
            checked_bytes, self._states,
        )  # fmt: skip
        return RecoveredLog(
            segments=self._segments,
            states=self._states,
            leader_epochs=self._epochs,
            snapshots=self._snapshots,
            checked_bytes=checked_bytes,
            missing_snapshots=self._missing,
        )

    def _lost(self) -> str:
        return f"the log ends here, and it was synced up to {self._synced_below}"

    # ---- What is below the snapshot ----

    def _take_synced(self, segment: Segment, until: int) -> None:
        """Batches below `until` were synced with their index entries. Only what follows the last entry is read."""
        try:
            self._note_below(segment, until, walk, *segment.trust_index(until))
        except CorruptLog as error:
            log.warning("index is rebuilt path=%s because=%s", segment.path, error)
            self._note_below(segment, until, scan, *segment.drop_index())
        segment.synced_size = segment.size

    def _note_below(self, segment: Segment, until: int, read: Reader, position: int, base_offset: int) -> None:
        segment.size, segment.end_offset = position, base_offset
        if base_offset < until:
            for placed in read(segment.file, segment.path, position, segment.file.size, base_offset):
                segment.note(*placed)
                if segment.end_offset >= until:
                    break
        if segment.end_offset != until:
            raise CorruptLog(
                segment.path, segment.size, segment.end_offset, f"no batch ends at {until}; {self._lost()}"
            )

    def _load_epochs(self, segments: list[Segment], start: Snapshot) -> LeaderEpochs:
        """The checkpoint, as far as the snapshot confirms it; from the headers where it is missing or damaged.

        A log that has been started over has none: the snapshot at its start knows the epoch before it.
        """
        path = f"{self._directory}/{EPOCH_CHECKPOINT}"
        epochs = LeaderEpochs()
        try:
            if EPOCH_CHECKPOINT in self._names:
                epochs = LeaderEpochs.decode(self._disk.read_bytes(path))
        except ValueError as error:
            log.warning("leader epoch checkpoint damaged path=%s error=%s", path, error)
        epochs.truncate_to(start.offset)
        if not epochs.entries or start.last_epoch not in (NO_EPOCH, epochs.last_epoch):
            at_start = start if start.offset == self._log_start_offset else self._snapshots.load(self._log_start_offset)
            epochs = LeaderEpochs.before(self._log_start_offset, at_start.last_epoch if at_start else NO_EPOCH)
            for segment in segments:
                for position, header in walk(segment.file, segment.path, 0, segment.size, segment.base_offset):
                    try:
                        epochs.record(header.leader_epoch, header.base_offset)
                    except InvariantBroken as error:
                        raise CorruptLog(segment.path, position, header.base_offset, str(error)) from error
        epochs.advance_to(self._log_start_offset)
        return epochs

    # ---- What is above it ----

    def _redirty(self, segments: list[Segment]) -> None:
        """A sync may have failed: put on disk what follows the batches that were taken. Raises OSError."""
        log.warning("a sync did not end, its segments are written again directory=%s", self._directory)
        with sync_announced(self._disk, self._directory):
            for segment in segments:
                segment.file.redirty(segment.size)
                segment.file.sync()

    def _check_from(self, first: int) -> int:
        """Check and fold every batch from where `segments[first]` is taken to. Returns the bytes that were whole."""
        checked_bytes = 0
        for number in range(first, len(self._segments)):
            segment = self._segments[number]
            if number > first:
                segment.drop_index()
                self._missing.append(Snapshot(segment.base_offset, self._states.copy(), self._epochs.last_epoch))
            start = segment.size
            problem = self._check(segment)
            checked_bytes += segment.size - start
            if problem is None and number + 1 < len(self._segments):
                following = self._segments[number + 1].base_offset
                if following != segment.end_offset:
                    problem = CorruptLog(
                        segment.path, segment.size, segment.end_offset, f"the next segment begins at {following}"
                    )
            if problem is not None:
                self._cut(number, problem)
                break
        return checked_bytes

    def _check(self, segment: Segment) -> CorruptLog | None:
        """Take every good batch of the segment; the problem with the first bad one.

        Raises CorruptLog for a whole batch that contradicts the sequences before it: no crash makes one.
        """
        batches = scan(segment.file, segment.path, segment.size, segment.file.size, segment.end_offset)
        while True:
            try:
                placed = next(batches, None)
            except CorruptLog as problem:
                return problem
            if placed is None:
                return None
            header = placed.header
            if header.leader_epoch < self._epochs.last_epoch:
                told = f"leader epoch {header.leader_epoch} after {self._epochs.last_epoch}"
                return CorruptLog(segment.path, placed.position, header.base_offset, told)
            fold(segment, placed, self._states)
            self._epochs.record(header.leader_epoch, header.base_offset)
            segment.note(*placed)

    def _cut(self, number: int, problem: CorruptLog) -> None:
        """End the log where the problem is, unless it was whole there before, or nothing explains that it is not."""
        if problem.offset < self._synced_below or not (self._power_lost or self._is_unfinished(number)):
            raise problem
        segment, surplus = self._segments[number], self._segments[number + 1 :]
        log.warning(
            "log is cut path=%s offset=%d bytes=%d segments=%d because=%s",
            segment.path, segment.end_offset, segment.file.size - segment.size, len(surplus), problem,
        )  # fmt: skip
        for gone in reversed(surplus):
            gone.close()
            remove_segment(self._disk, self._directory, gone.base_offset)
        self._segments = self._segments[: number + 1]
        if segment.file.size > segment.size:
            segment.file.truncate(segment.size)  # before the mark is made: on a full disk that needs the room
            with sync_announced(self._disk, self._directory):
                segment.truncate(segment.size, segment.end_offset)

    def _is_unfinished(self, number: int) -> bool:
        """What follows the good batches is the beginning of one, and nothing more: an append that a kill cut short."""
        segment, later = self._segments[number], self._segments[number + 1 :]
        left = segment.file.size - segment.size
        start = segment.file.read(segment.size, LENGTH_END)
        whole = left >= HEADER_BYTES and LENGTH_END + int.from_bytes(start[8:LENGTH_END], signed=True) <= left
        return left > 0 and not whole and not any(following.file.size for following in later)


def fold(segment: Segment, placed: PlacedBatch, states: States) -> None:
    """Fold one stored batch. Raises CorruptLog where it contradicts the states before it, OSError."""
    position, header = placed
    batches = (segment.file.read(position, header.size_bytes),) if states.reads_batches else ()
    try:
        states.apply(states.stage((header,), batches))
    except InvariantBroken as error:
        raise CorruptLog(segment.path, position, header.base_offset, str(error)) from error


# ---- Files that come and go ----


def remove_segment(disk: Disk, directory: str, base_offset: int) -> None:
    """Take a segment out of the folder, whole on return even after a crash. Raises OSError."""
    path = f"{directory}/{file_name(base_offset, LOG_SUFFIX)}"
    disk.rename(path, path + DELETED_SUFFIX)
    disk.sync_directory(directory)
    disk.remove(path + DELETED_SUFFIX)
    for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX):
        path = f"{directory}/{file_name(base_offset, suffix)}"
        if disk.exists(path):
            disk.remove(path)


def begin_reset(disk: Disk, directory: str, snapshot: bytes) -> None:
    """From here on the folder's log is the empty one that starts at the snapshot's offset. Raises OSError."""
    disk.write_atomically(f"{directory}/{RESET}", snapshot)


def finish_reset(disk: Disk, directory: str, machines: Sequence[AnyMachine]) -> None:
    """Carry out what `begin_reset` has promised, again after a crash. Raises CorruptLog, OSError."""
    path = f"{directory}/{RESET}"
    if not disk.exists(path):
        return
    try:
        offset = decode_snapshot(disk.read_bytes(path), machines).offset
    except CorruptMessage as error:
        raise CorruptLog(path, 0, 0, error.message) from error
    for name in disk.list(directory):
        if name not in (RESET, PARTITION_METADATA):
            disk.remove(f"{directory}/{name}")
    disk.open(f"{directory}/{file_name(offset, LOG_SUFFIX)}", create=True).close()
    disk.sync_directory(directory)
    disk.rename(path, f"{directory}/{file_name(offset, SNAPSHOT_SUFFIX)}")
    disk.sync_directory(directory)


def _without_leftovers(disk: Disk, directory: str, names: list[str], offsets: Mapping[str, Sequence[int]]) -> list[str]:
    """The folder's names, after removing what an interrupted removal or write has left."""
    bases = set(offsets.get(LOG_SUFFIX, ()))
    surplus = [name for name in names if name.endswith((DELETED_SUFFIX, TEMPORARY_SUFFIX))]
    for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX):
        surplus += [file_name(base, suffix) for base in offsets.get(suffix, ()) if base not in bases]
    if not surplus:
        return names
    for name in surplus:
        disk.remove(f"{directory}/{name}")
    return [name for name in names if name not in surplus]
