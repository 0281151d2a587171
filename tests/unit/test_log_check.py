"""One check compares logs with what was sent: it names what is wrong, and where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_testing.log_check import sequence_order
from fencepost_testing.log_check.check import LogCheck
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.log_check.outcomes import Outcome, wrong_outcome
from fencepost_testing.log_check.sequence_order import KnownStamp, SequenceFinding, SequenceOrder

RUN = "run00001"
Row = tuple[int, int, str, int]  # partition, offset, run, record id


def acknowledged(count: int) -> tuple[Ledger, list[Row]]:
    """A run of one idempotent producer to partition 0, and its log."""
    ledger = Ledger(RUN)
    for number in range(count):
        ledger.ack(ledger.send(), 0, number, (7, 0, number))
    return ledger, [(0, number, RUN, number) for number in range(count)]


def check(ledgers: list[Ledger], rows: list[Row]) -> Findings:
    log_check = LogCheck("orders", ledgers)
    for row in rows:
        log_check.enter_record(*row)
    return log_check.finish()


def texts(ledger: Ledger, rows: list[Row]) -> list[str]:
    return check([ledger], rows).examples


def test_a_right_log_has_no_findings() -> None:
    ledger, rows = acknowledged(10)
    assert check([ledger], rows).clean


def test_a_lost_record_is_named_with_its_place_and_stamp() -> None:
    ledger, rows = acknowledged(3)
    assert texts(ledger, rows[:2]) == [
        "lost: record 2 of run run00001 (producer 7 epoch 0 sequence 2) was acknowledged at orders-0 offset 2, and is not "
        "in the log of orders"
    ]


def test_a_lost_record_in_the_middle_shows_as_a_gap_too() -> None:
    ledger, rows = acknowledged(4)
    moved = [(p, o - (o > 1), run, n) for p, o, run, n in rows if n != 1]
    assert set(check([ledger], moved).counts) == {Kind.LOST, Kind.MOVED, Kind.GAP}


def test_a_record_that_stands_twice_is_named_with_both_places() -> None:
    ledger, rows = acknowledged(3)
    assert texts(ledger, [*rows, (1, 0, RUN, 1)]) == [
        "duplicated: orders-1 offset 0: record 1 of run run00001 (producer 7 epoch 0 sequence 1) is at orders-0 offset 1 too"
    ]


def test_records_that_changed_places_are_named_with_their_stamps() -> None:
    ledger = Ledger(RUN)
    for number, offset in enumerate((1, 0)):
        ledger.ack(ledger.send(), 0, offset, (7, 0, number))
    assert texts(ledger, [(0, 0, RUN, 1), (0, 1, RUN, 0)]) == [
        "reordered: orders-0 offset 1: record 0 of run run00001 (producer 7 epoch 0 sequence 0) comes after number 1",
        "reordered: orders-0 offset 1: producer 7 epoch 0 sequence 0 comes after sequence 1",
    ]


def test_what_may_be_gone_is_not_lost_and_is_asked_for_missing_and_moved_records_only() -> None:
    ledger, rows = acknowledged(4)
    moved = (rows[2][0], rows[2][1] + 5, *rows[2][2:])
    asked = []

    def may_be_gone(of: Ledger, number: int) -> bool:
        asked.append((of.run, number))
        return True

    log_check = LogCheck("orders", [ledger], may_be_gone=may_be_gone)
    for row in (rows[1], moved):
        log_check.enter_record(*row)
    assert log_check.finish().clean
    assert asked == [(RUN, 2), (RUN, 0), (RUN, 3)]


def test_records_of_a_run_that_sends_to_other_topics_too_are_foreign_where_they_were_not_sent() -> None:
    ledger = Ledger(RUN)
    ledger.ack(ledger.send_as(5), 0, 0)
    assert check([ledger], [(0, 0, RUN, 5)]).clean
    assert ledger.outcome(4) is Outcome.NEVER_SENT
    assert check([ledger], [(0, 0, RUN, 4), (0, 1, RUN, 6)]).counts == {Kind.FOREIGN: 2, Kind.LOST: 1}


def test_of_a_run_without_order_only_its_order_is_not_checked() -> None:
    ledger = Ledger(RUN, ordered=False)
    for _ in range(3):
        ledger.send()
    assert check([ledger], [(0, 0, RUN, 2), (0, 1, RUN, 0)]).clean
    assert check([ledger], [(0, 0, RUN, 2), (0, 1, RUN, 2)]).counts == {Kind.DUPLICATED: 1}


def test_a_number_that_no_sender_can_have_reached_takes_no_memory() -> None:
    assert check([], [(0, 0, "x", 10**15), (0, 1, "x", 10**15)]).counts == {Kind.DUPLICATED: 1}


@pytest.mark.parametrize(
    ("outcome", "in_log", "missing"),
    [
        (Outcome.NEVER_SENT, Kind.FOREIGN, None),
        (Outcome.UNKNOWN, None, None),
        (Outcome.ACKED, None, Kind.LOST),
        (Outcome.REFUSED, Kind.RESURRECTED, None),
    ],
)
def test_what_an_outcome_says_of_the_log(outcome: Outcome, in_log: Kind | None, missing: Kind | None) -> None:
    assert wrong_outcome(outcome, in_log=True) is in_log
    assert wrong_outcome(outcome, in_log=False) is missing
    assert wrong_outcome(outcome, in_log=False, must_be_kept=False) is None


def sequences(*stamps: tuple[int, int, int], unknown_between: int = 0) -> list[SequenceFinding]:
    found: list[SequenceFinding] = []
    order = SequenceOrder("orders-0", found.append)
    for number, stamp in enumerate(stamps):
        unknown = (number + 1) * unknown_between
        order.enter_stamp(KnownStamp(*stamp), number + unknown, number, unstamped=unknown)
    order.finish()
    return found


def test_a_sequence_that_stands_in_the_log_long_before_is_duplicated_and_one_passed_over_is_reordered() -> None:
    assert [finding[:2] for finding in sequences(*((7, 0, n) for n in (0, 1, 2, 5, 6, 1, 3, 4)))] == [
        (Kind.DUPLICATED, "orders-0 offset 5: producer 7 epoch 0 sequence 1 is in the log before; sequence 7 is next"),
    ]
    assert [finding[:2] for finding in sequences(*((7, 0, n) for n in (0, 2, 1, 3)))] == [
        (Kind.REORDERED, "orders-0 offset 2: producer 7 epoch 0 sequence 1 comes after sequence 2"),
    ]


def test_of_gaps_that_are_no_longer_remembered_a_late_record_is_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_order, "MAX_GAPS", 2)
    stamps = [(7, 0, number) for number in (1, 3, 5, 7)]
    kinds = [finding.kind for finding in sequences(*stamps, (7, 0, 0), (7, 0, 6), unknown_between=1)]
    assert kinds == [Kind.REORDERED]  # the one at 6 goes on from what came late


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_record_dropped_repeated_or_moved_is_found(data: st.DataObject) -> None:
    ledger, rows = acknowledged(data.draw(st.integers(2, 12), "records"))
    victim = data.draw(st.integers(0, len(rows) - 1), "victim")
    numbers = [number for _, _, _, number in rows]
    damage = data.draw(st.sampled_from(["drop", "repeat", "move"]))
    if damage == "drop":
        del numbers[victim]
        expected = Kind.LOST
    elif damage == "repeat":
        numbers.insert(data.draw(st.integers(victim + 1, len(numbers))), victim)
        expected = Kind.DUPLICATED
    else:
        del numbers[victim]
        to = data.draw(st.integers(0, len(numbers)).filter(lambda place: place != victim))
        numbers.insert(to, victim)
        expected = Kind.REORDERED
    findings = check([ledger], [(0, offset, RUN, number) for offset, number in enumerate(numbers)])
    assert findings.counts[expected]
