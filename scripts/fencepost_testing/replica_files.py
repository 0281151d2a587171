"""The segment files of replicas on this machine's disk, read while their brokers may be running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.replica_check import ReplicaSummary, Segment, check_replica
from fencepost_testing.verdict import Kind

_OFFSET_DIGITS = 20
_SEGMENT_SUFFIX = ".log"


def read_segments(folder: Path) -> Iterator[Segment]:
    """The segments of one replica, in offset order, one in memory at a time."""
    names = (path for path in folder.iterdir() if path.suffix == _SEGMENT_SUFFIX and path.stem.isdecimal())
    for path in sorted(path for path in names if len(path.stem) == _OFFSET_DIGITS):
        yield int(path.stem), path.read_bytes()


def replica_folder(cluster: LocalCluster, broker: int, topic: str, partition: int) -> Path:
    return cluster.member(broker).directory / f"{topic}-{partition}"


def check_replica_files(cluster: LocalCluster, broker: int, topic: str, partition: int) -> ReplicaSummary:
    """One replica's files, checked. A replica without a folder or a file is a finding."""
    folder = replica_folder(cluster, broker, topic, partition)
    try:
        summary = check_replica(broker, folder.name, read_segments(folder))
    except FileNotFoundError as error:
        summary = ReplicaSummary(broker, folder.name)
        summary.findings.add(Kind.CORRUPT, f"broker {broker} {folder.name}: {error}")
    return summary
