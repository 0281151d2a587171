"""Finds the last record that an earlier instance of a named producer got into a partition's log.

The answer is final: a leader answers only once it has applied the fence of this instance's epoch, and it accepts no older
epoch from then on. So what it knows of this producer id, once that is committed, is everything that earlier instances will
ever have in this log. It remembers a named producer for as long as the name is known.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fencepost.cluster import ClusterClient
from fencepost.errors import PredecessorForgotten
from fencepost.log_queries import record_at
from fencepost.producing.identity import NO_ID, Identity
from fencepost_proto.protocol.errors import (
    InvalidProducerEpoch,
    ProducerFenced,
    RequestTimedOut,
)
from fencepost_proto.protocol.metadata import RETIRED_EPOCH, PartitionKey
from fencepost_proto.protocol.record_batch import add_sequence
from fencepost_proto.protocol.records import Record
from fencepost_proto.protocol.v1 import broker_pb2 as pb

COMMIT_TIMEOUT_MS = 5_000  # of one DescribeProducers: how long the leader may take to commit what its answer contains


@dataclass(frozen=True, slots=True)
class Resumed:
    """The newest record of this producer in one partition."""

    producer_id: int  # under which it was written: this instance's, or the one that the name had before
    epoch: int
    last_sequence: int
    last_offset: int
    record: Record | None  # None: retention has removed it


async def resume(cluster: ClusterClient, key: PartitionKey, identity: Identity, timeout_s: float) -> Resumed | None:
    """The last record of this name in the partition; None: it never wrote there.

    Raises PredecessorForgotten, ProducerFenced, RequestTimedOut, and the leader's refusals.
    """
    producer_id, forgotten = identity.producer_id, identity.predecessor_expired
    asked = [(producer_id, identity.epoch)]
    if identity.retired_id != NO_ID:
        asked.append((identity.retired_id, RETIRED_EPOCH))
    try:
        async with asyncio.timeout(timeout_s):
            for asked_id, epoch in asked:
                resumed = await _resume(cluster, key, asked_id, epoch, timeout_s)
                if resumed is not None:
                    return resumed
    except InvalidProducerEpoch as error:  # the id, or the one before it, is not this name's any more
        raise ProducerFenced(error.message) from error
    except TimeoutError:
        raise RequestTimedOut(
            f"the leader of {key[0]}-{key[1]} did not describe producer {producer_id} within {timeout_s} s",
            may_have_been_appended=False,
        ) from None
    if forgotten:
        raise PredecessorForgotten(
            f"{key[0]}-{key[1]} has nothing of producer id {producer_id}, and what this name wrote under earlier ids, if "
            f"anything, is forgotten: the name had expired"
        )
    return None


async def _resume(
    cluster: ClusterClient, key: PartitionKey, producer_id: int, epoch: int, timeout_s: float
) -> Resumed | None:
    answer = await cluster.call_leader(
        key,
        lambda broker: broker.DescribeProducers,
        lambda leader: pb.DescribeProducersRequest(
            topic_id=key[0],
            partition=key[1],
            producer_id=producer_id,
            commit_timeout_ms=COMMIT_TIMEOUT_MS,
            producer_epoch=epoch,
        ),
        timeout_s=timeout_s,
    )
    for info in answer.producers:
        if info.producer_id == producer_id and info.batches:
            last = info.batches[-1]
            offset = last.base_offset + add_sequence(last.last_sequence, -last.first_sequence)
            record = await record_at(cluster, key, offset)
            return Resumed(producer_id, info.producer_epoch, last.last_sequence, offset, record)
    return None
