"""The segment files of replicas on this machine's disk, read while their brokers may be running."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.replica_check import ReplicaSummary, Segment, check_replica, check_same

_OFFSET_DIGITS = 20
_SEGMENT_SUFFIX = ".log"


def read_segments(folder: Path) -> Iterator[Segment]:
    """The segments of one replica, in offset order, one in memory at a time."""
    names = (path for path in folder.iterdir() if path.suffix == _SEGMENT_SUFFIX and path.stem.isdecimal())
    for path in sorted(path for path in names if len(path.stem) == _OFFSET_DIGITS):
        yield int(path.stem), path.read_bytes()


def replica_folder(cluster: ClusterFolder, broker: int, topic: str, partition: int) -> Path:
    return cluster.member(broker).directory / f"{topic}-{partition}"


def check_replica_files(cluster: ClusterFolder, broker: int, topic: str, partition: int) -> ReplicaSummary:
    """One replica's files, checked. A replica without a folder or a file is a finding."""
    folder = replica_folder(cluster, broker, topic, partition)
    try:
        summary = check_replica(broker, folder.name, read_segments(folder))
    except FileNotFoundError as error:
        summary = ReplicaSummary(broker, folder.name)
        summary.findings.add(Kind.CORRUPT, f"broker {broker} {folder.name}: {error}")
    return summary


async def check_replicas(
    cluster: ClusterFolder, topic: str, replicas: Mapping[int, Sequence[int]], ends: Mapping[int, int]
) -> tuple[Findings, int, int]:
    """Every replica's files, and that those of one partition are the same up to its end.

    `replicas`: the brokers of each partition; `ends`: its committed end. Returns the findings, how many replicas were
    checked, and the records in one replica of each partition.
    """
    findings, checked, records = Findings(), 0, 0
    for partition, brokers in replicas.items():
        summaries: list[ReplicaSummary] = []
        for broker in brokers:
            summary = await asyncio.to_thread(check_replica_files, cluster, broker, topic, partition)
            findings.merge(summary.findings)
            summaries.append(summary)
        findings.merge(check_same(summaries, ends[partition]))
        checked += len(summaries)
        records += summaries[0].records if summaries else 0
    return findings, checked, records
