"""DescribeProducers: what a partition knows of its producers (KIP-664): epoch and up to five last batches each.

Supports: one producer id, or all (-1). With `commit_timeout_ms` the answer is final: it tells of the log as it stood when
the request came, and is given only once all of that is committed under one leadership that every in-sync replica has
joined. After a named producer has been fenced, that is all its predecessors ever got into the log. Without it: the state
as it is, committed or not.

Errors: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT (not committed in time,
or the leadership ended before; ask again), INVALID_REQUEST (a negative timeout, a producer id below -1).
Limits: waits at most 60 s. An id that the partition does not know is left out of the answer.
"""

from __future__ import annotations

import asyncio

from fencepost_node.replica import Replica
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.errors import InvalidRequest, RequestTimedOut
from fencepost_proto.v1 import broker_pb2

ALL = -1
MAX_COMMIT_TIMEOUT_MS = 60_000
MAX_PRODUCERS = 50_000  # in one answer: 10 MB where each has five batches


async def describe_producers(
    manager: ReplicaManager, request: broker_pb2.DescribeProducersRequest
) -> broker_pb2.DescribeProducersResponse:
    if request.producer_id < ALL:
        raise InvalidRequest(f"producer id {request.producer_id}: -1 (all) or an id")
    if request.commit_timeout_ms < 0:
        raise InvalidRequest(f"commit_timeout_ms {request.commit_timeout_ms} is negative")
    replica = manager.leader(request.topic_id, request.partition, -1)
    answer = _state(replica, request.producer_id)
    if request.commit_timeout_ms:
        leadership = replica.leadership()
        timeout_ms = min(request.commit_timeout_ms, MAX_COMMIT_TIMEOUT_MS)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await replica.wait_final(answer.log_end_offset)
        except TimeoutError:
            raise RequestTimedOut(
                f"offsets below {answer.log_end_offset} were not committed within {timeout_ms} ms; "
                f"the high watermark is {replica.high_watermark}"
            ) from None
        if replica.role is not leadership:
            raise RequestTimedOut(f"the leadership of epoch {answer.leader_epoch} ended before the answer")
        answer.high_watermark = replica.high_watermark
    return answer


def _state(replica: Replica, producer_id: int) -> broker_pb2.DescribeProducersResponse:
    """The state at the log's end, now."""
    known = replica.log.producers
    if producer_id == ALL and len(known) > MAX_PRODUCERS:
        raise InvalidRequest(f"{len(known)} producers are more than {MAX_PRODUCERS}: ask for one producer id")
    return broker_pb2.DescribeProducersResponse(
        producers=known.describe(None if producer_id == ALL else producer_id),
        log_end_offset=replica.log.log_end_offset,
        high_watermark=replica.high_watermark,
        leader_epoch=replica.leader_epoch,
    )
