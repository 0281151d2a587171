"""A disk that refuses, and power that fails between any two steps."""

from __future__ import annotations

import copy
import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest

from fencepost_node.log.log import CorruptLog, Log, OutOfRoom
from fencepost_node.log.names import SYNC_BEGUN
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.record_batch import iter_batches
from tests.simulation.disk import Fault
from tests.unit.logs import (
    FOLDER,
    NOW_MS,
    Machine,
    PowerCut,
    assert_lawful,
    content,
    fill,
    open_log,
    produce,
    settings,
    snapshot_bytes,
)

# ---- Refusals ----


def test_a_failed_append_changes_nothing_whatever_part_of_it_was_written() -> None:
    """Gauntlet: state-before-persist. The batch is not remembered, so its retry is appended, once."""
    for seed in range(40):
        machine = Machine(seed)
        disk = machine.mount()
        log = open_log(disk)
        fill(log, 5)
        before, state, epochs = content(log), log.states[PRODUCERS].copy(), log.leader_epochs
        machine.disk.faults.append(Fault(("append",), errno.EIO, ".log"))
        with pytest.raises(StorageError, match="append to"):
            produce(log, 1, 2, leader_epoch=9)
        assert (content(log), log.states[PRODUCERS], log.leader_epochs) == (before, state, epochs)
        stored = produce(log, 1, 2, leader_epoch=9)
        assert content(log) == before + stored
        assert_lawful(log)
        log.close(clean=False)
        assert content(open_log(disk)) == before + stored


def test_a_full_disk_refuses_until_there_is_room() -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk)
    fill(log, 5)
    before = content(log)
    for room in range(0, 120, 7):
        machine.disk.capacity_bytes = machine.disk.used_bytes() + room
        refused = False
        for _ in range(40):
            before = content(log)
            try:
                produce(log, 2)
            except StorageError:
                refused = True
                break
        assert refused
        assert content(log) == before
        machine.disk.capacity_bytes = None
        assert_lawful(log)
    machine.disk.capacity_bytes = None
    produce(log, 2)
    log.maintain()
    assert_lawful(log)


def test_a_follower_whose_disk_refuses_stores_none_of_a_push() -> None:
    leader = open_log(Machine().mount())
    fill(leader, 4)
    machine = Machine(3)
    log = open_log(machine.mount())
    machine.disk.faults.append(Fault(("append",), errno.ENOSPC, ".log"))
    with pytest.raises(StorageError):
        log.append_as_follower(content(leader))
    assert (log.log_end_offset, len(log.states[PRODUCERS]), log.last_epoch) == (0, 0, -1)
    log.append_as_follower(content(leader))
    assert log.states[PRODUCERS] == leader.states[PRODUCERS]


def test_a_disk_that_is_read_only_for_a_while_fails_no_log() -> None:
    """Nothing was written, so there is nothing to cut back; the leader can serve readers meanwhile."""
    machine = Machine()
    log = open_log(machine.mount())
    produce(log)
    machine.disk.faults += [Fault(("append",), errno.EROFS, ".log", count=2), Fault(("truncate",), errno.EROFS, ".log")]
    for _ in range(2):
        with pytest.raises(OutOfRoom):
            produce(log)
    assert not log.failure
    assert log.read_batches(0, 10_000)
    machine.disk.faults.clear()
    produce(log)
    assert log.log_end_offset == 2
    assert_lawful(log)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENOSPC])
def test_what_takes_no_write_at_all_leaves_nothing_to_cut_back(code: int) -> None:
    """No descriptor for the file, or a file system that is read-only: cutting back would be refused as well, and the log
    would count as failed permanently."""
    machine = Machine()
    log = open_log(machine.mount())
    produce(log)
    before = content(log)

    def refuses(*_: object) -> None:
        raise OSError(code, "nothing is written", FOLDER)

    file = type(log._row.active.file)
    with patch.object(file, "append", refuses), patch.object(file, "truncate", refuses):
        for _ in range(3):
            with pytest.raises(OutOfRoom, match="nothing is written"):
                produce(log, 2)
    assert (content(log), log.failure) == (before, "")
    produce(log, 2)
    assert_lawful(log)


def test_a_sync_that_a_read_only_disk_lets_no_one_begin_has_not_failed() -> None:
    machine = Machine()
    log = open_log(machine.mount())
    produce(log)
    machine.disk.faults.append(Fault(("open",), errno.EROFS, SYNC_BEGUN))
    with pytest.raises(OutOfRoom, match="no sync of"):
        log.sync()
    assert log.sync() == log.log_end_offset


