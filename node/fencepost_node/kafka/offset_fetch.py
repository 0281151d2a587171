"""OffsetFetch (key 9), versions 1 to 10: how far a group has come.

A partition without a committed offset, and a group that no one knows, have offset -1 and no error. Null topics (from
version 2): all that the group has. Many groups from version 8; MAX_GROUPS_IN_A_REQUEST at most. From version 9 a member of
a group of KIP-848 names its epoch, and an older one is refused; version 10 names topics by id. `require_stable` changes
nothing: there are no transactions. An offset that was committed for an earlier topic of the same name is none.

Errors, of the group (version 1: of each partition): COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
NOT_COORDINATOR, INVALID_GROUP_ID, UNKNOWN_MEMBER_ID, STALE_MEMBER_EPOCH, INVALID_REQUEST; of a partition: UNKNOWN_TOPIC_ID.
"""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_node.coordination.messages import FetchedOffset, FetchOffsets
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.group_offsets import fetch_offsets
from fencepost_proto.kafka.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.topic_ids import from_wire, to_wire

GROUP_ERROR_FROM = 2
MANY_GROUPS_FROM = 8
TOPIC_IDS_FROM = 10
MAX_GROUPS_IN_A_REQUEST = 1_000


async def handle(context: KafkaContext, request: OffsetFetchRequest, version: int) -> OffsetFetchResponse:
    if version < MANY_GROUPS_FROM:
        return await _of_one(context, request, version)
    response = OffsetFetchResponse()
    for number, asked in enumerate(request.groups):
        if number >= MAX_GROUPS_IN_A_REQUEST:
            answer = OffsetFetchResponseGroup(group_id=asked.group_id, error_code=ErrorCode.INVALID_REQUEST)
        else:
            answer = await _of_group(context, asked, version)
        response.groups.append(answer)
    return response


async def _of_one(context: KafkaContext, request: OffsetFetchRequest, version: int) -> OffsetFetchResponse:
    wanted = None if request.topics is None else [(topic.name, topic.partition_indexes) for topic in request.topics]
    found = await _fetch(context, request.group_id, wanted)
    if isinstance(found, FencepostError):
        if version >= GROUP_ERROR_FROM:
            return OffsetFetchResponse(error_code=found.code)
        refused = [
            OffsetFetchResponseTopic(
                name=topic,
                partitions=[
                    OffsetFetchResponsePartition(index, -1, -1, "", found.code)  # version 1 has no other place for it
                    for index in indexes
                ],
            )
            for topic, indexes in wanted or ()
        ]
        return OffsetFetchResponse(topics=refused)
    response = OffsetFetchResponse()
    topics: dict[str, OffsetFetchResponseTopic] = {}
    for each in found:
        if each.topic not in topics:
            topics[each.topic] = OffsetFetchResponseTopic(name=each.topic)
            response.topics.append(topics[each.topic])
        topics[each.topic].partitions.append(
            OffsetFetchResponsePartition(each.partition, each.offset, each.leader_epoch, each.metadata)
        )
    return response


async def _of_group(context: KafkaContext, asked: OffsetFetchRequestGroup, version: int) -> OffsetFetchResponseGroup:
    image = context.manager.image
    response = OffsetFetchResponseGroup(group_id=asked.group_id)
    wanted: list[tuple[str, Sequence[int]]] | None = None
    if asked.topics is not None:
        wanted = []
        for topic in asked.topics:
            name: str | None = topic.name
            if version >= TOPIC_IDS_FROM:
                known = image.topics.get(from_wire(topic.topic_id))
                name = known.name if known is not None else None
            if name is None:
                unknown = [
                    OffsetFetchResponsePartitions(index, -1, -1, "", ErrorCode.UNKNOWN_TOPIC_ID)
                    for index in topic.partition_indexes
                ]
                response.topics.append(OffsetFetchResponseTopics(topic_id=topic.topic_id, partitions=unknown))
            else:
                wanted.append((name, topic.partition_indexes))
    found = await _fetch(context, asked.group_id, wanted, asked.member_id or "", asked.member_epoch)
    if isinstance(found, FencepostError):
        return OffsetFetchResponseGroup(group_id=asked.group_id, error_code=found.code)
    topics: dict[str, OffsetFetchResponseTopics] = {}
    for each in found:
        if each.topic not in topics:
            topic_id = image.topic_ids.get(each.topic)
            if version >= TOPIC_IDS_FROM and topic_id is None:
                continue  # it has gone, and has no id to be named by
            topics[each.topic] = OffsetFetchResponseTopics(
                name=each.topic, topic_id=to_wire(topic_id) if topic_id is not None else bytes(16)
            )
            response.topics.append(topics[each.topic])
        topics[each.topic].partitions.append(
            OffsetFetchResponsePartitions(each.partition, each.offset, each.leader_epoch, each.metadata)
        )
    return response


async def _fetch(
    context: KafkaContext,
    group_id: str,
    wanted: Sequence[tuple[str, Sequence[int]]] | None,
    member_id: str = "",
    member_epoch: int = -1,
) -> list[FetchedOffset] | FencepostError:
    partitions = None if wanted is None else tuple((topic, index) for topic, indexes in wanted for index in indexes)
    question = FetchOffsets(group_id, partitions, member_id, member_epoch)
    return await fetch_offsets(context.groups, context.manager.image, question)
