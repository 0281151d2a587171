"""A whole cluster in a simulated world: the production Broker and Controller, started and stopped as processes are.

What is here stands in for each component's `__main__`: it makes the object and has it live as a real process does; a
supervisor starts again what ended, as an operator's would.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any

import grpc

from fencepost import AdminClient
from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.decisions.lineage import MetadataWentBack
from fencepost_controller.decisions.recovery import RecoveryRefused
from fencepost_controller.recovery import recover_store
from fencepost_controller.store import CommitFailed, StoreError
from fencepost_node.broker import Broker
from fencepost_node.config import BrokerConfig
from fencepost_node.controller_session import REFUSALS
from fencepost_node.folders.data_folder import DataFolderError
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replication.replica import CONTRADICTION, Replica
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken, StorageError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import broker_pb2_grpc, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import Component, live
from tests.simulation.cause_judge import Causes, Quiet, Waits
from tests.simulation.disk import MountedDisk
from tests.simulation.etcd import SimEtcd, etcd_address
from tests.simulation.judge import Judge
from tests.simulation.judged import Leader, Producers
from tests.simulation.loop import current_process
from tests.simulation.metadata_store import MetadataDatabase
from tests.simulation.process import SimProcess
from tests.simulation.world import World

CONTROLLER = "controller"
CONTROLLER_ADDRESS = "controller:9090"
NEVER_MS = 604_800_000  # a week: longer than any run
RECOVERY_WAIT_S = 2.0  # for a broker to answer
SLOW_DISK_S = 0.01  # for one operation: with syncs and snapshots a follower falls behind
RESTART_DELAY_S = 0.5  # of the supervisor, after a process has ended by itself


# What ends a process on a machine whose disk fails, or whose session the controller refuses; None: it was asked to.
_EXPECTED_ENDS = (NoneType, DataFolderError, StorageError, StoreError, MetadataWentBack, OSError, *REFUSALS)


def broker_node(broker_id: int) -> str:
    return f"broker-{broker_id}"


def broker_address(broker_id: int) -> str:
    return f"broker-{broker_id}:9092"


def broker_kafka_address(broker_id: int) -> str:
    return f"broker-{broker_id}:9093"


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The configuration of its processes."""

    broker_ids: tuple[int, ...] = (1, 2, 3)
    session_timeout_ms: int = 3_000
    heartbeat_interval_ms: int = 500
    replica_lag_time_max_ms: int = 5_000
    snapshot_interval_bytes: int = 16_384
    tail_bytes: int = 65_536
    replication_window_bytes: int = 65_536
    retention_check_interval_ms: int = 2_000
    producer_expiration_ms: int = NEVER_MS
    max_delivery_timeout_ms: int = 600_000
    room_is_short: bool = False  # for producers: those that may not repeat any more are forgotten
    max_producer_names: int = 20_000
    producer_name_expiration_ms: int = NEVER_MS
    max_request_bytes: int = 8 * 1024 * 1024
    preferred_leader_interval_ms: int = 10_000
    serves_kafka: bool = False
    controllers: int = 1  # more than one: on etcd


def controller_node(number: int) -> str:
    return f"controller-{number}"


