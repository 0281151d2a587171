"""Which member of a consumer group is to have which partition (KIP-848): the server-side assignors. Pure.

- `uniform`: every member has as many partitions as the others, but for one; where members subscribe to different topics, as
  near to that as they allow. Members keep what they have as far as that goes.
- `range`: of each topic, each of its subscribers, in the order of their names, has the next run of partitions. So equal
  numbers of topics that are partitioned alike meet at one member.

Both look at who subscribes to what, and at nothing that is random: the same input has the same assignment.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

TopicPartition = tuple[bytes, int]  # topic id and index
Assignment = frozenset[TopicPartition]
NOTHING: Assignment = frozenset()


class Subscriber(NamedTuple):
    """`name`: of the order that `range` takes: the instance id, or the member id."""

    name: str
    topics: Set[bytes]  # ids


Subscribers = Mapping[str, Subscriber]  # by member id
Topics = Mapping[bytes, int]  # id and number of partitions
Assignor = Callable[[Subscribers, Topics, Mapping[str, Assignment]], dict[str, Assignment]]


def assign_range(subscribers: Subscribers, topics: Topics, _: Mapping[str, Assignment]) -> dict[str, Assignment]:
    found: dict[str, set[TopicPartition]] = {member_id: set() for member_id in subscribers}
    in_order = sorted(subscribers, key=lambda member_id: (subscribers[member_id].name, member_id))
    for topic_id in sorted(topics):
        count = topics[topic_id]
        users = [member_id for member_id in in_order if topic_id in subscribers[member_id].topics]
        first = 0
        for number, member_id in enumerate(users):
            share = count // len(users) + (number < count % len(users))
            found[member_id].update((topic_id, index) for index in range(first, first + share))
            first += share
    return {member_id: frozenset(partitions) for member_id, partitions in found.items()}


def assign_uniform(subscribers: Subscribers, topics: Topics, before: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """In three steps: keep, give what no one has to whoever has least, and level out."""
    shares = _kept(subscribers, topics, before)
    users = {
        topic_id: [member_id for member_id in sorted(subscribers) if topic_id in subscribers[member_id].topics]
        for topic_id in sorted(topics)
    }
    taken = {partition for share in shares.values() for partition in share}
    for topic_id, members in users.items():
        heap = [(len(shares[member_id]), member_id) for member_id in members]
        heapq.heapify(heap)
        for index in range(topics[topic_id]):
            if (topic_id, index) not in taken and heap:
                size, member_id = heap[0]
                shares[member_id].add((topic_id, index))
                heapq.heapreplace(heap, (size + 1, member_id))
    _level(subscribers, shares)
    return {member_id: frozenset(share) for member_id, share in shares.items()}


def _kept(subscribers: Subscribers, topics: Topics, before: Mapping[str, Assignment]) -> dict[str, set[TopicPartition]]:
    """What members had, are still subscribed to, and no one else has; at most a fair share where all subscribe alike."""
    alike = len({frozenset(subscriber.topics) for subscriber in subscribers.values()}) <= 1
    total = sum(count for topic_id, count in topics.items() if any(topic_id in s.topics for s in subscribers.values()))
    least, larger = divmod(total, len(subscribers)) if subscribers else (0, 0)
    taken: set[TopicPartition] = set()
    shares: dict[str, set[TopicPartition]] = {}
    # Who had most comes first, so that those who may have one more are those who had it.
    for member_id in sorted(subscribers, key=lambda member_id: (-len(before.get(member_id, NOTHING)), member_id)):
        had = [
            partition
            for partition in sorted(before.get(member_id, NOTHING))
            if partition[0] in subscribers[member_id].topics
            and partition[1] < topics.get(partition[0], 0)
            and partition not in taken
        ]
        if alike:
            most = least + (larger > 0)
            had = had[:most]
            larger -= len(had) > least
        taken.update(had)
        shares[member_id] = set(had)
    return shares


def _level(subscribers: Subscribers, shares: dict[str, set[TopicPartition]]) -> None:
    """Move partitions from members with more to subscribers with at least two less, until there is none."""
    moved = True
    while moved:
        moved = False
        for rich in sorted(shares, key=lambda member_id: (-len(shares[member_id]), member_id)):
            poor = min(
                (
                    member_id
                    for member_id in shares
                    if len(shares[member_id]) + 1 < len(shares[rich])
                    and any(topic_id in subscribers[member_id].topics for topic_id, _ in shares[rich])
                ),
                key=lambda member_id: (len(shares[member_id]), member_id),
                default=None,
            )
            if poor is None:
                continue
            partition = max(each for each in shares[rich] if each[0] in subscribers[poor].topics)
            shares[rich].remove(partition)
            shares[poor].add(partition)
            moved = True
            break


ASSIGNORS: dict[str, Assignor] = {"uniform": assign_uniform, "range": assign_range}  # the first one is the default
DEFAULT_ASSIGNOR = "uniform"
