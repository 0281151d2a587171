"""Reads every byte of a log's folder without changing anything, and reports what is damaged. Of a log in use too.

What a crash leaves is no damage: above the newest snapshot the last segment may end in what is no batch, which the next
start cuts. Of a log in use the last segment may end in a batch that is being written, and files may go while they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fencepost_node.log.disk import Disk
from fencepost_node.log.errors import CorruptLog
from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.names import (
    EPOCH_CHECKPOINT,
    LOG_SUFFIX,
    SNAPSHOT_SUFFIX,
    file_name,
    offsets_with,
    read_identity,
)
from fencepost_node.log.segment import scan
from fencepost_node.log.snapshot import decode_snapshot
from fencepost_node.log.state_machine import AnyMachine
from fencepost_proto.protocol.errors import CorruptMessage


@dataclass(slots=True)
class VerifiedLog:
    """What came of one folder."""

    directory: str
    bytes: int = 0  # of batches that are whole
    batches: int = 0
    segments: int = 0
    snapshots: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is no damage, and worth knowing


def verify_log(disk: Disk, directory: str, machines: Sequence[AnyMachine], *, in_use: bool) -> VerifiedLog:
    """`machines`: what the log folds. Raises OSError where the folder itself cannot be read."""
    found = VerifiedLog(directory)
    names = disk.list(directory)
    bases, snapshots = offsets_with(names, LOG_SUFFIX), offsets_with(names, SNAPSHOT_SUFFIX)
    if read_identity(disk, directory) is None:
        found.damage.append(f"{directory}: no partition.metadata says whose log it is")
    if not bases:
        (found.damage if snapshots else found.notes).append(f"{directory} has no segment")
    tail_from = {bases[-1]: max(snapshots, default=0)} if bases else {}
    ends = {base: _verify_segment(disk, found, base, tail_from.get(base), in_use=in_use) for base in bases}
    for base, following in pairwise(bases):
        end = ends[base]
        if end is not None and end != following and _is_there(disk, directory, following):
            found.damage.append(f"{directory}: the segment at {base} ends at {end}, the next one begins at {following}")
    for offset in snapshots:
        _verify_snapshot(disk, directory, offset, machines, found)
    if bases and bases[0] > 0 and bases[0] not in snapshots and not in_use:
        found.damage.append(f"{directory}: the log starts at {bases[0]}, and no snapshot of producer state is there")
    _verify_epochs(disk, directory, found)
    return found


def _is_there(disk: Disk, directory: str, base: int) -> bool:
    return disk.exists(f"{directory}/{file_name(base, LOG_SUFFIX)}")


def _verify_segment(disk: Disk, found: VerifiedLog, base: int, tail_from: int | None, *, in_use: bool) -> int | None:
    """The end offset of what is whole; None: it is not whole, or gone. `tail_from`: of the last segment, from which offset
    on it may end in what is no batch."""
    directory = found.directory
    path = f"{directory}/{file_name(base, LOG_SUFFIX)}"
    end_offset = base
    try:
        file = disk.open(path)
        try:
            for placed in scan(file, path, 0, file.size, base):
                found.batches += 1
                found.bytes += placed.header.size_bytes
                end_offset = placed.header.end_offset
        finally:
            file.close()
    except FileNotFoundError:
        return None
    except OSError as error:
        found.damage.append(f"{path} cannot be read: {error}")
        return None
    except CorruptLog as problem:
        if in_use and not _is_there(disk, directory, base):
            return None
        if tail_from is not None and problem.offset >= tail_from:
            found.notes.append(f"{problem}; it is the end of the log, which the next start looks after")
        else:
            found.damage.append(problem.message)
        return None
    found.segments += 1
    return end_offset


def _content(disk: Disk, path: str, found: VerifiedLog) -> bytes | None:
    """Of a small file; None: it has gone, or cannot be read, which is noted."""
    try:
        return disk.read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        found.damage.append(f"{path} cannot be read: {error}")
        return None


def _verify_snapshot(
    disk: Disk, directory: str, offset: int, machines: Sequence[AnyMachine], found: VerifiedLog
) -> None:
    path = f"{directory}/{file_name(offset, SNAPSHOT_SUFFIX)}"
    data = _content(disk, path, found)
    if data is None:
        return
    try:
        if decode_snapshot(data, machines).offset != offset:
            found.damage.append(f"{path} is the snapshot of another offset")
        found.snapshots += 1
    except CorruptMessage as error:
        found.damage.append(f"{path} is damaged: {error.message}")


def _verify_epochs(disk: Disk, directory: str, found: VerifiedLog) -> None:
    path = f"{directory}/{EPOCH_CHECKPOINT}"
    data = _content(disk, path, found)
    if data is None:
        return
    try:
        LeaderEpochs.decode(data)
    except ValueError as error:
        found.notes.append(f"{path} is damaged: {error}; the next start makes it again from the batches")
