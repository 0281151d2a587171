"""Recovery: after a cut at every byte, a flip of every byte, without its snapshots or indexes, and at what cost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fencepost_node.log.disk import File, RealDisk
from fencepost_node.log.log import CorruptLog, Log
from fencepost_node.log.names import LOG_SUFFIX, SNAPSHOT_SUFFIX, SYNC_BEGUN, offsets_with
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.record_batch import iter_batches, stamp
from tests.unit.batches import batch, with_field
from tests.unit.logs import NOW_MS, assert_lawful, content, fill, headers, open_log, produce, settings

DISK = RealDisk()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    """What syncs are for is tested on a simulated disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


def killed(folder: Path, *, batches: int = 14, maintain_after: int = 0, **changes: int) -> tuple[bytes, int]:
    """A log whose process was killed. Returns its content, and up to where it was snapshotted."""
    log = open_log(DISK, str(folder), **changes)
    fill(log, maintain_after)
    if maintain_after:
        log.close(clean=True)
        log = open_log(DISK, str(folder), **changes)
    synced = log.log_end_offset
    fill(log, batches, seed=2)
    stored = content(log)
    log.close(clean=False)
    return stored, synced


def files(folder: Path, suffix: str) -> list[Path]:
    return [folder / f"{offset:020d}{suffix}" for offset in offsets_with(DISK.list(str(folder)), suffix)]


def borders(stored: bytes) -> list[int]:
    return [position for position, _ in iter_batches(stored)] + [len(stored)]


def each_copy(folder: Path, tmp_path: Path) -> Callable[[], Path]:
    """Fresh copies of a folder, one at a time."""

    def copy() -> Path:
        target = tmp_path / "copy-0"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        return target

    return copy


# ---- Cuts and flips ----


def test_a_cut_at_every_byte_leaves_the_batches_before_it(tmp_path: Path) -> None:
    stored, _ = killed(tmp_path / "orders-0", segment_bytes=100_000, snapshot_interval_bytes=100_000)
    whole, copy = borders(stored), each_copy(tmp_path / "orders-0", tmp_path)
    for length in range(len(stored) + 1):
        target = copy()
        with files(target, LOG_SUFFIX)[0].open("r+b") as file:
            file.truncate(length)
        log = open_log(DISK, str(target), segment_bytes=100_000)
        assert content(log) == stored[: max(border for border in whole if border <= length)]
        assert_lawful(log)
        assert files(target, LOG_SUFFIX)[0].stat().st_size == log.size_bytes
        log.close(clean=False)


def test_a_log_cut_anywhere_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    stored, _ = killed(tmp_path / "orders-0", batches=6, segment_bytes=100_000)
    copy = each_copy(tmp_path / "orders-0", tmp_path)
    for length in range(0, len(stored), 13):
        target = copy()
        with files(target, LOG_SUFFIX)[0].open("r+b") as file:
            file.truncate(length)
        log = open_log(DISK, str(target))
        fill(log, 20, seed=length)
        before = content(log)
        log.close(clean=False)
        log = open_log(DISK, str(target))
        assert content(log) == before
        assert_lawful(log)
        log.close(clean=False)


def test_a_flip_of_any_byte_above_the_snapshot_cuts_the_log_there(tmp_path: Path) -> None:
    stored, _ = killed(tmp_path / "orders-0", batches=6, segment_bytes=100_000, snapshot_interval_bytes=100_000)
    whole, copy = borders(stored), each_copy(tmp_path / "orders-0", tmp_path)
    for position in range(len(stored)):
        target = copy()
        data = bytearray(stored)
        data[position] ^= 1 << position % 8
        files(target, LOG_SUFFIX)[0].write_bytes(bytes(data))
        start = max(border for border in whole if border <= position)
        if position - start in range(12, 16):
            continue  # the leader epoch lies outside of the CRC: see the next test
        log = open_log(DISK, str(target), segment_bytes=100_000)
        assert content(log) == stored[:start]
        assert_lawful(log)
        log.close(clean=False)


