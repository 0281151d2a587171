"""Keeps the model current: one stream from each broker, and a look at each process.

A stream that ends is begun again with growing pauses. The end of a broker's stream is where its death shows first; the
processes of a local cluster are looked at POLL_S apart besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import grpc
import psutil

from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.carriers.carrier_wire import wire_of_environment
from fencepost_proto.transport.latencies import BOUNDS_S
from fencepost_testing.cluster_status import read_roles
from fencepost_testing.local_cluster import AsyncLocalCluster, Member
from fencepost_testing.processes import ProcessRef
from fencepost_ui.model import Model

POLL_S: Final = 0.1  # between two looks at whether processes run
ROLES_POLL_S: Final = 0.3  # … at who is active
SAMPLE_EVERY: Final = 10  # of those looks: memory and CPU
RETRY: Final = Backoff(first_s=0.05, most_s=1.0)
MEGABYTE: Final = 1_000_000


@dataclass(slots=True)
class NodeView:
    """A process, as this machine sees it."""

    name: str
    address: str
    state: str = "down"  # running, paused, down; unreachable: of a cluster elsewhere
    pid: int = 0
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    role: str = ""  # of several controllers and of etcd's members: as `fencepost cluster status` has it


@dataclass(slots=True)
class Counts:
    """What one broker's process has counted so far, at a moment."""

    at: float
    batches: int
    size_bytes: int
    repeats: int
    refused: int
    latencies: tuple[int, ...]


