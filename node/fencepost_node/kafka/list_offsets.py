"""ListOffsets (key 2), versions 1 to 9: offsets of partitions by time.

Supports: -1 latest (the high watermark, also for read_committed: there are no transactions), -2 and -4 earliest, -3 the
record with the largest timestamp, -5 (what is in tiered storage: nothing), and ms since 1970: the first record of that
time or later. -1 where there is none.

Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH,
OFFSET_NOT_AVAILABLE (below version 5 LEADER_NOT_AVAILABLE) while a new leader does not know its high watermark (KIP-207),
INVALID_REQUEST (any other negative time), KAFKA_STORAGE_ERROR.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.list_offsets import EARLIEST, NONE, FoundOffset, find_offset
from fencepost_proto.kafka.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError, OffsetNotAvailable
from fencepost_proto.runtime.turns import Turns

EARLIEST_LOCAL = -4
LATEST_TIERED = -5
OFFSET_NOT_AVAILABLE_FROM = 5


async def handle(context: KafkaContext, request: ListOffsetsRequest, version: int) -> ListOffsetsResponse:
    response = ListOffsetsResponse()
    names = context.manager.image.topic_ids
    turns = Turns()
    for topic in request.topics:
        result = ListOffsetsTopicResponse(name=topic.name)
        response.topics.append(result)
        for asked in topic.partitions:
            result.partitions.append(await _answer(context, names.get(topic.name), asked, version))
            await turns.step()
    return response


async def _answer(
    context: KafkaContext, topic_id: str | None, asked: ListOffsetsPartition, version: int
) -> ListOffsetsPartitionResponse:
    index = asked.partition_index
    if topic_id is None:
        return ListOffsetsPartitionResponse(partition_index=index, error_code=ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
    try:
        found = await _find(context, topic_id, asked)
    except OffsetNotAvailable:
        code = (
            ErrorCode.OFFSET_NOT_AVAILABLE if version >= OFFSET_NOT_AVAILABLE_FROM else ErrorCode.LEADER_NOT_AVAILABLE
        )
        return ListOffsetsPartitionResponse(partition_index=index, error_code=code)
    except FencepostError as error:
        return ListOffsetsPartitionResponse(partition_index=index, error_code=error.code)
    return ListOffsetsPartitionResponse(
        partition_index=index, timestamp=found.timestamp_ms, offset=found.offset, leader_epoch=found.leader_epoch
    )


async def _find(context: KafkaContext, topic_id: str, asked: ListOffsetsPartition) -> FoundOffset:
    timestamp = EARLIEST if asked.timestamp == EARLIEST_LOCAL else asked.timestamp
    if timestamp == LATEST_TIERED:
        context.manager.leader(topic_id, asked.partition_index, asked.current_leader_epoch)
        return FoundOffset(NONE, NONE, NONE)
    return await find_offset(context.manager, topic_id, asked.partition_index, asked.current_leader_epoch, timestamp)
