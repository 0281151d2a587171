"""Makes an unclean election, and records what the operator was shown.

A replica is paused or killed until it is out of the in-sync set; the others go on without it, and are killed in their turn.
The replica comes back, no one who is in sync does, and an operator elects the best log that can be asked: records that were
acknowledged are lost. How many, the operator is shown beforehand; the history records it (`recorded_election`), and the
run's verdict compares the log with it. Then the others come back, and are cut.

A replica that was paused remembers its high watermark, one that was killed does not: so both ways of computing what is kept
(`fencepost.unclean_election`) come up.
"""

from __future__ import annotations

import asyncio

from fencepost import AdminClient
from fencepost.descriptions import ElectionCandidate
from fencepost.history import History
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.chaos.faults import Fault, FaultKind, SkippedFault
from fencepost_testing.chaos.nemesis_log import Happened
from fencepost_testing.chaos.view import View
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.recorded_election import elect_recorded
from fencepost_testing.waiting import until

IN_SYNC_TIMEOUT_S = 6.0
LEAVE_TIMEOUT_S = 10.0  # the in-sync set
COME_BACK_TIMEOUT_S = 15.0  # until the operator can ask the replica
RESTART_TIMEOUT_S = 60.0
ELECT_TIMEOUT_S = 20.0
_POLL_S = 0.1


class UncleanElections:
    """Of a topic's partitions. The caller keeps other faults away from all brokers meanwhile."""

    def __init__(
        self, cluster: AsyncLocalCluster, admin: AdminClient, view: View, topic: str, history: History
    ) -> None:
        self._cluster = cluster
        self._admin = admin
        self._view = view
        self._topic = topic
        self._history = history

    async def run(self, fault: Fault, lagging: int, happened: Happened) -> None:
        """`lagging`: the broker to elect, if it has a replica in sync; else another one. All run again at the end, whatever
        happens. Raises Skipped, ClusterError."""
        index = fault.partition
        partition = await self._view.all_in_sync(index, IN_SYNC_TIMEOUT_S)
        if lagging not in partition.isr:
            lagging = partition.isr[-1]
        try:
            await self._leave_behind(fault, lagging)
            await self._kill_the_others(fault, lagging)
            if self._cluster.paused(lagging):
                await self._cluster.resume(lagging)
            await self._cluster.start(lagging, timeout_s=RESTART_TIMEOUT_S)
            happened.note += f"; {await self._elect_best(index)}"
        finally:
            if self._cluster.paused(lagging):
                await self._cluster.resume(lagging)
            await self._cluster.start(*self._cluster.broker_ids, timeout_s=RESTART_TIMEOUT_S)

    async def elect_where_no_one_may_lead(self, partitions: int) -> list[str]:
        """What an operator does in the end: where faults together have left no replica in sync, the best log is elected. All
        brokers run. What was done, in words. Raises Skipped."""
        done = []
        for index in range(partitions):
            partition = await self._view.partition(index)
            if partition is not None and not partition.isr and not partition.eligible:
                done.append(f"partition {index}: {await self._elect_best(index)}")
        return done

    async def _elect_best(self, index: int) -> str:
        """Have the best candidate elected, and say what was shown of it. Raises Skipped where there is none."""
        chosen = await self._candidate(index)
        shown = (
            f"broker {chosen.broker_id} is elected: kept below {chosen.kept_end_offset}, lost from "
            f"{chosen.log_end_offset} on"
        )
        try:
            async with asyncio.timeout(ELECT_TIMEOUT_S):
                await elect_recorded(self._admin, self._topic, index, chosen, self._history)
        except (FencepostError, TimeoutError) as error:
            return f"{shown}; {type(error).__name__}"
        return shown

    async def _leave_behind(self, fault: Fault, lagging: int) -> None:
        if fault.kind is FaultKind.UNCLEAN_AFTER_PAUSE:
            await self._cluster.pause(lagging)
        else:
            await self._cluster.kill(lagging)
        await self._view.until(
            fault.partition, lambda p: p.leader >= 0 and lagging not in p.isr, LEAVE_TIMEOUT_S, f"{lagging} out of sync"
        )
        await asyncio.sleep(fault.duration_s)

    async def _kill_the_others(self, fault: Fault, lagging: int) -> None:
        """All that are in sync. After a kill: one after another, the leader last, so that no one else leads meanwhile."""
        partition = await self._view.partition(fault.partition)
        if partition is None or lagging in partition.isr:
            raise SkippedFault(
                f"the in-sync set of partition {fault.partition} is not known, or has broker {lagging} again"
            )
        members = sorted(partition.isr, key=lambda member: member == partition.leader)
        if fault.kind is not FaultKind.UNCLEAN_AFTER_KILL:
            await self._cluster.kill(*members)
            return
        for number, member in enumerate(members, 1):
            await self._cluster.kill(member)
            if number < len(members):
                await self._only_in_sync(fault.partition, set(members[number:]))

    async def _only_in_sync(self, index: int, left: set[int]) -> None:
        await self._view.until(index, lambda p: set(p.isr) == left, LEAVE_TIMEOUT_S, f"only {left} in sync")

    async def _candidate(self, index: int) -> ElectionCandidate:
        """The best, as `fencepost topic elect --unclean` takes it, once there is one. Raises Skipped."""

        async def best() -> ElectionCandidate | FencepostError:
            try:
                return (await self._admin.unclean_candidates(self._topic, index))[0]
            except FencepostError as error:
                return error

        what = f"a replica of partition {index} that can be elected"
        found: ElectionCandidate | FencepostError = await until(
            best, what, COME_BACK_TIMEOUT_S, holds=_can_be_elected, poll_s=_POLL_S, error=SkippedFault
        )
        assert isinstance(found, ElectionCandidate)
        return found


def _can_be_elected(found: ElectionCandidate | FencepostError) -> bool:
    return isinstance(found, ElectionCandidate) and not found.failure
