"""Delete the records at the beginning of partitions: no reader is given them any more, whichever replica leads.

The leader checks the offset against its high watermark, the controller commits the deletion (its `decisions/deleted_records`
says what may fail), and the answer comes when this broker's own log begins behind the records. Where retention has brought
this log further already, that is what is committed and answered: each replica has a retention of its own, and one that leads
later may still begin before what was asked for. Producers' state stays: who repeats a batch that was deleted is still
recognised. Disk space is free with the next retention, by whole segments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fencepost_node.controller_link import ControllerLink
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Leadership
from fencepost_proto.protocol.errors import FencepostError, OffsetOutOfRange, RequestTimedOut
from fencepost_proto.protocol.request_limits import MAX_PROPOSALS

TO_HIGH_WATERMARK = -1
MIN_TIMEOUT_MS = 1_000  # shorter ones count as this: the controller is asked, also where there is one replica only
MAX_TIMEOUT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Deletion:
    """All below an offset, or below the high watermark."""

    topic_id: str
    partition: int
    leader_epoch: int  # -1: whichever
    end_offset: int  # or TO_HIGH_WATERMARK


async def delete_records(
    manager: ReplicaManager, link: ControllerLink, deletions: Sequence[Deletion], timeout_ms: int
) -> list[int | FencepostError]:
    """For each, where the log begins at least, whoever leads, or the error: what `ReplicaManager.leader` raises,
    OffsetOutOfRange, OffsetNotAvailable (a new leader does not know its high watermark yet), RequestTimedOut, or the
    controller's.

    After RequestTimedOut and NotController the records may be deleted nevertheless; to ask again is safe.
    """
    outcomes: list[int | FencepostError] = [0] * len(deletions)
    wanted: dict[int, tuple[Leadership, int]] = {}  # by place in `deletions`: who leads, and up to which offset
    for place, deletion in enumerate(deletions):
        try:
            leadership, end_offset = _checked(manager, deletion)
        except FencepostError as error:
            outcomes[place] = error
        else:
            outcomes[place] = end_offset
            if not end_offset == leadership.log.log_start_offset == leadership.state.partition.deleted_end_offset:
                wanted[place] = (leadership, end_offset)
    try:
        async with asyncio.timeout(min(max(timeout_ms, MIN_TIMEOUT_MS), MAX_TIMEOUT_MS) / 1000):
            places = list(wanted)
            for first in range(0, len(places), MAX_PROPOSALS):
                some = {place: wanted[place] for place in places[first : first + MAX_PROPOSALS]}
                outcomes_of_some = await _deleted(link, list(some.values()))
                for place, outcome in zip(some, outcomes_of_some, strict=True):
                    outcomes[place] = outcome
                    del wanted[place]
    except TimeoutError:
        for place, (leadership, end_offset) in wanted.items():
            outcomes[place] = RequestTimedOut(
                f"{leadership.name} does not begin at {end_offset} within {timeout_ms} ms: it may later"
            )
    return outcomes


def _checked(manager: ReplicaManager, deletion: Deletion) -> tuple[Leadership, int]:
    leadership = manager.leader(deletion.topic_id, deletion.partition, deletion.leader_epoch)
    high_watermark = leadership.latest_offset()
    end_offset = high_watermark if deletion.end_offset == TO_HIGH_WATERMARK else deletion.end_offset
    if not 0 <= end_offset <= high_watermark:
        raise OffsetOutOfRange(
            f"records of {leadership.name} below offset {end_offset}: the high watermark is {high_watermark}"
        )
    return leadership, max(end_offset, leadership.log.log_start_offset)


async def _deleted(link: ControllerLink, wanted: Sequence[tuple[Leadership, int]]) -> list[int | FencepostError]:
    try:
        results = await link.delete_records((one.key, one.epoch, end_offset) for one, end_offset in wanted)
    except FencepostError as error:
        return [error] * len(wanted)
    outcomes: list[int | FencepostError] = []
    for (leadership, end_offset), refusal in zip(wanted, results, strict=True):
        try:
            if refusal is not None:
                raise refusal
            await leadership.wait_for_start(end_offset)
        except FencepostError as error:
            outcomes.append(error)
        else:
            outcomes.append(end_offset)
    return outcomes
