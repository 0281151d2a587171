"""The log of one partition, with the producer state and the leader epochs that follow from it.

Theory of operation. The log is a row of segments; the last one is appended to. An append is one write to the page cache and
then one change of memory: end offset, producer state, epochs, index. If the write fails what it left is cut off again
and nothing has changed; if that fails too, or a sync fails, the log has *failed*: it refuses everything that writes.

The rest is done by `maintain`, in a thread: sync, indexes, leader-epoch checkpoint, and last the snapshot, whose existence
says that all before it was done. A snapshot is due after `snapshot_interval_bytes`, at each new segment, and at a clean end.
So there is one at each segment's base before retention may make that base the log's start.

Threads. Appends come from one thread (the event loop). `read`, `sync`, `maintain`, `offset_for_timestamp`,
`snapshot_at_log_start`, `apply_retention` may run beside them in others. Two locks, taken in this order:

- `_maintenance`, for long work: one at a time of maintain, retention, truncation, reset, close. The loop never takes it.
- `_lock`, for memory: held over one append, or over as little as taking a few references. Nobody syncs under it.

The row of segments is a tuple that is replaced, never changed. A reader pins the segment that it reads; a segment that
leaves the row is closed when its last reader has gone. `truncate_to` and `reset_to` run with appends stopped.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fencepost_node.log.config import LogConfig
from fencepost_node.log.disk import Disk
from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.names import (
    EPOCH_CHECKPOINT,
    SNAPSHOT_SUFFIX,
    CorruptLog,
    file_name,
    read_topic_id,
    write_topic_id,
)
from fencepost_node.log.recovery import (
    Recovered,
    begin_reset,
    finish_reset,
    fold,
    newest_snapshot,
    recover,
    remove_segment,
)
from fencepost_node.log.retention import SegmentFacts, segments_to_delete
from fencepost_node.log.segment import PlacedBatch, Segment
from fencepost_node.log.snapshot import (
    Snapshot,
    decode_snapshot,
    empty_snapshot,
    encode_snapshot,
    load_snapshot,
    snapshots_to_keep,
    write_snapshot,
)
from fencepost_node.producer_state import ProducerState
from fencepost_proto.errors import CorruptMessage, InvariantBroken, OffsetOutOfRange, StorageError
from fencepost_proto.record_batch import BatchHeader, iter_batches, stamp

__all__ = ["CorruptLog", "Log", "LogConfig", "read_topic_id"]

log = logging.getLogger(__name__)


class Log:
    """log_start_offset <= log_end_offset. `producers` and `leader_epochs` are those of the batches below the end."""

    def __init__(self, disk: Disk, directory: str, config: LogConfig, recovered: Recovered, now_ms: int) -> None:
        """Use `open`."""
        self.directory = directory
        self.config = config
        self.failure = ""  # why nothing can be written any more; empty: it can
        self._disk = disk
        self._maintenance = threading.RLock()
        self._lock = threading.Lock()
        self._cuts = 0  # truncations and resets so far
        self._names_changed = 1  # rises with every new segment …
        self._names_synced = 0  # … and follows when the folder is synced
        self._take(recovered)
        self.producers.observe(self.log_start_offset, now_ms)
        self.producers.expire(now_ms, config.producer_expiration_ms, self.log_start_offset)

    def _take(self, recovered: Recovered) -> None:
        """Become the log that recovery found."""
        self._segments = tuple(recovered.segments)
        self.log_start_offset = self._segments[0].base_offset
        self.log_end_offset = self._segments[-1].end_offset
        self.size_bytes = sum(segment.size for segment in self._segments)
        self.producers: ProducerState = recovered.producers
        self.leader_epochs: LeaderEpochs = recovered.leader_epochs
        self._snapshots = recovered.snapshots  # offsets of the files; guarded by _maintenance
        self._pending = recovered.missing_snapshots  # captured, not yet written
        self._unsnapshotted_bytes = recovered.checked_bytes

    @staticmethod
    def open(disk: Disk, directory: str, config: LogConfig, now_ms: int) -> Log:
        """[thread] The log in `directory`, recovered; a new one where there is none.

        Raises CorruptLog for damage below what was synced before, StorageError where the disk refuses or the folder is
        another topic's.
        """
        with _disk_errors(f"log {directory} cannot be opened"):
            disk.make_directory(directory)
            _claim(disk, directory, config.topic_id)
            return Log(disk, directory, config, recover(disk, directory, config), now_ms)

    @staticmethod
    def start_over(
        disk: Disk, directory: str, config: LogConfig, now_ms: int, producer_snapshot: bytes | None = None
    ) -> Log:
        """[thread] Give up what the folder holds, damaged or not, and open an empty log at the snapshot's offset (or 0).

        Raises CorruptMessage for bytes that are no snapshot, StorageError.
        """
        snapshot = empty_snapshot() if producer_snapshot is None else producer_snapshot
        decode_snapshot(snapshot)
        with _disk_errors(f"log {directory} cannot be started over"):
            disk.make_directory(directory)
            begin_reset(disk, directory, snapshot)
        return Log.open(disk, directory, config, now_ms)

    # ---- What it holds ----

    @property
    def ever_held_records(self) -> bool:
        return self.log_end_offset > 0

    @property
    def last_epoch(self) -> int:
        """Leader epoch of the last batch; -1 where there is none."""
        return self.leader_epochs.last_epoch

    def assign_epoch(self, leader_epoch: int) -> None:
        """This broker is about to append under `leader_epoch`.

        Nothing is stored: an epoch begins in the history with its first batch. Raises InvariantBroken where the log holds
        a newer epoch, StorageError where it has failed.
        """
        self._require_usable()
        if leader_epoch < self.last_epoch:
            raise InvariantBroken(f"{self.directory}: leader epoch {leader_epoch} is older than {self.last_epoch}")

    # ---- Appending ----

    def append_as_leader(self, header: BatchHeader, batch: bytes, leader_epoch: int) -> bytes:
        """Append a batch that `check_produced` and `producers.check` let pass. Returns its bytes as stored.

        Raises StorageError where the disk refuses: then nothing has changed.
        """
        base_offset = self.log_end_offset
        stamped = stamp(batch, base_offset, leader_epoch)
        placed = PlacedBatch(0, header._replace(base_offset=base_offset, leader_epoch=leader_epoch))
        self._append(stamped, (placed,))
        return stamped

    def append_as_follower(self, records: bytes) -> None:
        """Append whole batches as the leader has stored them, all or none.

        Raises CorruptMessage or InvalidRecord for bytes that are not that, StorageError as `append_as_leader`,
        InvariantBroken where offsets, epochs or sequences do not continue what is here.
        """
        batches = [PlacedBatch(position, header) for position, header in iter_batches(records)]
        next_offset = self.log_end_offset
        for _, header in batches:
            if header.base_offset != next_offset:
                raise InvariantBroken(
                    f"{self.directory}: a batch of base offset {header.base_offset} was pushed where {next_offset} is next"
                )
            next_offset = header.end_offset
        if batches:
            self._append(records, batches)

    def _append(self, data: bytes, batches: Sequence[PlacedBatch]) -> None:
        """One write, then one change of memory; checked before, so that nothing can fail between the two."""
        with self._lock:
            self._require_usable()
            headers = [header for _, header in batches]
            staged = self.producers.stage(headers)
            epochs = self.leader_epochs.copy()
            for header in headers:
                epochs.record(header.leader_epoch, header.base_offset)
            segment = self._segment_for(len(data))
            try:
                segment.append(data, batches)
            except OSError as error:
                self._cut_back(segment, error)
                raise StorageError(f"append to {segment.path} failed: {error}") from error
            self.producers.apply(staged)
            self.leader_epochs = epochs
            self.log_end_offset = segment.end_offset
            self.size_bytes += len(data)
            self._unsnapshotted_bytes += len(data)

    def _segment_for(self, size_bytes: int) -> Segment:
        """The last segment, or a new one where `size_bytes` would make it too large."""
        segment = self._segments[-1]
        if segment.size and segment.size + size_bytes > self.config.segment_bytes:
            return self._roll()
        return segment

    def _roll(self) -> Segment:
        """Begin a new segment at the end, and remember the state there for its snapshot. The lock is held."""
        try:
            segment = Segment.create(self._disk, self.directory, self.log_end_offset, self.config.index_interval_bytes)
        except OSError as error:
            raise StorageError(f"{self.directory}: no new segment at {self.log_end_offset}: {error}") from error
        self._segments = (*self._segments, segment)
        self._names_changed += 1
        self._pending.append(self._capture())
        return segment

    def _capture(self) -> Snapshot:
        return Snapshot(self.log_end_offset, self.producers.copy())

    def _cut_back(self, segment: Segment, cause: OSError) -> None:
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

    def read(self, offset: int, max_bytes: int, end_offset: int | None = None) -> bytes:
        """[thread] Whole batches, the first of which holds `offset`; none that ends beyond `end_offset` (None: the end).

        At most `max_bytes`, but one batch at least where there is one; empty where there is none. Never from two
        segments, so there may be more than was returned. Raises OffsetOutOfRange, StorageError (CorruptLog).
        """
        log_end_offset, cuts = self.log_end_offset, self._cuts
        limit = log_end_offset if end_offset is None else min(end_offset, log_end_offset)
        with self._pinned_at(offset, log_end_offset) as segment:
            if offset >= limit:
                return b""
            try:
                with _disk_errors(f"{segment.path} cannot be read"):
                    return segment.read(offset, max_bytes, limit)
            except CorruptLog:
                if self._cuts != cuts:
                    raise OffsetOutOfRange(f"{self.directory} was cut while offset {offset} was read") from None
                raise

    def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        """[thread] (base offset, max timestamp) of the first batch whose max timestamp is at least that; None: none.

        Raises StorageError.
        """
        for segment in self._segments:
            if segment.largest_timestamp_ms >= timestamp_ms:
                with self._pinned(segment), _disk_errors(f"{segment.path} cannot be read"):
                    header = None if segment.retired else segment.first_reaching(timestamp_ms)
                if header is not None:
                    return header.base_offset, header.max_timestamp
        return None

    @contextmanager
    def _pinned_at(self, offset: int, log_end_offset: int) -> Iterator[Segment]:
        """The segment that holds `offset`; it stays open inside. Raises OffsetOutOfRange."""
        with self._lock:
            segments = self._segments
            number = bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1
            if number < 0 or offset > log_end_offset:
                raise OffsetOutOfRange(
                    f"offset {offset} is outside of {self.directory}, {self.log_start_offset} to {log_end_offset}"
                )
            if segments[number].retired:
                raise StorageError(self.failure)
            segments[number].pins += 1
        try:
            yield segments[number]
        finally:
            self._unpin(segments[number])

    @contextmanager
    def _pinned(self, *segments: Segment) -> Iterator[None]:
        """Those segments stay open inside, unless they are `retired` already."""
        with self._lock:
            for segment in segments:
                segment.pins += 1
        try:
            yield
        finally:
            for segment in segments:
                self._unpin(segment)

    def _unpin(self, segment: Segment) -> None:
        with self._lock:
            segment.pins -= 1
            last = segment.retired and not segment.pins
        if last:
            segment.close()

    def _retire(self, segments: Sequence[Segment]) -> None:
        """They have left the row: close those that nobody reads, now; the others when their last reader goes."""
        with self._lock:
            for segment in segments:
                segment.retired = True
            idle = [segment for segment in segments if not segment.pins]
        for segment in idle:
            segment.close()

    # ---- The medium ----

    def sync(self) -> int:
        """[thread] Put on the medium all that was appended before the call. Returns the end offset of that.

        Raises StorageError; the log has failed then, for what a failed sync has lost no later one brings back.
        """
        with self._lock:
            self._require_usable()
            end_offset, names_changed, cuts = self.log_end_offset, self._names_changed, self._cuts
            unsynced = [(segment, segment.size) for segment in self._segments if segment.synced_size < segment.size]
            for segment, _ in unsynced:
                segment.pins += 1
        try:
            if self._names_synced < names_changed:
                self._disk.sync_directory(self.directory)
                self._names_synced = max(self._names_synced, names_changed)
            for segment, size in unsynced:
                if not segment.retired:
                    segment.file.sync()
                    with self._lock:
                        if self._cuts == cuts:  # else other bytes may have taken their place meanwhile
                            segment.synced_size = max(segment.synced_size, size)
        except OSError as error:
            self._fail(f"sync of {self.directory} failed: {error}")
            raise StorageError(self.failure) from error
        finally:
            for segment, _ in unsynced:
                self._unpin(segment)
        return end_offset

    @property
    def maintenance_due(self) -> bool:
        return bool(self._pending) or self._unsnapshotted_bytes >= self.config.snapshot_interval_bytes

    def maintain(self) -> None:
        """[thread] Write the snapshots that are due, with all that must be on the medium before them.

        Raises StorageError; what was not done is still due.
        """
        with self._maintenance:
            with self._lock:
                if self._unsnapshotted_bytes >= self.config.snapshot_interval_bytes:
                    self._pending.append(self._capture())
                    self._unsnapshotted_bytes = 0
            self._write_pending()

    def _write_pending(self) -> None:
        """Everything below each captured offset goes to the medium, then the snapshots. `_maintenance` is held."""
        with self._lock:
            pending = list(self._pending)
            epochs = self.leader_epochs
            segments = self._segments
        if not pending:
            return
        self.sync()
        with _disk_errors(f"snapshots of {self.directory} cannot be written"):
            for segment in segments:
                segment.flush_indexes()
            self._disk.write_atomically(f"{self.directory}/{EPOCH_CHECKPOINT}", epochs.encode())
            for snapshot in pending:
                if snapshot.offset not in self._snapshots:
                    write_snapshot(self._disk, self.directory, snapshot)
                    self._snapshots = sorted((*self._snapshots, snapshot.offset))
                with self._lock:
                    self._pending.remove(snapshot)
            self._remove_surplus_snapshots()

    def _remove_surplus_snapshots(self) -> None:
        """Raises OSError."""
        bases = [segment.base_offset for segment in self._segments]
        kept = snapshots_to_keep(self._snapshots, bases, self.log_start_offset)
        self._remove_snapshots([offset for offset in self._snapshots if offset not in kept])

    def _remove_snapshots(self, offsets: list[int]) -> None:
        """Raises OSError."""
        for offset in offsets:
            self._disk.remove(f"{self.directory}/{file_name(offset, SNAPSHOT_SUFFIX)}")
            self._snapshots = [other for other in self._snapshots if other != offset]

    def snapshot_at_log_start(self) -> bytes:
        """[thread] The producer state at log_start_offset, in the snapshot file's format.

        Raises CorruptLog where the file is damaged, StorageError.
        """
        with self._maintenance, _disk_errors(f"the snapshot at the start of {self.directory} cannot be read"):
            if self.log_start_offset == 0:
                return empty_snapshot()
            snapshot = load_snapshot(self._disk, self.directory, self.log_start_offset)
            if snapshot is None:
                path = f"{self.directory}/{file_name(self.log_start_offset, SNAPSHOT_SUFFIX)}"
                raise CorruptLog(path, 0, self.log_start_offset, "the snapshot at the log's start cannot be read")
            return encode_snapshot(snapshot)

    # ---- Retention ----

    def apply_retention(self, now_ms: int, high_watermark: int) -> None:
        """[thread] Delete segments that retention asks for, below the high watermark only; forget idle producers.

        An expired last segment is sealed first, so that an idle partition empties too. Raises StorageError.
        """
        with self._maintenance:
            self._require_usable()
            self._expire_producers(now_ms, high_watermark)
            self._seal_expired(now_ms, high_watermark)
            config, segments = self.config, self._segments
            facts = [SegmentFacts(s.end_offset, s.size, s.largest_timestamp_ms) for s in segments]
            count = segments_to_delete(facts, now_ms, config.retention_ms, config.retention_bytes, high_watermark)
            if not count:
                return
            self._write_pending()  # among them, it may be, the snapshot at the new start
            with _disk_errors(f"old segments of {self.directory} cannot be deleted"):
                while count and not self._has_snapshot(segments[count].base_offset):
                    count -= 1
                if count:
                    self._delete_oldest(count)

    def _expire_producers(self, now_ms: int, high_watermark: int) -> None:
        expiration_ms = self.config.producer_expiration_ms
        with self._lock:
            if self.producers.observation_due(now_ms, expiration_ms):
                self.producers.observe(self.log_end_offset, now_ms)
            expired = self.producers.expire(now_ms, expiration_ms, high_watermark)
        if expired:
            log.info("producers expired directory=%s count=%d left=%d", self.directory, expired, len(self.producers))

    def _seal_expired(self, now_ms: int, high_watermark: int) -> None:
        """Roll if the last segment is all that keeps expired records."""
        with self._lock:
            last = self._segments[-1]
            sealed = (*self._segments, last)  # as if there were one more behind it
            facts = [SegmentFacts(s.end_offset, s.size, s.largest_timestamp_ms) for s in sealed]
            deleted = segments_to_delete(facts, now_ms, self.config.retention_ms, -1, high_watermark)
            if last.size and deleted == len(self._segments):
                self._roll()

    def _has_snapshot(self, offset: int) -> bool:
        return offset in self._snapshots and load_snapshot(self._disk, self.directory, offset) is not None

    def _delete_oldest(self, count: int) -> None:
        """The log starts at the base of `segments[count]`, whose snapshot is there. Raises OSError."""
        with self._lock:
            gone, self._segments = self._segments[:count], self._segments[count:]
            self.log_start_offset = self._segments[0].base_offset
            self.size_bytes -= sum(segment.size for segment in gone)
            epochs = self.leader_epochs.copy()
            epochs.advance_to(self.log_start_offset)
            self.leader_epochs = epochs
        log.info("segments deleted directory=%s count=%d start=%d", self.directory, count, self.log_start_offset)
        self._retire(gone)
        for segment in gone:  # the oldest first: at any moment what is left is a log
            remove_segment(self._disk, self.directory, segment.base_offset)
        self._remove_surplus_snapshots()

    # ---- Cutting ----

    def truncate_to(self, offset: int) -> None:
        """[thread, appends stopped] End the log at `offset`, or at the border of batches below it; roll the state back.

        Raises OffsetOutOfRange below the log start, CorruptLog where what stays cannot be read, StorageError.
        """
        with self._maintenance:
            self._require_usable()
            if offset >= self.log_end_offset:
                return
            if offset < self.log_start_offset:
                raise OffsetOutOfRange(f"{self.directory} starts at {self.log_start_offset}: no cut at {offset}")
            with _disk_errors(f"{self.directory} cannot be read"):
                number = bisect_right(self._segments, offset, key=lambda segment: segment.base_offset) - 1
                position, end_offset = self._segments[number].border_at(offset)
                producers, folded_bytes = self._producers_at(end_offset)
            gone = self._forget_above(number, position, end_offset, producers, folded_bytes)
            try:
                self._cut_files(gone, position, end_offset)
            except (OSError, CorruptLog) as error:
                self._fail(f"truncation of {self.directory} to {end_offset} failed: {error}")
                raise StorageError(self.failure) from error
            log.info("log truncated directory=%s end=%d asked=%d", self.directory, end_offset, offset)

    def _producers_at(self, end_offset: int) -> tuple[ProducerState, int]:
        """(the state at `end_offset`, bytes folded for it): the newest snapshot at or below it, and the rest of the log.

        Raises CorruptLog, OSError.
        """
        offsets = [offset for offset in self._snapshots if offset <= end_offset]
        snapshot = newest_snapshot(self._disk, self.directory, offsets, self.log_start_offset)
        for captured in self._pending:
            if snapshot.offset < captured.offset <= end_offset:
                snapshot = Snapshot(captured.offset, captured.producers.copy())
        producers, folded_bytes = snapshot.producers, 0
        for segment in self._segments:
            if segment.end_offset <= snapshot.offset or segment.base_offset >= end_offset:
                continue
            for placed in segment.scan_from(snapshot.offset):
                if placed.header.base_offset >= end_offset:
                    break
                if placed.header.base_offset >= snapshot.offset:
                    fold(segment.path, placed, producers)
                    folded_bytes += placed.header.size_bytes
        producers.carry_from(self.producers)
        return producers, folded_bytes

    def _forget_above(
        self, number: int, position: int, end_offset: int, producers: ProducerState, folded_bytes: int
    ) -> Sequence[Segment]:
        """The cut in memory, in one step. Returns the segments that have left the row."""
        with self._lock:
            gone, self._segments = self._segments[number + 1 :], self._segments[: number + 1]
            self._cuts += 1
            self.log_end_offset = end_offset
            self.size_bytes = sum(segment.size for segment in self._segments[:-1]) + position
            self.producers = producers
            epochs = self.leader_epochs.copy()
            epochs.truncate_to(end_offset)
            self.leader_epochs = epochs
            self._pending = [snapshot for snapshot in self._pending if snapshot.offset <= end_offset]
            self._unsnapshotted_bytes = folded_bytes
        self._retire(gone)
        return gone

    def _cut_files(self, gone: Sequence[Segment], position: int, end_offset: int) -> None:
        """Snapshots first, from the newest: one above the end would call the cut log damaged. Raises OSError, CorruptLog.

        After a crash between any two steps the folder holds a log that ends at or above the cut, at a border.
        """
        self._remove_snapshots([offset for offset in reversed(self._snapshots) if offset > end_offset])
        self._disk.sync_directory(self.directory)
        for segment in reversed(gone):
            remove_segment(self._disk, self.directory, segment.base_offset)
        self._segments[-1].truncate(position, end_offset)

    def reset_to(self, start_offset: int, producer_snapshot: bytes) -> None:
        """[thread, appends stopped] Become an empty log that starts at `start_offset` with that producer state.

        After a crash at any moment the old log is there, whole, or the new one. Raises CorruptMessage for bytes that are
        not the snapshot at that offset, StorageError.
        """
        snapshot = decode_snapshot(producer_snapshot)
        if snapshot.offset != start_offset:
            raise CorruptMessage(
                f"a producer snapshot at {snapshot.offset} for a log that is to start at {start_offset}"
            )
        with self._maintenance:
            self._require_usable()
            try:
                begin_reset(self._disk, self.directory, producer_snapshot)
                finish_reset(self._disk, self.directory)
                recovered = recover(self._disk, self.directory, self.config)
            except (OSError, CorruptLog) as error:
                self._fail(f"reset of {self.directory} to {start_offset} failed: {error}")
                raise StorageError(self.failure) from error
            recovered.producers.carry_from(self.producers)
            with self._lock:
                gone = self._segments
                self._cuts += 1
                self._take(recovered)
            self._retire(gone)
            log.info("log reset directory=%s start=%d", self.directory, start_offset)

    # ---- The end ----

    def close(self, clean: bool) -> None:
        """[thread] Close the files; `clean`: synced and with a snapshot at the end, so that nothing is to be checked.

        Raises StorageError, with the files closed.
        """
        with self._maintenance:
            if self._segments[-1].retired:
                return
            try:
                if clean and not self.failure:
                    with self._lock:
                        if self.log_end_offset not in self._snapshots:
                            self._pending.append(self._capture())
                            self._unsnapshotted_bytes = 0
                    self._write_pending()
            finally:
                with self._lock:
                    self.failure = self.failure or f"log {self.directory} is closed"
                self._retire(self._segments)


def _claim(disk: Disk, directory: str, topic_id: str) -> None:
    """Make the folder that topic's. Raises StorageError where it is another's, OSError."""
    found = read_topic_id(disk, directory)
    if not found:
        write_topic_id(disk, directory, topic_id)
    elif topic_id and found != topic_id:
        raise StorageError(f"{directory} belongs to topic id {found}, not {topic_id}")


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """OSError becomes StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error}") from error
