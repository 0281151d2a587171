"""The log of one partition, with the states and the leader epochs that follow from its batches.

Theory of operation. The log is a row of segments; the last one is appended to. An append is one write to the page cache and
then one change of memory: end offset, states (`state_machine`), epochs, index. If the write fails what it left is cut off
again and nothing has changed; if that fails too, or a sync fails, the log has *failed*: it refuses everything that writes.

The rest is done by `maintain`, in a thread: sync, indexes, leader-epoch checkpoint, and last the snapshot, whose existence
says that all before it was done. A snapshot is due after `snapshot_interval_bytes`, at each new segment, and at a clean end.
So there is one at each segment's base before retention may make that base the log's start.

Threads. Appends come from one thread (the event loop). `read_batches`, `sync`, `maintain`, `offset_for_timestamp`,
`snapshot_at_base`, `apply_retention` may run beside them in others; what they read is pinned (`segment_row`).
`truncate_to` and `reset_to` run with appends stopped. Three locks, taken in this order:

- `_maintenance`, for long work: one at a time of maintain, retention, truncation, reset, close. The loop never takes it.
- `_syncing`, for one sync of segments at a time: of two at once only one would be notified that writing has failed.
- `_lock`, for memory: held over one append, or over as little as taking a few references. No sync is done under it.

All of it rests on these locks; that is why it is one file, and a long one. What needs none is in the files beside it.
"""

from __future__ import annotations

import errno
import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from fencepost_node.log.config import NO_LIMIT, LogConfig
from fencepost_node.log.disk import Disk
from fencepost_node.log.errors import CorruptLog, OutOfRoom, disk_errors, storage_error
from fencepost_node.log.idleness import IdlenessByHorizon
from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.log_snapshots import LogSnapshots
from fencepost_node.log.names import (
    EPOCH_CHECKPOINT,
    PartitionIdentity,
    claim_folder,
)
from fencepost_node.log.recovery import (
    RecoveredLog,
    begin_reset,
    finish_reset,
    note_damage,
    recover,
    remove_segment,
)
from fencepost_node.log.retention import SegmentFacts, segments_to_delete
from fencepost_node.log.segment import NO_TIMESTAMP, LogPlace, PlacedBatch, Segment
from fencepost_node.log.segment_row import SegmentRow
from fencepost_node.log.snapshot import (
    Snapshot,
    decode_snapshot,
)
from fencepost_node.log.state_machine import AnyMachine, States
from fencepost_node.log.sync_mark import sync_announced
from fencepost_proto.protocol.errors import (
    CorruptMessage,
    FencepostError,
    InvariantBroken,
    OffsetOutOfRange,
    StorageError,
)
from fencepost_proto.protocol.record_batch import BatchHeader, Buffer, iter_batches, stamp

__all__ = ["CorruptLog", "Log", "LogConfig", "OutOfRoom"]

log = logging.getLogger(__name__)

NEWEST_EPOCH = 2**31 - 1  # that a batch can have