def test_a_log_that_cannot_be_cut_back_has_failed() -> None:
    machine = Machine()
    log = open_log(machine.mount())
    produce(log)
    machine.disk.faults += [Fault(("append",), errno.EIO, ".log"), Fault(("truncate",), errno.EIO, ".log")]
    for _ in range(2):
        with pytest.raises(StorageError):
            produce(log)
    with pytest.raises(StorageError, match="cutting it back"):
        log.sync()
    assert log.failure
    assert len(content(log)) == log.size_bytes  # what is there can still be read
    log.close(clean=True)
    log = open_log(machine.mount())
    assert log.log_end_offset == 1
    produce(log)


def test_a_failed_roll_changes_nothing() -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk)
    while log.size_bytes < 900:
        produce(log)
    before = content(log)
    machine.disk.faults.append(Fault(("open",), errno.EMFILE, ".log"))
    with pytest.raises(StorageError, match="no new segment"):
        produce(log, value=b"x" * 200)
    assert content(log) == before
    produce(log, value=b"x" * 200)
    assert_lawful(log)


def test_a_failed_sync_fails_the_log_for_good() -> None:
    machine = Machine()
    log = open_log(machine.mount())
    produce(log)
    machine.disk.faults.append(Fault(("sync",), errno.EIO, ".log"))
    with pytest.raises(StorageError, match="sync of"):
        log.sync()
    for refused in (log.sync, lambda: produce(log)):
        with pytest.raises(StorageError, match="sync of"):
            refused()


@pytest.mark.parametrize("where", [".index", ".timeindex", "leader-epoch", ".snapshot"])
def test_maintenance_that_fails_is_still_due_and_done_later(where: str) -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk)
    fill(log, 60)
    machine.disk.faults.append(Fault(("append", "create", "open", "rename"), errno.ENOSPC, where))
    with pytest.raises(StorageError):
        log.maintain()
    assert log.maintenance_due
    fill(log, 5)
    log.maintain()
    assert not log.maintenance_due
    assert_lawful(log)
    log.close(clean=False)
    assert_lawful(open_log(disk))


@pytest.mark.parametrize("kind", ["remove", "rename", "truncate", "sync", "sync_directory"])
def test_a_truncation_that_fails_half_way_fails_the_log_and_a_restart_finds_a_log(kind: str) -> None:
    for skip in range(4):
        machine = Machine()
        disk = machine.mount()
        log = open_log(disk)
        fill(log, 60)
        log.maintain()
        before = content(log)
        machine.disk.faults.append(Fault((kind,), errno.EIO, FOLDER, skip=skip))
        try:
            log.truncate_to(20)
        except StorageError:
            with pytest.raises(StorageError):
                produce(log)
        machine.disk.faults.clear()
        log.close(clean=False)
        log = open_log(disk)
        assert before.startswith(content(log))
        assert log.log_end_offset >= 19
        assert_lawful(log)


def test_a_log_that_cannot_be_opened_says_so() -> None:
    machine = Machine()
    open_log(machine.mount()).close(clean=True)
    machine.disk.faults.append(Fault(("open",), errno.EACCES, ".log"))
    with pytest.raises(StorageError, match="cannot be opened"):
        open_log(machine.mount())


# ---- Power ----


def prepared(seed: int, **changes: Any) -> tuple[Machine, bytes]:
    """A machine with a log of several segments, all of it synced, and what it holds."""
    machine = Machine(seed)
    log = open_log(machine.mount(), **changes)
    for step in range(8):
        fill(log, 6, seed=step)
        log.maintain()
    stored = content(log)
    log.close(clean=True)
    return machine, stored


def at_every_step(
    machine: Machine, operate: Callable[[Log], None], check: Callable[[Log, Machine], None], **changes: Any
) -> int:
    """Let the machine die in every call of the disk that `operate` makes, with and without power, and look after."""
    step = 0
    while True:
        step += 1
        for power in (True, False):
            trial = copy.deepcopy(machine)
            log = open_log(trial.mount(), **changes)
            trial.die_at(step)
            try:
                operate(log)
            except PowerCut:
                if power:
                    trial.disk.lose_power()
            else:
                trial.survive()
                assert step > 1
                return step
            log = open_log(trial.mount(), **changes)
            check(log, trial)
            assert_lawful(log)


def ends_after(stored: bytes) -> dict[int, int]:
    """Log end offset -> bytes, at each border."""
    return {header.end_offset: position + header.size_bytes for position, header in iter_batches(stored)}


@pytest.mark.parametrize("cut", [3, 21, 47])
def test_a_truncation_is_never_seen_half_done(cut: int) -> None:
    machine, stored = prepared(cut)
    sizes = ends_after(stored)

    def check(log: Log, trial: Machine) -> None:
        assert content(log) == stored[: sizes[log.log_end_offset]]
        assert log.log_end_offset >= cut - 2

    at_every_step(machine, lambda log: log.truncate_to(cut), check)


