"""What a local cluster consists of: its folder, members, ports, settings and processes. Nothing here waits.

    DIR/cluster.json             what this module remembers: members, ports, processes, settings
    DIR/controller/              the controller's data, controller.toml, server.log, process.json
    DIR/controller-<n>/          likewise, of several controllers: then their metadata is in …
    DIR/etcd-<n>/                … a member of etcd: its data, etcd.yml, server.log
    DIR/broker-<id>/             a broker's data, broker.toml, server.log, process.json
    DIR/faults/                  faults that were set on it (`faults.board`)

Ports are chosen before anything starts, so that all processes can start at the same time, and stay the same over
restarts, unless the whole cluster was down and another process has taken one. (Those of etcd's members among themselves
cannot change: then the cluster does not start.)
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

from fencepost_testing.cluster_file import STATE_FILE, ClusterFile, new_member
from fencepost_testing.etcd_member import ETCD_MEMBERS, EtcdMember, find_etcd
from fencepost_testing.faults.board import FOLDER as FAULTS_FOLDER
from fencepost_testing.faults.board import Board
from fencepost_testing.faults.faults import Faults
from fencepost_testing.forking import ForkServer, fork_server
from fencepost_testing.member import (
    CONTROLLER,
    ETCD,
    ClusterError,
    Member,
    Node,
    Setting,
    Settings,
    folder_of,
    is_controller,
    is_etcd,
    name_of,
    numbered,
    to_toml,
    usable_folder,
)
from fencepost_testing.ports import PortReservation, reserve_ports
from fencepost_testing.processes import NetworkPlace, ProcessRef, Watchdog, spawn, spawn_command

TEMPORARY_PREFIX = "fencepost-"
MAX_BROKERS = 64  # on one machine
MAX_CONTROLLERS = 9
PLACE_PORT = 9092  # of every process that has an address of its own
PLACE_KAFKA_PORT = 9093  # … of every broker, for Kafka's clients
AUTO_CREATED_PARTITIONS = 4  # of a topic that a Kafka client asks for and that does not exist
CONSUMER_HEARTBEAT_MS = 500  # of members of KIP-848's groups, which learn of a rebalance by it
REBALANCE_DELAY_MS = 100  # of an empty group's first generation: members of a test come at about the same time
METRICS_LIBRARY = "prometheus_client"

MAX_HAPPENINGS = 1_000
_WITH_FAULTS = ("fencepost_testing.faults.process",)  # the module that runs a broker or controller


class Happening(NamedTuple):
    """One entry of a cluster's timeline."""

    at_s: float  # of the Unix epoch
    what: str

    def __str__(self) -> str:
        second, fraction = divmod(self.at_s, 1)
        return f"{time.strftime('%H:%M:%S', time.localtime(second))},{int(fraction * 1000):03d} {self.what}"


def told_controllers(controllers: int) -> str:
    """So many, in words."""
    return f"{controllers} controllers with etcd" if controllers > 1 else "a controller"


def nodes_of(brokers: int, controllers: int = 1) -> list[Node]:
    """Of a cluster with so many."""
    deciding: list[Node] = [CONTROLLER]
    if controllers > 1:
        deciding = [numbered(CONTROLLER, number) for number in range(1, controllers + 1)]
        deciding += [numbered(ETCD, number) for number in range(1, ETCD_MEMBERS + 1)]
    return [*deciding, *range(1, brokers + 1)]


