"""Fetch: long polls on one long-lived stream.

Each request is answered before the next is looked at: as soon as its partitions have `min_bytes` below their high
watermarks, or one of them has an error, or `max_wait_ms` are over. Batches are whole and as stored; the first may begin
below the offset asked for. Reads come from memory near the log's end, else from the disk, in a thread.

Errors of a partition: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH,
UNKNOWN_LEADER_EPOCH, OFFSET_OUT_OF_RANGE, KAFKA_STORAGE_ERROR; the other partitions are answered all the same.

`high_watermark` is -1 while a new leader does not yet know one that is at least its predecessor's (KIP-207).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from fencepost_node.replica import Replica
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto import errors
from fencepost_proto.errors import FencepostError
from fencepost_proto.v1 import broker_pb2 as pb

MAX_WAIT_MS = 60_000
MAX_PARTITIONS = 10_000  # in one request


class FetchContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.FetchResponse) -> None: ...


async def fetch(manager: ReplicaManager, requests: AsyncIterator[pb.FetchRequest], context: FetchContext) -> None:
    """Serve one stream until the client ends it."""
    async for request in requests:
        await context.write(await _poll(manager, request))


async def _poll(manager: ReplicaManager, request: pb.FetchRequest) -> pb.FetchResponse:
    if len(request.partitions) > MAX_PARTITIONS:
        error = errors.InvalidRequest(f"{len(request.partitions)} partitions in one fetch; at most {MAX_PARTITIONS}")
        return pb.FetchResponse(partitions=[_failed(partition, error) for partition in request.partitions])
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(0, min(request.max_wait_ms, MAX_WAIT_MS)) / 1000
    news = asyncio.Event()
    waiting_at: dict[Replica, None] = {}
    try:
        while True:
            news.clear()
            response, complete = await _read(manager, request, news, waiting_at)
            if complete or loop.time() >= deadline:
                return response
            try:
                async with asyncio.timeout_at(deadline):
                    await news.wait()
            except TimeoutError:
                continue  # one last look
    finally:
        for replica in waiting_at:
            replica.remove_reader(news)


async def _read(
    manager: ReplicaManager, request: pb.FetchRequest, news: asyncio.Event, waiting_at: dict[Replica, None]
) -> tuple[pb.FetchResponse, bool]:
    """What there is now, and whether that is enough of an answer. `news` is set when there may be more."""
    response = pb.FetchResponse()
    limit = manager.config.max_fetch_bytes
    room = max(1, min(request.max_bytes or limit, limit))
    taken = 0
    complete = False
    for partition in request.partitions:
        try:
            replica = manager.leader(partition.topic_id, partition.partition, partition.leader_epoch)
            replica.add_reader(news)
            waiting_at[replica] = None
            records = b""
            if taken < room:
                records = await replica.read_committed(
                    partition.fetch_offset, max(1, min(partition.max_bytes or limit, room - taken))
                )
            response.partitions.add(
                topic_id=partition.topic_id,
                partition=partition.partition,
                high_watermark=_high_watermark(replica),
                log_start_offset=replica.log.log_start_offset,
                records=records,
            )
            taken += len(records)
        except FencepostError as error:
            response.partitions.append(_failed(partition, error))
            complete = True
    return response, complete or taken >= max(1, request.min_bytes)


def _high_watermark(replica: Replica) -> int:
    try:
        return replica.latest_offset()
    except errors.OffsetNotAvailable:
        return -1


def _failed(partition: pb.FetchPartition, error: FencepostError) -> pb.FetchedPartition:
    return pb.FetchedPartition(
        topic_id=partition.topic_id,
        partition=partition.partition,
        error=errors.to_proto(error),
        high_watermark=-1,
        log_start_offset=-1,
    )
