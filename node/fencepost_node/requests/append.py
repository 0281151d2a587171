"""Append one produced batch, and report what became of it once that is known.

A batch is checked and appended at once. With acks=all the report comes when the batch (or the one that it repeats) is below
the high watermark, or when that can no longer be promised; with acks 1 and 0 it comes before `append_batch` returns.
"""

from __future__ import annotations

from collections.abc import Callable

from fencepost_node.producers.producer_state import Admit
from fencepost_node.producers.refusals import Place, Refusals
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.event_ring import EventKind
from fencepost_node.replication.leadership import ALL_ACKS, Appended
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import CorruptMessage, FencepostError, UnsupportedForMessageFormat
from fencepost_proto.protocol.record_batch import BatchHeader, Buffer, read_header

MAX_TIMEOUT_MS = 600_000


def append_batch(
    manager: ReplicaManager,
    refusals: Refusals,  # of the connection that the batch came on
    topic_id: str,
    partition: int,
    records: Buffer,
    *,
    leader_epoch: int = -1,  # whichever
    place: Place | None = None,  # what the client calls the partition, where that is not its id
    acks: int,
    timeout_ms: int,
    admit: Admit | None,  # asked about producers that the partition does not know
    report: Callable[[Appended, int, FencepostError | None], None],
) -> None:
    """Raises FencepostError where nothing was appended; then nothing is reported.

    `report` is called once, with what was appended, the log's start, and the error that leaves its outcome open or None.
    """
    if acks not in (ALL_ACKS, 0, 1):
        raise errors.InvalidRequiredAcks(f"acks {acks}: -1 (all), 0 and 1 are possible")
    loop = manager.local.loop
    now = loop.time()
    if place is None:
        place = (topic_id, partition)
    try:
        leadership = manager.leader(topic_id, partition, leader_epoch)
        appended = leadership.append_batch(records, acks, now, admit)
    except FencepostError as error:
        header = _header_of(records)
        told = error if header is None else _answer(refusals, place, header, error, now)
        try:
            manager.local.counts.refused_batches[told.code.name] += 1
            if header is not None:
                _note(manager, topic_id, partition, header, told)
            if told is not error:
                raise told from error
            raise
        finally:
            del told  # else it and this frame, which has the records, hold each other until the garbage is collected
    if refusals:
        refusals.passed(place, read_header(records), now)
    log_start_offset = leadership.log.log_start_offset
    if acks != ALL_ACKS:
        report(appended, log_start_offset, None)
        return
    reported = False

    def committed(error: FencepostError | None) -> None:
        nonlocal reported
        if not reported:
            reported = True
            timer.cancel()
            if error is not None:
                manager.local.counts.unsure_batches[error.code.name] += 1
            report(appended, log_start_offset, error)

    def timed_out() -> None:
        committed(errors.RequestTimedOut(f"offset {appended.base_offset} was not committed in {timeout_ms} ms"))

    timer = loop.call_later(min(timeout_ms, MAX_TIMEOUT_MS) / 1000, timed_out)
    leadership.when_committed(appended.end_offset, committed)


def _answer(refusals: Refusals, place: Place, header: BatchHeader, error: FencepostError, now: float) -> FencepostError:
    """What the producer is to be told. What is remembered of it is no error that was raised: those hold the records."""
    remembered = _afresh(error)
    answer = refusals.answer(place, header, remembered, now)
    return error if answer is remembered else _afresh(answer)


def _afresh(error: FencepostError) -> FencepostError:
    """The same error, raised nowhere yet. Not by `copy`, which calls `__init__` with what may not be its arguments."""
    fresh = type(error).__new__(type(error), *error.args)
    fresh.__dict__.update(error.__dict__)
    return fresh


def _note(manager: ReplicaManager, topic_id: str, partition: int, header: BatchHeader, told: FencepostError) -> None:
    """For those who look on."""
    topic = manager.image.topics.get(topic_id)
    entity = manager.image.partitions.get((topic_id, partition))
    if topic is not None and entity is not None:
        manager.local.events.of_batch(
            EventKind.REFUSED, topic.name, partition, entity.leader_epoch, header, text=str(told)
        )


def _header_of(records: Buffer) -> BatchHeader | None:
    """None: there is none, so no producer's."""
    try:
        return read_header(records)
    except (CorruptMessage, UnsupportedForMessageFormat):
        return None