class ClusterFolder:
    """One cluster's members and files; `LocalCluster` and `AsyncLocalCluster` say what can be done with them."""

    directory: Path
    members: dict[Node, Member]
    controller_overrides: dict[str, Setting]
    broker_overrides: dict[str, Setting]
    owned: bool
    faults: Faults  # sets faults, where the cluster was made with them
    _watchdog: Watchdog | None
    _reservations: list[PortReservation]
    _end: Callable[[], object] | None  # of a cluster in a temporary folder
    timeline: deque[Happening]  # what was done to it, the oldest first
    topic_defaults: dict[str, Setting]  # settings of topics that `create_topic` makes

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        brokers: int = 3,
        controllers: int = 1,
        controller_overrides: Settings | None = None,
        broker_overrides: Settings | None = None,
        owned: bool = True,
        first_port: int | None = None,
        first_kafka_port: int | None = None,
        places: Mapping[Node, NetworkPlace] | None = None,
        keep: bool = False,
        faults: bool = True,
    ) -> None:
        """A new cluster in a folder that holds none yet.

        `controllers`: more than one keep their metadata in etcd, of which then three members run too. `directory`: None
        makes a temporary one, which is removed at the end (`close`, or the end of this process) unless `keep`. `owned`: its
        processes die with this one. `first_port`: the first broker's, the others' follow; None: any that are free.
        `first_kafka_port`: likewise, those for Kafka's clients. The overrides are settings of the two kinds of configuration
        file.
        `places`: where each process is to run, all of them or none; only of an owned cluster, for its folder does not
        remember them.
        `faults`: its processes are started so that faults can be set on them (`faults`); without, nothing can.
        Raises ClusterError for a folder that is taken and for impossible options, NoEtcd where several controllers need what
        is not installed; OSError where a port is not free.
        """
        _check_counts(brokers, controllers)
        if directory is None and not owned:
            raise ClusterError("a cluster that outlives this process needs a folder of its own, not a temporary one")
        nodes = nodes_of(brokers, controllers)
        if places is not None and (not owned or set(places) != set(nodes)):
            raise ClusterError(f"places for {list(places)}: an owned cluster needs one for each of {nodes}")
        root = usable_folder(directory) if directory is not None else None
        if root is not None:
            _check_empty(root, nodes)
            _make_folder(root)
        members = {node: new_member(node, Path(), PLACE_PORT, PLACE_KAFKA_PORT) for node in nodes}
        reservations = _reserve_ports(members, first_port, first_kafka_port) if places is None else []
        if root is None:
            root = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        for node, member in members.items():
            member.directory = root / folder_of(node)
        for node, place in (places or {}).items():
            members[node].place = place
        shutil.rmtree(root / FAULTS_FOLDER, ignore_errors=True)  # of another cluster that was here
        if faults:
            Board.create(root / FAULTS_FOLDER).close()
        self._set(root, members, controller_overrides or {}, broker_overrides or {}, owned=owned, faults=faults)
        self._reservations += reservations
        if directory is None:
            self._end = weakref.finalize(self, _end_temporary, members, root, os.getpid(), keep=keep)
        for member in members.values():
            self._prepare(member)
        self._save()

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """The cluster that was made there, as its last command left it; not owned."""
        root = usable_folder(directory)
        found = ClusterFile.read(root)
        cluster = cls.__new__(cls)
        overrides = found.controller_overrides, found.broker_overrides
        cluster._set(root, found.members, *overrides, owned=False, faults=found.faults)
        return cluster

    def _set(
        self,
        directory: Path,
        members: dict[Node, Member],
        controller_overrides: Settings,
        broker_overrides: Settings,
        *,
        owned: bool,
        faults: bool,
    ) -> None:
        self.directory = directory
        self.faults = Faults(directory, members)
        self._has_faults = faults
        self.members = members
        self.controller_overrides = dict(controller_overrides)
        self.broker_overrides = dict(broker_overrides)
        self.owned = owned
        self._watchdog = None
        self._reservations = []
        self._end = None
        self.timeline = deque(maxlen=MAX_HAPPENINGS)
        self.topic_defaults = {}

    @property
    def has_faults(self) -> bool:
        """Whether its processes were started so that faults can be set on them."""
        return self._has_faults

    def switch_faults(self, on: bool) -> None:
        """Have its processes started with faults from now on, or without. Raises ClusterError while one of them runs."""
        if on is self._has_faults:
            return
        if self.any_running():
            without = "" if self._has_faults else "out"
            raise ClusterError(
                f"the cluster in {self.directory} runs with{without} faults: 'fencepost cluster down' first"
            )
        shutil.rmtree(self.directory / FAULTS_FOLDER, ignore_errors=True)
        if on:
            Board.create(self.directory / FAULTS_FOLDER).close()
        self.faults = Faults(self.directory, self.members)
        self._has_faults = on
        self._save()

    def record_happening(self, what: str) -> None:
        """Note for the timeline what was done to the cluster just now."""
        self.timeline.append(Happening(time.time(), what))

    def _record(self, done: str, *nodes: Node) -> None:
        for node in nodes:
            self.record_happening(f"{name_of(node)} {done}")

    # ---- Remembering ----

    def _save(self) -> None:
        overrides = self.controller_overrides, self.broker_overrides
        ClusterFile(self.members, *overrides, faults=self._has_faults).write(self.directory)

    def _write_config(self, member: Member) -> None:
        settings: dict[str, Setting] = {"data_dir": str(member.directory), "listen": member.address}
        if isinstance(member, EtcdMember):
            member.write_config(self._etcd_members)
            return
        if member.place is not None:
            settings["insecure_listen"] = True  # an address of a network that only this machine reaches
        if find_spec(METRICS_LIBRARY) is not None:  # what the extra `server` brings
            settings["metrics_listen"] = f"{member.host}:0"
        if not isinstance(member.node, int):
            settings |= self._store_of(member) | self.controller_overrides
        else:
            controllers = ",".join(self.members[node].address for node in self.controllers)
            settings |= {"broker_id": member.node, "controller": controllers}
            settings |= {
                "kafka_listen": member.kafka_address,
                "kafka_advertised": member.kafka_advertised,
                "auto_create_topics": True,
                "default_partitions": AUTO_CREATED_PARTITIONS,
                "group_initial_rebalance_delay_ms": REBALANCE_DELAY_MS,
                "group_consumer_heartbeat_interval_ms": CONSUMER_HEARTBEAT_MS,
            }
            settings |= self.broker_overrides
        member.config_file.write_text(to_toml(settings), encoding="utf-8")

    def _store_of(self, controller: Member) -> dict[str, Setting]:
        if not self.has_etcd:
            return {}
        endpoints = ",".join(member.address for member in self._etcd_members)
        number = 1 + self.controllers.index(controller.node)
        return {"store": "etcd", "controller_id": number, "etcd_endpoints": endpoints}

    # ---- More brokers, fewer brokers ----

    def add_broker(self) -> int:
        """A place for one more broker, with the lowest free id, which it returns. It is not started."""
        if len(self.broker_ids) >= MAX_BROKERS:
            raise ClusterError(f"{MAX_BROKERS} brokers run on this machine already, which is the most")
        broker = next(number for number in range(1, MAX_BROKERS + 1) if number not in self.members)
        folder = self.directory / folder_of(broker)
        if folder.exists() and any(folder.iterdir()):
            raise ClusterError(f"{folder} holds data already, of a broker that this cluster does not know")
        reservation, kafka = PortReservation(), PortReservation()
        self._reservations += [reservation, kafka]
        self.members[broker] = Member(broker, folder, reservation.port, kafka.port)
        self._prepare(self.members[broker])
        self._save()
        return broker

    def drop_broker(self, broker: int) -> None:
        """Forget a broker that is down, and delete its folder."""
        member = self.member(broker)
        if member.running() or member.in_use():
            raise ClusterError(f"broker {broker} still runs")
        del self.members[broker]
        self._save()
        shutil.rmtree(member.directory, ignore_errors=True)

    # ---- Looking ----

    @property
    def broker_ids(self) -> list[int]:
        return [node for node in self.members if isinstance(node, int)]

    @property
    def controllers(self) -> list[Node]:
        """All of them: "controller", or "controller-1" and so on."""
        return list(filter(is_controller, self.members))

    @property
    def etcd(self) -> list[Node]:
        """The members of etcd; none where there is only one controller."""
        return list(filter(is_etcd, self.members))

    @property
    def has_etcd(self) -> bool:
        return bool(self._etcd_members)

    @property
    def _etcd_members(self) -> list[EtcdMember]:
        return [member for member in self.members.values() if isinstance(member, EtcdMember)]

    @property
    def nodes(self) -> list[Node]:
        """The controllers, the members of etcd, then every broker."""
        return list(self.members)

    @property
    def bootstrap(self) -> str:
        """Every broker's address, comma-separated."""
        return ",".join(self.members[broker].address for broker in self.broker_ids)

    @property
    def kafka_bootstrap(self) -> str:
        """Every broker's address for Kafka's clients, comma-separated."""
        return ",".join(self.members[broker].kafka_address for broker in self.broker_ids)

    def member(self, node: Node) -> Member:
        try:
            return self.members[node]
        except KeyError:
            known = ", ".join(str(known) for known in self.members)
            raise ClusterError(f"no {name_of(node)} in this cluster: it has {known}") from None

    def running(self, node: Node) -> bool:
        return self.member(node).running()

    def paused(self, node: Node) -> bool:
        return self.member(node).paused()

    def pid(self, node: Node) -> int:
        """Of the running process. Raises ClusterError where there is none."""
        return self.member(node).running_process().pid

    def log(self, node: Node) -> str:
        """All that the process (and those before it) wrote to its log; empty where none has run, or its folder is gone."""
        try:
            return self.member(node).log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def any_running(self) -> bool:
        return any(member.running() for member in self.members.values())

    # ---- Processes ----

    def _reserve_ports(self) -> None:
        """While a whole cluster was down its ports may have gone to others: then it moves."""
        for member in self.members.values():
            if member.place is not None:  # no one else has its address
                continue
            member.port = self._reserve(member.port)
            if isinstance(member.node, int):
                member.kafka_port = self._reserve(member.kafka_port)
            if isinstance(member, EtcdMember):
                self._reservations.append(_reserve_for_good(member))

    def _reserve(self, port: int) -> int:
        """That port, or another one where it is taken."""
        try:
            reservation = PortReservation(port)
        except OSError:
            reservation = PortReservation()
        self._reservations.append(reservation)
        return reservation.port

    def _prepare(self, member: Member) -> None:
        """Write its configuration from where the folder is now: it may have been copied or moved since."""
        try:
            member.directory.mkdir(mode=0o700, exist_ok=True)
            self._write_config(member)
            member.ready_file.unlink(missing_ok=True)
        except OSError as error:
            raise ClusterError(f"{member.directory} cannot hold {name_of(member.node)}: {error.strerror}") from error

    def _fork_server(self, member: Member) -> ForkServer | None:
        """What is to fork the member; None: it is started from nothing, for it outlives this process or runs elsewhere."""
        return fork_server() if self.owned and (member.place is None or not member.place.prefix) else None

    def _spawn(self, member: Member) -> None:
        self._prepare(member)
        member.meant_down = False
        place = member.place or NetworkPlace("")
        if isinstance(member, EtcdMember):
            command = [*place.prefix, *member.command()]
            member.process, member.child = spawn_command(command, member.config_file, member.log_file)
            self._watch(member.process)
            return
        entry = _WITH_FAULTS if self._has_faults else ()
        arguments = ["-m", *entry, member.module]
        server = self._fork_server(member)
        if server is not None:
            member.process, member.child = server.fork(
                arguments, member.config_file, member.log_file, place.environment
            )
            return
        member.process, member.child = spawn(arguments, member.config_file, member.log_file, member.place)
        self._watch(member.process)

    def _watch(self, process: ProcessRef) -> None:
        """Have it end with this process, where the cluster is owned."""
        if self.owned and self._watchdog is None:
            self._watchdog = Watchdog()
        if self._watchdog is not None:
            self._watchdog.watch(process)

    # ---- The end ----

    def kill_all(self) -> None:
        """SIGKILL to every process that runs, at once."""
        _kill(self.members)

    def close(self) -> None:
        """The end of an owned cluster: everything is killed, and gone when this returns.

        Its data stay, unless they are in a temporary folder that is not to be kept.
        """
        _kill(self.members)
        _reap(self.members)
        self._forget()
        if self._end is not None:
            self._end()

    def remove(self) -> None:
        """Delete the data and the state of a cluster that is down, and nothing else that is in its folder."""
        for member in self.members.values():
            if member.running() or member.in_use():
                raise ClusterError(f"{name_of(member.node)} of the cluster in {self.directory} still runs")
        for member in self.members.values():
            shutil.rmtree(member.directory, ignore_errors=True)
        if self._has_faults:
            shutil.rmtree(self.directory / FAULTS_FOLDER, ignore_errors=True)
        (self.directory / STATE_FILE).unlink(missing_ok=True)

    def _forget(self) -> None:
        for member in self.members.values():
            if not member.running():
                member.process = member.child = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        for reservation in self._reservations:
            reservation.release()
        self._reservations.clear()
        if self.directory.exists():
            self._save()


