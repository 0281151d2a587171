"""ListOffsets: where a partition begins, where it ends for a reader, and which batch reaches a point in time.

Supports: -1 latest (the high watermark), -2 earliest (the log start), a time in ms since the epoch: the base offset of
the first batch below the high watermark whose largest timestamp reaches it; -1 where there is none.

Behaviour: only the leader answers. Latest and by-time wait for nothing: a new leader that does not yet know its high
watermark answers OFFSET_NOT_AVAILABLE (KIP-207), so that what one client sees never goes back (G10).

Errors: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH,
OFFSET_NOT_AVAILABLE, INVALID_REQUEST (a timestamp below -2).
"""

from __future__ import annotations

import asyncio

from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.protocol.v1 import broker_pb2

LATEST = -1
EARLIEST = -2
NONE = -1


async def list_offsets(
    manager: ReplicaManager, request: broker_pb2.ListOffsetsRequest
) -> broker_pb2.ListOffsetsResponse:
    if request.timestamp_ms < EARLIEST:
        raise InvalidRequest(f"timestamp {request.timestamp_ms}: -1 (latest), -2 (earliest) or ms since 1970")
    leadership = manager.leader(request.topic_id, request.partition, request.leader_epoch)
    if request.timestamp_ms == EARLIEST:
        return broker_pb2.ListOffsetsResponse(offset=leadership.log.log_start_offset, timestamp_ms=NONE)
    latest = leadership.latest_offset()
    if request.timestamp_ms == LATEST:
        return broker_pb2.ListOffsetsResponse(offset=latest, timestamp_ms=NONE)
    found = await asyncio.to_thread(leadership.log.offset_for_timestamp, request.timestamp_ms)
    leadership.require_leading("during the search")
    if found is None or found[0] >= latest:
        return broker_pb2.ListOffsetsResponse(offset=NONE, timestamp_ms=NONE)
    offset, timestamp_ms = found
    return broker_pb2.ListOffsetsResponse(offset=offset, timestamp_ms=timestamp_ms)
