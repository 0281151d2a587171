"""Which producers are forgotten, and that nothing waits long for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fencepost_node.log.disk import RealDisk
from fencepost_node.log.log import Log
from fencepost_node.producers import expiry, producer_state
from fencepost_node.producers.expiry import ProducerExpiry
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from tests.unit.logs import NOW_MS, Machine, open_log, produce, settings

DISK = RealDisk()
NEVER_MS = 10**15


def keep_none(_: int) -> bool:
    return False


EXPIRY = ProducerExpiry(1_000, NEVER_MS, keep_none)


def test_what_recovery_found_is_what_expires_later(tmp_path: Path) -> None:
    """A backfill, and a restart: old timestamps do not make producers idle; they may have been active just before."""
    log = Log.open(DISK, str(tmp_path / "orders-0"), settings(), NOW_MS, STATE_MACHINES)
    produce(log, timestamp_ms=5)
    log.close(clean=True)
    log = Log.open(DISK, str(tmp_path / "orders-0"), settings(), NOW_MS, STATE_MACHINES)
    EXPIRY.observe(log, 0)
    EXPIRY.forget_idle(log, 999, high_watermark=1)
    assert len(log.states[PRODUCERS]) == 1
    EXPIRY.forget_idle(log, 1_000, high_watermark=1)
    assert len(log.states[PRODUCERS]) == 0
    log.close(clean=False)


def test_many_producers_are_forgotten_in_turns_between_which_appends_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "FORGOTTEN_IN_A_TURN", 3)
    monkeypatch.setattr(producer_state, "PRODUCERS_IN_A_TURN", 2)
    log = Log.open(DISK, str(tmp_path / "orders-0"), settings(), NOW_MS, STATE_MACHINES)
    for producer_id in range(8):
        produce(log, producer_id)
    EXPIRY.observe(log, 0)
    pauses: list[bool] = []

    def append_meanwhile() -> None:
        was_free = log._lock.acquire(blocking=False)
        pauses.append(was_free)
        log._lock.release()
        produce(log, 100 + len(pauses))

    monkeypatch.setattr(expiry, "let_others_run", append_meanwhile)
    EXPIRY.forget_idle(log, 1_000, high_watermark=8)
    assert pauses == [True] * 6, "four while they are looked for, two while they are forgotten"
    assert log.states[PRODUCERS].ids() == [101, 102, 103, 104, 105, 106]
    log.close(clean=False)


def test_a_step_of_the_clock_on_the_wall_forgets_no_one(tmp_path: Path) -> None:
    log = Log.open(DISK, str(tmp_path / "orders-0"), settings(retention_ms=1_000), NOW_MS, STATE_MACHINES)
    produce(log)
    EXPIRY.observe(log, 0)
    log.apply_retention(NOW_MS + 10**12, high_watermark=1)
    EXPIRY.forget_idle(log, 999, high_watermark=1)
    assert (log.log_start_offset, len(log.states[PRODUCERS])) == (1, 1)
    log.close(clean=False)


def test_what_came_again_after_a_cut_is_not_as_old_as_what_was_cut(tmp_path: Path) -> None:
    log = Log.open(DISK, str(tmp_path / "orders-0"), settings(), NOW_MS, STATE_MACHINES)
    produce(log, 1)
    produce(log, 2)
    EXPIRY.observe(log, 0)
    log.truncate_to(1)
    produce(log, 3)
    EXPIRY.forget_idle(log, 1_000, high_watermark=2)
    assert [log.states[PRODUCERS].get(i) is not None for i in (1, 2, 3)] == [False, False, True]
    log.close(clean=False)


def test_retention_keeps_what_idle_expiry_may_not_touch() -> None:
    log = open_log(Machine().mount())
    produce(log, 1)
    produce(log, 2)
    ten = ProducerExpiry(10, NEVER_MS, keep_none)
    ten.observe(log, 0)
    ten.forget_idle(log, 100, high_watermark=1)
    assert [log.states[PRODUCERS].get(producer_id) is not None for producer_id in (1, 2)] == [False, True]
