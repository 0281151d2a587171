"""OffsetCommit (key 8), versions 2 to 10: store how far a group has come.

The answer comes when the offsets are stored on every in-sync replica. `retention_time_ms` (to version 4) has no effect:
offsets are kept for `offsets_retention_ms` after the group was left. From version 9 members of a group of KIP-848 commit
with their epoch; version 10 names topics by id.

Errors, of each partition: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR; UNKNOWN_MEMBER_ID,
FENCED_INSTANCE_ID, ILLEGAL_GENERATION, REBALANCE_IN_PROGRESS, STALE_MEMBER_EPOCH; UNKNOWN_TOPIC_OR_PARTITION,
UNKNOWN_TOPIC_ID, OFFSET_METADATA_TOO_LARGE, INVALID_COMMIT_OFFSET_SIZE (no room), INVALID_GROUP_ID, INVALID_REQUEST (a
negative offset).
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import code_of
from fencepost_node.requests.group_offsets import AskedOffset, Committer, commit_offsets
from fencepost_proto.kafka.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.topic_ids import from_wire

TOPIC_IDS_FROM = 10


async def handle(context: KafkaContext, request: OffsetCommitRequest, version: int) -> OffsetCommitResponse:
    image = context.manager.image
    refusal = context.groups.refusal(request.group_id)
    unknown = ErrorCode.UNKNOWN_TOPIC_ID if refusal is None else code_of(refusal)
    offsets: list[AskedOffset] = []
    answers: list[OffsetCommitResponsePartition] = []  # of these, in the same order
    response = OffsetCommitResponse()
    for topic in request.topics:
        name: str | None = topic.name
        if version >= TOPIC_IDS_FROM:
            known = image.topics.get(from_wire(topic.topic_id))
            name = known.name if known is not None else None
        result = OffsetCommitResponseTopic(name=topic.name, topic_id=topic.topic_id)
        response.topics.append(result)
        for asked in topic.partitions:
            answer = OffsetCommitResponsePartition(partition_index=asked.partition_index)
            result.partitions.append(answer)
            if name is None:
                answer.error_code = unknown
                continue
            answers.append(answer)
            offsets.append(
                AskedOffset(
                    name,
                    asked.partition_index,
                    asked.committed_offset,
                    asked.committed_leader_epoch,
                    asked.committed_metadata or "",
                )
            )
    committer = Committer(
        request.group_id, request.generation_id_or_member_epoch, request.member_id, request.group_instance_id
    )
    found = await commit_offsets(context.groups, image, committer, offsets)
    for answer, error in zip(answers, found, strict=True):
        answer.error_code = code_of(error)
    return response
