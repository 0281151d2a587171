"""Append one produced batch, and report what became of it once that is known.

A batch is checked and appended at once. With acks=all the report comes when the batch (or the one that it repeats) is below
the high watermark, or when that can no longer be promised; with acks 1 and 0 it comes before `append_batch` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fencepost_node.producers.producer_state import Admit
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import ALL_ACKS, Appended
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

MAX_TIMEOUT_MS = 600_000


def append_batch(
    manager: ReplicaManager,
    topic_id: str,
    partition: int,
    leader_epoch: int,  # -1: whichever
    records: bytes,
    *,
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
    leadership = manager.leader(topic_id, partition, leader_epoch)
    loop = asyncio.get_running_loop()
    appended = leadership.append_batch(records, acks, loop.time(), admit)
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
            report(appended, log_start_offset, error)

    def timed_out() -> None:
        committed(errors.RequestTimedOut(f"offset {appended.base_offset} was not committed in {timeout_ms} ms"))

    timer = loop.call_later(min(timeout_ms, MAX_TIMEOUT_MS) / 1000, timed_out)
    leadership.when_committed(appended.end_offset, committed)