def _reserve_ports(
    members: Mapping[Node, Member], first_port: int | None, first_kafka_port: int | None
) -> list[PortReservation]:
    """One for each controller, and two for each broker and each member of etcd. Raises OSError; then none is held."""
    brokers = [member for member in members.values() if isinstance(member.node, int)]
    held = reserve_ports(len(brokers), first_port)
    try:
        held += reserve_ports(len(brokers), first_kafka_port)
    except OSError:
        for reservation in held:
            reservation.release()
        raise
    for broker, own, kafka in zip(brokers, held, held[len(brokers) :], strict=False):
        broker.port, broker.kafka_port = own.port, kafka.port
    for member in members.values():
        if not isinstance(member.node, int):
            held.append(PortReservation())
            member.port = held[-1].port
        if isinstance(member, EtcdMember):
            held.append(PortReservation())
            member.peer_port = held[-1].port
    return held


def _reserve_for_good(member: EtcdMember) -> PortReservation:
    """Its port for the others, which stands in its data."""
    try:
        return PortReservation(member.peer_port)
    except OSError as error:
        raise ClusterError(
            f"port {member.peer_port}, by which the others know {member.node}, is taken, and etcd keeps it: {error}"
        ) from None


def _check_counts(brokers: int, controllers: int) -> None:
    """Raises ClusterError for what cannot run here, NoEtcd where etcd would be needed."""
    for name, count in (("brokers", brokers), ("controllers", controllers)):
        if not isinstance(count, int) or isinstance(count, bool):
            raise ClusterError(f"{name}={count!r}: must be a whole number")
    if not 1 <= brokers <= MAX_BROKERS:
        raise ClusterError(f"{brokers} brokers: from 1 to {MAX_BROKERS} can run on one machine")
    if not 1 <= controllers <= MAX_CONTROLLERS:
        raise ClusterError(f"{controllers} controllers: from 1 to {MAX_CONTROLLERS} can run on one machine")
    if controllers > 1:
        find_etcd()


