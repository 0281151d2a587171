"""Carries a schedule out on real processes, and undoes it.

A fault claims the processes that it hits; one that finds another fault's hands on all of its own is skipped, which the log
says. Cuts claim no one: they lie beside any other fault.
"""

from __future__ import annotations

import asyncio
import operator
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fencepost import AdminClient
from fencepost.history import History
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.chaos.cuts import CuttableNetwork
from fencepost_testing.chaos.data_folders import copy_folder, put_back
from fencepost_testing.chaos.disks import Disks
from fencepost_testing.chaos.faults import (
    BOUNCES,
    CONTROLLER,
    FILL_KINDS,
    FLIP_KINDS,
    RESTORE_KINDS,
    SERVER_KILLS,
    UNCLEAN_KINDS,
    Fault,
    FaultKind,
    Link,
    Nemesis,
    Party,
    SkippedFault,
)
from fencepost_testing.chaos.fleet import ClientProcess, Fleet
from fencepost_testing.chaos.nemesis_log import Happened, NemesisLog
from fencepost_testing.chaos.unclean import UncleanElections
from fencepost_testing.chaos.view import View
from fencepost_testing.local_cluster import AsyncLocalCluster, ClusterError, Node
from fencepost_testing.member import ACTIVE_CONTROLLER, ETCD_LEADER, folder_of, is_etcd
from fencepost_testing.waiting import NotInTime, until

RESTART_TIMEOUT_S = 60.0
MOVE_TIMEOUT_S = 5.0  # for the controller to take it up
FREE_TIMEOUT_S = 10.0
ROLE_TIMEOUT_S = 1.0  # for a controller to be active, or etcd to have a leader
TAKE_OVER_TIMEOUT_S = 15.0  # for the new instance to have sent something
_GUARD_POLL_S = 0.1
_LATE_S = 0.1  # that a fault may last beyond the run's end: each begins a little late
_MAX_LINKS_TOLD = 4

_PAUSED = {
    FaultKind.PAUSE_BROKER,
    FaultKind.PAUSE_LEADER,
    FaultKind.PAUSE_CONTROLLER,
    FaultKind.PAUSE_ETCD_LEADER,
}
_CLIENT_PAUSED = {FaultKind.PAUSE_PRODUCER, FaultKind.PAUSE_CONSUMER, FaultKind.PAUSE_MEMBER}
_CLIENT_KILLED = {FaultKind.KILL_PRODUCER, FaultKind.KILL_MEMBER}


