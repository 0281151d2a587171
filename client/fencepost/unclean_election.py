"""Who should lead a partition of which no in-sync replica is left: the one with the longest log (KIP-966).

The longest is the one whose last batch has the highest leader epoch, and among equals the one that ends last: a later leader
began with all that was committed before it, and followers cut what it did not have. Among equals still, one that was in
sync, then the order of assignment.

What may happen between the steps, and what then:

- *between the metadata and the answer of a broker* it restarts: the metadata is taken first, so the broker epoch that goes
  with the answer is too old, and the controller refuses to elect it;
- *between the answer and the election* it restarts, with less: the same. It dies: the controller refuses, or fails over as
  always. Its log does not grow meanwhile by anything that counts, since without a leader nothing is acknowledged;
- *in the same time* an in-sync replica comes back and leads: the controller refuses with ElectionNotNeeded;
- *in the same time* a replica comes back with a longer log: it was shown as one that could not be asked, and whoever orders
  the election goes on without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fencepost.descriptions import BrokerReplicas, ElectionCandidate
from fencepost_proto.protocol.metadata import MetadataImage, Partition

UNKNOWN = -1


def candidates(
    image: MetadataImage, partition: Partition, answers: Mapping[int, BrokerReplicas]
) -> list[ElectionCandidate]:
    """Every replica, the one to elect first, those that cannot be elected last. `image` is older than the answers."""
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
        broker_id in (*partition.isr, *partition.last_known_isr),
        failure,
        kept_end_offset,
    )
