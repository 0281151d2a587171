"""Fetch: long polls on one long-lived stream.

Each request is answered before the next is looked at: as soon as its partitions have `min_bytes` below their high
watermarks, or one of them has an error, or `max_wait_ms` are over. Batches are whole and as stored; the first may begin
below the offset asked for.

What is counted and read while a request waits, and when: `requests/read.py`.

Errors of a partition: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH,
UNKNOWN_LEADER_EPOCH, OFFSET_OUT_OF_RANGE, KAFKA_STORAGE_ERROR; the other partitions are answered nevertheless.

A reader may say under which leader epoch the batch before its offset was written. Where the leader's history does not have
that batch, an unclean election has taken what was read: OFFSET_OUT_OF_RANGE, with a divergence that says where to look for
what is left, instead of records that do not continue what was read (KIP-320).

`high_watermark` is -1 while a new leader does not yet know one that is at least its predecessor's (KIP-207).

Limits: `max_fetch_bytes` of one answer; what `client_limits.AnswerBudget` gives the connection. Where that is less than an
answer needs, for answers that the client has not read yet, the answer is smaller, and where it is nothing for as long as
the request waits, it has no records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from fencepost_node.client_limits import AnswerBudget
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Diverged
from fencepost_node.requests.read import Poll, Position, Records, answer_poll
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import broker_pb2 as pb

NO_OFFSET = -1
UNKNOWN_HIGH_WATERMARK = -1


class FetchContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.FetchResponse) -> None: ...

    def peer(self) -> str: ...


async def fetch(
    manager: ReplicaManager, requests: AsyncIterator[pb.FetchRequest], context: FetchContext, answers: AnswerBudget
) -> None:
    """Serve one stream until the client ends it."""
    peer = context.peer()
    latencies, time = manager.local.counts.calls.current.of("Fetch"), asyncio.get_running_loop().time
    async for request in requests:
        began = time()
        poll = Poll(
            manager,
            [_position(partition) for partition in request.partitions],
            min_bytes=request.min_bytes,
            max_bytes=request.max_bytes,
            max_wait_ms=request.max_wait_ms,
        )

        async def write(poll: Poll = poll) -> None:
            await context.write(await _response(poll))

        await answer_poll(poll, answers, peer, write)
        latencies.add(time() - began)  # with the time for which it was to wait for records


def _position(asked: pb.FetchPartition) -> Position:
    return Position(
        topic_id=asked.topic_id,
        partition=asked.partition,
        leader_epoch=asked.leader_epoch,
        offset=asked.fetch_offset,
        last_epoch=asked.last_epoch if asked.HasField("last_epoch") else None,
        max_bytes=asked.max_bytes,
        mismatch=asked.mismatch,
    )


async def _response(poll: Poll) -> pb.FetchResponse:
    response = pb.FetchResponse()

    def add(position: Position, answer: Records | FencepostError) -> None:
        if isinstance(answer, FencepostError):
            response.partitions.append(_failed(position, answer))
            return
        response.partitions.add(
            topic_id=position.topic_id,
            partition=position.partition,
            high_watermark=UNKNOWN_HIGH_WATERMARK if answer.is_below_epoch_start else answer.high_watermark,
            log_start_offset=answer.log_start_offset,
            records=answer.records,
        )

    await poll.answers(add)
    return response


def _failed(position: Position, error: FencepostError) -> pb.FetchedPartition:
    failed = pb.FetchedPartition(
        topic_id=position.topic_id,
        partition=position.partition,
        error=errors.to_proto(error),
        high_watermark=UNKNOWN_HIGH_WATERMARK,
        log_start_offset=NO_OFFSET,
    )
    if isinstance(error, Diverged):
        failed.divergence.epoch, failed.divergence.end_offset = error.parted.epoch, error.parted.end_offset
    return failed
