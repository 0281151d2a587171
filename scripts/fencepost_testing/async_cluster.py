"""A cluster of real processes on this machine's loopback, in one folder: a controller, or several with an etcd, and brokers.

Two ways of life. An *owned* cluster (demo, bench, tests) dies with its owner, whatever ends it: a watchdog process sees
to that. One that is not owned (`fencepost cluster up`) goes on after the command, and later commands find it by its
cluster.json.

A process is ready once it has written its process.json; the cluster is up once every broker knows that all brokers have
registered.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fencepost_proto.kafka.messages.describe_cluster import DescribeClusterRequest
from fencepost_testing import topic_control
from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.cluster_status import ClusterStatus, read_status
from fencepost_testing.kafka_request import NoAnswer, ask_broker
from fencepost_testing.member import GONE_TIMEOUT_S, POLL_S, ClusterError, Node, Setting, is_etcd, log_tail, name_of
from fencepost_testing.topic_control import PartitionState, ProducerState, Target
from fencepost_testing.waiting import WAIT_TIMEOUT_S, until

if TYPE_CHECKING:
    from fencepost_testing.exactly_once import ExactlyOnce

READY_TIMEOUT_S = 20.0
UNDO_TIMEOUT_S = 5.0  # for a clean end of what a failed start has started
STOP_TIMEOUT_S = 30.0
IN_SYNC_TIMEOUT_S = 30.0
CAUGHT_UP_TIMEOUT_S = 30.0
_METADATA_TIMEOUT_S = 1.0


class AsyncLocalCluster(ClusterFolder):
    """One cluster, for programs with an event loop: what waits or acts is a coroutine, what only looks is a plain method.

        async with AsyncLocalCluster(brokers=3) as cluster:
            topic = await cluster.create_topic(partitions=3)
            await cluster.kill(await cluster.leader(topic, 0))

    Making it starts nothing: `up` does, or `async with`, at whose end everything is killed.

    A *target* is a broker's id, "controller", or (topic, partition), which is the broker that leads it now, or any of these
    as commands have it ("1", "leader:orders-0"). With several controllers: "controller-1", "controller:active", "etcd-2",
    "etcd:leader". Every wait has a deadline, and what it raises then (`waiting.NotInTime`, `ClusterError`) names what was
    waited for.
    """

    __slots__ = ("_same",)

    @classmethod
    def view_of(cls, cluster: ClusterFolder) -> Self:
        """The same cluster, by this class's methods: what is done to one of the two is done to both."""
        view = cls.__new__(cls)
        view.__dict__ = cluster.__dict__
        object.__setattr__(view, "_same", cluster)  # it lives as long as this
        return view

    # ---- Starting ----

    async def up(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start every member that does not run, and wait until all brokers have registered.

        Raises ClusterError where one does not; what was started here has ended then.
        """
        down = [node for node in self.members if not self.running(node)]
        await self.start(*self.members, timeout_s=timeout_s)
        try:
            await self.wait_registered(self.broker_ids, timeout_s=timeout_s, needs_controller=True)
        except BaseException:
            await self._undo_start(down)
            raise

    async def start(self, *nodes: Target, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start those of the nodes that do not run, at the same time, and wait until each listens. It takes part again once
        `wait_registered` returns; its replicas, once `wait_in_sync` does.

        Raises ClusterError, with the end of its log, for a process that ends or is not ready in time, and
        WatchdogFailed; what was started here has ended then.
        """
        if not self.directory.is_dir():
            raise ClusterError(
                f"{self.directory} is gone, so this cluster cannot start: its temporary folder is removed when it is closed"
            )
        members = [self.member(node) for node in dict.fromkeys([await self.resolve(target) for target in nodes])]
        if not self._reservations and not self.any_running():
            self._reserve_ports()
        started = [member for member in members if not member.running()]
        try:
            if server := next(filter(None, map(self._fork_server, started)), None):
                await asyncio.to_thread(topic_control.prepare_requests)
                await asyncio.to_thread(server.wait_ready)
            for member in started:
                await member.wait_gone()
                self._spawn(member)
            self._save()
            if self._watchdog is not None:
                await asyncio.to_thread(self._watchdog.confirm)
            deadline = time.monotonic() + timeout_s
            for member in members:
                await member.wait_ready(max(0.0, deadline - time.monotonic()))
            self._record("started", *(member.node for member in started))
        except BaseException:
            await self._undo_start([member.node for member in started])
            raise

    async def _undo_start(self, nodes: Iterable[Node]) -> None:
        """End what a start that failed has started: cleanly where that is quick."""
        await self._stop_or_kill(nodes, UNDO_TIMEOUT_S)
        self._save()

    async def _stop_or_kill(self, nodes: Iterable[Node], timeout_s: float) -> None:
        """Stop those that run, cleanly and side by side; what is left at the deadline is killed. Members of etcd are killed:
        what they have answered is on disk, and ended together each would wait seconds for another one to lead."""
        running = [node for node in nodes if self.running(node)]
        if killed := list(filter(is_etcd, running)):
            await self.kill(*killed)
            running = [node for node in running if not is_etcd(node)]
        for node in running:
            with contextlib.suppress(ClusterError):  # it ended meanwhile
                self.terminate(node)
        for node in running:
            try:
                await self.wait_gone(node, timeout_s=timeout_s)
            except ClusterError:
                with contextlib.suppress(ClusterError):
                    await self.kill(node)

    async def wait_registered(
        self, brokers: Iterable[int] = (), *, timeout_s: float = READY_TIMEOUT_S, needs_controller: bool = False
    ) -> None:
        """Return once the metadata of every one of `brokers`, and of all others that run, shows all of them as
        registered and serving. A paused one is not waited for: it says nothing before it is resumed.

        Raises ClusterError, with the end of its log, where one of them has ended or is not registered in time.
        """
        expected = {*brokers, *(broker for broker in self.broker_ids if self.running(broker))}
        wanted = {broker for broker in expected if not self.paused(broker)}
        late = sorted(wanted)  # that one of them does not know as serving

        async def all_know_all() -> bool:
            nonlocal late
            for broker in sorted(wanted):
                self.member(broker).still_running()
                late = sorted(wanted - await self._registered(broker))
                if late:
                    if needs_controller:
                        for node in (*self.controllers, *self.etcd):
                            self.member(node).still_running()
                    return False
            return True

        def failure(_: str) -> ClusterError:
            suspects: list[Node] = [*self.controllers, *late[:1]]
            tails = "\n".join(f"  {name_of(node)}:\n{log_tail(self.member(node).log_file)}" for node in suspects)
            brokers = ", ".join(str(broker) for broker in late)
            return ClusterError(f"not registered in time: broker {brokers}; the ends of the logs:\n{tails}")

        await until(all_know_all, "every broker has registered", timeout_s, poll_s=POLL_S, error=failure)

    async def _registered(self, broker: int) -> set[int]:
        """The brokers that this one knows as serving."""
        try:
            answer = await ask_broker(self.member(broker).kafka_address, DescribeClusterRequest(), _METADATA_TIMEOUT_S)
        except NoAnswer:
            return set()
        return {known.broker_id for known in answer.brokers}

    # ---- Faults, stopping ----

    async def kill(self, *targets: Target, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """SIGKILL to all of them at once. Returns once they have ended."""
        for node in await self._signal(targets, signal.SIGKILL, "killed"):
            await self.wait_gone(node, timeout_s=timeout_s)

    async def pause(self, *targets: Target) -> None:
        """SIGSTOP: the process holds everything and does nothing. Returns once that is so."""
        for node in await self._signal(targets, signal.SIGSTOP, "paused"):
            what = f"{name_of(node)} is paused"
            await until(self.member(node).paused, what, GONE_TIMEOUT_S, poll_s=POLL_S, error=ClusterError)

    async def resume(self, *targets: Target) -> None:
        """SIGCONT."""
        await self._signal(targets, signal.SIGCONT, "resumed")

    async def _signal(self, targets: Iterable[Target], number: signal.Signals, done: str) -> list[Node]:
        """All targets are looked up before the first is disturbed. Raises ClusterError where one does not run."""
        nodes = list(dict.fromkeys([await self.resolve(target) for target in targets]))
        for node in nodes:
            self.member(node).running_process()
        self._record(done, *nodes)
        for node in nodes:
            self.member(node).meant_down |= number == signal.SIGKILL
            self.member(node).signal(number)
        return nodes

    async def resolve(self, target: Target, *, timeout_s: float = WAIT_TIMEOUT_S) -> Node:
        """The broker or controller that a target names now. Raises ClusterError."""
        return await topic_control.resolve(self, target, timeout_s)

    def terminate(self, node: Node) -> None:
        """SIGTERM: begin a clean shutdown. A paused process is resumed for it."""
        process = self.member(node).running_process()
        self._record("asked to stop", node)
        self.member(node).meant_down = True
        if process.send(signal.SIGTERM):
            process.send(signal.SIGCONT)

    async def stop(self, target: Target, *, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """A clean shutdown, to its end. The exit code, where this process started it.

        Raises ClusterError where it takes too long; the process is left to go on.
        """
        node = await self.resolve(target)
        self.terminate(node)
        return await self.wait_gone(node, timeout_s=timeout_s)

    async def wait_gone(self, node: Node, *, timeout_s: float = GONE_TIMEOUT_S) -> int | None:
        """Return once the process has ended. The exit code (negative: the signal), where this process started it."""
        member = self.member(node)
        await member.wait_gone(timeout_s)
        return member.child.returncode if member.child else None

    async def restart(self, target: Target, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it again: after a clean shutdown if it runs. Returns once it listens; see `start`."""
        node = await self.resolve(target)
        if self.running(node):
            with contextlib.suppress(ClusterError):  # it is just ending, of a kill
                self.terminate(node)
            await self.wait_gone(node, timeout_s=STOP_TIMEOUT_S)
        await self.start(node, timeout_s=timeout_s)

    async def down(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Cleanly stop the brokers, then the controllers, and end etcd. What is left at the deadline is killed."""
        for nodes in (self.broker_ids, self.controllers, self.etcd):
            await self._stop_or_kill(nodes, timeout_s)
        self._forget()

    # ---- Topics ----

    async def create_topic(
        self,
        name: str | None = None,
        *,
        partitions: int = 1,
        replication_factor: int | None = None,
        min_insync_replicas: int | None = None,
        config: Mapping[str, Setting] | None = None,
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> str:
        """Its name, a unique one where none is given, once every broker that runs knows its leaders.

        `replication_factor`: None is 3, or as many as there are brokers. `min_insync_replicas`: None is one less than that,
        at least 1. `config`: more settings, by Kafka's names or ours. Raises ClusterError where a broker refuses.
        """
        return await topic_control.create_topic(
            self,
            name,
            partitions,
            replication_factor,
            min_insync_replicas=min_insync_replicas,
            config={**self.topic_defaults, **(config or {})},
            timeout_s=timeout_s,
        )

    async def delete_topic(self, name: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Raises ClusterError where it does not exist."""
        await topic_control.delete_topics(self, [name], timeout_s, missing_ok=False)

    async def topics(self, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[str]:
        """Names, internal topics aside. Raises NotInTime where no broker answers."""
        return await topic_control.topics(self, timeout_s)

    async def partitions(self, topic: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[PartitionState]:
        """By the newest metadata that any broker has. Raises ClusterError for a topic that does not exist."""
        return await topic_control.partitions(self, topic, timeout_s)

    async def leader(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """The broker that leads; while it is down, waits for the next one."""
        return await topic_control.leader(self, topic, partition, timeout_s)

    async def replicas(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[int]:
        """The brokers that have the partition, the preferred leader first."""
        return list((await topic_control.partition(self, topic, partition, timeout_s)).replicas)

    async def isr(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[int]:
        """The in-sync replicas."""
        return list((await topic_control.partition(self, topic, partition, timeout_s)).isr)

    async def wait_in_sync(self, topic: str | None = None, *, timeout_s: float = IN_SYNC_TIMEOUT_S) -> None:
        """Return once every partition, of the topic or of all, has a leader and all its replicas in sync."""
        await topic_control.wait_in_sync(self, topic, timeout_s)

    async def producers(
        self, topic: str, partition: int | None = None, *, timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[ProducerState]:
        """What the leader of the partition, or those of all, know of their producers."""
        return await topic_control.producers(self, topic, partition, timeout_s)

    async def end_offset(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """The end of what is committed in a partition (its high watermark), as its leader knows it."""
        return await topic_control.high_watermark(self, topic, partition, timeout_s)

    # ---- The whole ----

    async def status(self) -> ClusterStatus:
        """Every process and every partition, as they are now."""
        return await read_status(self)

    async def logs(self, *targets: Target) -> dict[Node, str]:
        """All that the processes wrote to their logs; of every process where no target is given."""
        nodes = [await self.resolve(target) for target in targets] or self.nodes
        return {node: self.log(node) for node in nodes}

    async def check_exactly_once(
        self,
        topic: str,
        *,
        sent: Iterable[object] | None = None,
        unacknowledged: Iterable[object] = (),
        read: Iterable[object] | None = None,
        ordered: bool = True,
        timeout_s: float = CAUGHT_UP_TIMEOUT_S,
    ) -> ExactlyOnce:
        """Check the topic's log on every replica's disk.

        Raises `NotExactlyOnce`, an AssertionError, with the records around the first wrong one.

        Every batch is whole, offsets have no hole, each producer's sequence numbers have no repeat and no gap, and the
        replicas are the same below the high watermark; those of brokers that are down or paused, as far as they came.
        How far that is can be known where the leader counts on the replica, or where a snapshot of its own says it.

        `sent`: records that were acknowledged, in the order of sending: their values, or a client's own objects with
        `value` and perhaps `topic`, `partition` and `offset`. Each has to be there once, in that order unless not `ordered`
        (they went to several producers), and nothing else. `unacknowledged`: those whose outcome is not known; each may be
        there once. Without `sent`, others may have sent what else is there. `read`: what a consumer was handed: everything,
        each record once, as it stands in the log, those of each partition in its order, `ordered` or not.

        Values tell records apart, so those that were sent differ from each other; equal ones are told apart by partition
        and offset where each of them carries both. What was deleted from the beginning of the log is not missed; but what
        was sent and has left the files too has to carry its place, or to be left out.
        """
        from fencepost_testing.exactly_once import check_exactly_once

        return await check_exactly_once(
            self, topic, sent=sent, unacknowledged=unacknowledged, read=read, ordered=ordered, timeout_s=timeout_s
        )

    # ---- As a context manager ----

    async def __aenter__(self) -> Self:
        try:
            await self.up()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