class Watch:
    """Watches the brokers at some addresses, and the processes of a cluster where it is on this machine."""

    def __init__(self, model: Model, on_change: Callable[[], None], tasks: Tasks) -> None:
        self.nodes: dict[str, NodeView] = {}
        self.nodes_changed: dict[str, None] = {}
        self._model = model
        self._on_change = on_change
        self._tasks = tasks
        self._wire = wire_of_environment()
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._processes: dict[str, psutil.Process] = {}
        self._latest: dict[int, Counts] = {}
        self._before: dict[int, Counts] = {}

    def patch(self) -> dict[str, Any]:
        changed, self.nodes_changed = self.nodes_changed, {}
        return {"nodes": {name: asdict(self.nodes[name]) for name in changed}} if changed else {}

    def snapshot(self) -> dict[str, Any]:
        return {"nodes": {name: asdict(node) for name, node in self.nodes.items()}}

    # ---- Brokers ----

    @property
    def heard_from(self) -> set[int]:
        """Brokers that have said something since they, or their streams, began: what they do is shown from then on."""
        return set(self._latest)

    def observe(self, addresses: Mapping[int, str]) -> None:
        """Hold a stream to each of these brokers, and to no other."""
        for broker in [broker for broker in self._streams if broker not in addresses]:
            self._streams.pop(broker).cancel()
        for broker, address in addresses.items():
            if broker not in self._streams:
                self._streams[broker] = self._tasks.spawn(self._observe(broker, address), f"observe broker {broker}")

    async def _observe(self, broker: int, address: str) -> None:
        failures, event = 0, 0
        while True:
            async with self._wire.connect(address) as channel:
                stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
                try:
                    first = True
                    async for observation in stub.Observe(broker_pb2.ObserveRequest(after_event=event)):
                        failures = 0
                        if first:
                            self._model.forget_broker(broker)
                            self._count_anew(broker)
                            first = False
                        if observation.events:
                            event = observation.events[-1].number
                        self._take(broker, observation)
                except grpc.aio.AioRpcError:
                    pass
            failures += 1
            await asyncio.sleep(RETRY.pause_s(failures))

    def _take(self, broker: int, observation: broker_pb2.Observation) -> None:
        self._model.observe(observation)
        if observation.HasField("counts"):
            counts = observation.counts
            self._latest[broker] = Counts(
                time.monotonic(),
                counts.appended_batches,
                counts.appended_bytes,
                counts.repeated_batches,
                counts.refused_batches,
                tuple(counts.produce_latencies),
            )
        self._on_change()

    def _count_anew(self, broker: int) -> None:
        self._latest.pop(broker, None)
        self._before.pop(broker, None)

    def rates(self, elapsed_s: float) -> dict[str, float]:
        """Over all brokers, since the last call: batches and bytes a second, and latencies of Produce in ms (-1: none)."""
        batches = size_bytes = 0
        latencies = [0] * (len(BOUNDS_S) + 1)
        for broker, latest in self._latest.items():
            before = self._before.get(broker)
            self._before[broker] = latest
            if before is None:
                continue
            batches += latest.batches - before.batches
            size_bytes += latest.size_bytes - before.size_bytes
            for at, (now, then) in enumerate(zip(latest.latencies, before.latencies, strict=True)):
                latencies[at] += now - then
        return {
            "batches": batches / elapsed_s,
            "bytes": size_bytes / elapsed_s,
            "p50": quantile_ms(latencies, 0.5),
            "p99": quantile_ms(latencies, 0.99),
        }

    # ---- Processes ----

    async def watch_processes(self, cluster: Callable[[], AsyncLocalCluster | None]) -> None:
        """Of the cluster that is there at the time; for the page's life."""
        looks = 0
        while True:
            known = cluster()
            if known is not None:
                for member in known.members.values():
                    self._look_at(member, sample=looks % SAMPLE_EVERY == 0)
                self._forget_others(known)
            looks += 1
            await asyncio.sleep(POLL_S)

    async def watch_roles(self, cluster: Callable[[], AsyncLocalCluster | None]) -> None:
        """Which of several controllers is active, and which member of etcd leads."""
        while True:
            known = cluster()
            if known is not None and known.has_etcd:
                for name, role in (await read_roles(known)).items():
                    view = self.nodes.get(name)
                    if view is not None and view.role != role:
                        view.role = role
                        self.nodes_changed[name] = None
                        self._on_change()
            await asyncio.sleep(ROLES_POLL_S)

    def _look_at(self, member: Member, *, sample: bool) -> None:
        name = str(member.node)
        known = self.nodes.get(name)
        view = NodeView(name, member.address) if known is None else known
        before = replace(view)
        view.address = member.address
        view.state, view.pid = "down", 0
        if member.process is not None and member.running():
            view.state, view.pid = "paused" if member.paused() else "running", member.process.pid
        if view.state == "down":
            view.memory_mb = view.cpu_percent = 0.0
        elif sample or before.pid != view.pid:
            self._sample(view, member.process)
        self._note(view, None if known is None else before.state, before.pid)
        if known is None or view != before:
            self.nodes[name] = view
            self.nodes_changed[name] = None
            self._on_change()

    def _sample(self, view: NodeView, started: ProcessRef | None) -> None:
        """Memory and CPU; as they were where it has just ended, which the next look finds."""
        known = self._processes.get(view.name)
        if known is None or known.pid != view.pid:
            known = None if started is None else started.find()
        if known is None:
            return
        self._processes[view.name] = known
        with contextlib.suppress(psutil.NoSuchProcess):
            view.memory_mb = round(known.memory_info().rss / MEGABYTE, 1)
            view.cpu_percent = round(known.cpu_percent(), 1)

    def _note(self, view: NodeView, before: str | None, pid_before: int) -> None:
        """What became of a process is an event; what it was when the page was opened is none."""
        if before is None or (before == view.state and pid_before == view.pid):
            return
        name = f"broker {view.name}" if view.name.isdecimal() else view.name
        text = {
            "down": f"The process of {name} is gone",
            "paused": f"{name} is paused: it holds everything and does nothing",
            "running": f"{name} goes on" if before == "paused" else f"{name} runs (process {view.pid})",
        }[view.state]
        self._model.timeline.add(time.time_ns() // 1_000_000, "process", text[0].upper() + text[1:], node=view.name)

    def _forget_others(self, cluster: AsyncLocalCluster) -> None:
        there = {str(node) for node in cluster.members}
        for name in [name for name in self.nodes if name not in there]:
            del self.nodes[name]


def quantile_ms(counts: list[int], q: float) -> float:
    """The upper bound, in ms, of the bucket of `BOUNDS_S` in which that part of the counts ends; -1: there are none."""
    total = sum(counts)
    if not total:
        return -1.0
    so_far = 0
    for count, bound in zip(counts, BOUNDS_S, strict=False):
        so_far += count
        if so_far >= q * total:
            return bound * 1000
    return BOUNDS_S[-1] * 1000