def test_a_truncation_that_returned_stays_done() -> None:
    for seed in range(20):
        machine, stored = prepared(seed)
        log = open_log(machine.mount())
        log.truncate_to(33)
        end = log.log_end_offset
        produce(log, 1, 3, leader_epoch=log.last_epoch + 1)
        machine.mount()
        machine.disk.lose_power()
        log = open_log(machine.mount())
        assert content(log).startswith(stored[: ends_after(stored)[end]])
        assert log.log_end_offset in (end, end + 3)
        assert_lawful(log)


def test_a_reset_is_never_seen_half_done() -> None:
    machine, stored = prepared(1)
    state = ProducerState()
    snapshot = snapshot_bytes(500, state)

    def check(log: Log, trial: Machine) -> None:
        if log.log_start_offset == 0:
            assert content(log) == stored
        else:
            assert (log.log_start_offset, log.log_end_offset, log.states[PRODUCERS]) == (500, 500, state)

    at_every_step(machine, lambda log: log.reset_to(500, snapshot), check)


def test_retention_is_never_seen_half_done() -> None:
    machine, stored = prepared(1, retention_bytes=1_200)
    sizes = {0: 0} | ends_after(stored)

    def check(log: Log, trial: Machine) -> None:
        assert content(log) == stored[sizes[log.log_start_offset] :]

    def operate(log: Log) -> None:
        log.apply_retention(NOW_MS, log.log_end_offset)
        assert log.log_start_offset > 0

    at_every_step(machine, operate, check, retention_bytes=1_200)


def test_maintenance_may_die_anywhere() -> None:
    """What was on disk before stays; what was not ends at some border."""
    machine, stored = prepared(2)

    def operate(log: Log) -> None:
        fill(log, 12, seed=77)
        log.maintain()

    whole = open_log(copy.deepcopy(machine).mount())
    fill(whole, 12, seed=77)
    everything = content(whole)

    def check(log: Log, trial: Machine) -> None:
        found = content(log)
        assert everything.startswith(found)
        assert len(found) >= len(stored)

    at_every_step(machine, operate, check)


def test_what_a_sync_returned_survives_a_power_failure() -> None:
    for seed in range(60):
        machine = Machine(seed)
        log = open_log(machine.mount())
        fill(log, 8 + seed % 30, seed=seed)
        synced = log.sync()
        before = content(log)
        fill(log, 3 + seed % 20, seed=seed + 1)
        machine.mount()
        machine.disk.lose_power()
        log = open_log(machine.mount())
        assert log.log_end_offset >= synced
        assert content(log).startswith(before)
        assert_lawful(log)


def test_a_killed_process_loses_nothing_that_was_appended() -> None:
    for seed in range(10):
        machine = Machine(seed)
        log = open_log(machine.mount())
        fill(log, 20 + seed, seed=seed)
        before, state = content(log), log.states[PRODUCERS]
        log = open_log(machine.mount())
        assert content(log) == before
        assert log.states[PRODUCERS] == state


def test_opening_may_die_anywhere() -> None:
    """Gauntlet: double-recovery. Recovery is one step; dying in it and beginning again ends in the same log."""
    machine, _ = prepared(5)
    log = open_log(machine.mount())
    fill(log, 25, seed=5)
    before = content(log)
    node = machine.disk.file(f"{FOLDER}/{log._row.active.base_offset:020d}.log")
    node.append(bytes(100))  # a torn append
    for step in range(1, 200):
        trial = copy.deepcopy(machine)
        disk = trial.mount()
        trial.die_at(step)
        try:
            log = open_log(disk)
        except PowerCut:
            log = open_log(trial.mount())
            assert content(log) == before
            assert_lawful(log)
        else:
            trial.survive()
            assert content(log) == before
            assert step > 20
            return
    pytest.fail("opening never ended")


def test_creating_may_die_anywhere() -> None:
    for step in range(1, 60):
        for power in (True, False):
            machine = Machine(step)
            disk = machine.mount()
            machine.die_at(step)
            try:
                open_log(disk)
            except PowerCut:
                if power:
                    machine.disk.lose_power()
                log = open_log(machine.mount())
                assert log.log_end_offset == 0
                fill(log, 5)
                assert_lawful(log)
            else:
                assert step > 5
                return
    pytest.fail("creating never ended")


def test_damage_on_a_medium_that_lied_is_reported() -> None:
    """Power fails, and a range that was synced is gone nevertheless: not a shorter log, but damage."""
    machine, _ = prepared(4)
    segments = [path for path, _ in machine.disk.files() if path.endswith(".log")]
    machine.disk.file(segments[-1]).truncate(0)
    with pytest.raises(CorruptLog):
        open_log(machine.mount())


# ---- Syncs that fail: the pages are clean then, and not on disk ----


