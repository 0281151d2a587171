"""ConsumerGroupHeartbeat (key 68), versions 0 and 1: membership of a group whose coordinator assigns (KIP-848).

Supports: the assignors `uniform` and `range`, static members, incremental reconciliation. In version 0 a member that joins
without an id is given one; from version 1 it makes its own. The answer has an assignment where it is news.

Not supported: subscriptions by a regular expression (INVALID_REGULAR_EXPRESSION), and members of both protocols in one group
(GROUP_ID_NOT_FOUND where the group has classic members).

Errors: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR; UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH,
FENCED_INSTANCE_ID, UNRELEASED_INSTANCE_ID, UNSUPPORTED_ASSIGNOR, GROUP_MAX_SIZE_REACHED, INVALID_GROUP_ID, INVALID_REQUEST.

Limits: `coordination/limits.py`; MAX_OWNED partitions that a member says it owns.
"""

from __future__ import annotations

from fencepost_node.coordination.consumer_group import JOINING
from fencepost_node.coordination.messages import ConsumerAlive, ConsumerHeartbeat
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import by_topic, client_host, error_of
from fencepost_proto.kafka.messages.consumer_group_heartbeat import (
    Assignment,
    ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse,
    TopicPartitions,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError

OWN_ID_FROM = 1
MAX_OWNED = 20_000  # twice the partitions of a cluster


async def handle(
    context: KafkaContext, request: ConsumerGroupHeartbeatRequest, version: int
) -> ConsumerGroupHeartbeatResponse:
    if request.subscribed_topic_regex:
        return _refusal(ErrorCode.INVALID_REGULAR_EXPRESSION, "subscriptions by a regular expression are not supported")
    owned = request.topic_partitions
    if owned is not None and sum(len(topic.partitions) for topic in owned) > MAX_OWNED:
        return _refusal(ErrorCode.INVALID_REQUEST, f"more than {MAX_OWNED} partitions are named")
    client_id = context.client_id or ""
    member_id = request.member_id
    if not member_id and version < OWN_ID_FROM and request.member_epoch == JOINING:
        member_id = context.groups.fresh_member_id(client_id)
    answer = await context.groups.ask(
        ConsumerHeartbeat(
            group_id=request.group_id,
            member_id=member_id,
            member_epoch=request.member_epoch,
            instance_id=request.instance_id,
            rack_id=request.rack_id or None,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            topics=None if request.subscribed_topic_names is None else tuple(request.subscribed_topic_names),
            assignor=request.server_assignor,
            owned=None
            if owned is None
            else tuple((each.topic_id, index) for each in owned for index in each.partitions),
            client_id=client_id,
            client_host=client_host(context),
        )
    )
    if not isinstance(answer, ConsumerAlive):
        return _refusal(error_of(answer), answer.message if isinstance(answer, FencepostError) else "")
    assignment = None
    if answer.assignment is not None:
        topics = [TopicPartitions(topic_id, indexes) for topic_id, indexes in by_topic(answer.assignment).items()]
        assignment = Assignment(topics)
    return ConsumerGroupHeartbeatResponse(
        member_id=answer.member_id,
        member_epoch=answer.member_epoch,
        heartbeat_interval_ms=answer.heartbeat_interval_ms,
        assignment=assignment,
    )


def _refusal(code: ErrorCode, message: str) -> ConsumerGroupHeartbeatResponse:
    return ConsumerGroupHeartbeatResponse(error_code=code, error_message=message)
