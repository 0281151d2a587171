"""Where a partition begins, where it ends for a reader, and which record is the first at or after a point in time.

Only the leader answers. Latest and by-time wait for nothing: a new leader that does not yet know its high watermark raises
OffsetNotAvailable (KIP-207), so that what one client sees never goes back (G10).

By time, the index of the log leads to the first batch that reaches it; that one batch is decoded, in a thread, for its
first record of that time or later. Where no one can decode it the whole batch is the answer: its reader finds that out, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fencepost_node.log.log import Log
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.errors import CorruptMessage, InvalidRequest
from fencepost_proto.protocol.record_batch import APPEND_TIME_ATTRIBUTE, read_header

LATEST = -1  # the high watermark
EARLIEST = -2  # the log start
MAX_TIMESTAMP = -3  # the record with the largest timestamp
NONE = -1


@dataclass(frozen=True, slots=True)
class FoundOffset:
    """NONE stands for what is not known, or not there."""

    offset: int
    timestamp_ms: int
    leader_epoch: int  # of the batch at that offset; of LATEST: the leader's


async def find_offset(
    manager: ReplicaManager, topic_id: str, partition: int, leader_epoch: int, timestamp_ms: int
) -> FoundOffset:
    """Of LATEST, EARLIEST, MAX_TIMESTAMP, or the first record below the high watermark of `timestamp_ms` or later.

    Raises InvalidRequest for another negative timestamp, OffsetNotAvailable, StorageError, and what `ReplicaManager.leader`
    raises.
    """
    if timestamp_ms < MAX_TIMESTAMP:
        raise InvalidRequest(f"timestamp {timestamp_ms}: -1 (latest), -2 (earliest), -3 (newest) or ms since 1970")
    leadership = manager.leader(topic_id, partition, leader_epoch)
    log = leadership.log
    if timestamp_ms == EARLIEST:
        return FoundOffset(log.log_start_offset, NONE, _epoch_at(log, log.log_start_offset))
    latest = leadership.latest_offset()
    if timestamp_ms == LATEST:
        return FoundOffset(latest, NONE, leadership.epoch)
    found = await asyncio.to_thread(first_record, log, timestamp_ms, latest)
    leadership.require_leading("during the search")
    if found is None:
        return FoundOffset(NONE, NONE, NONE)
    return FoundOffset(*found, _epoch_at(log, found[0]))


def _epoch_at(log: Log, offset: int) -> int:
    return log.leader_epochs.epoch_at(offset) if offset < log.log_end_offset else log.last_epoch


def first_record(log: Log, timestamp_ms: int, latest: int) -> tuple[int, int] | None:
    """[thread] (offset, timestamp) of the first record below `latest` of that time or later."""
    if timestamp_ms == MAX_TIMESTAMP:
        timestamp_ms = log.largest_timestamp_ms
    from_offset = 0
    while (found := log.offset_for_timestamp(timestamp_ms, from_offset)) is not None and found[0] < latest:
        batch = log.read_batches(found[0], 1, latest)
        if not batch:
            return None
        header = read_header(batch)
        of_all = header.attributes & APPEND_TIME_ATTRIBUTE  # records have the batch's time
        record = found if of_all else _in_batch(batch[: header.size_bytes], timestamp_ms, found)
        if record is not None or header.base_offset == found[0]:
            return record or found
        from_offset = header.end_offset  # the log starts within this batch, behind the records that would do
    return None


def _in_batch(batch: bytes, timestamp_ms: int, found: tuple[int, int]) -> tuple[int, int] | None:
    """The first record from the offset of `found` on that does; `found` itself where no one can decode them."""
    from fencepost_proto.protocol.records import read_records  # seldom needed, and slow to load

    try:
        for record in read_records(batch):
            if record.timestamp_ms >= timestamp_ms and record.offset >= found[0]:
                return record.offset, record.timestamp_ms
    except CorruptMessage:
        return found
    return None
