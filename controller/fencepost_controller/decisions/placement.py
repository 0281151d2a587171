"""Where the replicas of a new topic go.

Leaders rotate over the brokers that serve, beginning where the partitions that exist already leave off; the followers of one
leader rotate too, so that when a broker dies its load spreads over all others. A topic that wants more replicas than there
are brokers that serve has one on each of these, and the rest on brokers that are down: they come in sync when they are back.
"""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_controller.decisions.draft import Draft
from fencepost_proto.protocol.errors import InvalidReplicaAssignment

MAX_REPLICATION_FACTOR = 16


def place(
    serving: Sequence[int], others: Sequence[int], partitions: int, replication_factor: int, start: int
) -> list[tuple[int, ...]]:
    """Replicas of each partition, the preferred leader first. One broker serves at least, and both together are enough."""
    count = len(serving)
    absent = max(0, replication_factor - count)
    placed = []
    for index in range(partitions):
        position = start + index
        first = position % count
        turn = position // count  # each full round pairs a leader with other followers
        followers = [(first + 1 + (turn + j) % (count - 1)) % count for j in range(replication_factor - absent - 1)]
        down = [others[(position + j) % len(others)] for j in range(absent)]
        placed.append((*(serving[i] for i in (first, *followers)), *down))
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
