"""Where a partition begins, where it ends for a reader, and which batch reaches a point in time.

Only the leader answers. Latest and by-time wait for nothing: a new leader that does not yet know its high watermark raises
OffsetNotAvailable (KIP-207), so that what one client sees never goes back (G10).
"""

from __future__ import annotations

import asyncio

from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.errors import InvalidRequest

LATEST = -1  # the high watermark
EARLIEST = -2  # the log start
NONE = -1


async def find_offset(
    manager: ReplicaManager, topic_id: str, partition: int, leader_epoch: int, timestamp_ms: int
) -> tuple[int, int]:
    """(offset, timestamp in ms): of LATEST or EARLIEST, or the base offset and the largest timestamp of the first batch
    below the high watermark that reaches `timestamp_ms`. NONE stands for either where there is none.

    Raises InvalidRequest for a timestamp below EARLIEST, OffsetNotAvailable, and what `ReplicaManager.leader` raises.
    """
    if timestamp_ms < EARLIEST:
        raise InvalidRequest(f"timestamp {timestamp_ms}: -1 (latest), -2 (earliest) or ms since 1970")
    leadership = manager.leader(topic_id, partition, leader_epoch)
    if timestamp_ms == EARLIEST:
        return leadership.log.log_start_offset, NONE
    latest = leadership.latest_offset()
    if timestamp_ms == LATEST:
        return latest, NONE
    found = await asyncio.to_thread(leadership.log.offset_for_timestamp, timestamp_ms)
    leadership.require_leading("during the search")
    return (NONE, NONE) if found is None or found[0] >= latest else found
