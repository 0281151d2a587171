"""Snapshots of all that a log folds: files `<20 digits>.snapshot`, one for each offset.

A snapshot at offset N holds the states that the batches below N make. It is written only after everything below N was
synced, so its mere existence also says: the log below N is on disk. Recovery starts at the newest one.

Layout (big-endian)::

    0  magic        4 bytes  "FPPS"
    4  version      int16    4
    6  CRC-32C      uint32   of everything from 10 to the end
   10  offset       int64
   18  last epoch   int32    leader epoch of the batch that ends at the offset; -1: not known, or there is none
   22  parts        uint8    how many follow: one for each state machine, 16 at most
       and of each part:
       name length  uint8    1 to 32
       name         ASCII
       format       uint8    of the bytes, which are the state machine's
       length       uint32
       bytes

Versions 1 to 3 are still read. In place of the parts they have the bytes of producer state alone: version 3 in format 2,
versions 1 and 2 in format 1. Version 1 has no last epoch either.

A snapshot is taken whole or not at all. One that has a part which this log does not fold is refused, and one that lacks a
part which it does, by the part's name: a state that batches are not folded into would be wrong from the next batch on, and
missing from the next snapshot.

The same bytes travel to a follower that starts over at a leader's log start. One of an older version refuses bytes of a
version that it does not know, with a warning, and asks again with growing pauses: it is in sync once it is upgraded too.
"""

from __future__ import annotations

import logging
import struct
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

from crc32c import crc32c

from fencepost_node.log.disk import Disk
from fencepost_node.log.errors import CorruptLog
from fencepost_node.log.leader_epochs import NO_EPOCH
from fencepost_node.log.names import SNAPSHOT_SUFFIX, file_name
from fencepost_node.log.state_machine import AnyMachine, States, is_part_name
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken

log = logging.getLogger(__name__)

GIVEN_UP_S = 0.000_2
MAX_PARTS = 16

_MAGIC = b"FPPS"
_VERSION = 4
_ONLY_PART_OF = {3: ("producers", 2), 2: ("producers", 1), 1: ("producers", 1)}  # of older versions: name and format
_VERSION_WITHOUT_EPOCH = 1
_HEADER = struct.Struct(">4shI")
_OFFSET = struct.Struct(">q")
_OFFSET_AND_EPOCH = struct.Struct(">qi")
_FORMAT_AND_LENGTH = struct.Struct(">BI")


class Snapshot(NamedTuple):
    """All states at one offset, and the leader epoch of the batch that ends there (-1: not known)."""

    offset: int
    states: States
    last_epoch: int = NO_EPOCH


