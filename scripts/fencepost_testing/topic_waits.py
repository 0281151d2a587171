"""Waits for what a topic's replicas come to once nothing disturbs them. Each raises `waiting.NotInTime`."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fencepost import AdminClient
from fencepost_testing.waiting import until

IN_SYNC_TIMEOUT_S = 30.0
WRITABLE_TIMEOUT_S = 60.0
MOVE_TIMEOUT_S = 90.0
SETTLE_TIMEOUT_S = 60.0
_POLL_S = 0.05


async def wait_in_sync(admin: AdminClient, topic: str, timeout_s: float = IN_SYNC_TIMEOUT_S) -> None:
    """Return once every partition has a leader and all its replicas in sync."""

    async def late() -> str:
        partitions = (await admin.describe_topic(topic)).partitions
        not_in_sync = [p for p in partitions if p.leader < 0 or set(p.isr) != set(p.replicas)]
        return "; ".join(f"{topic}-{p.partition}: in sync {list(p.isr)} of {list(p.replicas)}" for p in not_in_sync)

    await until(late, f"all replicas of {topic} in sync", timeout_s, holds=operator.not_, poll_s=_POLL_S)


async def wait_writable(admin: AdminClient, topic: str) -> float:
    """Return once every partition has committed something more than it had at the call; how long that took, in seconds."""
    started = time.monotonic()
    before: dict[int, int] = {}

    async def late() -> str:
        ends = await _committed(admin, topic)
        partitions = len((await admin.describe_topic(topic)).partitions)
        for partition, end in ends.items():
            before.setdefault(partition, end)
        without = [index for index in range(partitions) if ends.get(index, -1) <= before.get(index, -1)]
        return f"no writes in partitions {without}" if without else ""

    what = f"every partition of {topic} takes writes"
    await until(late, what, WRITABLE_TIMEOUT_S, holds=operator.not_, poll_s=_POLL_S)
    return time.monotonic() - started


async def _committed(admin: AdminClient, topic: str) -> dict[int, int]:
    """The high watermark that each partition's leader reports."""
    return {
        replica.partition: replica.high_watermark
        for broker in (await admin.describe_replicas()).values()
        for replica in broker.replicas
        if replica.topic == topic and replica.is_leader
    }


async def wait_moved(admin: AdminClient) -> None:
    """Return once no partition is on its way to other brokers."""
    what = "every reassignment has ended"
    await until(admin.list_reassignments, what, MOVE_TIMEOUT_S, holds=operator.not_, poll_s=_POLL_S)


@dataclass(frozen=True, slots=True)
class Settled:
    """Each partition of a topic in which nothing moves any more."""

    replicas: Mapping[int, Sequence[int]]  # the brokers that have it
    ends: Mapping[int, int]  # of every replica, and all of it is committed


async def wait_settled(admin: AdminClient, topic: str) -> Settled:
    """Return once all replicas of each partition have the same end and know that it is committed."""
    replicas = {p.partition: tuple(p.replicas) for p in (await admin.describe_topic(topic)).partitions}
    wanted = {(partition, broker) for partition, brokers in replicas.items() for broker in brokers}

    async def offsets() -> dict[tuple[int, int], tuple[int, int]]:
        """(log end offset, high watermark) by (partition, broker)."""
        return {
            (replica.partition, broker): (replica.log_end_offset, replica.high_watermark)
            for broker, replicas in (await admin.describe_replicas()).items()
            for replica in replicas.replicas
            if replica.topic == topic and (replica.partition, broker) in wanted
        }

    def same(told: dict[tuple[int, int], tuple[int, int]]) -> bool:
        ends: dict[int, set[int]] = {}
        for (partition, _), both in told.items():
            ends.setdefault(partition, set()).update(both)
        return len(told) == len(wanted) and all(len(end) == 1 for end in ends.values())

    what = f"all replicas of each partition of {topic} have the same end, all of it committed"
    told = await until(offsets, what, SETTLE_TIMEOUT_S, holds=same, poll_s=_POLL_S)
    return Settled(replicas, {partition: end for (partition, _), (end, _) in sorted(told.items())})