def test_without_a_power_failure_only_an_unfinished_append_is_cut(tmp_path: Path) -> None:
    """Replicas count on what a killed process had written: a log that lacks more than that is damaged, not shorter."""
    stored, _ = killed(tmp_path / "orders-0", batches=6, segment_bytes=100_000, snapshot_interval_bytes=100_000)
    whole, copy = borders(stored), each_copy(tmp_path / "orders-0", tmp_path)
    config = settings(segment_bytes=100_000)
    for length in range(0, len(stored) + 1, 3):
        target = copy()
        with files(target, LOG_SUFFIX)[0].open("r+b") as file:
            file.truncate(length)
        log = Log.open(DISK, str(target), config, NOW_MS, STATE_MACHINES, power_lost=False)
        assert content(log) == stored[: max(border for border in whole if border <= length)]
        log.close(clean=False)
    for position in range(0, len(stored), 3):
        target = copy()
        data = bytearray(stored)
        data[position] ^= 1 << position % 8
        files(target, LOG_SUFFIX)[0].write_bytes(bytes(data))
        if position - max(border for border in whole if border <= position) in range(8, 16):
            continue  # a length may look unfinished; the leader epoch lies outside of the CRC
        with pytest.raises(CorruptLog):
            Log.open(DISK, str(target), config, NOW_MS, STATE_MACHINES, power_lost=False)


def test_a_leader_epoch_that_falls_ends_the_log(tmp_path: Path) -> None:
    log = open_log(DISK, str(tmp_path / "orders-0"))
    for _ in range(3):
        produce(log, leader_epoch=5)
    stored = content(log)
    log.close(clean=False)
    last = borders(stored)[2]
    files(tmp_path / "orders-0", LOG_SUFFIX)[0].write_bytes(stored[:last] + stamp(stored[last:], 2, 4))
    log = open_log(DISK, str(tmp_path / "orders-0"))
    assert content(log) == stored[:last]
    log.close(clean=False)


@pytest.mark.parametrize(
    "tail", [bytes(700), bytes(20), b"\xff" * 300, b"\0\0\0\0\0\0\0\x05\x7f\xff\xff\xff" + bytes(90)]
)
def test_zeros_or_noise_after_the_last_batch_are_cut_off(tmp_path: Path, tail: bytes) -> None:
    stored, _ = killed(tmp_path / "orders-0", batches=5, segment_bytes=100_000)
    path = files(tmp_path / "orders-0", LOG_SUFFIX)[0]
    path.write_bytes(stored + tail)
    log = open_log(DISK, str(tmp_path / "orders-0"))
    assert content(log) == stored
    assert path.read_bytes() == stored
    log.close(clean=False)


def test_damage_below_the_newest_snapshot_is_reported_with_its_place(tmp_path: Path) -> None:
    """Where recovery or a reader meets it: here the last batch below the snapshot, at every byte of it."""
    folder = tmp_path / "orders-0"
    killed(folder, batches=0, maintain_after=6, segment_bytes=100_000, snapshot_interval_bytes=100_000)
    path = files(folder, LOG_SUFFIX)[0]
    stored = path.read_bytes()
    last = borders(stored)[-2]
    for length in range(last, len(stored)):
        path.write_bytes(stored[:length])
        with pytest.raises(CorruptLog) as caught:
            open_log(DISK, str(folder), segment_bytes=100_000)
        assert caught.value.path == str(path)
        assert caught.value.position == last
        assert str(caught.value.offset) in str(caught.value)
        assert path.stat().st_size == length  # nothing was cut


def test_a_log_that_lost_all_below_its_snapshot_is_damaged_and_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    killed(folder, batches=0, maintain_after=10)
    for path in files(folder, LOG_SUFFIX):
        path.unlink()
    with pytest.raises(CorruptLog, match="no segment"):
        open_log(DISK, str(folder))


