"""Where the replicas of a new topic go.

Leaders rotate over the brokers, beginning where the partitions that exist already leave off; the followers of one leader
rotate too, so that when a broker dies its load spreads over all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_controller.decisions.draft import Draft
from fencepost_proto.protocol.errors import InvalidReplicaAssignment

MAX_REPLICATION_FACTOR = 16


def place(brokers: Sequence[int], partitions: int, replication_factor: int, start: int) -> list[tuple[int, ...]]:
    """Replicas of each partition, the preferred leader first. `brokers` are at least as many as the factor."""
    count = len(brokers)
    placed = []
    for index in range(partitions):
        position = start + index
        first = position % count
        turn = position // count  # each full round pairs a leader with other followers
        others = [(first + 1 + (turn + j) % (count - 1)) % count for j in range(replication_factor - 1)]
        placed.append(tuple(brokers[i] for i in (first, *others)))
    return placed


def check_assignment(draft: Draft, name: str, replicas: Sequence[int]) -> None:
    """Raises InvalidReplicaAssignment for replicas that an operator cannot mean. They need not be live."""
    if not 0 < len(replicas) <= MAX_REPLICATION_FACTOR:
        raise InvalidReplicaAssignment(f"{name}: {len(replicas)} replicas; 1 to {MAX_REPLICATION_FACTOR} are allowed")
    if len(set(replicas)) != len(replicas):
        raise InvalidReplicaAssignment(f"{name}: replicas {tuple(replicas)} name a broker twice")
    for broker_id in replicas:
        if draft.broker(broker_id) is None:
            raise InvalidReplicaAssignment(f"{name}: broker {broker_id} is not registered")