def open_after_a_kill(machine: Machine) -> Log:
    """By the next process on a machine that runs on: what the one before it wrote is in the cache."""
    return Log.open(machine.mount(), FOLDER, settings(), NOW_MS, STATE_MACHINES, power_lost=False)


def with_a_failed_sync(seed: int, die_after: int) -> tuple[Machine, bytes]:
    """A machine on which a sync has failed, and whose process died so many operations later; and what the log held."""
    machine, _ = prepared(seed)
    log = open_log(machine.mount())
    fill(log, 9, seed=seed + 100)
    stored = content(log)
    machine.disk.faults.append(Fault(("sync",), errno.EIO, ".log"))
    machine.die_at(die_after)
    with pytest.raises((StorageError, PowerCut)):
        log.maintain()
    machine.survive()
    machine.disk.faults.clear()
    return machine, stored


@pytest.mark.parametrize("die_after", range(1, 8))
def test_what_a_failed_sync_lost_is_on_the_medium_before_a_snapshot_says_so(die_after: int) -> None:
    """A process that is killed leaves its page cache to the next one, and nothing in that tells what the disk lacks."""
    for seed in range(10):
        machine, stored = with_a_failed_sync(seed, die_after)
        log = open_after_a_kill(machine)
        assert content(log) == stored
        fill(log, 12, seed=seed)
        log.maintain()
        synced = content(log)
        machine.mount()
        machine.disk.lose_power()
        log = open_log(machine.mount())
        assert content(log) == synced
        assert_lawful(log)


def test_pages_that_left_the_cache_after_a_failed_sync_are_damage() -> None:
    for is_found_before in (True, False):
        machine, stored = with_a_failed_sync(3, die_after=50)
        for _, node in machine.disk.files():
            node.drop_lost_pages()
        if is_found_before:
            with pytest.raises(CorruptLog):
                open_after_a_kill(machine)
        machine.disk.lose_power()
        if is_found_before:
            with pytest.raises(CorruptLog):
                open_log(machine.mount())
            continue
        log = open_log(machine.mount())
        assert len(content(log)) < len(stored)
        assert_lawful(log)


def test_a_recovery_whose_own_sync_fails_leaves_the_next_one_to_write_again() -> None:
    """It cuts a torn append, and that sync fails: what the process before it had not synced may be lost in it."""
    for again in (False, True):
        machine, _ = prepared(6)
        log = open_log(machine.mount())
        fill(log, 9, seed=6)
        stored = content(log)
        active = f"{FOLDER}/{log._row.active.base_offset:020d}.log"
        machine.disk.file(active).append(bytes(30))  # a torn append
        for _ in range(1 + again):
            machine.disk.faults.append(Fault(("sync",), errno.EIO, active))
            with pytest.raises(StorageError):
                open_after_a_kill(machine)
        log = open_after_a_kill(machine)
        assert content(log) == stored
        log.close(clean=True)
        machine.disk.lose_power()
        assert content(open_after_a_kill(machine)) == stored


def test_a_sync_that_cannot_be_announced_is_not_begun() -> None:
    machine, _ = prepared(7)
    log = open_log(machine.mount())
    fill(log, 9, seed=7)
    stored = content(log)
    machine.disk.faults.append(Fault(("open",), errno.ENOSPC, SYNC_BEGUN))
    with pytest.raises(StorageError):
        log.sync()
    log = open_after_a_kill(machine)  # nothing is lost, so nothing has to be known
    assert content(log) == stored
    log.close(clean=True)
    machine.disk.lose_power()
    assert content(open_after_a_kill(machine)) == stored


def test_two_syncs_at_once_are_one_after_the_other_and_only_one_gets_the_failure() -> None:
    """The system reports a failed write back once: the second sync of the same file succeeds, and has saved nothing."""
    machine, _ = prepared(8)
    log = open_log(machine.mount())
    fill(log, 9, seed=8)
    first_waits, go_on = threading.Event(), threading.Event()
    file = log._row.active.file
    original = file.sync

    def sync() -> None:
        first_waits.set()
        assert go_on.wait(10)
        original()

    with ThreadPoolExecutor() as pool, patch.object(type(file), "sync", lambda self: sync()):
        machine.disk.faults.append(Fault(("sync",), errno.EIO, ".log"))
        first = pool.submit(log.sync)
        assert first_waits.wait(10)
        second = pool.submit(log.sync)
        go_on.set()
        for waiting in (first, second):
            with pytest.raises(StorageError, match="sync of"):
                waiting.result(10)


def test_a_torn_append_is_cut_on_a_disk_that_is_full() -> None:
    machine, stored = prepared(9)
    active = max(path for path, _ in machine.disk.files() if path.endswith(".log"))
    machine.disk.file(active).append(bytes(30))
    machine.disk.capacity_bytes = machine.disk.used_bytes()
    assert content(open_after_a_kill(machine)) == stored
