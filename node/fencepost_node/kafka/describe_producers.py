"""DescribeProducers (key 61), version 0: the producers that partitions led by this broker have state for.

Supports: each producer's epoch, last sequence and time of its last batch. There are no transactions.

Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, INVALID_REQUEST for more producers than one answer
holds.

Limits: MAX_PRODUCERS of one answer.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.kafka.messages.describe_producers import (
    DescribeProducersRequest,
    DescribeProducersResponse,
    PartitionResponse,
    ProducerState,
    TopicResponse,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, UnknownTopicOrPartition
from fencepost_proto.runtime.turns import Turns

MAX_PRODUCERS = 20_000


async def handle(context: KafkaContext, request: DescribeProducersRequest, version: int) -> DescribeProducersResponse:
    response = DescribeProducersResponse()
    turns = Turns()
    left = MAX_PRODUCERS
    for topic in request.topics:
        results = TopicResponse(name=topic.name)
        response.topics.append(results)
        for index in topic.partition_indexes:
            result = PartitionResponse(partition_index=index)
            results.partitions.append(result)
            try:
                result.active_producers = await _producers(context, topic.name, index, left, turns)
            except FencepostError as error:
                result.error_code, result.error_message = code_and_message(error)
            left -= len(result.active_producers)
    return response


async def _producers(
    context: KafkaContext, topic_name: str, index: int, most: int, turns: Turns
) -> list[ProducerState]:
    topic_id = context.manager.image.topic_ids.get(topic_name)
    if topic_id is None:
        raise UnknownTopicOrPartition(f"topic {topic_name!r} does not exist")
    known = context.manager.leader(topic_id, index, -1).log.states[PRODUCERS]
    if len(known) > most:
        raise InvalidRequest(f"{topic_name}-{index} has {len(known)} producers; an answer holds {MAX_PRODUCERS}")
    found = []
    for producer_id in sorted(known.ids()):
        await turns.step()
        if (entry := known.get(producer_id)) is not None:  # forgotten since
            found.append(
                ProducerState(
                    producer_id=producer_id,
                    producer_epoch=entry.epoch,
                    last_sequence=entry.last.last_sequence,
                    last_timestamp=entry.last.timestamp_ms,
                    coordinator_epoch=-1,
                )
            )
    return found
