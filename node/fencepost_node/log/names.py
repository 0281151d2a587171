"""The files of a log's folder, and the error for one that is damaged."""

from __future__ import annotations

import re

from fencepost_node.log.disk import Disk
from fencepost_proto.errors import StorageError

LOG_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
SNAPSHOT_SUFFIX = ".snapshot"
DELETED_SUFFIX = ".deleted"  # a file on its way out: gone for every reader of the folder
TEMPORARY_SUFFIX = ".tmp"  # of write_atomically
EPOCH_CHECKPOINT = "leader-epoch-checkpoint"
PARTITION_METADATA = "partition.metadata"
SYNC_BEGUN = "sync-begun"  # see sync_mark
RESET = "reset"  # a snapshot from which the log is to start over; see recovery.finish_reset

_OFFSET_NAME = re.compile(r"(\d{20})(\.[a-z]+)")


class CorruptLog(StorageError):
    """The log is damaged where it was whole and synced before. Heal it from the leader; nothing is skipped."""

    def __init__(self, path: str, position: int, offset: int, problem: str) -> None:
        super().__init__(f"{path} is damaged at byte {position}, offset {offset}: {problem}")
        self.path = path
        self.position = position
        self.offset = offset
        self.problem = problem


def file_name(offset: int, suffix: str) -> str:
    """`<20 digits><suffix>`."""
    return f"{offset:020d}{suffix}"


def offsets_with(names: list[str], suffix: str) -> list[int]:
    """The offsets of those names that are `<20 digits><suffix>`, rising."""
    matches = (_OFFSET_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match and match[2] == suffix)


def read_topic_id(disk: Disk, directory: str) -> str:
    """The topic id in `partition.metadata`; empty where the folder has none. Raises OSError."""
    path = f"{directory}/{PARTITION_METADATA}"
    if not disk.exists(path):
        return ""
    lines = disk.read_bytes(path).decode(errors="replace").splitlines()
    return next((line.removeprefix("topic_id=").strip() for line in lines if line.startswith("topic_id=")), "")


def write_topic_id(disk: Disk, directory: str, topic_id: str) -> None:
    disk.write_atomically(f"{directory}/{PARTITION_METADATA}", f"version=0\ntopic_id={topic_id}\n".encode())
