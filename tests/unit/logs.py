"""Logs for tests: small segments, producers that count their own sequences, and the laws that every log keeps."""

from __future__ import annotations

import random
from typing import Any, cast

from fencepost_node.log.disk import Disk
from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.log import Log, LogConfig
from fencepost_node.log.names import SNAPSHOT_SUFFIX, offsets_with
from fencepost_node.log.snapshot import Snapshot, decode_snapshot, encode_snapshot, load_snapshot
from fencepost_node.log.state_machine import States
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.record_batch import BatchHeader, check_produced, iter_batches
from tests.simulation.disk import MountedDisk, SimDisk
from tests.simulation.process import SimProcess
from tests.unit.batches import batch

FOLDER = "/data/orders-0"
NOW_MS = 1_000_000


def settings(**changes: Any) -> LogConfig:
    """Small: a segment holds a handful of batches, an index entry comes with every second one."""
    values: dict[str, Any] = {"topic_id": "T", "segment_bytes": 1_000, "snapshot_interval_bytes": 700}
    values |= {"index_interval_bytes": 150} | changes
    return LogConfig(**values)


def open_log(disk: Disk, folder: str = FOLDER, **changes: Any) -> Log:
    return Log.open(disk, folder, settings(**changes), NOW_MS, STATE_MACHINES)


def snapshot_bytes(offset: int, producers: ProducerState | None = None, last_epoch: int = -1) -> bytes:
    """A snapshot file's content."""
    return encode_snapshot(Snapshot(offset, States({PRODUCERS: producers or ProducerState()}), last_epoch))


def producers_in(data: bytes) -> ProducerState:
    """Of a snapshot file's content."""
    return decode_snapshot(data, STATE_MACHINES).states[PRODUCERS]


def produce(
    log: Log,
    producer_id: int = 1,
    count: int = 1,
    *,
    leader_epoch: int | None = None,
    epoch: int | None = None,
    timestamp_ms: int = 1_000,
    value: bytes = b"value",
) -> bytes:
    """The producer's next batch, through the same calls as a leader's. Returns the bytes as stored."""
    entry = log.states[PRODUCERS].get(producer_id)
    known_epoch = entry.epoch if entry else 0
    goes_on = entry is not None and epoch in (None, known_epoch)
    data = batch(
        count,
        producer_id=producer_id,
        epoch=known_epoch if epoch is None else epoch,
        sequence=entry.next_sequence if entry and goes_on else 0,
        timestamp_ms=timestamp_ms,
        value=value,
    )
    header = check_produced(data)
    log.states[PRODUCERS].check(header, ever_held_records=log.ever_held_records)
    return log.append_as_leader(header, data, max(log.last_epoch, 0) if leader_epoch is None else leader_epoch)


def fill(log: Log, batches: int = 30, *, seed: int = 1, epochs: bool = True) -> None:
    """Batches of three producers, of changing size, under a leader epoch that rises now and then."""
    chance = random.Random(seed)
    for _ in range(batches):
        leader_epoch = max(log.last_epoch, 0) + (1 if epochs and chance.random() < 0.1 else 0)
        produce(log, chance.randint(1, 3), chance.randint(1, 3), leader_epoch=leader_epoch)


def content(log: Log, max_bytes: int = 400) -> bytes:
    """All that readers see, in several reads."""
    offset, parts = log.log_start_offset, []
    while offset < log.log_end_offset:
        part = log.read_batches(offset, max_bytes)
        assert part, f"nothing at {offset}, the log ends at {log.log_end_offset}"
        parts.append(part)
        for _, header in iter_batches(part):
            assert header.base_offset == offset
            offset = header.end_offset
    return b"".join(parts)


def headers(log: Log) -> list[BatchHeader]:
    return [header for _, header in iter_batches(content(log))]


def fold(state: ProducerState, log_content: bytes, from_offset: int = 0) -> ProducerState:
    """`state` after every batch at `from_offset` or above."""
    for _, header in iter_batches(log_content):
        if header.base_offset >= from_offset:
            state.record(header, header.base_offset)
    return state


def assert_lawful(log: Log) -> None:
    """What holds of every log at any moment: G5 in three ways, its epochs, its size, and what its snapshots promise."""
    disk, stored = log._disk, content(log)
    assert len(stored) == log.size_bytes
    start, end = log.log_start_offset, log.log_end_offset
    at_start = decode_snapshot(log.snapshot_at_base(), STATE_MACHINES)
    assert at_start.offset == start
    assert fold(at_start.states[PRODUCERS], stored) == log.states[PRODUCERS]
    offsets = offsets_with(disk.list(log.directory), SNAPSHOT_SUFFIX)
    assert all(start <= offset <= end for offset in offsets)
    for offset in offsets:
        snapshot = load_snapshot(disk, log.directory, offset, STATE_MACHINES)
        assert snapshot is not None
        assert fold(snapshot.states[PRODUCERS], stored, offset) == log.states[PRODUCERS]
    if start:
        assert start in offsets
    derived = LeaderEpochs()
    for _, header in iter_batches(stored):
        derived.record(header.leader_epoch, header.base_offset)
    told = [(entry.epoch, max(entry.start_offset, start)) for entry in log.leader_epochs.entries]
    if len(told) > len(derived.entries):
        told = told[1:]  # the epoch of the batch before the start
    assert told == list(derived.entries)


# ---- A machine whose power may fail between any two steps ----


class PowerCut(BaseException):
    """The process is dead."""


class _Process:
    """As much of a simulated process as a disk asks for."""

    def __init__(self) -> None:
        self.alive = True

    def check_alive(self) -> None:
        if not self.alive:
            raise PowerCut


class Machine:
    """A simulated disk, and one process at a time that mounts it."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimDisk("m", random.Random(seed))
        self._process = _Process()

    def mount(self) -> MountedDisk:
        self._process.alive = False
        self._process = _Process()
        return self.disk.mount(cast(SimProcess, self._process))

    def die_at(self, operation: int) -> None:
        """The process dies in its `operation`th call of the disk from now."""
        process = self._process

        def die() -> None:
            process.alive = False

        self.disk.on_crash = die
        self.disk.crash_at_operation = self.disk.operations + operation

    def survive(self) -> None:
        self.disk.crash_at_operation = 0
