"""A crash in the recovery from a crash, and a disk that refuses any one call: the next start finds a log, and keeps it."""

from __future__ import annotations

import contextlib
import copy
import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from fencepost_node.log.log import Log
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import StorageError
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
    settings,
    snapshot_bytes,
)

EVERY_CALL = (
    "append", "create", "list", "mkdir", "open", "read", "remove", "rename", "stat", "sync", "sync_directory", "truncate"
)  # fmt: skip


def append_and_maintain(log: Log) -> None:
    fill(log, 12, seed=77)
    log.maintain()


def append_and_close(log: Log) -> None:
    fill(log, 12, seed=78)
    log.close(clean=True)


OPERATIONS: dict[str, tuple[Callable[[Log], None], dict[str, Any]]] = {
    "truncation": (lambda log: log.truncate_to(33), {}),
    "reset": (lambda log: log.reset_to(500, snapshot_bytes(500)), {}),
    "retention": (lambda log: log.apply_retention(NOW_MS, log.log_end_offset), {"retention_bytes": 1_200}),
    "maintenance": (append_and_maintain, {}),
    "clean end": (append_and_close, {}),
}


def prepared(seed: int, **changes: Any) -> Machine:
    """A machine with a log of several segments, all of it synced."""
    machine = Machine(seed)
    log = open_log(machine.mount(), **changes)
    for step in range(8):
        fill(log, 6, seed=step)
        log.maintain()
    log.close(clean=True)
    return machine


def reopened(machine: Machine, *, power_lost: bool, **changes: Any) -> Log:
    return Log.open(machine.mount(), FOLDER, settings(**changes), NOW_MS, STATE_MACHINES, power_lost=power_lost)


def assert_goes_on(machine: Machine, *, power_lost: bool, **changes: Any) -> None:
    """The log is whole, takes more, and has what it synced after another power failure."""
    log = reopened(machine, power_lost=power_lost, **changes)
    assert_lawful(log)
    fill(log, 10, seed=5)
    log.maintain()
    assert_lawful(log)
    stored = content(log)
    machine.mount()
    machine.disk.lose_power()
    log = reopened(machine, power_lost=True, **changes)
    assert content(log) == stored
    assert_lawful(log)


@pytest.mark.parametrize("name", OPERATIONS)
def test_recovery_from_a_crash_may_crash_too_and_again(name: str) -> None:
    operate, changes = OPERATIONS[name]
    chance = random.Random(name)
    whole = prepared(3, **changes)
    for _ in range(12):
        machine = copy.deepcopy(whole)
        log = open_log(machine.mount(), **changes)
        machine.die_at(chance.randint(1, 60))
        with contextlib.suppress(PowerCut):
            operate(log)
        machine.survive()
        power_lost = False  # stays true, once it is: no one has been told
        for _ in range(3):
            if chance.random() < 0.5:
                machine.disk.lose_power()
                power_lost = True
            disk = machine.mount()
            machine.die_at(chance.randint(1, 45))
            with contextlib.suppress(PowerCut):
                Log.open(disk, FOLDER, settings(**changes), NOW_MS, STATE_MACHINES, power_lost=power_lost)
            machine.survive()
        assert_goes_on(machine, power_lost=power_lost, **changes)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_that_refuses_any_one_call_leaves_a_log_to_the_next_process(name: str, code: int) -> None:
    operate, changes = OPERATIONS[name]
    whole = prepared(1, **changes)
    for step in range(100):
        machine = copy.deepcopy(whole)
        log = open_log(machine.mount(), **changes)
        machine.disk.faults.append(Fault(EVERY_CALL, code, skip=step))
        with contextlib.suppress(StorageError):
            operate(log)
        if machine.disk.faults:
            assert step > 10
            return
        if step % 3 == 0:  # each third: it takes a while
            machine.mount()
            after_power = copy.deepcopy(machine)
            after_power.disk.lose_power()
            assert_goes_on(after_power, power_lost=True, **changes)
            assert_goes_on(machine, power_lost=False, **changes)
    pytest.fail(f"{name} never ended")
