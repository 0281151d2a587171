"""DeleteRecords: delete the records at the beginning of one partition.

Supports: up to an offset, or up to the high watermark (-1). It answers where the log begins then, also where it had begun
there before, so to ask again is safe.

Errors: those of `requests/delete_records.py`. Limits: a call waits at most 30 s, or until the caller's own deadline.
"""

from __future__ import annotations

from fencepost_node.controller_link import ADMIN_TIMEOUT_S, ControllerLink
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.requests.delete_records import Deletion
from fencepost_node.requests.delete_records import delete_records as delete
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.transport.answering import Context


async def delete_records(
    manager: ReplicaManager, link: ControllerLink, request: broker_pb2.DeleteRecordsRequest, context: Context
) -> broker_pb2.DeleteRecordsResponse:
    deletion = Deletion(request.topic_id, request.partition, request.leader_epoch, request.end_offset)
    left_s = context.time_remaining()
    timeout_s = ADMIN_TIMEOUT_S if left_s is None else min(left_s, ADMIN_TIMEOUT_S)
    (outcome,) = await delete(manager, link, [deletion], int(timeout_s * 1000))
    if isinstance(outcome, FencepostError):
        raise outcome
    return broker_pb2.DeleteRecordsResponse(log_start_offset=outcome)
