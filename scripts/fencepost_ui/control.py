"""What the page's buttons do to a local cluster. Every refusal is a ControlError that names the value."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from fencepost_testing.failures import CommandFailed
from fencepost_testing.faults import Faults
from fencepost_testing.kept_cluster import KeptCluster
from fencepost_testing.local_cluster import AsyncLocalCluster, Node, name_of
from fencepost_testing.member import target_of

ACTIONS: Final = ("kill", "pause", "resume", "stop", "start", "restart", "cut", "heal", "lose-ack")
START_WITHIN_S: Final = 60.0  # of a process; a machine may be busy
BROKERS: Final = 3  # of a cluster that the page starts

_DONE: Final = {
    "kill": "You killed {} (SIGKILL)",
    "pause": "You paused {}",
    "resume": "You resumed {}",
    "stop": "You stopped {} (a clean shutdown)",
    "start": "You started {}",
    "restart": "You restarted {}",
}


class ControlError(CommandFailed):
    """What cannot be done, in words for the visitor."""


class Control:
    """One local cluster, or none yet.

    A cluster that was there belongs to no one: later commands find it changed, so its file is read before each action, under
    the lock that `fencepost cluster` takes. One that the page has started ends with the page.
    """

    def __init__(self, directory: Path, tell: Callable[[str, str], None]) -> None:
        """`tell`: is given the node and the line for what was done."""
        self._directory = directory
        self._tell = tell
        self._own: AsyncLocalCluster | None = None
        self._kept = KeptCluster(directory)
        self._lock = asyncio.Lock()

    def cluster(self) -> AsyncLocalCluster | None:
        """As its file says now; None: there is none."""
        if self._own is not None:
            return self._own
        try:
            return self._kept.look()
        except CommandFailed:
            return None

    def _require(self) -> AsyncLocalCluster:
        cluster = self.cluster()
        if cluster is None:
            raise ControlError(f"there is no cluster in {self._directory}: start one first")
        return cluster

    # ---- A cluster of the page's own ----

    async def start_cluster(self) -> None:
        """Three brokers and a controller, in a temporary folder."""
        async with self._lock:
            if self.cluster() is not None:
                raise ControlError("there is a cluster already")
            own = AsyncLocalCluster(brokers=BROKERS)
            try:
                await own.up(timeout_s=START_WITHIN_S)
            except BaseException:
                own.close()
                raise
            self._own = own
        self._tell("", "A controller and three brokers are up: they end with this page's server")

    def close(self) -> None:
        """End the cluster that the page has started."""
        if self._own is not None:
            self._own.close()
            self._own = None

    # ---- Buttons ----

    async def do(self, action: str, target: str) -> str:
        """Do it, and return what was done. Raises ControlError, ClusterError."""
        if action not in ACTIONS:
            raise ControlError(f"no action {action[:50]!r}: there are {', '.join(ACTIONS)}")
        async with self._changing() as cluster:
            if action in ("lose-ack", "heal"):
                return await asyncio.to_thread(self._lose_ack if action == "lose-ack" else self._heal, cluster, target)
            node = node_of(cluster, target)
            if action == "cut":
                return await asyncio.to_thread(self._cut, cluster, node)
            return await self._do(cluster, action, node)

    async def _do(self, cluster: AsyncLocalCluster, action: str, node: Node) -> str:
        if action == "start" and cluster.running(node):
            raise ControlError(f"{name_of(node)} runs already")
        done = _DONE[action].format(name_of(node))
        if action != "start":
            cluster.member(node).running_process()  # raises where there is nothing to be done
            self._tell(str(node), done)  # before what comes of it
        match action:
            case "kill":
                await cluster.kill(node)
            case "pause":
                await cluster.pause(node)
            case "resume":
                await cluster.resume(node)
            case "stop":
                await cluster.stop(node)
            case "start":
                await cluster.start(node, timeout_s=START_WITHIN_S)
                self._tell(str(node), done)
            case _:
                await cluster.restart(node, timeout_s=START_WITHIN_S)
        return done

    def _cut(self, cluster: AsyncLocalCluster, node: Node) -> str:
        _required_faults(cluster).cut(node)
        done = f"You cut {name_of(node)} off: what it and the other processes send to each other is held back"
        self._tell(str(node), done)
        return done

    def _heal(self, cluster: AsyncLocalCluster, _: str) -> str:
        faults = _required_faults(cluster)
        count = len(faults.active())
        faults.clear()
        done = f"You removed every fault ({count})"
        self._tell("", done)
        return done

    def _lose_ack(self, cluster: AsyncLocalCluster, topic: str) -> str:
        handle = _required_faults(cluster).drop_answers(api="Produce", times=1, topic=topic or None)
        done = "The next acknowledgement of a batch will be lost: appended, and never answered"
        self._tell("", f"{done} (fault {handle.id})")
        return done

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncLocalCluster]:
        """One change at a time, also of other commands'. Raises ClusterError where one takes too long."""
        self._require()
        if self._own is None:
            async with self._kept.changing() as cluster:
                yield cluster
            return
        async with self._lock:
            yield self._require()


def node_of(cluster: AsyncLocalCluster, target: str) -> Node:
    """Raises ControlError for a target that the cluster does not have."""
    node = target_of(target)
    if isinstance(node, int | str) and node in cluster.members:
        return node
    known = ", ".join(str(node) for node in cluster.nodes)
    raise ControlError(f"no process {target[:50]!r} in this cluster: there are {known}")


def _required_faults(cluster: AsyncLocalCluster) -> Faults:
    """Raises ControlError where there are none."""
    faults = faults_of(cluster)
    if faults is None:
        raise ControlError(
            "this cluster was started without faults: 'fencepost cluster up --faults' starts one with them"
        )
    return faults


def faults_of(cluster: AsyncLocalCluster) -> Faults | None:
    """The cluster's faults; None where it was started without."""
    return cluster.faults if cluster.has_faults else None
