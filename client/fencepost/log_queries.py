"""Single questions about one partition's log to its leader: an offset, one batch, one record.

A function asks once, unless its docstring says that it asks until it is answered.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc

from fencepost.cluster import ClusterClient
from fencepost.fetched_batch import open_batch
from fencepost_proto.protocol.errors import (
    CurrentLeader,
    FencepostError,
    NetworkException,
    NotLeaderOrFollower,
    OffsetOutOfRange,
    raise_for,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.records import Record, read_records
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.transport.rpc_errors import rpc_errors

RESPONSE_MARGIN_S = 2.5  # beyond a fetch's own wait: then its broker counts as silent
BACKOFF = Backoff(first_s=0.05, most_s=1.0)  # before a leader is asked for a batch again

FetchCall = grpc.aio.StreamStreamCall[broker_pb2.FetchRequest, broker_pb2.FetchResponse]


async def list_offset(
    cluster: ClusterClient, key: PartitionKey, timestamp_ms: int, timeout_s: float
) -> tuple[int, int]:
    """(offset, timestamp) as the partition's leader answers ListOffsets; it is asked until it answers.

    Raises as ClusterClient.call_leader.
    """

    def request(leader: CurrentLeader) -> broker_pb2.ListOffsetsRequest:
        return broker_pb2.ListOffsetsRequest(
            topic_id=key[0], partition=key[1], leader_epoch=leader.leader_epoch, timestamp_ms=timestamp_ms
        )

    answer = await cluster.call_leader(key, lambda broker: broker.ListOffsets, request, timeout_s=timeout_s)
    return answer.offset, answer.timestamp_ms


async def first_record_from(
    cluster: ClusterClient, key: PartitionKey, timestamp_ms: int, timeout_s: float
) -> Record | None:
    """The partition's first committed record with this timestamp or a later one; None: there is none yet.

    The leader knows the batch; the record is found by reading it. Asked until it is answered. Raises as
    ClusterClient.call_leader.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pauses = BACKOFF.pauses_s()
    while True:
        offset, _ = await list_offset(cluster, key, timestamp_ms, deadline - loop.time())
        if offset < 0:
            return None
        try:
            batch = await fetch_batch(cluster, key, offset)
            return await asyncio.to_thread(_first_of, batch, timestamp_ms)
        except FencepostError as error:
            if not (error.retriable or isinstance(error, OffsetOutOfRange)) or loop.time() >= deadline:
                raise
        await asyncio.sleep(next(pauses))


async def record_at(cluster: ClusterClient, key: PartitionKey, offset: int) -> Record | None:
    """The record at an offset that was committed; None: retention has removed it. Asks until it is answered."""
    pauses = BACKOFF.pauses_s()
    while True:
        try:
            for record in read_records(await fetch_batch(cluster, key, offset)):
                if record.offset == offset:
                    return record
        except OffsetOutOfRange:
            return None
        except FencepostError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(next(pauses))


def _first_of(batch: bytes, timestamp_ms: int) -> Record | None:
    records = open_batch(batch, 0) if batch else iter(())
    return next((record for record in records if record.timestamp_ms >= timestamp_ms), None)


async def fetch_batch(cluster: ClusterClient, key: PartitionKey, offset: int) -> bytes:
    """The committed batch that holds `offset`; empty: there is none (yet). One attempt.

    Raises NotLeaderOrFollower where no leader is known, NetworkException, and what the leader refuses.
    """
    leader = cluster.leader(key)
    if leader is None or not leader.address:
        raise NotLeaderOrFollower(f"partition {key[0]}-{key[1]} has no leader now")
    asked = broker_pb2.FetchPartition(
        topic_id=key[0], partition=key[1], leader_epoch=leader.leader_epoch, fetch_offset=offset, max_bytes=1
    )
    call = broker_pb2_grpc.BrokerStub(cluster.channel(leader.address)).Fetch()
    request = broker_pb2.FetchRequest(partitions=[asked], max_wait_ms=0, min_bytes=1, max_bytes=1)
    try:
        answer = await exchange(call, request, RESPONSE_MARGIN_S, leader.address)
    finally:
        call.cancel()
    fetched = answer.partitions[0]
    learn_from(cluster, fetched)
    raise_for(fetched.error)
    return fetched.records


async def exchange(
    call: FetchCall, request: broker_pb2.FetchRequest, timeout_s: float, address: str
) -> broker_pb2.FetchResponse:
    """Send one request on a Fetch stream and return its answer. Raises NetworkException where the stream breaks, ends, or
    stays silent for `timeout_s`."""
    try:
        with rpc_errors(address):
            async with asyncio.timeout(timeout_s):
                with suppress(asyncio.InvalidStateError):  # the stream is over: reading from it says why
                    await call.write(request)
                answer = await call.read()
    except TimeoutError:
        raise NetworkException(f"broker {address} has not answered a fetch for {timeout_s:.1f} s") from None
    if not isinstance(answer, broker_pb2.FetchResponse):
        raise NetworkException(f"broker {address} ended the fetch stream")
    return answer


def learn_from(cluster: ClusterClient, fetched: broker_pb2.FetchedPartition) -> bool:
    """Learn the leader that a refusal names. False where it names none, or none that is newer than the known one."""
    if not fetched.error.HasField("current_leader"):
        return False
    hint = fetched.error.current_leader
    leader = CurrentLeader(hint.leader_id, hint.leader_epoch, hint.address)
    return cluster.learn((fetched.topic_id, fetched.partition), leader)