class Log:
    """base_offset <= log_start_offset <= log_end_offset.

    `states` and `leader_epochs` are those of the batches below the end.
    """

    def __init__(self, disk: Disk, directory: str, config: LogConfig, recovered: RecoveredLog, now_ms: int) -> None:
        """Use `open`."""
        self.directory = directory
        self.config = config
        self.failure = ""  # why nothing can be written any more; empty: it can
        self.clock: Callable[[], int] | None = None  # the wall clock, in ms; None: what calls have said
        self._told_ms = now_ms
        self._disk = disk
        self._maintenance = threading.RLock()
        self._syncing = threading.Lock()
        self._lock = threading.Lock()
        self._closed = False
        self._cuts = 0  # truncations and resets so far
        self._is_damaged = False  # as far as readers have found
        self.deleted = (0, 0)  # as `delete_below` was last told
        self._names_changed = 1  # rises with every new segment …
        self._names_synced = 0  # … and follows when the folder is synced
        # What recovery found is not known to be old: nothing was observed yet. Guarded by _lock.
        self._idleness = IdlenessByHorizon()
        self._adopt(recovered)

    def _adopt(self, recovered: RecoveredLog) -> None:
        """Become the log that recovery found."""
        self._row = SegmentRow(recovered.segments)
        self.base_offset = self._row.all[0].base_offset  # where its files begin, and its oldest snapshot is
        self.log_start_offset = self.base_offset  # where it begins for readers; see `delete_below`
        self.log_end_offset = self._row.active.end_offset
        self.size_bytes = self._row.size_bytes
        self.states = recovered.states
        self.leader_epochs: LeaderEpochs = recovered.leader_epochs
        self._snapshots = LogSnapshots(recovered.snapshots, recovered.missing_snapshots, self._lock)
        self._unsnapshotted_bytes = recovered.checked_bytes

    @staticmethod
    def open(
        disk: Disk,
        directory: str,
        config: LogConfig,
        now_ms: int,
        machines: Sequence[AnyMachine],
        *,
        power_lost: bool = True,
        folder_synced: bool = False,
    ) -> Log:
        """[thread] The log in `directory`, recovered; a new one where there is none. It folds `machines`.

        `folder_synced`: the folder is there, it was found to be that log's, and the name under which it stands is on the
        disk.

        Raises CorruptLog for damage below what was synced before, or, unless `power_lost`, for any that a killed process
        does not leave; StorageError where the disk refuses or the folder is
        another topic's or partition's.
        """
        with disk_errors(f"log {directory} cannot be opened"):
            if not folder_synced:
                disk.make_directory(directory)
                claim_folder(disk, directory, PartitionIdentity(config.topic_id, config.topic, config.partition))
            recovered = recover(disk, directory, config, machines, power_lost=power_lost)
            return Log(disk, directory, config, recovered, now_ms)

    # ---- What it holds ----

    @property
    def ever_held_records(self) -> bool:
        return self.log_end_offset > 0

    @property
    def last_epoch(self) -> int:
        """Leader epoch of the last batch, which may be gone; -1 where there never was one, or it is not known."""
        return self.leader_epochs.last_epoch

    def assign_epoch(self, leader_epoch: int) -> None:
        """This broker is about to append under `leader_epoch`.

        Nothing is stored: an epoch begins in the history with its first batch. Raises InvariantBroken where the log holds
        a newer epoch, StorageError where it has failed.
        """
        self._require_usable()
        if leader_epoch < self.last_epoch:
            raise InvariantBroken(f"{self.directory}: leader epoch {leader_epoch} is older than {self.last_epoch}")

    def now_ms(self) -> int:
        """The wall clock, for timestamps and retention."""
        return self._told_ms if self.clock is None else self.clock()

    # ---- Appending ----

    def append_as_leader(self, header: BatchHeader, batch: Buffer, leader_epoch: int) -> bytes:
        """Append a batch that `check_produced` and the producers' rules let pass. Returns its bytes as stored.

        Raises StorageError where the disk refuses: then nothing has changed.
        """
        base_offset = self.log_end_offset
        stamped = stamp(batch, base_offset, leader_epoch)
        placed = PlacedBatch(0, header.stamped(base_offset, leader_epoch))
        self._append_and_fold(stamped, (placed,))
        return stamped

    def append_as_follower(self, records: bytes, newest_epoch: int = NEWEST_EPOCH) -> None:
        """Append whole batches as the leader has stored them, all or none. None has a later leader epoch than the
        leader's, `newest_epoch`.

        Raises CorruptMessage or InvalidRecord for bytes that are not that, StorageError as `append_as_leader`,
        InvariantBroken where sequences do not continue what is here. Base offset and leader epoch are outside a
        batch's CRC: where they do not continue the log, what was pushed is damaged, like bytes of which the CRC says
        so. The leader looks at its disk then.
        """
        batches = [PlacedBatch(position, header) for position, header in iter_batches(records)]
        next_offset, epoch = self.log_end_offset, self.last_epoch
        for _, header in batches:
            if header.base_offset != next_offset:
                raise CorruptMessage(
                    f"{self.directory}: a batch of base offset {header.base_offset} was pushed where {next_offset} is next"
                )
            if not epoch <= header.leader_epoch <= newest_epoch:
                raise CorruptMessage(
                    f"{self.directory}: a batch of leader epoch {header.leader_epoch} was pushed after one of {epoch}, "
                    f"under {newest_epoch}"
                )
            next_offset, epoch = header.end_offset, header.leader_epoch
        if batches:
            self._append_and_fold(records, batches)

    def _append_and_fold(self, data: bytes, batches: Sequence[PlacedBatch]) -> None:
        """One write, then one change of memory; checked before, so that nothing can fail between the two."""
        with self._lock:
            self._require_usable()
            headers = [header for _, header in batches]
            states = self.states
            staged = states.stage(headers, _cut_out(data, batches) if states.reads_batches else ())
            epochs = self._epochs_with(headers)
            segment = self._row.all[-1]
            if segment.size and segment.size + len(data) > self.config.segment_bytes:
                segment = self._roll()
            try:
                segment.append_placed(data, batches)
            except OSError as error:
                self._cut_back(segment, error)
                raise storage_error(f"append to {segment.path} failed", error) from error
            states.apply(staged)
            self.leader_epochs = epochs
            segment.appended_ms = self._told_ms if self.clock is None else self.clock()
            self.log_end_offset = segment.end_offset
            if self.log_start_offset < self.deleted[0]:
                self._settle_start()
            self.size_bytes += len(data)
            self._unsnapshotted_bytes += len(data)

    def _epochs_with(self, headers: Sequence[BatchHeader]) -> LeaderEpochs:
        """The history when these batches follow: the same one for as long as the epoch is. Raises InvariantBroken."""
        epochs = self.leader_epochs
        last_epoch = epochs.last_epoch
        for header in headers:
            if header.leader_epoch != last_epoch:
                if epochs is self.leader_epochs:
                    epochs = epochs.copy()
                epochs.record(header.leader_epoch, header.base_offset)
                last_epoch = header.leader_epoch
        return epochs

    def _roll(self) -> Segment:
        """Begin a new segment at the end, and remember the state there for its snapshot. The lock is held."""
        try:
            segment = Segment.create(self._disk, self.directory, self.log_end_offset, self.config.index_interval_bytes)
        except OSError as error:
            raise storage_error(f"{self.directory}: no new segment at {self.log_end_offset}", error) from error
        self._row.add(segment)
        self._names_changed += 1
        self._snapshots.captured.append(self._capture())
        return segment

    def _capture(self) -> Snapshot:
        return Snapshot(self.log_end_offset, self.states.copy(), self.leader_epochs.last_epoch)

    def _cut_back(self, segment: Segment, cause: OSError) -> None:
        if segment.is_whole:
            return  # a disk that is read-only now, or no descriptor for the file, would refuse the cut, too
        try:
            segment.cut_back()
        except OSError as error:
            self._fail(f"append to {segment.path} failed ({cause}), and so did cutting it back ({error})")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        log.error("log failed directory=%s reason=%s", self.directory, reason)

    def _require_usable(self) -> None:
        if self.failure:
            raise StorageError(self.failure)

    # ---- Reading ----

    def read_batches(self, offset: int, max_bytes: int, end_offset: int | None = None) -> bytes:
        """[thread] Whole batches, the first of which holds `offset`; none that ends beyond `end_offset` (None: the end).

        At most `max_bytes`, but one batch at least where there is one; empty where there is none. Never from two
        segments, so there may be more than was returned. Raises OffsetOutOfRange, StorageError (CorruptLog).
        """
        log_end_offset, cuts = self.log_end_offset, self._cuts
        limit = log_end_offset if end_offset is None else min(end_offset, log_end_offset)
        row = self._row
        segments = row.all
        number = bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1
        if number < 0 or offset > log_end_offset:
            raise OffsetOutOfRange(
                f"offset {offset} is outside of {self.directory}, {segments[0].base_offset} to {log_end_offset}"
            )
        if offset >= limit:
            return b""
        with disk_errors(f"{segments[number].path} cannot be read"), row.pinned(segments[number]) as pinned:
            if not pinned:
                raise self._gone(offset)
            try:
                return segments[number].read_from(offset, max_bytes, limit, self.leader_epochs)
            except CorruptLog:
                if self._cuts != cuts:
                    raise self._gone(offset) from None
                self._note_damage()
                raise

    def _note_damage(self) -> None:
        """[thread] Once."""
        if not self._is_damaged:
            self._is_damaged = True
            note_damage(self._disk, self.directory)

    def distrust(self, offset: int) -> None:
        """A reader was given bytes from `offset` on that were not sound: whatever is read there next is checked again."""
        row = self._row
        number = row.number_at(offset)
        if number >= 0:
            row.all[number].distrust()

    def scan(self, place: LogPlace | None, max_bytes: int) -> tuple[LogPlace | None, int]:
        """[thread] Read and check about `max_bytes` from `place` on (None: the log's start), to go through the whole log.

        Returns where to go on (None: that was the end) and how many bytes were read. Raises StorageError (CorruptLog).
        """
        cuts, row = self._cuts, self._row
        number = max(row.number_at(place.segment), 0) if place else 0
        segment = row.all[number]
        if place is None or segment.base_offset != place.segment:  # the beginning, or that segment has left the log
            place = LogPlace(segment.base_offset, 0, segment.base_offset)
        with self._lock:
            size, epochs = segment.size, self.leader_epochs
        reached = LogPlace(segment.base_offset, size, place.offset)
        with disk_errors(f"{segment.path} cannot be read"), row.pinned(segment) as pinned:
            try:
                if pinned:
                    reached = segment.check_from(place, size, max_bytes, epochs)
            except CorruptLog:
                if self._cuts != cuts:
                    return None, 0
                self._note_damage()
                raise
        read = reached.position - place.position
        if reached.position < size:
            return reached, read
        following = row.all[number + 1].base_offset if number + 1 < len(row.all) else None
        return None if following is None else LogPlace(following, 0, following), read

    def check_snapshots(self) -> None:
        """[thread] Read every snapshot. One that is damaged is removed: the batches have the same content, and recovery
        begins at an older one. Only the one at the log's start cannot be made again. Raises CorruptLog for it, StorageError.
        """
        for offset in list(self._snapshots.files.offsets):
            with self._maintenance, disk_errors(f"snapshots of {self.directory} cannot be read"):
                self._snapshots.check(offset, self.base_offset)

    def _gone(self, offset: int) -> FencepostError:
        """The error for a reader whose segment has left the log."""
        if self._closed:
            return StorageError(self.failure)
        return OffsetOutOfRange(f"{self.directory} was cut while offset {offset} was read")

    @property
    def largest_timestamp_ms(self) -> int:
        """Of all batches; NO_TIMESTAMP where there is none."""
        return max(segment.largest_timestamp_ms for segment in self._row.all)

    def offset_for_timestamp(self, timestamp_ms: int, from_offset: int = 0) -> tuple[int, int] | None:
        """[thread] (base offset, max timestamp) of the first batch whose max timestamp is at least that; None: none.

        With offsets from `from_offset` and the log's start on: that one, where it is within the batch. Raises StorageError.
        """
        row, start_offset = self._row, max(self.log_start_offset, from_offset)
        for segment in row.all:
            if segment.largest_timestamp_ms >= timestamp_ms and segment.end_offset > start_offset:
                with disk_errors(f"{segment.path} cannot be read"), row.pinned(segment) as pinned:
                    header = segment.first_reaching(timestamp_ms, start_offset) if pinned else None
                if header is not None:
                    return max(header.base_offset, start_offset), header.max_timestamp
        return None

    # ---- The disk ----

    def sync(self) -> int:
        """[thread] Put on disk all that was appended before the call. Returns the end offset of that.

        Raises StorageError; the log has failed then, for what a failed sync has lost no later one brings back. OutOfRoom:
        the sync was not begun, and may be tried again.
        """
        with self._syncing:
            with self._lock:
                self._require_usable()
                end_offset, names_changed, cuts = self.log_end_offset, self._names_changed, self._cuts
                row = self._row
                sizes = {segment: segment.size for segment in row.all if segment.synced_size < segment.size}
            try:
                if self._names_synced < names_changed:
                    self._disk.sync_directory(self.directory)
                    self._names_synced = names_changed
                with row.pinned(*sizes) as unsynced:
                    if unsynced:
                        self._sync_segments(unsynced)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # nothing was opened, so nothing was begun
                    raise storage_error(f"no sync of {self.directory} was begun", error) from error
                self._fail(f"sync of {self.directory} failed: {error}")
                raise StorageError(self.failure) from error
            with self._lock:
                if self._cuts == cuts:  # else other bytes may have taken their place meanwhile
                    for segment in unsynced:
                        segment.synced_size = max(segment.synced_size, sizes[segment])
        return end_offset

    def _sync_segments(self, segments: Sequence[Segment]) -> None:
        """`_syncing` is held. Raises OSError; OutOfRoom where the mark cannot be made, and no sync was begun."""
        with sync_announced(self._disk, self.directory):
            for segment in segments:
                segment.file.sync()

    @property
    def maintenance_due(self) -> bool:
        return bool(self._snapshots.captured) or self._unsnapshotted_bytes >= self.config.snapshot_interval_bytes

    def maintain(self) -> None:
        """[thread] Write the snapshots that are due, with all that must be on disk before them.

        Raises StorageError; what was not done is still due.
        """
        with self._maintenance:
            with self._lock:
                if self._unsnapshotted_bytes >= self.config.snapshot_interval_bytes:
                    self._snapshots.captured.append(self._capture())
                    self._unsnapshotted_bytes = 0
            self._write_snapshots()

    def _write_snapshots(self) -> None:
        """Everything below each captured offset goes to disk, then the snapshots. `_maintenance` is held."""
        with self._lock:
            captured = list(self._snapshots.captured)
            epochs = self.leader_epochs
            segments = self._row.all
        if not captured:
            return
        self.sync()
        with disk_errors(f"snapshots of {self.directory} cannot be written"):
            for segment in segments:
                segment.flush_indexes()
            self._disk.write_atomically(f"{self.directory}/{EPOCH_CHECKPOINT}", epochs.encode())
            self._snapshots.write(captured)
            self._snapshots.remove_surplus(self._row.all, self.base_offset)

    def snapshot_at_base(self) -> bytes:
        """[thread] The states at base_offset and the epoch before it, in the snapshot file's format.

        Raises CorruptLog where the file is damaged, StorageError.
        """
        with self._maintenance, disk_errors(f"the snapshot at the start of {self.directory} cannot be read"):
            return self._snapshots.encoded_at_start(self.base_offset, self.states.machines, self.leader_epochs)

    # ---- Retention ----

    def delete_below(self, end_offset: int, leader_epoch: int) -> None:
        """Records below `end_offset` that were written under leader epochs up to `leader_epoch` are deleted.

        No reader is given them any more: the log begins behind them. Whole segments of them go with the next retention.
        Nothing is stored: the metadata says it again when the log is opened. What an unclean election lets a later leader
        write at these offsets is not deleted.
        """
        with self._lock:
            self.deleted = (end_offset, leader_epoch)
            self._settle_start()

    def _settle_start(self) -> None:
        """The log's start follows from its files, its epochs and what is deleted. The lock is held."""
        end_offset, leader_epoch = self.deleted
        start_offset = self.base_offset
        if end_offset > start_offset:
            _, epoch_end_offset = self.leader_epochs.end_offset_for(leader_epoch, self.log_end_offset)
            start_offset = max(start_offset, min(end_offset, epoch_end_offset))
        self.log_start_offset = start_offset

    def apply_retention(self, now_ms: int, high_watermark: int) -> None:
        """[thread] Delete segments that retention asks for, or whose records are deleted, below the high watermark only.

        An expired last segment is sealed first, so that an idle partition empties too. Raises StorageError.
        """
        with self._maintenance:
            self._require_usable()
            self._told_ms = now_ms
            self._learn_append_times(now_ms)
            self._seal_expired(now_ms, high_watermark)
            config, segments = self.config, self._row.all
            facts = [_facts(segment) for segment in segments]
            count = segments_to_delete(
                facts,
                now_ms,
                config.retention_ms,
                config.retention_bytes,
                high_watermark,
                log_start_offset=self.log_start_offset,
            )
            if not count:
                return
            # A full disk gets room by what is deleted here, where the snapshot is there already.
            with suppress(OutOfRoom):
                self._write_snapshots()  # among them, it may be, the snapshot at the new start
            with disk_errors(f"old segments of {self.directory} cannot be deleted"):
                while count and self._snapshots.files.load(segments[count].base_offset) is None:
                    count -= 1
                if count:
                    self._delete_oldest(count)

    def _learn_append_times(self, now_ms: int) -> None:
        """Of segments that an earlier process wrote: by their files' times. Only where retention by time would ask for
        it."""
        if self.config.retention_ms == NO_LIMIT:
            return
        with disk_errors(f"segments of {self.directory} cannot be looked at"):
            for segment in self._row.all:
                if segment.size and segment.appended_ms == NO_TIMESTAMP:
                    segment.appended_ms = self._disk.modified_ms(segment.path)
                segment.appended_ms = min(segment.appended_ms, now_ms)  # where the clock was ahead, count from here

    def _seal_expired(self, now_ms: int, high_watermark: int) -> None:
        """Roll if the last segment is all that keeps expired or deleted records."""
        with self._lock:
            last = self._row.active
            sealed = (*self._row.all, last)  # as if there were one more behind it
            facts = [_facts(segment) for segment in sealed]
            start_offset, retention_ms = self.log_start_offset, self.config.retention_ms
            deleted = segments_to_delete(
                facts, now_ms, retention_ms, NO_LIMIT, high_watermark, log_start_offset=start_offset
            )
            if last.size and deleted == len(self._row.all):
                self._roll()

    def _delete_oldest(self, count: int) -> None:
        """The log starts at the base of `segments[count]`, whose snapshot is there. Raises OSError."""
        with self._lock:
            gone = self._row.take_oldest(count)
            self.base_offset = self._row.all[0].base_offset
            self.size_bytes -= sum(segment.size for segment in gone)
            epochs = self.leader_epochs.copy()
            epochs.advance_to(self.base_offset)
            self.leader_epochs = epochs
            self._settle_start()
        log.info("segments deleted directory=%s count=%d start=%d", self.directory, count, self.base_offset)
        self._row.retire(gone)
        for segment in gone:  # the oldest first: at any moment what is left is a log
            remove_segment(self._disk, self.directory, segment.base_offset)
        self._snapshots.remove_surplus(self._row.all, self.base_offset)

    # ---- How long it has held its batches ----

    def observe_end(self, running_ms: int, horizons_ms: Iterable[int]) -> None:
        """All that is in the log is there now, at this running time: for `held_below`, of these horizons."""
        with self._lock:
            self._idleness.observe(self.log_end_offset, running_ms, horizons_ms)

    def held_below(self, running_ms: int, horizon_ms: int) -> int:
        """Batches with base offsets below this have been here for `horizon_ms`, as far as `observe_end` saw."""
        with self._lock:
            return self._idleness.idle_below(running_ms, horizon_ms)

    @contextmanager
    def appends_stopped(self) -> Iterator[None]:
        """[thread] What is folded may be changed, or copied, for a few milliseconds: appends wait, on the event loop."""
        with self._lock:
            yield

    # ---- Cutting ----

    def truncate_to(self, offset: int) -> None:
        """[thread, appends stopped] End the log at `offset`, or at the border of batches below it; roll the state back.

        Raises OffsetOutOfRange below the log start, CorruptLog where what stays cannot be read, StorageError.
        """
        with self._maintenance:
            self._require_usable()
            if offset >= self.log_end_offset:
                return
            if offset < self.base_offset:
                raise OffsetOutOfRange(f"{self.directory} starts at {self.base_offset}: no cut at {offset}")
            with disk_errors(f"{self.directory} cannot be read"):
                number = self._row.number_at(offset)
                position, end_offset = self._row.all[number].border_at(offset)
                states, folded_bytes = self._snapshots.states_at(end_offset, self._row.all, self.base_offset)
            gone = self._forget_above(number, position, end_offset, states, folded_bytes)
            try:
                self._cut_files(gone, position, end_offset)
            except (OSError, StorageError) as error:
                self._fail(f"truncation of {self.directory} to {end_offset} failed: {error}")
                raise StorageError(self.failure) from error
            log.info("log truncated directory=%s end=%d asked=%d", self.directory, end_offset, offset)

    def _forget_above(
        self, number: int, position: int, end_offset: int, states: States, folded_bytes: int
    ) -> Sequence[Segment]:
        """The cut in memory, in one step. Returns the segments that have left the row."""
        with self._lock:
            gone = self._row.take_after(number)
            self._cuts += 1
            self.log_end_offset = end_offset
            self.size_bytes = self._row.size_bytes - self._row.active.size + position
            self.states = states
            epochs = self.leader_epochs.copy()
            epochs.truncate_to(end_offset)
            self.leader_epochs = epochs
            self._settle_start()
            self._snapshots.drop_captured_above(end_offset)
            self._unsnapshotted_bytes = folded_bytes
            self._idleness.truncate(end_offset)
        self._row.retire(gone)
        return gone

    def _cut_files(self, gone: Sequence[Segment], position: int, end_offset: int) -> None:
        """Snapshots first, from the newest: one above the end would call the cut log damaged. Raises OSError, CorruptLog.

        After a crash between any two steps the folder holds a log that ends at or above the cut, at a border.
        """
        self._snapshots.remove_above(end_offset)
        self._disk.sync_directory(self.directory)
        for segment in reversed(gone):
            remove_segment(self._disk, self.directory, segment.base_offset)
        with self._syncing, sync_announced(self._disk, self.directory):
            self._row.active.truncate(position, end_offset)

    def reset_to(self, start_offset: int, snapshot_bytes: bytes) -> None:
        """[thread, appends stopped] Become an empty log that starts at `start_offset`, with that snapshot's states and tip.

        After a crash at any moment the old log is there, whole, or the new one. Raises CorruptMessage for bytes that are
        not the snapshot at that offset, StorageError.
        """
        machines = self.states.machines
        snapshot = decode_snapshot(snapshot_bytes, machines)
        if snapshot.offset != start_offset:
            raise CorruptMessage(f"a snapshot at {snapshot.offset} for a log that is to start at {start_offset}")
        with self._maintenance, self._syncing:
            self._require_usable()
            with self._lock:
                old_row = self._row
                self._cuts += 1
            old_row.retire(old_row.all)  # before other files stand under their names
            try:
                begin_reset(self._disk, self.directory, snapshot_bytes)
                finish_reset(self._disk, self.directory, machines)
                recovered = recover(self._disk, self.directory, self.config, machines)
            except (OSError, StorageError) as error:
                self._fail(f"reset of {self.directory} to {start_offset} failed: {error}")
                raise StorageError(self.failure) from error
            with self._lock:
                self._idleness = IdlenessByHorizon()
                self._is_damaged = False
                self._adopt(recovered)
                self._settle_start()
            log.info("log reset directory=%s start=%d", self.directory, start_offset)

    # ---- The end ----

    def close(self, clean: bool) -> None:
        """[thread] Close the files; `clean`: synced and with a snapshot at the end, so that nothing is to be checked.

        Raises StorageError, with the files closed.
        """
        with self._maintenance:
            if self._closed:
                return
            try:
                if clean and not self.failure:
                    with self._lock:
                        # An empty log needs none: recovery begins at offset 0 without.
                        if self.log_end_offset and self.log_end_offset not in self._snapshots.files.offsets:
                            self._snapshots.captured.append(self._capture())
                            self._unsnapshotted_bytes = 0
                    self._write_snapshots()
            finally:
                with self._syncing, self._lock:
                    self._closed = True
                    self.failure = self.failure or f"log {self.directory} is closed"
                self._row.retire(self._row.all)


def _cut_out(data: bytes, batches: Sequence[PlacedBatch]) -> list[bytes]:
    """The bytes of each batch."""
    return [data[position : position + header.size_bytes] for position, header in batches]


def _facts(segment: Segment) -> SegmentFacts:
    return SegmentFacts(segment.end_offset, segment.size, segment.largest_timestamp_ms, segment.appended_ms)
