"""ListOffsets: where a partition begins, where it ends for a reader, and which record is the first at a point in time.

Supports: -1 latest (the high watermark), -2 earliest (the log start), -3 the record with the largest timestamp, a time in ms
since the epoch: the first record below the high watermark of that time or later, with its time; -1 where there is none.

Behaviour: only the leader answers. Latest and by-time wait for nothing: a new leader that does not yet know its high
watermark answers OFFSET_NOT_AVAILABLE (KIP-207), so that what one client sees never goes back (G10).

Errors: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH,
OFFSET_NOT_AVAILABLE, INVALID_REQUEST (a timestamp below -3).
"""

from __future__ import annotations

from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.requests.list_offsets import find_offset
from fencepost_proto.protocol.v1 import broker_pb2


async def list_offsets(
    manager: ReplicaManager, request: broker_pb2.ListOffsetsRequest
) -> broker_pb2.ListOffsetsResponse:
    found = await find_offset(manager, request.topic_id, request.partition, request.leader_epoch, request.timestamp_ms)
    return broker_pb2.ListOffsetsResponse(offset=found.offset, timestamp_ms=found.timestamp_ms)