class Executor:
    """Runs a schedule against a cluster and its clients. `problems`: what did not go as it must."""

    def __init__(
        self,
        cluster: AsyncLocalCluster,
        fleet: Fleet,
        admin: AdminClient,
        network: CuttableNetwork | None,
        log: NemesisLog,
        *,
        duration_s: float,
        history: History,
    ) -> None:
        self.problems: list[str] = []
        self._cluster = cluster
        self._fleet = fleet
        self._admin = admin
        self._network = network
        self._log = log
        self._duration_s = duration_s
        self._claimed: set[Party] = set()
        self._view = View(cluster, fleet.topic)
        self._disks = Disks(cluster, self._view, fleet.topic)
        self._elections = UncleanElections(cluster, admin, self._view, fleet.topic, history)

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Return once every fault is undone. Raises ClusterError where something does not come back."""
        async with asyncio.TaskGroup() as group:
            for nemesis in Nemesis:
                group.create_task(self._run([fault for fault in schedule if fault.nemesis is nemesis]))

    async def _run(self, faults: Sequence[Fault]) -> None:
        """One nemesis. On a slow machine it falls behind; it keeps its rests then, and gives up what is left at the end."""
        planned_end_s = 0.0
        for fault in faults:
            rest_s = fault.at_s - planned_end_s
            planned_end_s = fault.at_s + fault.duration_s
            elapsed_s = time.monotonic() - self._log.started_at
            at_s = max(fault.at_s, elapsed_s + rest_s)
            if at_s + fault.duration_s > self._duration_s + _LATE_S:
                self._log.skip(fault, "the run is over")
                continue
            await asyncio.sleep(at_s - elapsed_s)
            try:
                await self._carry_out(fault)
            except SkippedFault as skipped:
                self._log.skip(fault, str(skipped))

    async def guard(self) -> None:
        """Processes that no fault affects now must run: report each that does not, and start it again."""
        while True:
            await asyncio.sleep(_GUARD_POLL_S)
            for node in self._cluster.nodes:
                if party_of(node) not in self._claimed and not self._cluster.running(node):
                    code = await self._cluster.wait_gone(node)
                    self.problems.append(f"{party_of(node)} ended by itself with exit code {code}")
                    await self._cluster.start(node, timeout_s=RESTART_TIMEOUT_S)
            for party, client in list(self._fleet.current.items()):
                if party not in self._claimed and not client.running():
                    if not client.fenced_by_another():
                        self.problems.append(client.problem() or f"client {client.name} ended by itself")
                        client.killed = True  # reported once
                    self._fleet.start(client.role)

    async def _carry_out(self, fault: Fault) -> None:
        if fault.links:
            await self._cut(fault)
        elif fault.kind in SERVER_KILLS:
            await self._kill(fault)
        elif fault.kind in BOUNCES:
            await self._bounce(fault)
        elif fault.kind in _PAUSED:
            await self._pause(fault)
        elif fault.kind in _CLIENT_PAUSED:
            await self._pause_client(fault)
        elif fault.kind in _CLIENT_KILLED:
            await self._kill_client(fault)
        elif fault.kind is FaultKind.MOVE_PARTITION:
            await self._move(fault)
        elif fault.kind in RESTORE_KINDS:
            await self._restore(fault)
        elif fault.kind in FLIP_KINDS:
            await self._flip(fault)
        elif fault.kind in FILL_KINDS:
            await self._fill(fault)
        elif fault.kind in UNCLEAN_KINDS:
            await self._elect(fault)
        else:
            await self._take_over(fault)

    @contextmanager
    def _claim(self, parties: Sequence[Party]) -> Iterator[tuple[Party, ...]]:
        """Those of the parties that no other fault has."""
        free = tuple(party for party in parties if party not in self._claimed)
        if not free:
            raise SkippedFault(f"another fault has {', '.join(parties)}")
        self._claimed.update(free)
        try:
            yield free
        finally:
            self._claimed.difference_update(free)

    @contextmanager
    def _logged(self, fault: Fault, targets: tuple[Party, ...], note: str = "") -> Iterator[Happened]:
        happened = self._log.began(fault, targets, note)
        try:
            yield happened
        finally:
            self._log.ended(happened)

    # ---- Brokers and the controller ----

    async def _kill(self, fault: Fault) -> None:
        with self._claim(await self._found(fault.targets)) as victims:
            nodes = [node_of(party) for party in victims]
            with self._logged(fault, victims):
                await self._cluster.kill(*nodes)
                await asyncio.sleep(fault.duration_s)
                await self._cluster.start(*nodes, timeout_s=RESTART_TIMEOUT_S)

    async def _bounce(self, fault: Fault) -> None:
        with self._claim(await self._found(fault.targets)) as (victim, *_):
            node = node_of(victim)
            with self._logged(fault, (victim,)):
                await self._stop(node)
                await asyncio.sleep(fault.duration_s)
                await self._cluster.start(node, timeout_s=RESTART_TIMEOUT_S)

    async def _pause(self, fault: Fault) -> None:
        with self._claim(await self._found(fault.targets)) as (victim, *_):
            node = node_of(victim)
            with self._logged(fault, (victim,)):
                await self._cluster.pause(node)
                try:
                    await asyncio.sleep(fault.duration_s)
                finally:
                    await self._cluster.resume(node)

    # ---- Data folders ----

    async def _restore(self, fault: Fault) -> None:
        with tempfile.TemporaryDirectory() as scratch, self._logged(fault, fault.targets) as happened:
            copy = Path(scratch) / "copy"
            try:
                await self._copy(fault, copy)
                await asyncio.sleep(fault.duration_s)
                happened.note = await self._put_back(fault, copy)
            except SkippedFault as skipped:
                happened.note = f"not put back: {skipped}"

    async def _copy(self, fault: Fault, copy: Path) -> None:
        node = node_of(fault.targets[0])
        folder = self._cluster.member(node).directory
        if fault.kind is FaultKind.RESTORE_RUNNING:
            await asyncio.to_thread(copy_folder, folder, copy)
            return
        await self._wait_free(fault.targets)
        with self._claim(fault.targets):
            await self._stop(node)
            await asyncio.to_thread(copy_folder, folder, copy)
            await self._cluster.start(node, timeout_s=RESTART_TIMEOUT_S)

    async def _put_back(self, fault: Fault, copy: Path) -> str:
        """Not where it is the last one in sync: then records would be lost, and the operator notified. A note, or none."""
        node = node_of(fault.targets[0])
        everybody = await self._everybody_free()
        with self._claim(everybody):  # or another fault would make it the last one meanwhile
            if fault.kind is FaultKind.RESTORE_RUNNING:
                await self._cluster.kill(node)
                await self._cluster.wait_gone(node)
            else:
                await self._stop(node)
            others_in_sync = await self._others_in_sync(int(node))
            if others_in_sync:
                await asyncio.to_thread(put_back, copy, self._cluster.member(node).directory)
            await self._cluster.start(node, timeout_s=RESTART_TIMEOUT_S)
        return "" if others_in_sync else "not put back: it may be the last one in sync"

    async def _flip(self, fault: Fault) -> None:
        everybody = await self._everybody_free()
        with self._claim(everybody), self._logged(fault, fault.targets) as happened:
            try:
                if problem := await self._disks.flip(fault, happened):
                    self.problems.append(problem)
            except SkippedFault as skipped:
                happened.note = f"not flipped: {skipped}"

    async def _fill(self, fault: Fault) -> None:
        with self._claim(await self._found(fault.targets)) as victims, self._logged(fault, victims):
            self.problems += await self._disks.fill(fault, [node_of(party) for party in victims])

    # ---- Unclean elections ----

    async def _elect(self, fault: Fault) -> None:
        everybody = await self._everybody_free()
        with self._claim(everybody), self._logged(fault, fault.targets, f"partition {fault.partition}") as happened:
            try:
                await self._elections.run(fault, int(node_of(fault.targets[0])), happened)
            except SkippedFault as skipped:
                happened.note += f"; no one is elected: {skipped}"

    async def elect_in_the_end(self, partitions: int) -> list[str]:
        """Once all brokers run: an operator's part where no replica is in sync. What was done, in words."""
        try:
            return await self._elections.elect_where_no_one_may_lead(partitions)
        except SkippedFault as skipped:
            self.problems.append(f"no one could be elected: {skipped}")
            return []

    async def _everybody_free(self) -> list[Party]:
        """All brokers, once no other fault has one of them. Raises Skipped."""
        everybody = [party_of(broker) for broker in self._cluster.broker_ids]
        await self._wait_free(everybody)
        return everybody

    async def _stop(self, node: Node) -> None:
        code = await self._cluster.stop(node, timeout_s=RESTART_TIMEOUT_S)
        if code != 0 and not is_etcd(node):  # which ends by the signal that it was sent
            self.problems.append(f"{party_of(node)}: the exit code of a clean shutdown was {code}")

    async def _wait_free(self, parties: Sequence[Party]) -> None:
        """Until no other fault has any of them. Raises Skipped."""

        def claimed() -> str:
            return ", ".join(sorted(self._claimed.intersection(parties)))

        what = "no other fault has one of the parties"
        await until(claimed, what, FREE_TIMEOUT_S, holds=operator.not_, poll_s=_GUARD_POLL_S, error=SkippedFault)

    async def _others_in_sync(self, broker: int) -> bool:
        image = await self._view.image()
        return image is not None and all(
            any(member != broker for member in partition.isr) for partition in image.partitions.values()
        )

    # ---- The network ----

    async def _cut(self, fault: Fault) -> None:
        assert self._network is not None, "cuts are scheduled only where there is a network to cut"
        roles = sorted({party for link in fault.links for party in link} | set(fault.targets))
        found = dict(zip(roles, await self._found(roles), strict=True))
        links = list(
            dict.fromkeys((found[one], found[other]) for one, other in fault.links if found[one] != found[other])
        )
        with self._logged(fault, tuple(found[party] for party in fault.targets), _told(links)):
            await self._network.cut(links)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                await self._network.mend(links)

    # ---- Clients ----

    async def _pause_client(self, fault: Fault) -> None:
        with self._claim(fault.targets) as (party, *_), self._logged(fault, (party,), self._fleet.current[party].name):
            client = self._fleet.current[party]
            await self._asleep(client, fault.duration_s)

    async def _asleep(self, client: ClientProcess, duration_s: float) -> None:
        self._fleet.pause(client)
        try:
            await asyncio.sleep(duration_s)
        finally:
            self._fleet.resume(client)

    async def _kill_client(self, fault: Fault) -> None:
        with self._claim(fault.targets) as (party, *_), self._logged(fault, (party,), self._fleet.current[party].name):
            client = self._fleet.current[party]
            await self._fleet.kill(client)
            await asyncio.sleep(fault.duration_s)
            self._fleet.start(client.role)

    async def _take_over(self, fault: Fault) -> None:
        """The zombie: asleep while another instance takes its name, then awake with what it still had to send."""
        with self._claim(fault.targets) as (party, *_):
            zombie = self._fleet.current[party]
            with self._logged(fault, (party,), zombie.name):
                self._fleet.pause(zombie)
                try:
                    await asyncio.sleep(fault.duration_s)
                    successor = self._fleet.start(zombie.role)
                    await self._fleet.wait_begun(successor, TAKE_OVER_TIMEOUT_S)
                finally:
                    self._fleet.resume(zombie)

    # ---- The operator ----

    async def _move(self, fault: Fault) -> None:
        replicas = [int(node_of(party)) for party in fault.targets]
        with self._logged(fault, fault.targets, f"partition {fault.partition}") as happened:
            try:
                async with asyncio.timeout(MOVE_TIMEOUT_S):
                    await self._admin.reassign_partitions(self._fleet.topic, {fault.partition: replicas})
            except (FencepostError, TimeoutError) as error:  # the controller may be down; it may be done nevertheless
                happened.note += f"; {type(error).__name__}"

    # ---- Who ----

    async def _found(self, parties: Sequence[Party]) -> list[Party]:
        """Roles made out. Raises Skipped where no one plays one."""
        found = []
        for party in parties:
            if party in (CONTROLLER, ETCD_LEADER):
                found.append(await self._playing(party))
                continue
            if not party.startswith("leader-"):
                found.append(party)
                continue
            index = int(party.removeprefix("leader-"))
            partition = await self._view.partition(index)
            if partition is None:
                raise SkippedFault("no broker answers who leads")
            if partition.leader < 0:
                raise SkippedFault(f"partition {index} has no leader")
            found.append(f"broker-{partition.leader}")
        return found

    async def _playing(self, role: Party) -> Party:
        """The active controller, or the leader of etcd. Raises Skipped where there is none."""
        target = ACTIVE_CONTROLLER if role == CONTROLLER else role
        try:
            return party_of(await self._cluster.resolve(target, timeout_s=ROLE_TIMEOUT_S))
        except (ClusterError, NotInTime) as error:
            raise SkippedFault(str(error)) from error


def party_of(node: Node) -> Party:
    return folder_of(node)


def node_of(party: Party) -> Node:
    return int(party.removeprefix("broker-")) if party.startswith("broker-") else party


def _told(links: Sequence[Link]) -> str:
    """Both directions of a pair in one word; many links only by their number."""
    if len(links) > _MAX_LINKS_TOLD:
        return f"{len(links)} links"
    told = []
    for one, other in links:
        if (other, one) not in links:
            told.append(f"{one} → {other}")
        elif (one, other) < (other, one):
            told.append(f"{one} ↔ {other}")
    return ", ".join(told)
