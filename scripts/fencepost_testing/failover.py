"""One failover, measured: the leader of a partition is killed while a workload writes to it.

The time that writes were unavailable runs from the SIGKILL to the first acknowledgement of a record that was *sent*
after it, so that an answer which was already on its way does not count.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from fencepost import AdminClient
from fencepost.descriptions import PartitionDescription
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.member import ACTIVE_CONTROLLER, Node
from fencepost_testing.waiting import NotInTime, until
from fencepost_testing.workload import Acked

RESUME_TIMEOUT_S = 30.0
HEAL_TIMEOUT_S = 30.0
_POLL_S = 0.05
_SEQUENCES = MAX_SEQUENCE + 1


class AckWatch:
    """Receives every acknowledgement; lets one wait for the first of a record that was sent after some moment."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[tuple[float, asyncio.Future[float]]]] = defaultdict(list)  # by partition

    def __call__(self, acked: Acked) -> None:
        waiting = self._waiting.get(acked.metadata.partition)
        if not waiting:
            return
        for entry in list(waiting):
            since, reached = entry
            if acked.sent_at > since:
                waiting.remove(entry)
                if not reached.done():
                    reached.set_result(acked.acked_at)

    async def first_after(self, partition: int, since: float, timeout_s: float) -> float:
        """When a record sent to the partition after `since` was first acknowledged.

        Raises TimeoutError.
        """
        reached: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[partition].append((since, reached))
        async with asyncio.timeout(timeout_s):
            return await reached


@dataclass(frozen=True, slots=True)
class ProducerView:
    """A producer's state in one partition, as one leader reports it."""

    producer_id: int
    epoch: int
    first_sequence: int  # of the oldest batch remembered
    last_sequence: int
    batches: int
    last_offset: int


@dataclass(slots=True)
class LeaderChange:
    """One partition's leadership, before and after."""

    partition: int
    leader_before: int
    epoch_before: int
    leader_after: int = -1
    epoch_after: int = -1
    producers_before: list[ProducerView] = field(default_factory=list)
    producers_after: list[ProducerView] = field(default_factory=list)

    def forgotten(self) -> list[ProducerView]:
        """Producers of before whose state after the change is missing or older."""
        after = {view.producer_id: (view.epoch, view.last_offset) for view in self.producers_after}
        return [
            view
            for view in self.producers_before
            if after.get(view.producer_id, (-1, -1)) < (view.epoch, view.last_offset)
        ]


@dataclass(slots=True)
class Failover:
    """What one kill did."""

    killed: int
    partition: int  # whose writes were watched
    unavailable_ms: float
    changes: list[LeaderChange]
    controller: ControllerChange | None = None  # that was killed in the same instant


@dataclass(frozen=True, slots=True)
class ControllerChange:
    """One of several controllers died, and another one decides."""

    killed: Node
    active: Node
    within_ms: float  # from the kill on


async def kill_leader(
    cluster: AsyncLocalCluster,
    admin: AdminClient,
    topic: str,
    partition: int,
    acks: AckWatch,
    *,
    controller: Node | None = None,
    on_killed: Callable[[], None] = lambda: None,
) -> Failover:
    """Kill the partition's leader, and return once writes to it have resumed. The broker stays down.

    `controller`: the active one of several, which is killed in the same instant, and stays down too. Writes count that
    were sent after the kill: whoever sends only so many has some left for `on_killed`.
    """
    before = {p.partition: p for p in (await admin.describe_topic(topic)).partitions}
    victim = before[partition].leader
    changes = [
        LeaderChange(
            p.partition, victim, p.leader_epoch, producers_before=await producer_views(admin, topic, p.partition)
        )
        for p in before.values()
        if p.leader == victim
    ]
    killed_at = time.monotonic()
    await cluster.kill(victim, *([] if controller is None else [controller]))
    on_killed()
    next_controller = asyncio.create_task(_next_controller(cluster, controller, killed_at))
    try:
        resumed_at = await acks.first_after(partition, killed_at, RESUME_TIMEOUT_S)
        taken_over = await next_controller
    except TimeoutError:
        raise NotInTime(
            f"writes to {topic}-{partition} did not resume within {RESUME_TIMEOUT_S:g} s after broker {victim} was killed"
        ) from None
    finally:
        next_controller.cancel()
    for change in changes:
        await _see_after(change, admin, topic)
    return Failover(victim, partition, (resumed_at - killed_at) * 1000, changes, taken_over)


async def _next_controller(
    cluster: AsyncLocalCluster, killed: Node | None, killed_at: float
) -> ControllerChange | None:
    if killed is None:
        return None
    active = await cluster.resolve(ACTIVE_CONTROLLER, timeout_s=RESUME_TIMEOUT_S)
    return ControllerChange(killed, active, (time.monotonic() - killed_at) * 1000)


async def _see_after(change: LeaderChange, admin: AdminClient, topic: str) -> None:
    """Ask the next leader, and wait until it is known who that is."""
    change.producers_after = await producer_views(admin, topic, change.partition)

    async def partition() -> PartitionDescription:
        return (await admin.describe_topic(topic)).partitions[change.partition]

    after = await until(
        partition,
        f"{topic}-{change.partition} has another leader",
        HEAL_TIMEOUT_S,
        holds=lambda after: after.leader_epoch > change.epoch_before and after.leader >= 0,
        poll_s=_POLL_S,
    )
    change.leader_after, change.epoch_after = after.leader, after.leader_epoch


async def producer_views(admin: AdminClient, topic: str, partition: int) -> list[ProducerView]:
    """Of the partition's leader at the time; committed state only."""
    described = await admin.describe_producers(topic, partition)
    views = []
    for producer in described.producers:
        first, last = producer.batches[0], producer.batches[-1]
        last_offset = last.base_offset + (last.last_sequence - last.first_sequence) % _SEQUENCES
        views.append(
            ProducerView(
                producer.producer_id,
                producer.producer_epoch,
                first.first_sequence,
                last.last_sequence,
                len(producer.batches),
                last_offset,
            )
        )
    return views