def test_a_missing_segment_in_the_middle_is_damage(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    killed(folder, batches=0, maintain_after=60)
    files(folder, LOG_SUFFIX)[2].unlink()
    with pytest.raises(CorruptLog):
        open_log(DISK, str(folder))


def test_a_missing_segment_above_the_snapshot_ends_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    stored, _ = killed(folder, batches=60)
    third = files(folder, LOG_SUFFIX)[2]
    third.unlink()
    log = open_log(DISK, str(folder))
    assert log.log_end_offset == int(third.stem)
    assert stored.startswith(content(log))
    assert_lawful(log)
    log.close(clean=False)


def test_a_whole_batch_whose_sequences_contradict_the_log_is_damage(tmp_path: Path) -> None:
    log = open_log(DISK, str(tmp_path / "orders-0"))
    produce(log)
    stored = content(log)
    log.close(clean=False)
    wrong = batch(1, producer_id=1, sequence=5, base_offset=1)
    files(tmp_path / "orders-0", LOG_SUFFIX)[0].write_bytes(stored + wrong)
    with pytest.raises(CorruptLog, match="base sequence 5"):
        open_log(DISK, str(tmp_path / "orders-0"))


# ---- Snapshots ----


def recovered_state(folder: Path) -> tuple[bytes, ProducerState]:
    log = open_log(DISK, str(folder))
    assert_lawful(log)
    found = content(log), log.states[PRODUCERS]
    log.close(clean=False)
    return found


def many_snapshots(folder: Path) -> tuple[bytes, ProducerState]:
    """A killed log with several segments and snapshots, and batches after the newest."""
    log = open_log(DISK, str(folder))
    for seed in range(20):
        fill(log, 3, seed=seed)
        log.maintain()
    fill(log, 4, seed=99)
    found = content(log), log.states[PRODUCERS]
    log.close(clean=False)
    assert len(files(folder, SNAPSHOT_SUFFIX)) >= 4
    return found


def test_a_damaged_snapshot_falls_back_to_an_older_one_and_at_last_to_the_whole_log(tmp_path: Path) -> None:
    stored, state = many_snapshots(tmp_path / "orders-0")
    copy = each_copy(tmp_path / "orders-0", tmp_path)
    for damaged in range(1, len(files(tmp_path / "orders-0", SNAPSHOT_SUFFIX)) + 1):
        target = copy()
        for path in files(target, SNAPSHOT_SUFFIX)[-damaged:]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0x10
            path.write_bytes(bytes(data))
        assert recovered_state(target) == (stored, state)


def test_a_flip_of_any_byte_of_a_snapshot_is_noticed(tmp_path: Path) -> None:
    stored, state = many_snapshots(tmp_path / "orders-0")
    copy = each_copy(tmp_path / "orders-0", tmp_path)
    newest = files(tmp_path / "orders-0", SNAPSHOT_SUFFIX)[-1].name
    data = (tmp_path / "orders-0" / newest).read_bytes()
    for position in range(len(data)):
        target = copy()
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        (target / newest).write_bytes(bytes(changed))
        assert recovered_state(target) == (stored, state)


def test_a_snapshot_under_another_offsets_name_is_not_believed(tmp_path: Path) -> None:
    stored, state = many_snapshots(tmp_path / "orders-0")
    older, *_, newest = files(tmp_path / "orders-0", SNAPSHOT_SUFFIX)
    shutil.copy(older, newest)
    assert recovered_state(tmp_path / "orders-0") == (stored, state)


def test_damage_between_a_readable_snapshot_and_a_damaged_newer_one_is_not_cut_away(tmp_path: Path) -> None:
    many_snapshots(tmp_path / "orders-0")
    *_, older, newest = files(tmp_path / "orders-0", SNAPSHOT_SUFFIX)
    newest.write_bytes(b"")
    *_, holder = [path for path in files(tmp_path / "orders-0", LOG_SUFFIX) if int(path.stem) <= int(older.stem)]
    data = holder.read_bytes()
    position = next(p for p, header in iter_batches(data) if header.base_offset >= int(older.stem))
    holder.write_bytes(data[:position] + bytes(len(data) - position))
    with pytest.raises(CorruptLog) as caught:
        open_log(DISK, str(tmp_path / "orders-0"))
    assert (caught.value.path, caught.value.offset) == (str(holder), int(older.stem))


def test_without_any_snapshot_everything_is_folded_again(tmp_path: Path) -> None:
    stored, state = many_snapshots(tmp_path / "orders-0")
    for path in files(tmp_path / "orders-0", SNAPSHOT_SUFFIX):
        path.unlink()
    log = open_log(DISK, str(tmp_path / "orders-0"))
    assert (content(log), log.states[PRODUCERS]) == (stored, state)
    log.maintain()
    bases = [int(path.stem) for path in files(tmp_path / "orders-0", LOG_SUFFIX)]
    assert [int(path.stem) for path in files(tmp_path / "orders-0", SNAPSHOT_SUFFIX)][: len(bases) - 1] == bases[1:]
    assert_lawful(log)
    log.close(clean=False)


def test_without_any_snapshot_a_log_that_starts_above_0_is_damaged(tmp_path: Path) -> None:
    many_snapshots(tmp_path / "orders-0")
    files(tmp_path / "orders-0", LOG_SUFFIX)[0].unlink()
    for path in files(tmp_path / "orders-0", SNAPSHOT_SUFFIX):
        path.write_bytes(b"rubbish")
    with pytest.raises(CorruptLog, match="no snapshot can be read"):
        open_log(DISK, str(tmp_path / "orders-0"))


def test_all_five_batches_are_recognised_after_a_restart(tmp_path: Path) -> None:
    """Gauntlet: window-of-five, from a snapshot alone and from the log alone."""
    for clean in (True, False):
        folder = tmp_path / f"clean-{clean}"
        log = open_log(DISK, str(folder))
        for _ in range(9):
            produce(log, 7, 2)
        log.close(clean)
        log = open_log(DISK, str(folder))
        entry = log.states[PRODUCERS].get(7)
        assert entry is not None
        assert [(b.first_sequence, b.base_offset) for b in entry.batches] == [(n, n) for n in (8, 10, 12, 14, 16)]
        log.close(clean=False)


# ---- Indexes and epochs ----


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "short", "other"])
@pytest.mark.parametrize("suffix", [".index", ".timeindex"])
def test_an_index_that_does_not_fit_is_rebuilt(tmp_path: Path, suffix: str, damage: str) -> None:
    folder = tmp_path / "orders-0"
    stored, _ = many_snapshots(folder)
    paths = files(folder, suffix)
    assert len(paths) >= 3
    for path in paths:
        data = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "empty": b"",
                    "noise": bytes(byte ^ 0x5A for byte in data),
                    "short": data[: len(data) // 2 + 3],
                    "other": paths[0].read_bytes(),
                }[damage]
            )
    log = open_log(DISK, str(folder))
    assert content(log) == stored
    expected = [header.max_timestamp for header in headers(log)]
    found = log.offset_for_timestamp(1_000)
    assert found == (0, expected[0])
    fill(log, 20)
    log.maintain()
    assert_lawful(log)
    log.close(clean=False)


