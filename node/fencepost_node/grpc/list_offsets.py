"""ListOffsets: where a partition begins, where it ends for a reader, and which batch reaches a point in time.

Supports: -1 latest (the high watermark), -2 earliest (the log start), a time in ms since the epoch: the base offset of
the first batch below the high watermark whose largest timestamp reaches it; -1 where there is none.

Behaviour: only the leader answers. Latest and by-time wait for nothing: a new leader that does not yet know its high
watermark answers OFFSET_NOT_AVAILABLE (KIP-207), so that what one client sees never goes back (G10).

Errors: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH,
OFFSET_NOT_AVAILABLE, INVALID_REQUEST (a timestamp below -2).
"""

from __future__ import annotations

from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.requests.list_offsets import find_offset
from fencepost_proto.protocol.v1 import broker_pb2


async def list_offsets(
    manager: ReplicaManager, request: broker_pb2.ListOffsetsRequest
) -> broker_pb2.ListOffsetsResponse:
    offset, timestamp_ms = await find_offset(
        manager, request.topic_id, request.partition, request.leader_epoch, request.timestamp_ms
    )
    return broker_pb2.ListOffsetsResponse(offset=offset, timestamp_ms=timestamp_ms)