class SimCluster:
    """Its processes and what they stand on."""

    def __init__(self, world: World, settings: ClusterSettings) -> None:
        self.world = world
        self.settings = settings
        self._nodes = {broker_node(broker_id): broker_id for broker_id in settings.broker_ids}
        expires_s = settings.producer_expiration_ms / 1000 if settings.producer_expiration_ms < NEVER_MS else math.inf
        if settings.room_is_short:
            expires_s = min(expires_s, settings.max_delivery_timeout_ms / 1000)
        self.judge = Judge(world, self._nodes.get, expires_s)
        self.judge.incarnation_of = self._incarnation
        self.judge.leader_epoch_of = self._leader_epoch
        self.judge.high_watermark_of = self._high_watermark
        self.judge.log_end_of = self._log_end
        self.database = MetadataDatabase(
            self.judge.metadata, self.judge.recovered, self.judge.undone, self.judge.unheard
        )
        self.brokers: dict[int, Broker] = {}
        self.controller: Controller | None = None
        self.controllers: dict[str, Controller] = {}  # by node
        several = range(1, settings.controllers + 1) if settings.controllers > 1 else ()
        self.controller_nodes = tuple(map(controller_node, several)) or (CONTROLLER,)
        self.etcd = SimEtcd(world, self.judge) if several else None
        self._deciding = (*self.controller_nodes, *self.etcd_nodes)
        self._quiet = Quiet(self._sound)
        self.waits = Waits(self._quiet, (*self._nodes, *self._deciding))
        self.is_quick = world.loop.thread_delay_s < SLOW_DISK_S  # else a replica may lag, and a record wait
        writing_s = 4 * world.loop.thread_delay_s  # commits, and what a broker writes down
        self.judge.causes = Causes(
            self._quiet,
            lambda broker_ids: [*map(broker_node, broker_ids), *self._deciding],
            settings.session_timeout_ms / 1000 + writing_s,
            settings.replica_lag_time_max_ms / 1000 if self.is_quick else math.inf,
        )
        self.exits: dict[str, int] = {}  # how processes ended, and how often
        self.kept_down: dict[str, None] = {}  # nodes that someone else will start again
        self.recovering = False  # an operator is at work on the controller's folder
        self._operators = 0
        self._known_before = 0  # the newest version that a broker knew when one was started
        self._stop_asked: dict[str, asyncio.Event] = {}
        for node, broker_id in self._nodes.items():
            self.judge.broker_disk(broker_id, world.machine(node).disk)

    @property
    def bootstrap(self) -> list[str]:
        return [broker_address(broker_id) for broker_id in self.settings.broker_ids]

    # ---- Starting and stopping ----

    def start_all(self) -> None:
        for node in (*self.etcd_nodes, *self.controller_nodes, *self._nodes):
            self.start(node)

    def start(self, node: str) -> SimProcess | None:
        """Start the component of this node, unless it runs or its machine is off."""
        machine = self.world.machine(node)
        if not machine.powered or (machine.process is not None and machine.process.alive):
            return None
        if node == CONTROLLER and self.recovering:
            return None
        self.world.tell("operator", f"start {node}")
        self._stop_asked[node] = asyncio.Event()
        if node in self.controller_nodes:
            return self.world.start(node, self._run_controller)
        if self.etcd is not None and node in self.etcd.nodes:
            return self.world.start(node, self._run_etcd)
        return self.world.start(node, self._run_broker)

    def stop(self, node: str) -> None:
        """SIGTERM."""
        self._stop_asked[node].set()

    async def supervise(self) -> None:
        """Start again, for ever, what ended by itself."""
        while True:
            await asyncio.sleep(RESTART_DELAY_S)
            for node in (*self.etcd_nodes, *self.controller_nodes, *self._nodes):
                process = self.world.machine(node).process
                if process is not None and process.state.value == "ended" and node not in self.kept_down:
                    self.start(node)

    @property
    def etcd_nodes(self) -> tuple[str, ...]:
        """None where there is one controller."""
        return self.etcd.nodes if self.etcd is not None else ()

    @property
    def controller_address(self) -> str:
        """Of the active controller, or of one that may become it."""
        active = [node for node, controller in self.controllers.items() if controller.is_active and self.runs(node)]
        return f"{(active or self.controller_nodes)[0]}:9090"

    def runs(self, node: str) -> bool:
        process = self.world.machine(node).process
        return process is not None and process.running

    # ---- What runs in the processes ----

    async def _run_etcd(self, host: Host, disk: MountedDisk) -> None:
        process = current_process.get()
        assert isinstance(process, SimProcess)
        assert self.etcd is not None
        await self.etcd.run_member(process.node, host)

    async def _run_broker(self, host: Host, disk: MountedDisk) -> None:
        process = current_process.get()
        assert isinstance(process, SimProcess)
        node = process.node
        broker_id = self._nodes[node]
        settings = self.settings
        config = BrokerConfig(
            broker_id=broker_id,
            data_dir="/data",
            controller=",".join(f"{controller}:9090" for controller in self.controller_nodes),
            listen=broker_address(broker_id),
            insecure_listen=True,
            replica_lag_time_max_ms=settings.replica_lag_time_max_ms,
            snapshot_interval_bytes=settings.snapshot_interval_bytes,
            tail_bytes=settings.tail_bytes,
            replication_window_bytes=settings.replication_window_bytes,
            retention_check_interval_ms=settings.retention_check_interval_ms,
            producer_expiration_ms=settings.producer_expiration_ms,
            max_delivery_timeout_ms=settings.max_delivery_timeout_ms,
            max_request_bytes=settings.max_request_bytes,
            kafka_listen=broker_kafka_address(broker_id) if settings.serves_kafka else "",
            offsets_topic_partitions=2,
            group_initial_rebalance_delay_ms=200,
            group_consumer_session_timeout_ms=2_000,
            group_consumer_heartbeat_interval_ms=300,
        )
        self._known_before = self.known_version
        broker = Broker(config, host, disk)
        self.brokers[broker_id] = broker
        await self._run(node, broker)

    async def _run_controller(self, host: Host, disk: MountedDisk) -> None:
        settings = self.settings
        process = current_process.get()
        assert isinstance(process, SimProcess)
        node = process.node
        shared: dict[str, Any] = {}
        if self.etcd is not None:
            number = 1 + self.controller_nodes.index(node)
            shared = {"store": "etcd", "controller_id": number, "etcd_endpoints": etcd_address(1), "leader_lease_s": 2}
        config = ControllerConfig(
            **shared,
            data_dir="/data",
            listen=f"{node}:9090",
            insecure_listen=True,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.heartbeat_interval_ms,
            preferred_leader_interval_ms=settings.preferred_leader_interval_ms,
            min_segment_bytes=256,  # a run is short
            max_producer_names=settings.max_producer_names,
            producer_name_expiration_ms=settings.producer_name_expiration_ms,
        )
        store = self.database.open(process) if self.etcd is None else self.etcd.shared(host)
        controller = Controller(config, host, store)
        self.controller = self.controllers[node] = controller
        await self._run(node, controller)

    async def _run(self, node: str, component: Component) -> None:
        """Until asked to stop, or until it fails."""
        error = (await live(component, self._stop_asked[node], announce=lambda: None)).error
        if isinstance(error, InvariantBroken) or not isinstance(error, _EXPECTED_ENDS):
            self.judge.fail("invariant" if isinstance(error, InvariantBroken) else "unhandled", f"{node}: {error!r}")
        how = "stopped" if error is None else type(error).__name__
        self.exits[how] = self.exits.get(how, 0) + 1
        self.world.tell(node, f"ended: {error!r}" if error is not None else "ended")
        if isinstance(error, MetadataWentBack):  # a version was on its way to a broker when the store was put back
            self.database.gone_back = True

    # ---- An operator ----

    async def ask_admin(self, method: str, request: object) -> str:
        """One request of an operator to the controller, from a process of its own. What it came to."""
        return await self._ask(
            lambda host: controller_pb2_grpc.AdminStub(host.wire.connect(self.controller_address)), method, request
        )

    async def ask_broker(self, broker_id: int, method: str, request: object) -> str:
        """The same of a broker."""
        address = self.bootstrap[self.settings.broker_ids.index(broker_id)]
        return await self._ask(lambda host: broker_pb2_grpc.BrokerStub(host.wire.connect(address)), method, request)

    async def _ask(self, stub_on: Callable[[Host], object], method: str, request: object) -> str:
        answers: list[str] = []

        async def main(host: Host, disk: MountedDisk) -> None:
            stub = stub_on(host)
            try:
                answer = await getattr(stub, method)(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                answers.append(error.code().name)
            else:
                answers.append(f"{answer.error.code} {answer.error.message}" if answer.error.code else "ok")

        self._operators += 1
        process = self.world.start(f"operator-{self._operators}", main)
        while process.alive:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.05)
        outcome = answers[0] if answers else "killed"
        self.world.tell("operator", f"{method}: {outcome}")
        return outcome

    async def recover_controller(self) -> str:
        """What `fencepost controller recover` does, by an operator who keeps the controller down. What it came to."""
        outcomes: list[str] = []

        async def main(host: Host, disk: MountedDisk) -> None:
            process = current_process.get()
            assert isinstance(process, SimProcess)
            store = self.database.open(process, recovers=True)
            try:
                done = await recover_store(store, host, self.bootstrap, wait_s=RECOVERY_WAIT_S)
            except (RecoveryRefused, StoreError, CommitFailed) as error:
                outcomes.append(f"{type(error).__name__}: {error}")
            else:
                outcomes.append("ok")
                for line in done.report:
                    self.world.tell("operator", line)
            finally:
                store.close()

        self._operators += 1
        process = self.world.start(f"operator-{self._operators}", main)
        while process.alive:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.05)
        outcome = outcomes[0] if outcomes else "killed"
        self.world.tell("operator", f"recovers the controller's store: {outcome}")
        return outcome

    async def elect_uncleanly(self, key: PartitionKey, choose: Callable[[int], int] = lambda count: 0) -> int:
        """An operator asks what each replica holds, and elects one of those that can be: the best, or the one whose place in
        their order `choose` gives. Returns its broker; -1: there is none, or the controller refuses."""
        elected: list[int] = []

        async def main(host: Host, disk: MountedDisk) -> None:
            topic = self.judge.image.topics[key[0]].name
            try:
                async with asyncio.timeout(20), AdminClient(self.bootstrap, host=host) as admin:
                    found = [c for c in await admin.unclean_candidates(topic, key[1]) if not c.failure]
                    # A log with rot that no process has met yet looks as good as any; elected alone, it stays as it is.
                    sound = [c for c in found if (c.broker_id, key) not in self.judge.rotten]
                    candidates = sound or found
                    if not candidates:
                        return
                    chosen = candidates[choose(len(candidates))]
                    self.judge.shown(key, chosen.broker_id, chosen.kept_end_offset)
                    await admin.elect_leader(topic, key[1], unclean=True, leader=chosen)
            except (FencepostError, TimeoutError) as error:
                self.world.tell("operator", f"unclean election of {topic}-{key[1]}: {error!r}")
            else:
                self.world.tell("operator", f"unclean election of {topic}-{key[1]}: {chosen}")
                elected.append(chosen.broker_id)

        self._operators += 1
        process = self.world.start(f"operator-{self._operators}", main)
        while process.alive:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.05)
        return elected[0] if elected else -1

    def lose_time(self, node: str, seconds: float) -> None:
        """That controller's clock falls behind: its lease looks longer to it than it is."""
        candidacy = self.controllers[node]._candidacy if self.runs(node) and node in self.controllers else None
        if candidacy is not None:
            candidacy._lease._expires_at += seconds

    def can_stop(self, node: str) -> bool:
        """Its component runs, and no one has asked it to stop yet."""
        return node in self._stop_asked and not self._stop_asked[node].is_set()

    # ---- Looking in ----

    @property
    def known_version(self) -> int:
        """The newest version of the metadata that any broker knows, or knew when it ended."""
        return max([self._known_before, *(broker._known.newest.version for broker in self.brokers.values())])

    def _leader_epoch(self, broker_id: int, key: PartitionKey) -> int:
        """-1: the broker has no such replica."""
        replica = self.brokers[broker_id].manager.replicas.get(key)
        return replica.leader_epoch if replica is not None else -1

    def _high_watermark(self, broker_id: int, key: PartitionKey) -> int:
        """-1: the broker has no such replica, or is cutting its log just now."""
        replica = self.brokers[broker_id].manager.replicas.get(key)
        return replica.high_watermark if replica is not None and not replica.being_cut else -1

    def _incarnation(self, broker_id: int) -> str:
        """Of the process that runs; empty where there is none."""
        broker = self.brokers.get(broker_id)
        return broker._session.incarnation if self.alive(broker_id) and broker and broker._session else ""

    def look_around(self) -> None:
        """See where something is wrong."""
        self._quiet.look(self.world.machines, self.world.network.links(), self.world.now)
        self.waits.look(self.judge.image, self.judge.damaged, self.judge.ends(), self.world.now)

    def _sound(self, node: str) -> str:
        """Which process runs on it, is not asked to stop, and has a disk that does what it should; empty: none.

        A fault of the disk that is over makes it another one."""
        disk = self.world.machine(node).disk
        troubled = disk.faults or disk.capacity_bytes is not None or disk.crash_at_operation
        if node in self.controller_nodes:
            troubled = troubled or self.recovering or self.database.failing_commits
        stops = node in self._stop_asked and not self.can_stop(node)
        sound = self.runs(node) and not stops and not troubled
        return f"{self.world.machine(node).process!r}, {sum(disk.counters.faults.values())} faults" if sound else ""

    def _log_end(self, broker_id: int, key: PartitionKey) -> int:
        """-1: the broker has no such replica."""
        replica = self.brokers[broker_id].manager.replicas.get(key)
        return replica.log.log_end_offset if replica is not None else -1

    def alive(self, broker_id: int) -> bool:
        process = self.world.machine(broker_node(broker_id)).process
        return process is not None and process.alive

    def replicas(self) -> list[Leader]:
        """Every replica of every living broker."""
        self._look_for_contradictions()
        return [
            Leader(
                broker_id,
                key,
                replica.is_leader,
                replica.leader_epoch,
                replica.high_watermark,
                replica.log.log_end_offset,
                partial(_producers, replica),
                replica.being_cut,
            )
            for broker_id, broker in self.brokers.items()
            if self.alive(broker_id)
            for key, replica in broker.manager.replicas.items()
            if not replica.failure
        ]

    def _look_for_contradictions(self) -> None:
        """A replica that fails because other processes contradict its log is a fault in the protocol, not in a disk."""
        for broker_id, broker in self.brokers.items():
            for replica in broker.manager.replicas.values():
                if self.alive(broker_id) and replica.failure.startswith(CONTRADICTION):
                    self.judge.fail("invariant", f"{broker_node(broker_id)} {replica.topic.name}: {replica.failure}")


def _producers(replica: Replica) -> Producers:
    return {
        producer_id: (
            entry.epoch,
            tuple((batch.first_sequence, batch.last_sequence, batch.base_offset) for batch in entry.batches),
        )
        for producer_id, entry in sorted(replica.log.states[PRODUCERS].items())
    }
