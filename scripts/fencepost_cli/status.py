"""What `fencepost cluster status` shows: each process as the machine sees it, each partition as the brokers see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
from rich.console import Console

from fencepost_cli.terminal import table
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_testing.cluster_metadata import read_image, read_log_dirs
from fencepost_testing.local_cluster import LocalCluster, Member, name_of

_ANSWER_TIMEOUT_S = 2.0
_CPU_SAMPLE_S = 0.3
_MEGABYTE = 1_000_000
_EXPLAINED = 10  # partitions without a leader, in words
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(slots=True)
class ProcessStatus:
    name: str
    address: str
    state: str  # running, paused, down; of a broker that runs also: fenced
    pid: int = 0
    uptime_s: float = 0.0
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    broker_id: int | None = None  # None: the controller
    kafka_address: str = ""


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
    last_known_isr: list[int] = field(default_factory=list)  # where the in-sync set is empty: who was the last in it

    def why_leaderless(self) -> str:
        """Of a partition without a leader: why, and what would help."""
        name = f"{self.topic}-{self.partition}"
        if self.isr:
            return f"{name} has no leader until broker {_some(self.isr)} is back, which was the last in sync"
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

    @property
    def healthy(self) -> bool:
        return (
            bool(self.cluster_id)
            and all(process.state == "running" for process in self.processes)
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
                    "log_end_offset": partition.log_end_offset,
                    "high_watermark": partition.high_watermark,
                }
            )
        return [{"name": name, "partitions": partitions} for name, partitions in topics.items()]


async def read_status(cluster: LocalCluster) -> ClusterStatus:
    """Asks every process that runs, all at the same time; a paused one costs the timeout."""
    running = {member.node: process for member in cluster.members.values() if (process := _process(member))}
    for process in running.values():
        _cpu_percent(process)
    sampled_at = asyncio.get_running_loop().time()
    brokers = [broker for broker in cluster.broker_ids if broker in running]
    addresses = [cluster.member(broker).address for broker in brokers]
    images, log_dirs = await asyncio.gather(
        asyncio.gather(*(read_image(address, timeout_s=_ANSWER_TIMEOUT_S) for address in addresses)),
        asyncio.gather(*(read_log_dirs(address, timeout_s=_ANSWER_TIMEOUT_S) for address in addresses)),
    )
    await asyncio.sleep(sampled_at + _CPU_SAMPLE_S - asyncio.get_running_loop().time())
    image = max((image for image in images if image), key=lambda image: image.version, default=MetadataImage())
    answers = {broker: answer for broker, answer in zip(brokers, log_dirs, strict=True) if answer}
    processes = [_process_status(member, running.get(member.node), image) for member in cluster.members.values()]
    return ClusterStatus(
        image.cluster_id, processes, _partitions(image, answers), cluster.bootstrap, cluster.kafka_bootstrap
    )


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


def duration_text(seconds: float) -> str:
    """The two largest units: 3 d 4 h, 5 min 6 s."""
    whole = int(seconds)
    if whole >= _DAY_S:
        return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
    if whole >= _HOUR_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    if whole >= _MINUTE_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole} s"


def show_status(status: ClusterStatus, console: Console) -> None:
    console.print(f"Cluster {status.cluster_id or '(no broker answers)'}")
    numbers = ("pid", "uptime", "memory MB", "CPU %")
    processes = table("process", "state", "address", *numbers, numbers=numbers)
    for process in status.processes:
        up = process.state != "down"
        style = {"running": "green", "down": "red"}.get(process.state, "yellow")
        processes.add_row(
            process.name,
            f"[{style}]{process.state}[/]",
            process.address,
            str(process.pid) if up else "",
            duration_text(process.uptime_s) if up else "",
            f"{process.memory_mb:.0f}" if up else "",
            f"{process.cpu_percent:.0f}" if up else "",
        )
    console.print(processes)
    if not status.partitions:
        return
    where, how_far = ("partition", "leader", "epoch"), ("log end", "high watermark", "MB")
    partitions = table("topic", *where, "replicas", "in sync", *how_far, numbers=where + how_far)
    for partition in status.partitions:
        short = len(partition.isr) < len(partition.replicas)
        in_sync = ",".join(map(str, partition.isr)) or "-"
        partitions.add_row(
            partition.topic,
            str(partition.partition),
            str(partition.leader) if partition.leader >= 0 else "[red]none[/]",
            str(partition.leader_epoch),
            ",".join(map(str, partition.replicas)),
            f"[yellow]{in_sync}[/]" if short else in_sync,
            _known(partition.log_end_offset),
            _known(partition.high_watermark),
            f"{partition.size_bytes / _MEGABYTE:.1f}" if partition.size_bytes >= 0 else "?",
        )
    console.print(partitions)
    for partition in status.partitions:
        for broker, why in partition.failures.items():
            told = (
                f"broker {broker} cannot serve {partition.topic}-{partition.partition} now, and goes on trying: {why}"
            )
            console.print(told, style="red", markup=False, soft_wrap=True)
    leaderless = [partition for partition in status.partitions if partition.leader < 0]
    for partition in leaderless[:_EXPLAINED]:
        console.print(partition.why_leaderless(), style="red", markup=False, soft_wrap=True)
    if len(leaderless) > _EXPLAINED:
        console.print(f"and {len(leaderless) - _EXPLAINED} more partitions without a leader", style="red")


def _some(brokers: list[int]) -> str:
    return " or ".join(map(str, brokers)) or "?"


def _known(offset: int) -> str:
    return str(offset) if offset >= 0 else "?"