@pytest.mark.parametrize("damage", [None, b"", b"rubbish", b"0\n2\n5 1\n4 2\n", b"\xff\xfe"])
def test_the_epochs_survive_the_loss_of_their_checkpoint(tmp_path: Path, damage: bytes | None) -> None:
    folder = tmp_path / "orders-0"
    log = open_log(DISK, str(folder))
    fill(log, 50)
    epochs = log.leader_epochs
    log.close(clean=True)
    path = folder / "leader-epoch-checkpoint"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    log = open_log(DISK, str(folder))
    assert log.leader_epochs == epochs
    log.close(clean=False)


def test_leftovers_of_interrupted_removals_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    stored, _ = killed(folder, batches=20)
    for name in (f"{900:020d}.log.deleted", f"{900:020d}.index", f"{900:020d}.timeindex", "x.tmp"):
        (folder / name).write_bytes(b"old")
    log = open_log(DISK, str(folder))
    assert content(log) == stored
    assert not [name for name in DISK.list(str(folder)) if "900" in name or name.endswith((".deleted", ".tmp"))]
    log.close(clean=False)


# ---- Cost ----


class CountingDisk(RealDisk):
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def open(self, path: str, *, create: bool = False) -> File:
        file, disk = super().open(path, create=create), self

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def read(self, position: int, length: int) -> bytes:
                data = file.read(position, length)
                disk.read += len(data)
                return data

        return Counting()  # type: ignore[return-value]


