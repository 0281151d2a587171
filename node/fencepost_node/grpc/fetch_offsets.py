"""FetchOffsets: how far a group has come.

A partition without a committed offset, and a group that no one knows, have offset -1 and no error; an offset that was
committed for an earlier topic of the same name is none. Without partitions: all that the group has, of topics that are
there.

Errors: NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, INVALID_GROUP_ID; of a member that asks:
UNKNOWN_MEMBER_ID, STALE_MEMBER_EPOCH; UNKNOWN_TOPIC_ID.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import FetchOffsets
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.group_offsets import fetch_offsets as fetch
from fencepost_proto.protocol.errors import FencepostError, UnknownTopicId
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import groups_pb2


async def fetch_offsets(
    groups: GroupCoordinators, image: MetadataImage, request: groups_pb2.FetchOffsetsRequest
) -> groups_pb2.FetchOffsetsResponse:
    wanted: list[tuple[str, int]] = []
    for each in request.partitions:
        topic = image.topics.get(each.topic_id)
        if topic is None:
            raise UnknownTopicId(f"there is no topic of id {each.topic_id!r}")
        wanted.append((topic.name, each.partition))
    question = FetchOffsets(
        request.group_id, tuple(wanted) if wanted else None, request.member_id, request.member_epoch
    )
    found = await fetch(groups, image, question)
    if isinstance(found, FencepostError):
        raise found
    response = groups_pb2.FetchOffsetsResponse()
    for offset in found:
        topic_id = image.topic_ids.get(offset.topic)
        if topic_id is None:
            continue
        answer = response.offsets.add(
            topic_id=topic_id, partition=offset.partition, offset=offset.offset, metadata=offset.metadata
        )
        if offset.leader_epoch >= 0:
            answer.leader_epoch = offset.leader_epoch
    return response
