"""Plans where the replicas of a broker go before it is removed.

Each replica moves to the live broker without one of that partition that has the fewest replicas, those of this plan
included; of equals, to the one with the lowest id. The new broker takes the old one's place in the assignment, so that
preferred leaderships move along. The other replicas stay.
"""

from __future__ import annotations

from collections import Counter

from fencepost_proto.protocol.errors import InvalidReplicaAssignment
from fencepost_proto.protocol.metadata import MetadataImage, Partition

Moves = dict[str, dict[int, tuple[int, ...]]]  # topic name -> partition -> its replicas afterwards


def plan_draining(image: MetadataImage, broker_id: int) -> Moves:
    """The new assignment of every partition with a replica on this broker; none where that is under way already.

    Raises InvalidReplicaAssignment, naming the partition, where there are too few other live brokers for one.
    """
    targets = {key: _target(partition) for key, partition in image.partitions.items()}
    load = Counter(broker for target in targets.values() for broker in target)
    live = [b.id for b in image.brokers.values() if b.id != broker_id and not b.fenced and not b.shutting_down]
    moves: Moves = {}
    for key in sorted(targets):
        target = targets[key]
        if broker_id not in target:
            continue
        name = image.topics[key[0]].name
        free = [broker for broker in live if broker not in target]
        if not free:
            raise InvalidReplicaAssignment(
                f"{name}-{key[1]} has replicas on brokers {list(target)}, and there is no other live broker for one"
            )
        successor = min(free, key=lambda broker: (load[broker], broker))
        load[successor] += 1
        moves.setdefault(name, {})[key[1]] = tuple(successor if broker == broker_id else broker for broker in target)
    return moves


def _target(partition: Partition) -> tuple[int, ...]:
    """Its replicas once a reassignment under way is done."""
    return tuple(broker for broker in partition.replicas if broker not in partition.removing)