def let_others_run() -> None:
    """Give the interpreter's lock to threads that wait for it. A thread that runs Python code without pause keeps it for
    5 ms at a time, and the event loop waits so long after each of its system calls."""
    time.sleep(GIVEN_UP_S)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Takes a while for large states: for a thread."""
    machines = snapshot.states.machines
    if len(machines) > MAX_PARTS:
        raise InvariantBroken(f"{len(machines)} state machines of one log: a snapshot has {MAX_PARTS} parts at most")
    parts = [_OFFSET_AND_EPOCH.pack(snapshot.offset, snapshot.last_epoch), bytes((len(machines),))]
    for machine in machines:
        part, name = machine.encode(snapshot.states[machine], let_others_run), machine.name.encode("ascii")
        parts += (bytes((len(name),)), name, _FORMAT_AND_LENGTH.pack(machine.format, len(part)), part)
    content = b"".join(parts)
    return _HEADER.pack(_MAGIC, _VERSION, crc32c(content)) + content


def decode_snapshot(data: bytes, machines: Sequence[AnyMachine]) -> Snapshot:
    """As `encode_snapshot`, for a thread. Raises CorruptMessage where these are not the whole bytes of a snapshot of what
    `machines` fold."""
    if len(data) < _HEADER.size + _OFFSET.size:
        raise CorruptMessage(f"{len(data)} bytes are no snapshot")
    magic, version, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC or not 1 <= version <= _VERSION:
        raise CorruptMessage(f"magic {magic!r} version {version}: a snapshot has {_MAGIC!r} and {_VERSION} at most")
    content = data[_HEADER.size :]
    if (actual := crc32c(content)) != crc:
        raise CorruptMessage(f"CRC {actual:#010x} of the snapshot is not {crc:#010x} as its header says")
    layout = _OFFSET if version == _VERSION_WITHOUT_EPOCH else _OFFSET_AND_EPOCH
    if len(content) < layout.size:
        raise CorruptMessage(f"{len(data)} bytes are no snapshot of version {version}")
    offset, last_epoch = (*layout.unpack_from(content), NO_EPOCH)[:2]
    if offset < 0 or last_epoch < NO_EPOCH:
        raise CorruptMessage(f"offset {offset} or leader epoch {last_epoch} of a snapshot is negative")
    parts = _parts(content[layout.size :], version)
    names = [machine.name for machine in machines]
    if parts.keys() != set(names):
        unknown = [name for name in parts if name not in names]
        problem = f"has the part {unknown[0]!r}" if unknown else f"lacks the part {min(set(names) - parts.keys())!r}"
        raise CorruptMessage(f"a snapshot of version {version} at {offset} {problem}: this log folds {names}")
    states = {machine: machine.decode(*parts[machine.name], let_others_run) for machine in machines}
    return Snapshot(offset, States(states), last_epoch)


def _parts(content: bytes, version: int) -> dict[str, tuple[bytes, int]]:
    """Bytes and format of each part, by name. Raises CorruptMessage for content that is not exactly parts."""
    if version in _ONLY_PART_OF:
        only_name, only_format = _ONLY_PART_OF[version]
        return {only_name: (content, only_format)}
    parts: dict[str, tuple[bytes, int]] = {}
    count, position = content[0] if content else 0, 1
    if not 1 <= count <= MAX_PARTS:
        raise CorruptMessage(f"a snapshot of {count} parts: 1 to {MAX_PARTS} are possible")
    for number in range(1, count + 1):
        name_bytes = content[position + 1 : position + 1 + content[position]] if position < len(content) else b""
        position += 1 + len(name_bytes)
        if not is_part_name(name_bytes) or position + _FORMAT_AND_LENGTH.size > len(content):
            raise CorruptMessage(f"part {number} of {count} in a snapshot has no whole name and length: {name_bytes!r}")
        name = name_bytes.decode()
        part_format, length = _FORMAT_AND_LENGTH.unpack_from(content, position)
        start = position + _FORMAT_AND_LENGTH.size
        position = start + length
        if position > len(content):
            raise CorruptMessage(f"a snapshot ends within its part {name!r}, of {length} bytes")
        if name in parts:
            raise CorruptMessage(f"a snapshot has the part {name!r} twice")
        parts[name] = (content[start:position], part_format)
    if position != len(content):
        raise CorruptMessage(f"{len(content) - position} bytes follow the last part of a snapshot")
    return parts


def empty_snapshot(machines: Sequence[AnyMachine], offset: int = 0) -> bytes:
    """What to start over from where there is nothing to know."""
    return encode_snapshot(Snapshot(offset, States.initial(machines)))


def load_snapshot(disk: Disk, directory: str, offset: int, machines: Sequence[AnyMachine]) -> Snapshot | None:
    """The snapshot file for `offset`; None, and a warning, where it is missing or damaged. Raises OSError otherwise."""
    path = f"{directory}/{file_name(offset, SNAPSHOT_SUFFIX)}"
    try:
        snapshot = decode_snapshot(disk.read_bytes(path), machines)
    except FileNotFoundError:
        log.warning("snapshot missing path=%s", path)
        return None
    except CorruptMessage as error:
        log.warning("snapshot damaged path=%s error=%s", path, error)
        return None
    if snapshot.offset != offset:
        log.warning("snapshot misnamed path=%s offset=%d", path, snapshot.offset)
        return None
    return snapshot


def snapshots_to_keep(offsets: list[int], segment_bases: list[int], log_start_offset: int) -> list[int]:
    """Which of the snapshots stay: the newest two, and those at the bases of segments that exist.

    So there are at most two more than segments, and wherever retention may put the log start next, its snapshot is
    there.
    """
    wanted = {*sorted(offsets)[-2:], *segment_bases}
    return [offset for offset in offsets if offset in wanted and offset >= log_start_offset]


class SnapshotFiles:
    """The snapshot files of one folder. For one thread at a time. Every method may raise OSError."""

    def __init__(self, disk: Disk, directory: str, offsets: list[int], machines: Sequence[AnyMachine]) -> None:
        self._disk = disk
        self._directory = directory
        self._machines = machines
        self.offsets = sorted(offsets)  # rising

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Everything below the snapshot's offset must be synced, with what goes with it."""
        if not self._holds(snapshot.offset):
            self._disk.write_atomically(self.path(snapshot.offset), encode_snapshot(snapshot))
            insort(self.offsets, snapshot.offset)

    def load(self, offset: int) -> Snapshot | None:
        """None where there is none, or none that can be read."""
        return load_snapshot(self._disk, self._directory, offset, self._machines) if self._holds(offset) else None

    def newest(self, log_start_offset: int, end_offset: int | None = None) -> Snapshot:
        """The newest readable one from the log start to `end_offset` (None: any); at offset 0 none is needed.

        Raises CorruptLog where none can be read and the log starts above 0.
        """
        for offset in reversed(self.offsets):
            if log_start_offset <= offset and (end_offset is None or offset <= end_offset):
                snapshot = self.load(offset)
                if snapshot is not None:
                    return snapshot
        if log_start_offset == 0:
            return Snapshot(0, States.initial(self._machines))
        problem = "no snapshot can be read, and the log starts above 0"
        raise CorruptLog(self.path(log_start_offset), 0, log_start_offset, problem)

    def keep(self, kept: list[int]) -> None:
        """Remove the others, the newest first."""
        wanted = set(kept)
        for index in reversed(range(len(self.offsets))):
            if self.offsets[index] not in wanted:
                self._disk.remove(self.path(self.offsets[index]))
                del self.offsets[index]

    def _holds(self, offset: int) -> bool:
        index = bisect_left(self.offsets, offset)
        return index < len(self.offsets) and self.offsets[index] == offset

    def path(self, offset: int) -> str:
        return f"{self._directory}/{file_name(offset, SNAPSHOT_SUFFIX)}"
