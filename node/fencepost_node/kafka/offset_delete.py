"""OffsetDelete (key 47), version 0: forget offsets of a group.

Errors: GROUP_ID_NOT_FOUND, NON_EMPTY_GROUP (it has members, and is none of consumers), COORDINATOR_LOAD_IN_PROGRESS,
COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, INVALID_GROUP_ID; of a partition: GROUP_SUBSCRIBED_TO_TOPIC.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import code_of
from fencepost_node.requests.group_offsets import delete_offsets
from fencepost_proto.kafka.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from fencepost_proto.protocol.errors import ErrorCode

_OF_A_PARTITION = (ErrorCode.NONE, ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC)


async def handle(context: KafkaContext, request: OffsetDeleteRequest, version: int) -> OffsetDeleteResponse:
    wanted = [(topic.name, each.partition_index) for topic in request.topics for each in topic.partitions]
    codes = [code_of(error) for error in await delete_offsets(context.groups, request.group_id, wanted)]
    of_the_group = next((code for code in codes if code not in _OF_A_PARTITION), None)
    if of_the_group is not None:
        return OffsetDeleteResponse(error_code=of_the_group)
    response, found = OffsetDeleteResponse(), iter(codes)
    for topic in request.topics:
        partitions = [OffsetDeleteResponsePartition(each.partition_index, next(found)) for each in topic.partitions]
        response.topics.append(OffsetDeleteResponseTopic(name=topic.name, partitions=partitions))
    return response
