"""Which function answers which API of Kafka.

A handler has one shape: the connection's context, the request, its version; it returns the response, and puts errors
where its API has them. What it raises ends the connection. Two APIs have shapes of their own, and `connection` calls
them: Produce is answered by a callback, and Fetch writes its answer while it holds the memory for it. Whatever is here
is advertised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from fencepost_node.kafka import (
    alter_configs,
    alter_partition_reassignments,
    api_versions,
    consumer_group_describe,
    consumer_group_heartbeat,
    create_partitions,
    create_topics,
    delete_groups,
    delete_records,
    delete_topics,
    describe_cluster,
    describe_configs,
    describe_groups,
    describe_log_dirs,
    describe_producers,
    describe_topic_partitions,
    elect_leaders,
    find_coordinator,
    heartbeat,
    incremental_alter_configs,
    init_producer_id,
    join_group,
    leave_group,
    list_groups,
    list_offsets,
    list_partition_reassignments,
    metadata,
    offset_commit,
    offset_delete,
    offset_fetch,
    offset_for_leader_epoch,
    sync_group,
)
from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse

PRODUCE = 0
FETCH = 1

Handler = Callable[[KafkaContext, object, int], Awaitable[object]]
R = TypeVar("R")


def _taking(handle: Callable[[KafkaContext, R, int], Awaitable[object]]) -> Handler:
    """The codec makes requests of an API's own class, so a handler gets no other."""
    return cast(Handler, handle)


async def _api_versions(context: KafkaContext, request: ApiVersionsRequest, version: int) -> ApiVersionsResponse:
    return await api_versions.handle(context, request, version, SERVED)


HANDLERS: dict[int, Handler] = {
    2: _taking(list_offsets.handle),
    3: _taking(metadata.handle),
    8: _taking(offset_commit.handle),
    9: _taking(offset_fetch.handle),
    10: _taking(find_coordinator.handle),
    11: _taking(join_group.handle),
    12: _taking(heartbeat.handle),
    13: _taking(leave_group.handle),
    14: _taking(sync_group.handle),
    15: _taking(describe_groups.handle),
    16: _taking(list_groups.handle),
    18: _taking(_api_versions),
    19: _taking(create_topics.handle),
    20: _taking(delete_topics.handle),
    21: _taking(delete_records.handle),
    22: _taking(init_producer_id.handle),
    23: _taking(offset_for_leader_epoch.handle),
    32: _taking(describe_configs.handle),
    33: _taking(alter_configs.handle),
    35: _taking(describe_log_dirs.handle),
    37: _taking(create_partitions.handle),
    42: _taking(delete_groups.handle),
    43: _taking(elect_leaders.handle),
    44: _taking(incremental_alter_configs.handle),
    45: _taking(alter_partition_reassignments.handle),
    46: _taking(list_partition_reassignments.handle),
    47: _taking(offset_delete.handle),
    68: _taking(consumer_group_heartbeat.handle),
    69: _taking(consumer_group_describe.handle),
    60: _taking(describe_cluster.handle),
    61: _taking(describe_producers.handle),
    75: _taking(describe_topic_partitions.handle),
}
SERVED = (PRODUCE, FETCH, *HANDLERS)
