"""Replicate: one follower broker's stream (see replication/push.py for what goes over it).

The first message names the follower: broker id, broker epoch, cluster id. Refused, as a gRPC status: another cluster
(FAILED_PRECONDITION), a broker epoch older than the one registered (FAILED_PRECONDITION), an acknowledgement of what was
never sent (INVALID_ARGUMENT). Refused, for one partition, in a push's error field: UNKNOWN_TOPIC_ID,
UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH. A subscription that is ahead
of this broker's metadata is refused only after a while (`replication/early_subscriptions.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import NoReturn, Protocol

import grpc

from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.push import PushStream
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import replication_pb2 as pb

PARTITIONS_IN_A_TURN = 32  # of one message, before others get a turn on the loop: a millisecond or two


class ReplicateContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.ReplicateResponse) -> None: ...

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn: ...


async def replicate(
    manager: ReplicaManager, requests: AsyncIterator[pb.ReplicateRequest], context: ReplicateContext
) -> None:
    """Serve one follower broker until its stream ends, or nothing more can be written on it."""
    stream: PushStream | None = None
    writer: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as group:
        try:
            async for request in requests:
                if stream is None:
                    stream = await _greet(manager, request, context)
                    writer = group.create_task(_write(stream, context))
                try:
                    await _take(manager, stream, request)
                except errors.InvalidRequest as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if stream is not None:
                manager.early.stream_ended(stream)
                stream.close()
            if writer is not None:
                writer.cancel()


async def _greet(manager: ReplicaManager, hello: pb.ReplicateRequest, context: ReplicateContext) -> PushStream:
    if hello.cluster_id != manager.image.cluster_id:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"INCONSISTENT_CLUSTER_ID: broker {hello.broker_id} is of cluster {hello.cluster_id!r}, "
            f"this one of {manager.image.cluster_id!r}",
        )
    known = manager.image.brokers.get(hello.broker_id)
    if known is not None and hello.broker_epoch < known.broker_epoch:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"STALE_BROKER_EPOCH: {hello.broker_epoch} of broker {hello.broker_id}; {known.broker_epoch} is registered",
        )
    return PushStream(hello.broker_id, hello.broker_epoch, manager.config.replication_window_bytes)


async def _write(stream: PushStream, context: ReplicateContext) -> None:
    async for message in stream.messages():
        await context.write(message)


async def _take(manager: ReplicaManager, stream: PushStream, request: pb.ReplicateRequest) -> None:
    for number, gone in enumerate(request.unsubscribe, 1):
        key = (gone.topic_id, gone.partition)
        manager.early.forget(stream, key)
        stream.unsubscribe(key)
        await _turn(number)
    for number, ack in enumerate(request.acks, 1):
        stream.acked(ack)
        await _turn(number)
    for number, wanted in enumerate(request.subscribe, 1):
        await _turn(number)
        manager.early.forget(stream, (wanted.topic_id, wanted.partition))
        subscribe(manager, stream, wanted)


def subscribe(manager: ReplicaManager, stream: PushStream, wanted: pb.Subscribe) -> None:
    """Answer a subscription, or keep it until this broker knows what the follower knows."""
    key = (wanted.topic_id, wanted.partition)
    try:
        leadership = manager.leader(*key, wanted.leader_epoch)
        if not leadership.state.follows(stream.broker_id):
            raise errors.NotLeaderOrFollower(f"broker {stream.broker_id} is no replica of {key[0]}-{key[1]}")
        stream.subscribe(leadership, wanted)
    except FencepostError as error:
        look_again = partial(subscribe, manager, stream, wanted)
        if not (
            manager.may_lead_soon(key, wanted.leader_epoch) and manager.early.hold(stream, wanted, error, look_again)
        ):
            stream.refuse(key, wanted.subscription, error)


async def _turn(number: int) -> None:
    """Let others have the loop, after so many."""
    if number % PARTITIONS_IN_A_TURN == 0:
        await asyncio.sleep(0)
