"""Ranks the replicas of a partition that has lost its in-sync set: the one with the longest log should lead (KIP-966).

The longest log is the one whose last batch has the highest leader epoch; of equals, the one with the highest end offset. (A
later leader began with every record committed before it, and followers cut what it did not have.) Of equals again, a
replica that held all that was committed, then the order of assignment.

What may happen between the steps, and what follows from it:

- *A broker restarts between the metadata and its answer.* The metadata is read first, so the broker epoch that is used with
  the answer is too old, and the controller refuses to elect the broker.
- *A broker restarts between its answer and the election*, with a shorter log: likewise. It dies: the controller refuses, or
  fails over as always. Its log gains no acknowledged record meanwhile, since there is no leader.
- *An in-sync replica comes back and leads*: the controller refuses with ElectionNotNeeded.
- *A replica comes back with a longer log*: it was shown as one that could not be asked, and the operator has decided to go
  on without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fencepost.descriptions import BrokerReplicas, ElectionCandidate
from fencepost_proto.protocol.metadata import MetadataImage, Partition

UNKNOWN = -1


def candidates(
    image: MetadataImage, partition: Partition, answers: Mapping[int, BrokerReplicas]
) -> list[ElectionCandidate]:
    """Every replica, the best candidate first, those that cannot be elected last. `image` must be older than the answers."""
    found = [_candidate(image, partition, broker_id, answers.get(broker_id)) for broker_id in partition.replicas]
    return sorted(found, key=lambda c: (not c.failure, c.log_ends, c.was_in_sync), reverse=True)


def _candidate(
    image: MetadataImage, partition: Partition, broker_id: int, answer: BrokerReplicas | None
) -> ElectionCandidate:
    broker = image.brokers.get(broker_id)
    name = image.topics[partition.topic_id].name
    last_epoch = log_end_offset = kept_end_offset = UNKNOWN
    if broker is None or broker.fenced:
        failure = "not live"
    elif answer is None or answer.failure:
        failure = f"does not answer: {answer.failure}" if answer is not None else "was not asked"
    else:
        replica = next((r for r in answer.replicas if (r.topic, r.partition) == (name, partition.index)), None)
        if replica is None:
            failure = "has no log of it"
        else:
            last_epoch, log_end_offset = replica.last_epoch, replica.log_end_offset
            failure = replica.failure or ("shutting down" if broker.shutting_down else "")
            of_last_leader = last_epoch >= partition.leader_epoch - 1
            kept_end_offset = log_end_offset if of_last_leader else min(replica.high_watermark, log_end_offset)
    return ElectionCandidate(
        broker_id,
        broker.broker_epoch if broker is not None else 0,
        last_epoch,
        log_end_offset,
        broker_id in (*partition.isr, *partition.eligible, *partition.last_known_isr),
        failure,
        kept_end_offset,
    )
