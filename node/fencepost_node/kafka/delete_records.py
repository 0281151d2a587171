"""DeleteRecords (key 21), versions 0 to 2: delete the records at the beginning of partitions that this broker leads.

Supports: up to an offset, and -1 for the high watermark. `low_watermark` is where the partition begins then, on every
replica.

Errors of a partition: those of `requests/delete_records.py` (UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER,
OFFSET_OUT_OF_RANGE, OFFSET_NOT_AVAILABLE, REQUEST_TIMED_OUT, …), with low_watermark -1; INVALID_TOPIC_EXCEPTION for an
internal topic.

A `timeout_ms` of less than a second counts as one: in Kafka a deletion from one replica is done at once, and asks no one.

Limits: those of a request's size; the controller takes a thousand at a time.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import check_not_internal
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.delete_records import Deletion, delete_records
from fencepost_proto.kafka.messages.delete_records import (
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
)
from fencepost_proto.protocol.errors import FencepostError, UnknownTopicOrPartition

NONE = -1


async def handle(context: KafkaContext, request: DeleteRecordsRequest, version: int) -> DeleteRecordsResponse:
    ids = context.manager.image.topic_ids
    response = DeleteRecordsResponse()
    wanted: list[tuple[Deletion, DeleteRecordsPartitionResult]] = []
    for topic in request.topics:
        results = DeleteRecordsTopicResult(name=topic.name)
        response.topics.append(results)
        for asked in topic.partitions:
            result = DeleteRecordsPartitionResult(partition_index=asked.partition_index, low_watermark=NONE)
            results.partitions.append(result)
            try:
                check_not_internal(topic.name)
                if topic.name not in ids:
                    raise UnknownTopicOrPartition(f"topic {topic.name!r} does not exist")
            except FencepostError as error:
                result.error_code = error.code
            else:
                wanted.append((Deletion(ids[topic.name], asked.partition_index, NONE, asked.offset), result))
    deletions = [deletion for deletion, _ in wanted]
    outcomes = await delete_records(context.manager, context.link, deletions, request.timeout_ms)
    for (_, result), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, FencepostError):
            result.error_code = outcome.code
        else:
            result.low_watermark = outcome
    return response
