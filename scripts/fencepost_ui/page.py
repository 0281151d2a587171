"""The page's server side as a whole: what is watched, what can be done, and what browsers are told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.failures import CommandFailed
from fencepost_ui.control import Control, ControlError, faults_of
from fencepost_ui.hub import Hub
from fencepost_ui.load import Load
from fencepost_ui.model import Model
from fencepost_ui.story import Story
from fencepost_ui.watch import Watch

RATES_S: Final = 0.5  # between two points of the charts
POINTS: Final = 120  # kept: a minute
MAX_FAULTS: Final = 20  # named


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Page:
    """Made, started and stopped once, inside one event loop."""

    def __init__(self, directory: Path, bootstrap: str = "") -> None:
        """`bootstrap`: of a cluster elsewhere, which is only looked at; empty: the local one in `directory`."""
        self._bootstrap = bootstrap
        self.failure: BaseException | None = None
        self._tasks = Tasks(self._failed)
        self.model = Model(_now_ms)
        self.hub = Hub(self._patch, self._snapshot)
        self.watch = Watch(self.model, self.hub.changed, self._tasks)
        self.control = Control(directory, self._tell)
        self.load = Load(self.hub.changed)
        self.story = Story(self.control, self.hub.changed, self._tell_story)
        self._points: deque[dict[str, float]] = deque(maxlen=POINTS)
        self._faults: list[str] = []  # that are set now, in words
        self._new_point: dict[str, float] | None = None
        self._told: dict[str, Any] = {}  # of what is small and told whole when it has changed

    async def start(self) -> None:
        self._tasks.spawn(self.hub.run(), "hub")
        self._tasks.spawn(self._follow_cluster(), "follow the cluster")
        self._tasks.spawn(self._measure(), "measure")
        if not self._bootstrap:
            self._tasks.spawn(self.watch.watch_processes(self.control.cluster), "watch processes")
            self._tasks.spawn(self.watch.watch_roles(self.control.cluster), "watch roles")

    async def stop(self) -> None:
        await self.story.stop()
        await self.load.stop()
        await self._tasks.close()
        await asyncio.to_thread(self.control.close)

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    def _tell(self, node: str, text: str) -> None:
        self.model.timeline.add(_now_ms(), "lost" if "acknowledgement" in text else "process", text, node=node)
        self.hub.changed()

    def _tell_story(self, node: str, text: str) -> None:
        self.model.timeline.add(_now_ms(), "story", text, node=node)
        self.hub.changed()

    # ---- What goes on ----

    async def _follow_cluster(self) -> None:
        """Watch the brokers that there are: a cluster may be made, grow and shrink while the page is open."""
        known: dict[int, str] = {}
        while True:
            addresses = await self._addresses()
            if addresses != known:
                known = addresses
                self.watch.observe(addresses)
            self._faults = await self._active_faults()
            self.hub.changed()
            await asyncio.sleep(RATES_S)

    async def _active_faults(self) -> list[str]:
        """The page's, and those that commands have set."""
        cluster = None if self._bootstrap else self.control.cluster()
        faults = None if cluster is None else faults_of(cluster)
        if faults is None:
            return []
        try:
            return [str(handle) for handle in await asyncio.to_thread(faults.active)][:MAX_FAULTS]
        except (CommandFailed, OSError):  # the cluster has just gone
            return []

    async def _addresses(self) -> dict[int, str]:
        if self._bootstrap:
            from fencepost import AdminClient
            from fencepost_proto.protocol.errors import FencepostError

            try:
                async with AdminClient(self._bootstrap) as admin:
                    return {broker.id: broker.address for broker in (await admin.describe_cluster()).brokers}
            except FencepostError:
                return {}
        cluster = self.control.cluster()
        return {} if cluster is None else {broker: cluster.member(broker).address for broker in cluster.broker_ids}

    async def _measure(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(RATES_S)
            now = time.monotonic()
            rates = self.watch.rates(now - before)
            before = now
            load = self.load.told()
            self._new_point = {"t": _now_ms(), **rates, "loadP50": load["p50"], "loadP99": load["p99"]}
            self._points.append(self._new_point)
            self.hub.changed()

    # ---- What is done ----

    async def start_cluster(self) -> str:
        if self._bootstrap:
            raise ControlError(f"this page shows the cluster at {self._bootstrap}")
        await self.control.start_cluster()
        return "The cluster is up"

    async def do(self, action: str, target: str) -> str:
        if self._bootstrap:
            raise ControlError(f"the cluster at {self._bootstrap} is only looked at: its processes are not this page's")
        return await self.control.do(action, target)

    async def switch_load(self, on: bool) -> str:
        cluster = self.control.cluster()
        bootstrap = self._bootstrap or (cluster.bootstrap if cluster is not None else "")
        if not bootstrap:
            raise ControlError("there is no cluster to send records to: start one first")
        if on:
            self.load.start(bootstrap)
            return "Records are being sent"
        await self.load.stop()
        return "No more records are sent"

    # ---- What is told ----

    def _small(self) -> dict[str, Any]:
        cluster = self.control.cluster() if not self._bootstrap else None
        return {
            "clusterId": self.model.cluster_id,
            "local": not self._bootstrap,
            "hasCluster": bool(self._bootstrap) or cluster is not None,
            "hasFaults": cluster is not None and faults_of(cluster) is not None,
            "story": self.story.told(),
            "load": self.load.told(),
            "faults": self._faults,
        }

    def _patch(self) -> dict[str, Any]:
        patch = {**self.model.patch(), **self.watch.patch()}
        small = self._small()
        patch |= {name: value for name, value in small.items() if self._told.get(name) != value}
        self._told = small
        if self._new_point is not None:
            patch["point"], self._new_point = self._new_point, None
        return patch

    def _snapshot(self) -> dict[str, Any]:
        return {**self.model.snapshot(), **self.watch.snapshot(), **self._small(), "points": list(self._points)}
