"""The segment files of replicas on this machine's disk, read while their brokers may be running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.replica_check import Segment

_OFFSET_DIGITS = 20
_SEGMENT_SUFFIX = ".log"


def read_segments(folder: Path) -> Iterator[Segment]:
    """The segments of one replica, in offset order, one in memory at a time."""
    names = (path for path in folder.iterdir() if path.suffix == _SEGMENT_SUFFIX and path.stem.isdecimal())
    for path in sorted(path for path in names if len(path.stem) == _OFFSET_DIGITS):
        yield int(path.stem), path.read_bytes()


def replica_folder(cluster: ClusterFolder, broker: int, topic: str, partition: int) -> Path:
    return cluster.member(broker).directory / f"{topic}-{partition}"
