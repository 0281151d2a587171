"""Bytes that change on a log's disk: what a read finds, what a scan finds, what `verify_log` and the command tell."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fencepost_cli.main import app
from fencepost_node.log.disk import RealDisk
from fencepost_node.log.log import CorruptLog, Log, OutOfRoom
from fencepost_node.log.segment import merged
from fencepost_node.log.verify import verify_log
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.record_batch import iter_batches
from tests.unit.logs import FOLDER, Machine, content, fill, open_log, produce


def filled(machine: Machine, **changes: Any) -> Log:
    log = open_log(machine.mount(), **changes)
    fill(log)
    log.maintain()
    return log


def places(log: Log) -> list[tuple[str, int, int]]:
    """(path, position, size) of every batch."""
    found = []
    for segment in log._row.all:
        data = segment.file.read(0, segment.size)
        found += [(segment.path, position, header.size_bytes) for position, header in iter_batches(data)]
    return found


def scan_all(log: Log, max_bytes: int = 300) -> int:
    place, read = log.scan(None, max_bytes)
    while place is not None:
        place, more = log.scan(place, max_bytes)
        read += more
    return read


def read_all(log: Log, chance: random.Random, into: list[bytes]) -> None:
    offset = log.log_start_offset
    while offset < log.log_end_offset:
        into.append(log.read_batches(offset, chance.choice((1, 400, 2_000))))
        offset = [header.end_offset for _, header in iter_batches(into[-1])][-1]


@pytest.mark.parametrize("seed", range(40))
def test_no_reader_gets_a_batch_in_which_a_byte_has_changed(seed: int) -> None:
    """Whichever byte it is, also one that no CRC covers; what is whole before it is served."""
    chance = random.Random(seed)
    machine = Machine(seed)
    log = filled(machine)
    sound = content(log)
    log.close(clean=True)
    log = open_log(machine.mount())
    path, position, size = chance.choice(places(log))
    machine.disk.corrupt(path, position + chance.randrange(size))
    served: list[bytes] = []
    with pytest.raises(CorruptLog, match="is damaged at byte"):
        read_all(log, chance, served)
    assert sound.startswith(b"".join(served))
    with pytest.raises(CorruptLog, match="is damaged at byte"):
        scan_all(log)


@pytest.mark.parametrize("interval_bytes", [0, 200])
def test_an_index_in_which_a_byte_has_changed_costs_time_and_nothing_else(interval_bytes: int) -> None:
    """Whichever byte it is: what the index says is compared with the batches before it counts."""
    machine = Machine()
    log = filled(machine, index_interval_bytes=interval_bytes)
    sound = content(log)
    offsets = [header.base_offset for _, header in iter_batches(sound)]
    indexes = [(path, len(node.content)) for path, node in machine.disk.files() if path.endswith(".index")]
    assert sum(size for _, size in indexes) > 0
    chance = random.Random(interval_bytes)
    for path, size in indexes:
        for position in range(size):
            machine.disk.corrupt(path, position)
            for offset in (0, chance.choice(offsets)):
                (first, *_) = list(iter_batches(log.read_batches(offset, chance.choice((1, 400, 2_000)))))
                assert first[1].base_offset == offset, f"byte {position} of {path}"
            machine.disk.corrupt(path, position)
    assert content(log) == sound


def timed(machine: Machine, chance: random.Random) -> Log:
    """Several segments, of which each has several index entries; timestamps go up and down."""
    log = open_log(machine.mount(), index_interval_bytes=150)
    for number in range(60):
        produce(log, timestamp_ms=1_000 + 10 * number + chance.randint(-60, 60))
    log.maintain()
    return log


def expected_by_time(log: Log, timestamp_ms: int) -> tuple[int, int] | None:
    found = (header for _, header in iter_batches(content(log)) if header.max_timestamp >= timestamp_ms)
    return next(((header.base_offset, header.max_timestamp) for header in found), None)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("bits", [0x01, 0x10, 0x80, 0xFF])
def test_a_time_index_in_which_a_byte_has_changed_costs_time_and_nothing_else(bits: int, restarted: bool) -> None:
    """Look-ups by time find what they found before, and no segment seems older than it is: retention would delete it."""
    machine = Machine()
    log = timed(machine, random.Random(1))
    times = {timestamp_ms: expected_by_time(log, timestamp_ms) for timestamp_ms in range(930, 1_680, 10)}
    ages = [segment.largest_timestamp_ms for segment in log._row.all]
    indexes = [(path, len(node.content)) for path, node in machine.disk.files() if path.endswith(".timeindex")]
    assert sum(size for _, size in indexes) >= 288
    sound, chance = machine.disk.copy_of(FOLDER), random.Random(2)
    for path, size in indexes:
        for position in range(size):
            machine.disk.corrupt(path, position, bits)
            if restarted:
                log = open_log(machine.mount(), index_interval_bytes=150)
            seen = [segment.largest_timestamp_ms for segment in log._row.all]
            assert all(now >= then for now, then in zip(seen, ages, strict=True)), (
                f"{seen} with byte {position} of {path}"
            )
            for timestamp_ms in chance.sample(sorted(times), 20):
                where = f"{timestamp_ms} with byte {position} of {path}"
                assert log.offset_for_timestamp(timestamp_ms) == times[timestamp_ms], where
            if restarted:
                log.close(clean=False)
                machine.disk.put_back(FOLDER, sound)
            else:
                machine.disk.corrupt(path, position, bits)


def test_damage_that_a_reader_has_found_is_damage_after_a_loss_of_power_too() -> None:
    machine = Machine()
    log = open_log(machine.mount(), segment_bytes=100_000, snapshot_interval_bytes=100_000)
    fill(log)
    log.sync()
    stored = content(log)
    path, position, _ = places(log)[5]
    log.distrust(0)
    machine.disk.corrupt(path, position + 66)
    with pytest.raises(CorruptLog):
        scan_all(log)
    machine.disk.lose_power()
    with pytest.raises(CorruptLog):
        open_log(machine.mount())
    machine.disk.corrupt(path, position + 66)
    assert content(open_log(machine.mount())) == stored


def test_what_was_read_and_sound_is_checked_again_only_when_a_reader_says_that_it_is_not() -> None:
    machine = Machine()
    log = filled(machine)
    content(log)
    path, position, _ = places(log)[3]
    offset = list(iter_batches(content(log)))[3][1].base_offset
    machine.disk.corrupt(path, position + 66)
    assert log.read_batches(offset, 1), "once checked"
    log.distrust(offset)
    with pytest.raises(CorruptLog):
        log.read_batches(offset, 1)


def test_ranges_that_were_checked_are_merged_and_their_number_is_bounded() -> None:
    assert merged((), (10, 20)) == ((10, 20),)
    assert merged(((0, 10), (20, 30)), (10, 20)) == ((0, 30),)
    assert merged(((0, 10), (20, 30)), (12, 15)) == ((0, 10), (12, 15), (20, 30))
    many: tuple[tuple[int, int], ...] = ()
    for number in range(200):
        many = merged(many, (number * 10, number * 10 + 5))
    assert len(many) == 64
    assert many[-1] == (1_990, 1_995)


def test_a_scan_reads_every_byte_while_the_log_goes_on() -> None:
    machine = Machine()
    log = filled(machine)
    place, read = log.scan(None, 300)
    produce(log)
    log.truncate_to(log.log_end_offset - 1)
    fill(log, 5)
    while place is not None:
        place, more = log.scan(place, 300)
        read += more
    assert read == log.size_bytes


def test_a_damaged_snapshot_is_removed_where_the_batches_have_its_content() -> None:
    machine = Machine()
    log = filled(machine, retention_bytes=1_500)
    log.apply_retention(1_000, log.log_end_offset)
    log.check_snapshots()
    start, *others = log._snapshots.files.offsets
    assert start == log.log_start_offset > 0
    for offset in (others[0], others[-1]):  # in the middle, and the newest
        machine.disk.corrupt(f"{FOLDER}/{offset:020d}.snapshot", 20)
    log.check_snapshots()
    assert log._snapshots.files.offsets == [start, *others[1:-1]]
    before, known = content(log), log.states[PRODUCERS].copy()
    log.close(clean=False)
    log = open_log(machine.mount())
    assert (content(log), log.states[PRODUCERS]) == (before, known)
    machine.disk.corrupt(f"{FOLDER}/{start:020d}.snapshot", 20)
    with pytest.raises(CorruptLog, match="snapshot cannot be read"):
        log.check_snapshots()


def test_a_full_disk_refuses_an_append_and_the_next_one_succeeds_when_there_is_room() -> None:
    machine = Machine()
    log = filled(machine)
    before, end = content(log), log.log_end_offset
    machine.disk.capacity_bytes = machine.disk.used_bytes() + 20
    for _ in range(3):
        with pytest.raises(OutOfRoom, match="no space left"):
            produce(log)
    assert (content(log), log.log_end_offset, log.failure) == (before, end, "")
    machine.disk.capacity_bytes = None
    produce(log)
    assert log.log_end_offset == end + 1


def test_a_sync_that_finds_no_room_to_begin_has_not_failed() -> None:
    machine = Machine()
    log = filled(machine)
    produce(log)
    machine.disk.capacity_bytes = machine.disk.used_bytes()
    with pytest.raises(OutOfRoom, match="no sync of"):
        log.sync()
    machine.disk.capacity_bytes = None
    assert log.sync() == log.log_end_offset
    assert log.failure == ""


def test_retention_makes_room_on_a_full_disk() -> None:
    machine = Machine()
    log = filled(machine, retention_bytes=1_500)
    produce(log, value=bytes(800))
    produce(log, value=bytes(800))
    machine.disk.capacity_bytes = machine.disk.used_bytes()
    start, size = log.log_start_offset, log.size_bytes
    log.apply_retention(1_000, log.log_end_offset)
    assert log.log_start_offset > start
    assert log.size_bytes < size


# ---- On demand ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A broker's data folder with one partition of several segments, cleanly stopped."""
    log = open_log(RealDisk(), str(tmp_path / "broker-1" / "orders-0"), retention_bytes=3_000)
    fill(log)
    log.apply_retention(1_000, log.log_end_offset)
    log.close(clean=True)
    return tmp_path / "broker-1"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def test_every_flipped_byte_of_a_stopped_log_is_found(folder: Path) -> None:
    disk, partition = RealDisk(), folder / "orders-0"
    assert verify_log(disk, str(partition), STATE_MACHINES, in_use=False).damage == []
    chance = random.Random(1)
    files = [
        path for path in sorted(partition.iterdir()) if path.suffix in (".log", ".snapshot") and path.stat().st_size
    ]
    assert len(files) == 6
    for path in files:
        position = chance.randrange(path.stat().st_size)
        if path.suffix == ".log":
            position = (
                min(position, 8) if position < 17 else position
            )  # the epoch is in no CRC: only a log that is open knows it
        flip(path, position)
        assert verify_log(disk, str(partition), STATE_MACHINES, in_use=False).damage != [], (path, position)
        flip(path, position)


