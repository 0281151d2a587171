"""Unclean elections in histories: the elected log is the truth, and what was lost is what the operator was shown."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fencepost.history_format import NotAnOperation, from_line
from fencepost_testing.history_check import Anomaly, BrokenHistory, check_history
from tests.unit.history_story import Story
from tests.unit.model_history import ModelHistory

randoms = st.builds(Random, st.integers(0, 2**32))
EXAMPLES = settings(max_examples=60, deadline=None)


def ten_of_which_five_are_lost(*, kept: int = 5, end: int = 5, outcome: str = "ok") -> Story:
    """a0 to a9 are acknowledged; then a broker leads that holds a0 to a4."""
    story = Story()
    story.acked(*(f"a{n}" for n in range(10)))
    story.elect(kept, end, outcome)
    story.acked("b0", "b1", start=5)
    return story


# ---- What may be, and what may not ----


def test_what_the_operator_was_shown_as_lost_is_not_missed() -> None:
    story = ten_of_which_five_are_lost()
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    verdict = story.check()
    assert verdict.clean
    assert (verdict.elections, verdict.lost_as_told) == (1, 5)


def test_what_he_was_shown_as_kept_is_missed() -> None:
    """An election that takes more than was announced."""
    story = ten_of_which_five_are_lost(kept=6, end=6)
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    verdict = story.check()
    assert verdict.counts == {Anomaly.LOST_WRITE: 1, Anomaly.INCONSISTENT_OFFSETS: 1}
    assert verdict.lost_as_told == 4


def test_what_was_acknowledged_after_the_order_is_missed() -> None:
    story = ten_of_which_five_are_lost()
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0")
    assert story.found() == {Anomaly.LOST_WRITE: 1}


def test_what_he_was_shown_as_lost_does_not_still_stand_there() -> None:
    story = Story()
    story.acked("a0", "a1", "a2")
    story.elect(1, 2)
    story.final(0, "a0", "a1", "a2")
    assert story.found() == {Anomaly.NOT_LOST: 1}


def test_between_the_two_offsets_either_may_be() -> None:
    story = Story()
    story.acked("a0", "a1", "a2")
    story.elect(1, 3)
    story.final(0, "a0", "a1", "a2")
    assert story.found() == {}


def test_an_order_of_unknown_outcome_allows_and_proves_nothing() -> None:
    for values in (
        ("a0", "a1", "a2", "a3", "a4", "b0", "b1"),
        ("a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9"),
    ):
        story = Story()
        story.acked(*(f"a{n}" for n in range(10)))
        story.elect(5, 5, "info")
        if "b0" in values:
            story.acked("b0", "b1", start=5)
        story.final(0, *values)
        assert story.found() == {}


def test_an_order_that_certainly_failed_allows_nothing() -> None:
    story = ten_of_which_five_are_lost(outcome="fail")
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    assert story.found()[Anomaly.LOST_WRITE] == 5


def test_an_election_allows_nothing_in_another_partition() -> None:
    story = Story()
    story.acked("a0", "a1")
    story.elect(0, 0, partition=1)
    story.final(0, "a0")
    assert story.found() == {Anomaly.LOST_WRITE: 1}


def test_a_record_may_stand_elsewhere_in_the_elected_log_but_once() -> None:
    """The elected broker held it behind other records, before its producer sent it to the leader that acknowledged it."""
    for tail, found in ((("b1",), {}), (("b1", "b1"), {Anomaly.DUPLICATE: 1})):
        story = Story()
        story.acked("a0")
        story.acked("b0", "b1", process="q", start=1)
        story.poll(0, "a0", "b0", "b1")
        story.elect(1, 1 + len(tail))
        story.final(0, "a0", *tail)
        assert story.found() == found


def test_a_record_below_what_is_kept_is_not_moved() -> None:
    story = Story()
    story.acked("a0", "a1")
    story.elect(1, 3)
    story.final(0, "a1", "a0")
    assert Anomaly.DUPLICATE in story.found()


def test_what_was_read_at_an_offset_and_what_is_read_there_afterwards_are_two_logs() -> None:
    story = ten_of_which_five_are_lost()
    story.poll(0, *(f"a{n}" for n in range(8)), process="late")  # handed out from what it had fetched before
    story.poll(0, "a0", "a1", "a2", "a3", "a4", "b0", process="early")
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    assert story.found() == {}


def test_after_the_order_one_offset_holds_one_value() -> None:
    story = ten_of_which_five_are_lost()
    story.send("c0", process="q")
    story.poll(0, "a0", "a1", "a2", "a3", "a4", "c0", process="one")
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    assert Anomaly.INCONSISTENT_OFFSETS in story.found()


def test_before_the_order_one_offset_holds_one_value() -> None:
    story = Story()
    story.acked("a0")
    story.send("c0", process="q")
    story.poll(0, "c0")
    story.elect(0, 0)
    story.final(0)
    assert story.found() == {Anomaly.INCONSISTENT_OFFSETS: 1}


def test_what_was_taken_had_an_order_too() -> None:
    story = Story()
    story.send("a0", "a1")
    story.ok("a1", 3)
    story.ok("a0", 4)
    story.elect(0, 0)
    story.final(0)
    assert story.found() == {Anomaly.NONMONOTONIC_SEND: 1}


@pytest.mark.parametrize("goes_back", [True, False])
def test_a_consumer_that_has_read_what_is_gone_goes_back(goes_back: bool) -> None:
    story = Story()
    story.acked(*(f"a{n}" for n in range(7)))
    story.poll(0, *(f"a{n}" for n in range(7)))
    story.elect(5, 5)
    story.acked("b0", "b1", "b2", start=5)
    if goes_back:
        story.seek(5)
        story.poll(5, "b0", "b1", "b2")
    else:
        story.poll(7, "b2")
    story.final(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2")
    assert story.found() == ({} if goes_back else {Anomaly.POLL_SKIP: 1})


@pytest.mark.parametrize("outcome", ["ok", "info", "fail"])
def test_a_consumer_that_goes_on_while_an_order_is_under_way_is_judged_by_what_comes_of_it(outcome: str) -> None:
    """Its answer may be lost; and a replica that has everything may be back, and lead, before it is carried out."""
    story = Story()
    story.acked(*(f"a{n}" for n in range(7)))
    story.poll(0, *(f"a{n}" for n in range(7)))
    order = story.order(5, 5)
    story.acked("b0", start=7)
    story.poll(7, "b0")
    story.told(order, outcome)
    if outcome != "ok":
        story.final(0, *(f"a{n}" for n in range(7)), "b0")
    assert story.found() == ({Anomaly.POLL_SKIP: 1} if outcome == "ok" else {})


def test_without_a_final_read_what_may_be_lost_is_not_missed() -> None:
    story = ten_of_which_five_are_lost()
    story.poll(0, "a0", "a1", "a2", "a3", "a4", "b0", "b1")
    assert story.found() == {}


def test_a_second_election_may_bring_back_what_the_first_took() -> None:
    """The broker that it makes the leader had never heard of the first."""
    story = ten_of_which_five_are_lost()
    story.elect(5, 10)
    story.final(0, *(f"a{n}" for n in range(10)))
    assert story.found() == {}


# ---- Histories that cannot be ----


def test_an_election_that_was_never_ordered_is_refused() -> None:
    story = Story()
    story.elect(0, 0)
    with pytest.raises(BrokenHistory, match="ok of election 1 of operator for orders-0: it was never ordered"):
        check_history(story.operations[1:])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            '{"process":"o","time":1,"type":"invoke","op":"elect","id":1,"topic":"t","partition":0}',
            "start_offset and end",
        ),
        (
            '{"process":"o","time":1,"type":"invoke","op":"elect","id":1,"topic":"t","partition":0,'
            '"start_offset":5,"end_offset":4}',
            "start_offset and end_offset, in this order",
        ),
        ('{"process":"o","time":1,"type":"ok","op":"elect","topic":"t","partition":0}', "without an id"),
        ('{"process":"o","time":1,"type":"ok","op":"elect","id":1,"topic":"t"}', "without a partition"),
        ('{"process":"o","time":1,"type":"info","op":"elect","id":1,"topic":"t"}', "without a partition"),
    ],
)
def test_an_election_without_what_it_must_say_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(NotAnOperation, match=complaint):
        from_line(line)


# ---- Laws ----


@EXAMPLES
@given(randoms, st.integers(0, 120), st.booleans())
def test_whatever_a_correct_log_with_unclean_elections_does_is_clean(
    random: Random, steps: int, with_final_reads: bool
) -> None:
    model = ModelHistory(random, with_final_reads, with_elections=True)
    verdict = check_history(model.run(steps))
    assert [finding.text for finding in verdict.findings] == []
    assert verdict.elections == len(model.taken)


@EXAMPLES
@given(randoms, st.integers(40, 120))
def test_a_loss_beyond_what_was_shown_is_found(random: Random, steps: int) -> None:
    """The same histories, in which one acknowledged record that no election may take is read by no one."""
    model = ModelHistory(random, with_elections=True)
    operations = model.run(steps)
    invoked = {
        (op.process, op.id): line for line, op in enumerate(operations) if (op.type, op.op) == ("invoke", "send")
    }
    values = {(op.process, op.id): op.value for op in operations if (op.type, op.op) == ("invoke", "send")}

    def kept(line: int, partition: int, offset: int) -> bool:
        return all(at < line or where != partition or 0 <= offset < end for at, where, end, _ in model.taken)

    certain = [
        values[op.process, op.id]
        for op in operations
        if (op.type, op.op) == ("ok", "send") and kept(invoked[op.process, op.id], op.partition, op.offset)
    ]
    assume(certain and model.taken)
    lost = random.choice(certain)
    without: Callable[[tuple[int, object]], bool] = lambda record: record[1] != lost  # noqa: E731
    changed = [op._replace(records=[r for r in op.records if without(r)]) if op.records else op for op in operations]
    assert check_history(changed).counts.get(Anomaly.LOST_WRITE) == 1
