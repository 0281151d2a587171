"""Who is overdue, by the clock alone."""

from __future__ import annotations

from fencepost_controller.liveness import Liveness

TIMEOUT_S = 3.0


def ticked(liveness: Liveness, start: float, end: float, heard: dict[int, int] | None = None) -> dict[int, float]:
    """When each broker was first overdue, ticking from `start` to `end`; `heard` are heard (with a version) at each tick."""
    first: dict[int, float] = {}
    now = start
    while now < end:
        now += liveness.tick_interval_s
        for broker_id, version in (heard or {}).items():
            liveness.heard(broker_id, version, now)
        for overdue in liveness.tick(now):
            first.setdefault(overdue.broker_id, round(now, 3))
    return first


def test_silence_for_a_session_timeout_is_overdue() -> None:
    liveness = Liveness(TIMEOUT_S, 100.0)
    liveness.expect(1, 100.0)
    liveness.expect(2, 100.0)
    assert ticked(liveness, 100.0, 102.9, heard={2: 0}) == {}
    assert ticked(liveness, 102.9, 103.2, heard={2: 0}) == {1: 103.0}


def test_who_is_overdue_stays_so_until_forgotten_or_expected_again() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    ticked(liveness, 0.0, 3.0)
    assert [o.broker_id for o in liveness.tick(3.1)] == [1]
    liveness.expect(1, 3.1)
    assert liveness.tick(3.2) == []
    liveness.forget(1)
    assert ticked(liveness, 3.2, 10.0) == {}


def test_a_broker_that_talks_and_does_not_apply_is_overdue() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.expect(2, 0.0)
    liveness.published(7, [1, 2], 0.0)
    assert ticked(liveness, 0.0, 2.9, heard={1: 6, 2: 7}) == {}
    assert ticked(liveness, 2.9, 3.2, heard={1: 6, 2: 7}) == {1: 3.0}


def test_progress_restarts_the_time_for_what_is_still_to_be_applied() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(7, [1], 0.0)
    ticked(liveness, 0.0, 1.0, heard={1: 6})
    liveness.published(8, [1], 1.0)
    ticked(liveness, 1.0, 1.9, heard={1: 6})
    assert ticked(liveness, 1.9, 4.9, heard={1: 7}) == {}
    assert ticked(liveness, 4.9, 5.2, heard={1: 7}) == {1: 5.0}


def test_a_broker_whose_version_rises_is_alive_however_far_it_is_behind() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(1_000, [1], 0.0)
    now, version = 0.0, 0
    for version in range(1, 40):
        assert ticked(liveness, now, now + 2.0, heard={1: version}) == {}
        now += 2.0
        liveness.published(1_000 + version, [1], now)
    first = ticked(liveness, now, now + 5.0, heard={1: version})
    assert now + 0.9 < first[1] < now + 1.3, "3 s after its last step, which was 2 s ago"


def test_work_on_one_long_version_is_progress_and_its_end_is_not_awaited_for_ever() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(7, [1], 0.0)
    for step in range(1, 10):
        liveness.heard(1, 6, step * 2.0, progress=step * 64)
        assert ticked(liveness, step * 2.0, step * 2.0 + 1.9) == {}
    reasons: list[str] = []
    for tick in range(1, 40):
        liveness.heard(1, 6, 20.0 + tick / 10, progress=9 * 64)
        reasons += [overdue.reason for overdue in liveness.tick(20.0 + tick / 10)]
    assert reasons[0] == "has not applied metadata version 7, and makes no progress for 3000 ms"


def test_what_is_published_to_others_is_not_waited_for() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(7, [2], 0.0)
    assert ticked(liveness, 0.0, 10.0, heard={1: 0}) == {}


def test_the_controllers_own_pause_is_no_evidence() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(7, [1], 0.0)
    ticked(liveness, 0.0, 1.0, heard={1: 6})
    assert liveness.tick(60.0) == [], "stopped for 59 s, with the heartbeats of that time unread"
    assert ticked(liveness, 60.0, 61.5, heard={1: 6}) == {}
    first = ticked(liveness, 61.5, 70.0)
    assert 61.5 < first[1] < 62.0, "the time that it ran before the pause counts"


def test_what_the_controller_lets_a_registration_wait_is_no_evidence() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.published(7, [1], 0.0)
    ticked(liveness, 0.0, 1.0)
    liveness.waits(1, 1.0)
    assert ticked(liveness, 1.0, 2.0) == {}
    liveness.waits(1, 2.0)  # another stream of it
    liveness.waits_no_more(1, 3.0)
    assert ticked(liveness, 2.0, 10.0) == {}
    liveness.waits_no_more(1, 10.0)
    assert ticked(liveness, 10.0, 11.9) == {}
    assert ticked(liveness, 11.9, 12.2) == {1: 12.0}, "1 s before it came, and 2 s since it was answered"


def test_a_pause_of_the_controller_is_not_counted_twice_for_who_waits_in_it() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    ticked(liveness, 0.0, 2.5)
    liveness.waits(1, 2.5)
    assert liveness.tick(12.5) == []
    liveness.waits_no_more(1, 12.5)
    assert 12.9 < ticked(liveness, 12.5, 14.0)[1] < 13.2


def test_others_wait_on_where_one_registration_is_answered() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.waits(1, 0.0)
    liveness.waits(1, 0.0)
    assert ticked(liveness, 0.0, 3.5) == {}
    liveness.waits_no_more(1, 3.5)
    assert ticked(liveness, 3.5, 4.0) == {}
    liveness.expect(1, 4.0)  # as another process
    assert ticked(liveness, 4.0, 8.0) == {}
    liveness.waits_no_more(1, 8.0)
    assert 10.9 < ticked(liveness, 8.0, 12.0)[1] < 11.2


def test_who_is_not_watched_may_wait() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.waits(1, 0.0)
    ticked(liveness, 0.0, 1.0)
    liveness.expect(1, 1.0)
    liveness.waits_no_more(1, 2.0)
    assert ticked(liveness, 1.0, 4.2) == {1: 4.0}


def test_who_was_received_after_the_pause_gets_no_more_than_a_session_timeout() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    ticked(liveness, 0.0, 1.0)
    liveness.heard(1, 0, 60.0)
    assert liveness.tick(60.05) == []
    first = ticked(liveness, 60.05, 70.0)
    assert 62.9 < first[1] < 63.3


def test_reasons_say_what_was_missed() -> None:
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.expect(1, 0.0)
    liveness.expect(2, 0.0)
    liveness.published(7, [2], 0.0)
    ticked(liveness, 0.0, 2.9, heard={2: 6})
    assert [o.reason for o in liveness.tick(3.0)] == [
        "silent for 3000 ms",
        "has not applied metadata version 7, and makes no progress for 3000 ms",
    ]
