"""A cluster of real processes on this machine, by synchronous calls: a thin layer over `async_cluster`.

Any thread may call; each call runs in one event loop that all clusters of the process share (`background_loop`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fencepost_testing.async_cluster import (
    CAUGHT_UP_TIMEOUT_S,
    IN_SYNC_TIMEOUT_S,
    READY_TIMEOUT_S,
    STOP_TIMEOUT_S,
    AsyncLocalCluster,
)
from fencepost_testing.background_loop import run_in_background
from fencepost_testing.cluster_file import STATE_FILE
from fencepost_testing.cluster_folder import ClusterFolder, Happening
from fencepost_testing.cluster_status import ClusterStatus
from fencepost_testing.member import (
    CONTROLLER,
    GONE_TIMEOUT_S,
    ClusterError,
    Member,
    Node,
    Setting,
    Settings,
    name_of,
    to_toml,
)
from fencepost_testing.topic_control import PartitionState, ProducerState, Target
from fencepost_testing.waiting import WAIT_TIMEOUT_S

if TYPE_CHECKING:
    from fencepost_testing.exactly_once import ExactlyOnce

__all__ = [
    "CONTROLLER",
    "STATE_FILE",
    "AsyncLocalCluster",
    "ClusterError",
    "ClusterStatus",
    "Happening",
    "LocalCluster",
    "Member",
    "Node",
    "PartitionState",
    "ProducerState",
    "Setting",
    "Settings",
    "Target",
    "name_of",
    "to_toml",
]


class LocalCluster(ClusterFolder):
    """One cluster. Making it starts nothing: `up` does, or `with`, at whose end everything is killed.

        with LocalCluster(brokers=3) as cluster:
            topic = cluster.create_topic(partitions=3)
            cluster.kill((topic, 0))  # its leader
            print(cluster.leader(topic, 0))

    A *target* is a broker's id, "controller", or (topic, partition), which is the broker that leads it now, or any of these
    as commands have it ("1", "leader:orders-0"). With several controllers: "controller-1", "controller:active", "etcd-2",
    "etcd:leader". Every wait has a deadline, and what it raises then (`waiting.NotInTime`, `ClusterError`) names what was
    waited for.
    """

    @property
    def aio(self) -> AsyncLocalCluster:
        """The same cluster, with coroutines of the same names."""
        return AsyncLocalCluster.view_of(self)

    # ---- Processes ----

    def up(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start every member that does not run, and wait until all brokers have registered.

        Raises ClusterError where one does not; what was started here has ended then.
        """
        run_in_background(self.aio.up(timeout_s=timeout_s))

    def down(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Cleanly stop the brokers, then the controllers, and end etcd. What is left at the deadline is killed."""
        run_in_background(self.aio.down(timeout_s=timeout_s))

    def kill(self, *targets: Target, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """SIGKILL to all of them at once. Returns once they have ended."""
        run_in_background(self.aio.kill(*targets, timeout_s=timeout_s))

    def pause(self, *targets: Target) -> None:
        """SIGSTOP: the process holds everything and does nothing. Returns once that is so."""
        run_in_background(self.aio.pause(*targets))

    def resume(self, *targets: Target) -> None:
        """SIGCONT."""
        run_in_background(self.aio.resume(*targets))

    def start(self, *nodes: Target, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start those of the nodes that do not run, at the same time, and wait until each listens. It takes part again once
        `wait_registered` returns; its replicas, once `wait_in_sync` does.

        Raises ClusterError, with the end of its log, for a process that ends or is not ready in time, and
        WatchdogFailed; what was started here has ended then.
        """
        run_in_background(self.aio.start(*nodes, timeout_s=timeout_s))

    def stop(self, target: Target, *, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """A clean shutdown, to its end. The exit code, where this process started it.

        Raises ClusterError where it takes too long; the process is left to go on.
        """
        return run_in_background(self.aio.stop(target, timeout_s=timeout_s))

    def restart(self, target: Target, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it again: after a clean shutdown if it runs. Returns once it listens; see `start`."""
        run_in_background(self.aio.restart(target, timeout_s=timeout_s))

    def resolve(self, target: Target, *, timeout_s: float = WAIT_TIMEOUT_S) -> Node:
        """The process that a target names now. Raises ClusterError."""
        return run_in_background(self.aio.resolve(target, timeout_s=timeout_s))

    def wait_gone(self, node: Node, *, timeout_s: float = GONE_TIMEOUT_S) -> int | None:
        """Return once the process has ended. The exit code (negative: the signal), where this process started it."""
        return run_in_background(self.aio.wait_gone(node, timeout_s=timeout_s))

    def wait_registered(
        self, brokers: Iterable[int] = (), *, timeout_s: float = READY_TIMEOUT_S, needs_controller: bool = False
    ) -> None:
        """Return once the metadata of every one of `brokers`, and of all others that run, shows all of them as
        registered and serving. A paused one is not waited for: it says nothing before it is resumed.

        Raises ClusterError, with the end of its log, where one of them has ended or is not registered in time.
        """
        run_in_background(self.aio.wait_registered(brokers, timeout_s=timeout_s, needs_controller=needs_controller))

    # ---- Topics ----

    def create_topic(
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
        return run_in_background(
            self.aio.create_topic(
                name,
                partitions=partitions,
                replication_factor=replication_factor,
                min_insync_replicas=min_insync_replicas,
                config=config,
                timeout_s=timeout_s,
            )
        )

    def delete_topic(self, name: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Raises ClusterError where it does not exist."""
        run_in_background(self.aio.delete_topic(name, timeout_s=timeout_s))

    def topics(self, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[str]:
        """Names, internal topics aside. Raises NotInTime where no broker answers."""
        return run_in_background(self.aio.topics(timeout_s=timeout_s))

    def partitions(self, topic: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[PartitionState]:
        """By the newest metadata that any broker has. Raises ClusterError for a topic that does not exist."""
        return run_in_background(self.aio.partitions(topic, timeout_s=timeout_s))

    def leader(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """The broker that leads; while it is down, waits for the next one."""
        return run_in_background(self.aio.leader(topic, partition, timeout_s=timeout_s))

    def replicas(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[int]:
        """The brokers that have the partition, the preferred leader first."""
        return run_in_background(self.aio.replicas(topic, partition, timeout_s=timeout_s))

    def isr(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> list[int]:
        """The in-sync replicas."""
        return run_in_background(self.aio.isr(topic, partition, timeout_s=timeout_s))

    def wait_in_sync(self, topic: str | None = None, *, timeout_s: float = IN_SYNC_TIMEOUT_S) -> None:
        """Return once every partition, of the topic or of all, has a leader and all its replicas in sync."""
        run_in_background(self.aio.wait_in_sync(topic, timeout_s=timeout_s))

    def producers(
        self, topic: str, partition: int | None = None, *, timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[ProducerState]:
        """What the leader of the partition, or those of all, know of their producers."""
        return run_in_background(self.aio.producers(topic, partition, timeout_s=timeout_s))

    def end_offset(self, topic: str, partition: int = 0, *, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """The end of what is committed in a partition (its high watermark), as its leader knows it."""
        return run_in_background(self.aio.end_offset(topic, partition, timeout_s=timeout_s))

    # ---- The whole ----

    def status(self) -> ClusterStatus:
        """Every process and every partition, as they are now."""
        return run_in_background(self.aio.status())

    def logs(self, *targets: Target) -> dict[Node, str]:
        """All that the processes wrote to their logs; of every process where no target is given."""
        return run_in_background(self.aio.logs(*targets))

    def check_exactly_once(
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
        return run_in_background(
            self.aio.check_exactly_once(
                topic, sent=sent, unacknowledged=unacknowledged, read=read, ordered=ordered, timeout_s=timeout_s
            )
        )

    # ---- As a context manager ----

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
