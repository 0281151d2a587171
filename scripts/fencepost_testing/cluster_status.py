"""What a cluster is like now: each process as the machine sees it, each partition as the brokers see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.member import CONTROLLER, Member, is_etcd, name_of

if TYPE_CHECKING:
    from fencepost_proto.protocol.metadata import MetadataImage
    from fencepost_proto.protocol.v1 import broker_pb2
    from fencepost_testing.etcd_state import EtcdState, MemberHealth

_ANSWER_TIMEOUT_S = 2.0
_CPU_SAMPLE_S = 0.3
_MEGABYTE = 1_000_000


@dataclass(slots=True)
class ProcessStatus:
    name: str
    address: str
    state: str  # running, paused, down; of a broker that runs also: fenced
    pid: int = 0
    uptime_s: float = 0.0
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    broker_id: int | None = None  # None: a controller, or a member of etcd
    kafka_address: str = ""
    role: str = ""  # of several controllers: active, standby; of etcd's members: leader, follower; empty: not known
    trouble: str = ""  # of a member of etcd that runs: why it does not serve
    etcd_version: str = ""
    etcd_size_bytes: int = 0  # of its database

    @property
    def serves(self) -> bool:
        return self.state == "running" and not self.trouble


@dataclass(slots=True)
class PartitionStatus:
    topic: str
    partition: int
    leader: int  # -1: none
    leader_epoch: int
    replicas: list[int]
    isr: list[int]
    log_end_offset: int = -1  # of the leader; -1: it does not answer
    high_watermark: int = -1
    size_bytes: int = -1
    failures: dict[int, str] = field(default_factory=dict)  # by broker: why its replica is offline
    last_known_isr: list[int] = field(default_factory=list)  # without a leader: who may have lost acknowledged records
    eligible: list[int] = field(default_factory=list)  # not in sync, and hold all that is acknowledged

    def why_leaderless(self) -> str:
        """Of a partition without a leader: why, and what would help."""
        name = f"{self.topic}-{self.partition}"
        if electable := [*self.isr, *self.eligible]:
            whose = "which has" if len(electable) == 1 else "each of which has"
            return f"{name} has no leader until broker {_some(electable)} is back, {whose} all acknowledged records"
        return (
            f"{name} has no leader: broker {_some(self.last_known_isr)}, the last in sync, may have lost acknowledged "
            f"records, because its machine went down uncleanly or its disk failed. To go on with what is left: "
            f"fencepost topic elect {self.topic} {self.partition} --unclean"
        )


@dataclass(slots=True)
class ClusterStatus:
    cluster_id: str  # empty: no broker answers
    processes: list[ProcessStatus]
    partitions: list[PartitionStatus]
    bootstrap: str = ""
    kafka_bootstrap: str = ""
    active_controller: str = ""  # empty: it is not known
    controller_epoch: int = 0  # 0: there is one controller, with a store of its own

    @property
    def healthy(self) -> bool:
        return (
            bool(self.cluster_id)
            and bool(self.active_controller)
            and all(process.serves for process in self.processes)
            and all(partition.leader >= 0 and not partition.failures for partition in self.partitions)
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy, "brokers": self._brokers(), "topics": self._topics()}

    def _brokers(self) -> list[dict[str, Any]]:
        return [
            {
                "id": process.broker_id,
                "pid": process.pid,
                "address": process.address,
                "kafka_address": process.kafka_address,
                "state": process.state,
            }
            for process in self.processes
            if process.broker_id is not None
        ]

    def _topics(self) -> list[dict[str, Any]]:
        topics: dict[str, list[dict[str, Any]]] = {}
        for partition in self.partitions:
            topics.setdefault(partition.topic, []).append(
                {
                    "partition": partition.partition,
                    "leader": partition.leader,
                    "leader_epoch": partition.leader_epoch,
                    "isr": partition.isr,
                    "eligible": partition.eligible,
                    "log_end_offset": partition.log_end_offset,
                    "high_watermark": partition.high_watermark,
                }
            )
        return [{"name": name, "partitions": partitions} for name, partitions in topics.items()]


async def read_status(cluster: ClusterFolder) -> ClusterStatus:
    """Asks every process that runs, all at the same time; a paused one costs the timeout."""
    from fencepost_proto.protocol.metadata import MetadataImage
    from fencepost_testing.cluster_metadata import newest_image, read_log_dirs

    running = {member.node: process for member in cluster.members.values() if (process := _process(member))}
    for process in running.values():
        _cpu_percent(process)
    sampled_at = asyncio.get_running_loop().time()
    brokers = [broker for broker in cluster.broker_ids if broker in running]
    addresses = [cluster.member(broker).address for broker in brokers]
    newest, log_dirs, etcd = await asyncio.gather(
        newest_image(addresses, timeout_s=_ANSWER_TIMEOUT_S),
        asyncio.gather(*(read_log_dirs(address, timeout_s=_ANSWER_TIMEOUT_S) for address in addresses)),
        _etcd_state(cluster),
    )
    await asyncio.sleep(sampled_at + _CPU_SAMPLE_S - asyncio.get_running_loop().time())
    image = newest or MetadataImage()
    answers = {broker: answer for broker, answer in zip(brokers, log_dirs, strict=True) if answer}
    processes = [_process_status(member, running.get(member.node), image) for member in cluster.members.values()]
    status = ClusterStatus(
        image.cluster_id, processes, _partitions(image, answers), cluster.bootstrap, cluster.kafka_bootstrap
    )
    if etcd is None:
        status.active_controller = CONTROLLER if cluster.running(CONTROLLER) else ""
    else:
        _add_etcd(status, cluster, etcd)
    return status


async def read_roles(cluster: ClusterFolder) -> dict[str, str]:
    """By process: the role of each controller and each member of etcd. Of a cluster with etcd."""
    etcd = await _etcd_state(cluster)
    assert etcd is not None
    return _roles(cluster, etcd)


async def _etcd_state(cluster: ClusterFolder) -> EtcdState | None:
    """None: the cluster has no etcd."""
    if not cluster.has_etcd:
        return None
    from fencepost_testing.etcd_state import read_etcd

    return await read_etcd(cluster.members, cluster.controller_overrides, _ANSWER_TIMEOUT_S)


def _roles(cluster: ClusterFolder, etcd: EtcdState) -> dict[str, str]:
    """As `read_roles` has them; empty where a process does not run, or its role is not known."""
    roles = {str(node): health.role if (health := etcd.members.get(str(node))) else "" for node in cluster.etcd}
    active = etcd.active_controller(cluster.members)
    for node in cluster.controllers:
        is_known = active is not None and cluster.running(node)
        roles[str(node)] = ("active" if node == active else "standby") if is_known else ""
    return roles


def _add_etcd(status: ClusterStatus, cluster: ClusterFolder, etcd: EtcdState) -> None:
    """Who is active, and how etcd's members are."""
    status.active_controller = etcd.active_controller(cluster.members) or ""
    if status.active_controller and etcd.active is not None:
        status.controller_epoch = etcd.active.epoch
    roles = _roles(cluster, etcd)
    for process in status.processes:
        if process.state == "down":
            continue
        process.role = roles.get(process.name, "")
        if is_etcd(process.name):
            _add_health(process, etcd.members.get(process.name))


