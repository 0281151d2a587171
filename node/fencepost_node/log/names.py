"""The files of a log's folder, and whose log it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fencepost_node.log.disk import Disk
from fencepost_proto.protocol.errors import StorageError

LOG_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
SNAPSHOT_SUFFIX = ".snapshot"
DELETED_SUFFIX = ".deleted"  # a file on its way out: gone for every reader of the folder
TEMPORARY_SUFFIX = ".tmp"  # of write_atomically
EPOCH_CHECKPOINT = "leader-epoch-checkpoint"
PARTITION_METADATA = "partition.metadata"
SYNC_BEGUN = "sync-begun"  # see sync_mark
DAMAGED = "damaged"  # an empty file: see recovery.recover
RESET = "reset"  # a snapshot from which the log is to start over; see recovery.finish_reset

UNKNOWN_PARTITION = -1

_NUMBER = re.compile(r"0|[1-9]\d{0,8}")  # as str(int) writes it
LOG_FOLDER = re.compile(r"(?P<topic>.+)-(?P<partition>0|[1-9][0-9]{0,8})")  # the name of a log's folder
_OFFSET_NAME = re.compile(r"(\d{20})(\.[a-z]+)")


def file_name(offset: int, suffix: str) -> str:
    """`<20 digits><suffix>`."""
    return f"{offset:020d}{suffix}"


def offsets_with(names: list[str], suffix: str) -> list[int]:
    """The offsets of those names that are `<20 digits><suffix>`, rising."""
    return offsets_by_suffix(names).get(suffix, [])


def offsets_by_suffix(names: list[str]) -> dict[str, list[int]]:
    """The same for every suffix that there is."""
    found: dict[str, list[int]] = {}
    for name in names:
        if match := _OFFSET_NAME.fullmatch(name):
            found.setdefault(match[2], []).append(int(match[1]))
    for offsets in found.values():
        offsets.sort()
    return found


@dataclass(frozen=True, slots=True)
class PartitionIdentity:
    """Whose log a folder holds: the content of `partition.metadata`.

    Version 1 names topic, topic id and partition. Version 0 has the topic id alone: topic "", partition -1.
    """

    topic_id: str
    topic: str = ""
    partition: int = UNKNOWN_PARTITION

    @property
    def folder_name(self) -> str:
        """The one name that this log's folder may have; empty where version 0 does not have it."""
        return f"{self.topic}-{self.partition}" if self.topic and self.partition >= 0 else ""

    def encode(self) -> bytes:
        if not self.folder_name:
            return f"version=0\ntopic_id={self.topic_id}\n".encode()
        return f"version=1\ntopic_id={self.topic_id}\ntopic={self.topic}\npartition={self.partition}\n".encode()

    @staticmethod
    def decode(data: bytes) -> PartitionIdentity | None:
        """None: nothing that `encode` writes."""
        lines = data.decode(errors="replace").splitlines()
        pairs = dict(line.split("=", 1) for line in lines if "=" in line)
        topic_id, partition = pairs.get("topic_id", "").strip(), pairs.get("partition", "")
        if pairs.get("version") == "0" and topic_id:
            return PartitionIdentity(topic_id)
        if pairs.get("version") == "1" and topic_id and pairs.get("topic") and _NUMBER.fullmatch(partition):
            return PartitionIdentity(topic_id, pairs["topic"], int(partition))
        return None


def read_identity(disk: Disk, directory: str) -> PartitionIdentity | None:
    """What `partition.metadata` says; None where there is none, or none that can be understood. Raises OSError."""
    try:
        return PartitionIdentity.decode(disk.read_bytes(f"{directory}/{PARTITION_METADATA}"))
    except FileNotFoundError:
        return None


def write_identity(disk: Disk, directory: str, identity: PartitionIdentity) -> None:
    disk.write_atomically(f"{directory}/{PARTITION_METADATA}", identity.encode())


def claim_folder(disk: Disk, directory: str, identity: PartitionIdentity) -> None:
    """Make the folder the one of that log. Raises StorageError where it is another's, OSError."""
    found = read_identity(disk, directory)
    if found is None:
        write_identity(disk, directory, identity)
    elif identity.topic_id and found.topic_id != identity.topic_id:
        raise StorageError(f"{directory} belongs to topic id {found.topic_id}, not {identity.topic_id}")
    elif identity.folder_name and found.folder_name and found.folder_name != identity.folder_name:
        raise StorageError(f"{directory} holds the log of {found.folder_name}, not of {identity.folder_name}")