def test_recovery_reads_what_came_after_the_snapshot_whatever_the_size_of_the_log(tmp_path: Path) -> None:
    sizes = {"segment_bytes": 400_000, "snapshot_interval_bytes": 200_000, "index_interval_bytes": 4_096}
    read = []
    for name, batches in (("small-0", 100), ("large-0", 1_500)):
        log = open_log(DISK, str(tmp_path / name), **sizes)
        for _ in range(batches):
            produce(log, value=b"x" * 4_000)
            if log.maintenance_due:
                log.maintain()
        size = log.size_bytes
        log.close(clean=False)
        disk = CountingDisk()
        log = open_log(disk, str(tmp_path / name), **sizes)
        assert log.size_bytes == size
        log.close(clean=False)
        read.append(disk.read)
    assert size > 6_000_000
    assert read[1] < 700_000
    # besides the tail, each sealed segment costs a look at its last batches
    assert read[1] - read[0] < 200_000 + 15 * 40_000


def test_magic_0_in_a_segment_is_a_bad_batch_like_any_other(tmp_path: Path) -> None:
    stored, _ = killed(tmp_path / "orders-0", batches=3, segment_bytes=100_000)
    last = borders(stored)[2]
    old = with_field(stored[last:], 16, ">b", 0)
    files(tmp_path / "orders-0", LOG_SUFFIX)[0].write_bytes(stored[:last] + old)
    log = open_log(DISK, str(tmp_path / "orders-0"))
    assert content(log) == stored[:last]
    log.close(clean=False)


def test_bytes_after_a_sealed_segments_end_are_damage(tmp_path: Path) -> None:
    folder = tmp_path / "orders-0"
    killed(folder, batches=0, maintain_after=60)
    with files(folder, LOG_SUFFIX)[1].open("ab") as file:
        file.write(bytes(5))
    with pytest.raises(CorruptLog):
        open_log(DISK, str(folder))


def test_what_a_sync_that_did_not_end_may_have_lost_is_written_again_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine's own disk: from the newest snapshot on, to the end, in pieces; and once."""
    folder = tmp_path / "orders-0"
    stored, synced = killed(folder, batches=30, maintain_after=12)
    before = {path.name: path.read_bytes() for path in files(folder, LOG_SUFFIX)}
    (folder / SYNC_BEGUN).touch()
    written: list[tuple[str, int]] = []

    def pwrite(descriptor: int, data: bytes, position: int, write=os.pwrite) -> int:  # type: ignore[no-untyped-def]
        written.append((os.readlink(f"/proc/self/fd/{descriptor}"), position))
        return int(write(descriptor, data[:300], position))

    monkeypatch.setattr(os, "pwrite", pwrite)
    log = open_log(DISK, str(folder))
    assert content(log) == stored
    assert {path.name: path.read_bytes() for path in files(folder, LOG_SUFFIX)} == before
    reached = [
        path for path in files(folder, LOG_SUFFIX) if path.name in {os.path.basename(name) for name, _ in written}
    ]
    assert reached == [path for path in files(folder, LOG_SUFFIX) if path in reached or int(path.stem) >= synced]
    assert len(written) > len(reached) > 2
    first, position = written[0]
    assert int(Path(first).stem) <= synced
    assert position > 0
    log.close(clean=False)
    written.clear()
    assert not (folder / SYNC_BEGUN).exists()
    open_log(DISK, str(folder)).close(clean=False)
    assert written == []


def reopened(folder: Path, *, power_lost: bool) -> Log:
    return Log.open(DISK, str(folder), settings(segment_bytes=100_000), NOW_MS, STATE_MACHINES, power_lost=power_lost)


def test_damage_that_was_found_is_damage_after_a_loss_of_power_too(tmp_path: Path) -> None:
    """With flush=always the log counts as whole after it: nothing that was acknowledged may be cut."""
    folder = tmp_path / "orders-0"
    stored, _ = killed(folder, batches=10, segment_bytes=100_000)
    path = files(folder, LOG_SUFFIX)[0]
    at = borders(stored)[4] + 70
    sound = path.read_bytes()
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    for power_lost in (False, True, True):
        with pytest.raises(CorruptLog):
            reopened(folder, power_lost=power_lost)
    path.write_bytes(sound)
    log = reopened(folder, power_lost=False)
    assert content(log) == stored
    log.close(clean=False)
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    log = reopened(folder, power_lost=True)
    assert content(log) == stored[: borders(stored)[4]], "nobody had found it before"
    log.close(clean=False)
