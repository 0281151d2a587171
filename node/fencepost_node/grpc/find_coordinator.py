"""FindCoordinator: which broker coordinates a group, and by which partition of the topic of groups.

Supports: any group id, also of a group that is not there. At its first use the topic of groups and offsets is created, and
the answer waits for it for FIND_WITHIN_S at most.

Errors: COORDINATOR_NOT_AVAILABLE where the group's partition has no leader or the topic cannot be created; INVALID_GROUP_ID.
"""

from __future__ import annotations

from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_proto.protocol.v1 import groups_pb2

FIND_WITHIN_S = 3.0


async def find_coordinator(
    groups: GroupCoordinators, request: groups_pb2.FindCoordinatorRequest
) -> groups_pb2.FindCoordinatorResponse:
    broker_id = await groups.find(request.group_id, FIND_WITHIN_S)
    partition = groups.partition_of(request.group_id)
    return groups_pb2.FindCoordinatorResponse(
        broker_id=broker_id, partition=-1 if partition is None else partition.index
    )
