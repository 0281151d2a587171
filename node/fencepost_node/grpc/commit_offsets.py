"""CommitOffsets: store how far a group has come. It answers when the offsets are stored on every in-sync replica.

Supports: commits by a member, in its epoch; and by no member, of a group that has none (`fencepost group reset-offsets`).
The rules are those of Kafka's OffsetCommit (`requests/group_offsets.py`).

Errors: where all offsets are refused alike, one error: NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS,
COORDINATOR_NOT_AVAILABLE, UNKNOWN_MEMBER_ID, STALE_MEMBER_EPOCH, INVALID_GROUP_ID. Otherwise one for each: UNKNOWN_TOPIC_ID,
UNKNOWN_TOPIC_OR_PARTITION, OFFSET_METADATA_TOO_LARGE, INVALID_COMMIT_OFFSET_SIZE, INVALID_REQUEST (a negative offset).
"""

from __future__ import annotations

from fencepost_node.coordination.messages import NO_GENERATION
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.group_offsets import AskedOffset, Committer, commit_offsets
from fencepost_proto.protocol.errors import FencepostError, UnknownTopicId, to_proto
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import groups_pb2


async def commit(
    groups: GroupCoordinators, image: MetadataImage, request: groups_pb2.CommitOffsetsRequest
) -> groups_pb2.CommitOffsetsResponse:
    refused: list[tuple[groups_pb2.OffsetOfPartition, FencepostError]] = []
    known: list[groups_pb2.OffsetOfPartition] = []
    asked: list[AskedOffset] = []
    for each in request.offsets:
        topic = image.topics.get(each.topic_id)
        if topic is None:
            refused.append((each, UnknownTopicId(f"there is no topic of id {each.topic_id!r}")))
            continue
        leader_epoch = each.leader_epoch if each.HasField("leader_epoch") else -1
        known.append(each)
        asked.append(AskedOffset(topic.name, each.partition, each.offset, leader_epoch, each.metadata))
    generation = request.member_epoch if request.member_id else NO_GENERATION
    found = await commit_offsets(groups, image, Committer(request.group_id, generation, request.member_id), asked)
    refused += [(each, error) for each, error in zip(known, found, strict=True) if error is not None]
    if refused and len(refused) == len(request.offsets) and len({error.code for _, error in refused}) == 1:
        raise refused[0][1]
    return groups_pb2.CommitOffsetsResponse(
        refused=[
            groups_pb2.OffsetOfPartition(topic_id=each.topic_id, partition=each.partition, error=to_proto(error))
            for each, error in refused
        ]
    )
