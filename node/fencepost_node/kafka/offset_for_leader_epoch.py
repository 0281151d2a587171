"""OffsetForLeaderEpoch (key 23), versions 2 to 4: where a leader epoch ends in the leader's log (KIP-320).

A consumer that has changed leaders asks for the epoch of the last batch it has read. The answer is the largest epoch of the
leader's history that is not newer, and the offset where it ends: where that is below the consumer's position, what it has
read is gone. -1 and -1 where the history has no such epoch.

Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.leader_epochs import end_offset_for_epoch
from fencepost_proto.kafka.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderPartition,
    OffsetForLeaderTopicResult,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.runtime.turns import Turns


async def handle(
    context: KafkaContext, request: OffsetForLeaderEpochRequest, version: int
) -> OffsetForLeaderEpochResponse:
    response = OffsetForLeaderEpochResponse()
    names = context.manager.image.topic_ids
    turns = Turns()
    for topic in request.topics:
        result = OffsetForLeaderTopicResult(topic=topic.topic)
        response.topics.append(result)
        for asked in topic.partitions:
            result.partitions.append(_answer(context, names.get(topic.topic), asked))
            await turns.step()
    return response


def _answer(context: KafkaContext, topic_id: str | None, asked: OffsetForLeaderPartition) -> EpochEndOffset:
    if topic_id is None:
        return EpochEndOffset(error_code=ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, partition=asked.partition)
    try:
        epoch, end_offset = end_offset_for_epoch(
            context.manager, topic_id, asked.partition, asked.current_leader_epoch, asked.leader_epoch
        )
    except FencepostError as error:
        return EpochEndOffset(error_code=error.code, partition=asked.partition)
    return EpochEndOffset(partition=asked.partition, leader_epoch=epoch, end_offset=end_offset)