def _add_health(process: ProcessStatus, health: MemberHealth | None) -> None:
    if health is None:
        process.trouble = "it does not answer"
        return
    process.trouble = health.trouble
    process.etcd_version, process.etcd_size_bytes = health.version, health.size_bytes


def _process(member: Member) -> psutil.Process | None:
    return member.process.find() if member.process else None


def _cpu_percent(process: psutil.Process) -> float:
    """Since the last call for this process."""
    try:
        return process.cpu_percent()
    except psutil.NoSuchProcess:
        return 0.0


def _process_status(member: Member, process: psutil.Process | None, image: MetadataImage) -> ProcessStatus:
    answer = ProcessStatus(name_of(member.node), member.address, "down")
    if isinstance(member.node, int):
        answer.broker_id, answer.kafka_address = member.node, member.kafka_address
    if process is None:
        return answer
    try:
        with process.oneshot():
            answer.state = "paused" if process.status() == psutil.STATUS_STOPPED else "running"
            answer.memory_mb = process.memory_info().rss / _MEGABYTE
            answer.uptime_s = time.time() - process.create_time()
            answer.pid = process.pid
    except psutil.NoSuchProcess:
        answer.state, answer.pid, answer.memory_mb, answer.uptime_s = "down", 0, 0.0, 0.0
        return answer
    answer.cpu_percent = _cpu_percent(process)
    broker = image.brokers.get(member.node) if isinstance(member.node, int) else None
    if answer.state == "running" and broker is not None and broker.fenced:
        answer.state = "fenced"
    return answer


def _partitions(image: MetadataImage, answers: dict[int, broker_pb2.DescribeLogDirsResponse]) -> list[PartitionStatus]:
    replicas = {
        (broker, replica.topic_id, replica.partition): replica
        for broker, answer in answers.items()
        for replica in answer.replicas
    }
    statuses = []
    for topic in sorted(image.topics.values(), key=lambda topic: topic.name):
        for partition in image.partitions_of(topic.topic_id):
            status = PartitionStatus(
                topic.name,
                partition.index,
                partition.leader,
                partition.leader_epoch,
                list(partition.replicas),
                list(partition.isr),
                last_known_isr=list(partition.last_known_isr),
                eligible=list(partition.eligible),
            )
            led = replicas.get((partition.leader, *partition.id))
            if led is not None:
                status.log_end_offset, status.high_watermark = led.log_end_offset, led.high_watermark
                status.size_bytes = led.size_bytes
            for broker in partition.replicas:
                held = replicas.get((broker, *partition.id))
                if held is not None and held.failure:
                    status.failures[broker] = held.failure
            statuses.append(status)
    return statuses


def _some(brokers: list[int]) -> str:
    return " or ".join(map(str, brokers)) or "?"