def _check_empty(root: Path, nodes: Iterable[Node]) -> None:
    """Raises ClusterError where the folder holds a cluster, or something where one's members would go."""
    if (root / STATE_FILE).exists():
        raise ClusterError(f"{root} holds a cluster already ({STATE_FILE} is there)")
    for node in nodes:
        if (folder := root / folder_of(node)).exists() and any(folder.iterdir()):
            raise ClusterError(f"{folder} holds data already, and no {STATE_FILE} says of which cluster")


def _make_folder(root: Path) -> None:
    """Raises ClusterError where it cannot be made."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise ClusterError(f"{root} cannot hold a cluster: {reason}") from None


def _kill(members: Mapping[Node, Member]) -> None:
    for member in members.values():
        if member.process is not None:
            member.meant_down = True
            member.process.send(signal.SIGKILL)


def _reap(members: Mapping[Node, Member]) -> None:
    """Wait for the end of those that are this process's children."""
    for member in members.values():
        if member.child is not None:
            member.child.wait()


def _end_temporary(members: Mapping[Node, Member], folder: Path, owner: int, *, keep: bool) -> None:
    """The end of a cluster in a temporary folder, by `close` or because its owner ends."""
    if os.getpid() != owner:
        return  # a fork of the owner: the cluster goes on
    _kill(members)
    _reap(members)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