def test_what_a_crash_leaves_is_noted_and_a_hole_is_damage(folder: Path) -> None:
    disk, partition = RealDisk(), folder / "orders-0"
    segments = sorted(partition.glob("*.log"))
    with segments[-1].open("ab") as file:
        file.write(bytes(30))
    told = verify_log(disk, str(partition), STATE_MACHINES, in_use=False)
    assert (told.damage, len(told.notes)) == ([], 1)
    segments[1].unlink()
    assert "the next one begins at" in verify_log(disk, str(partition), STATE_MACHINES, in_use=False).damage[0]


def test_the_commands_exit_code_says_whether_something_is_damaged(folder: Path) -> None:
    runner = CliRunner()
    sound = runner.invoke(app, ["verify-disk", str(folder)])
    assert (sound.exit_code, "0 partitions damaged" in sound.stdout) == (0, True)
    segment = sorted((folder / "orders-0").glob("*.log"))[0]
    flip(segment, 70)
    told = runner.invoke(app, ["verify-disk", "--data-dir", str(folder.parent)])
    assert told.exit_code == 1
    assert f"damaged: {segment} is damaged at byte 0" in told.stdout
    line = json.loads(runner.invoke(app, ["verify-disk", "--json", str(folder)]).stdout)
    assert (line["directory"], len(line["damage"])) == (str(folder / "orders-0"), 1)
    assert runner.invoke(app, ["verify-disk", str(folder / "nothing")]).exit_code == 2
