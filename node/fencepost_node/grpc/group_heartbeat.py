"""GroupHeartbeat: membership of a group whose coordinator assigns (KIP-848), for Fencepost's own consumer.

Supports: what Kafka's ConsumerGroupHeartbeat does, by the same rules (`coordination/consumer_rules.py`): members of both
protocols' clients may be in one group. A member makes its own id. The answer has an assignment where it is news.

Errors: NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE; UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH,
FENCED_INSTANCE_ID, UNRELEASED_INSTANCE_ID, UNSUPPORTED_ASSIGNOR, GROUP_MAX_SIZE_REACHED, GROUP_ID_NOT_FOUND (the group has
classic members), INVALID_GROUP_ID, INVALID_REQUEST.

Limits: `coordination/limits.py`.
"""

from __future__ import annotations

from fencepost_node.coordination.limits import MAX_ID_CHARACTERS
from fencepost_node.coordination.messages import ConsumerAlive, ConsumerHeartbeat
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.group_offsets import as_error
from fencepost_proto.protocol.topic_ids import from_wire, to_wire
from fencepost_proto.protocol.v1 import common_pb2, groups_pb2


async def group_heartbeat(
    groups: GroupCoordinators, request: groups_pb2.GroupHeartbeatRequest, peer: str
) -> groups_pb2.GroupHeartbeatResponse:
    owned = None
    if request.HasField("owned"):
        owned = tuple((to_wire(each.topic_id), each.partition) for each in request.owned.partitions)
    answer = await groups.ask(
        ConsumerHeartbeat(
            group_id=request.group_id,
            member_id=request.member_id,
            member_epoch=request.member_epoch,
            instance_id=request.instance_id or None,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            topics=tuple(request.subscribed.names) if request.HasField("subscribed") else None,
            assignor=request.assignor or None,
            owned=owned,
            client_id=request.client_id,
            client_host=_client_host(peer),
        )
    )
    if not isinstance(answer, ConsumerAlive):
        raise as_error(answer)
    response = groups_pb2.GroupHeartbeatResponse(
        member_epoch=answer.member_epoch,
        heartbeat_interval_ms=answer.heartbeat_interval_ms,
        session_timeout_ms=answer.session_timeout_ms,
    )
    if answer.assignment is not None:
        response.assignment.partitions.extend(
            common_pb2.PartitionRef(topic_id=from_wire(topic_id), partition=index)
            for topic_id, index in answer.assignment
        )
        response.assignment.SetInParent()  # also where it is empty
    return response


def _client_host(peer: str) -> str:
    """As the Kafka edge has it, for who describes a group: "/127.0.0.1"."""
    return ("/" + peer.partition(":")[2].rpartition(":")[0])[:MAX_ID_CHARACTERS]
