"""What a fault may name: the members, parties, topics and leaders of a cluster. Checks raise FaultError, with the value."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fencepost_testing.cluster_file import ClusterFile
from fencepost_testing.faults.inside import party_of
from fencepost_testing.faults.rules import (
    CLIENT_PREFIX,
    CLIENTS,
    PROTOCOLS,
    FaultError,
    RequestRule,
    check_name,
)
from fencepost_testing.member import (
    ACTIVE_CONTROLLER,
    CONTROLLER,
    ETCD_LEADER,
    ClusterError,
    Member,
    Node,
    checked_target,
    is_etcd,
)
from fencepost_testing.waiting import NotInTime, until_sync

TOPIC_TIMEOUT_S: Final = 2.0  # for a topic that was just created to be on a broker's disk
METADATA_TIMEOUT_S: Final = 2.0

Target = (
    int | str | tuple[str, int]
)  # a process as `member.TARGETS` has it, "clients", "client:<id>", or the leader of (topic, partition)


class KnownCluster:
    """The cluster in a folder, as its files and its brokers show it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def members(self) -> dict[Node, Member]:
        try:
            return ClusterFile.read(self.directory).members
        except ClusterError as error:
            raise FaultError(str(error)) from error

    def brokers(self) -> list[int]:
        return [node for node in self.members() if isinstance(node, int)]

    def check_broker(self, broker: int | None) -> None:
        if broker is None:
            return
        brokers = self.brokers()
        if broker not in brokers or isinstance(broker, bool):
            raise FaultError(f"no broker {broker!r} in this cluster: it has {', '.join(map(str, brokers))}")

    def check_disk(self, broker: int | str | None, topic: str | None, partition: int | None) -> None:
        if broker == CONTROLLER and CONTROLLER in self.members():
            if topic is not None or partition is not None:
                raise FaultError(f"topic={topic!r} and partition={partition!r}: the controller has one store for all")
            return
        if isinstance(broker, str):
            known = ", ".join(map(str, self.brokers()))
            store = f", and {CONTROLLER!r}" if CONTROLLER in self.members() else "; its metadata is in etcd"
            raise FaultError(f"no broker {broker!r} in this cluster: it has {known}{store}")
        self.check_broker(broker)
        self.check_topic(topic, partition)

    def node(self, target: Target) -> Node:
        """The process that a target names now."""
        try:
            named = checked_target(target)
        except ClusterError as error:
            raise FaultError(str(error)) from None
        if isinstance(named, tuple):
            return self._leader(*named)
        if isinstance(named, int):
            self.check_broker(named)
            return named
        return self._named(named)

    def _named(self, name: str) -> Node:
        """A controller, or a member of etcd."""
        members = self.members()
        if name in (ACTIVE_CONTROLLER, ETCD_LEADER):
            from fencepost_testing.background_loop import run_in_background
            from fencepost_testing.etcd_state import wait_decides

            settings = ClusterFile.read(self.directory).controller_overrides
            try:
                return run_in_background(wait_decides(members, settings, name, METADATA_TIMEOUT_S, FaultError))
            except ClusterError as error:
                raise FaultError(str(error)) from error
        if name not in members:
            known = ", ".join(str(node) for node in members if not isinstance(node, int))
            raise FaultError(f"no {name} in this cluster: besides brokers it has {known}")
        return name

    def party(self, target: Target) -> str:
        """One end of a link."""
        if target == CLIENTS:
            return CLIENTS
        if isinstance(target, str) and target.startswith(CLIENT_PREFIX):
            check_name("client_id", target.removeprefix(CLIENT_PREFIX))
            return target
        try:
            return party_of(self.node(target))
        except FaultError as error:
            if str(error).startswith("target "):
                raise FaultError(f"{error}, nor '{CLIENTS}' or '{CLIENT_PREFIX}<client id>'") from None
            raise

    def check_etcd_link(self, a: Iterable[str], b: Iterable[str]) -> None:
        """Faults are in our own processes: what members of etcd send to each other does not pass there."""
        one, other = list(filter(is_etcd, a)), list(b)
        if one and (not other or any(map(is_etcd, other))):
            raise FaultError(
                f"{one[0]} and {', '.join(other) or 'everyone else'}: links between members of etcd cannot have faults; "
                "name controllers as the other side, or pause the member"
            )

    def parties(self, targets: Target | Iterable[Target]) -> tuple[str, ...]:
        """One side of a cut."""
        if isinstance(targets, int | str) or not isinstance(targets, Iterable):
            return (self.party(targets),)
        several = list(targets)
        if isinstance(targets, tuple) and len(several) == 2:
            topic, partition = several
            is_party = topic in (CLIENTS, ACTIVE_CONTROLLER, ETCD_LEADER, *self.members()) or (
                isinstance(topic, str) and topic.startswith(CLIENT_PREFIX)
            )
            if isinstance(topic, str) and isinstance(partition, int) and not is_party:
                return (self.party((topic, partition)),)
        return tuple(self.party(target) for target in several)

    def _leader(self, topic: str, partition: int) -> int:
        from fencepost_testing.background_loop import run_in_background
        from fencepost_testing.cluster_metadata import newest_image

        brokers = (member for member in self.members().values() if isinstance(member.node, int))
        asked = [member.address for member in brokers if member.running() and not member.paused()]
        image = run_in_background(newest_image(asked, timeout_s=METADATA_TIMEOUT_S))
        if image is None:
            raise FaultError(f"target {(topic, partition)!r}: no broker answers who leads")
        found = image.partitions.get((image.topic_ids.get(topic, ""), partition))
        if found is None:
            raise FaultError(f"target {(topic, partition)!r}: the cluster has no such partition")
        if found.leader < 0:
            raise FaultError(f"target {(topic, partition)!r}: the partition has no leader now")
        return found.leader

    # ---- Requests ----

    def check_api(self, rule: RequestRule) -> None:
        from fencepost_testing.faults import fencepost_messages, kafka_messages

        if rule.protocol not in (None, *PROTOCOLS):
            raise FaultError(f"protocol={rule.protocol!r}: {' or '.join(PROTOCOLS)}")
        known: set[str] = set()
        if rule.protocol != "kafka":
            known |= fencepost_messages.API_NAMES
        if rule.protocol != "fencepost":
            known |= set(kafka_messages.API_KEYS)
        if rule.api is not None and (not isinstance(rule.api, str) or rule.api not in known):
            raise FaultError(f"no api {rule.api!r}: there are {', '.join(sorted(known))}")

    def check_topic(self, topic: str | None, partition: int | None) -> None:
        """By the brokers' folders, which have one for each replica."""
        if partition is not None and (not isinstance(partition, int) or isinstance(partition, bool) or partition < 0):
            raise FaultError(f"partition={partition!r} is not the number of a partition")
        if topic is None:
            return
        check_name("topic", topic)

        def is_there() -> bool:
            partitions = self._topics().get(topic, set())
            return bool(partitions) and partition in (None, *partitions)

        try:
            until_sync(is_there, f"topic {topic!r}", TOPIC_TIMEOUT_S)
        except NotInTime:
            topics = self._topics()
            if topic in topics:
                last = max(topics[topic])
                raise FaultError(f"no partition {partition} of topic {topic!r}: it has 0 to {last}") from None
            raise FaultError(
                f"no topic {topic!r} in this cluster: it has {', '.join(sorted(topics)) or 'none'}"
            ) from None

    def _topics(self) -> dict[str, set[int]]:
        topics: dict[str, set[int]] = {}
        for folder in self.directory.glob("broker-*/*-*"):
            name, _, number = folder.name.rpartition("-")
            if number.isdecimal() and folder.is_dir():
                topics.setdefault(name, set()).add(int(number))
        return topics
