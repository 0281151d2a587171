"""One history for each anomaly, found under its name and no other; and clean ones that must pass."""

from __future__ import annotations

import pytest

from fencepost.history_format import Operation, to_line
from fencepost_testing.history_check import MEANING, Anomaly, BrokenHistory, HistoryCheck, check_history
from fencepost_testing.history_check.anomalies import MAX_SHOWN
from tests.unit.history_story import TOPIC, Story

# ---- lost-write and unseen ----


def test_an_acknowledged_record_that_a_consumer_went_past_is_lost() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll_records([(0, "a"), (2, "c")])
    assert story.found() == {Anomaly.LOST_WRITE: 1, Anomaly.POLL_SKIP: 1}


def test_an_acknowledged_record_is_lost_where_another_stands_in_its_place() -> None:
    story = Story()
    story.acked("a", "b")
    story.send("c", process="q")
    story.info("c")
    story.poll(0, "a", "c")
    assert story.found() == {Anomaly.LOST_WRITE: 1, Anomaly.INCONSISTENT_OFFSETS: 1}


def test_an_acknowledged_record_that_the_final_read_did_not_find_is_lost_wherever_it_was() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.final(0, "a")
    assert story.found() == {Anomaly.LOST_WRITE: 2}


def test_an_acknowledged_record_that_was_read_once_and_is_gone_at_the_end_is_lost() -> None:
    story = Story()
    story.acked("a", "b")
    story.poll(0, "a", "b")
    story.final(0, "a")
    assert story.found() == {Anomaly.LOST_WRITE: 1}


def test_the_final_read_of_an_empty_log_finds_everything_lost() -> None:
    story = Story()
    story.acked("a", "b")
    story.final(0)
    assert story.found() == {Anomaly.LOST_WRITE: 2}


def test_a_record_acknowledged_without_an_offset_is_lost_if_the_final_read_does_not_find_it() -> None:
    story = Story()
    story.send("a", "b")
    story.ok("a", -1)
    story.ok("b", -1)
    story.final(0, "b")
    assert story.found() == {Anomaly.LOST_WRITE: 1}


def test_an_acknowledged_record_is_unseen_where_no_one_came_that_far() -> None:
    story = Story()
    story.acked("a", "b")
    story.poll(0, "a")
    assert story.found() == {Anomaly.UNSEEN: 1}


def test_a_consumer_that_began_behind_a_record_says_nothing_of_it() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.seek(2)
    story.poll(2, "c")
    assert story.found() == {Anomaly.UNSEEN: 2}


def test_a_consumer_that_began_at_a_record_and_did_not_get_it_shows_it_lost() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.seek(1)
    story.poll(2, "c")
    assert story.found() == {Anomaly.UNSEEN: 1, Anomaly.LOST_WRITE: 1, Anomaly.POLL_SKIP: 1}


def test_what_retention_removed_before_the_final_read_is_not_lost() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.final(2, "c")
    assert story.found() == {}


def test_a_record_acknowledged_after_the_final_read_began_is_only_unseen() -> None:
    story = Story()
    story.acked("a")
    story.final(0, "a")
    story.acked("b", start=1)
    assert story.found() == {Anomaly.UNSEEN: 1}


def test_a_final_read_that_did_not_end_proves_nothing() -> None:
    story = Story()
    story.acked("a", "b")
    story.add(Operation("reader", 0, "invoke", "final", 0, TOPIC, 0))
    story.poll(0, "a", process="reader")
    story.add(Operation("reader", 0, "info", "final", 0, TOPIC, 0))
    assert story.found() == {Anomaly.UNSEEN: 1}


def test_the_last_of_several_final_reads_counts() -> None:
    story = Story()
    story.acked("a", "b")
    story.final(0, "a", "b")
    story.final(0, "a")
    assert story.found() == {Anomaly.LOST_WRITE: 1}


def test_a_record_acknowledged_during_the_final_read_below_its_end_is_lost() -> None:
    story = Story()
    story.send("a", "b")
    story.final(0, "b", end=2)
    final = story.operations[-1]
    story.operations.remove(final)
    story.ok("a", 1)
    story.ok("b", 0)
    story.add(final)
    assert story.found()[Anomaly.LOST_WRITE] == 1


@pytest.mark.parametrize(("start", "expected"), [(0, Anomaly.LOST_WRITE), (2, Anomaly.UNSEEN)])
def test_a_record_without_a_known_offset_is_lost_only_where_retention_removed_nothing(
    start: int, expected: Anomaly
) -> None:
    story = Story()
    story.send("a")
    story.ok("a", -1)
    story.final(start)
    assert story.found() == {expected: 1}


@pytest.mark.parametrize(("offset", "expected"), [(1, {}), (3, {Anomaly.LOST_WRITE: 1})])
def test_where_a_record_was_read_decides_whether_retention_may_have_removed_it(
    offset: int, expected: dict[Anomaly, int]
) -> None:
    story = Story()
    story.send("a")
    story.ok("a", -1)
    story.poll(offset, "a")
    story.final(2)
    assert story.found() == expected


def test_a_record_that_comes_after_the_final_read_and_is_read_by_another_is_clean() -> None:
    story = Story()
    story.final(0)
    story.acked("a")
    story.poll(0, "a")
    assert story.found() == {}


def test_what_a_consumer_went_past_before_it_sought_elsewhere_is_lost() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll_records([(0, "a"), (2, "c")])
    story.seek(0)
    assert story.found() == {Anomaly.LOST_WRITE: 1, Anomaly.POLL_SKIP: 1}


def test_what_a_consumer_went_past_is_lost_though_it_never_said_where_it_began() -> None:
    story = Story()
    story.acked("a", "b", "c", "d")
    story.seek(-1)
    story.poll_records([(1, "b"), (3, "d")])
    assert story.found() == {Anomaly.UNSEEN: 1, Anomaly.LOST_WRITE: 1, Anomaly.POLL_SKIP: 1}


def test_what_lies_between_two_readings_is_only_unseen() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll(0, "a")
    story.seek(2)
    story.poll(2, "c")
    assert story.found() == {Anomaly.UNSEEN: 1}


# ---- duplicate and inconsistent-offsets ----


def test_a_value_read_at_two_offsets_is_a_duplicate_however_often_it_is_read() -> None:
    story = Story()
    story.acked("a", "b")
    for process in ("c", "d"):
        story.poll(0, "a", "b", "a", process=process)
    assert story.found() == {Anomaly.DUPLICATE: 1}


def test_a_value_in_two_partitions_is_a_duplicate() -> None:
    story = Story()
    story.send("a")
    story.info("a")
    story.poll(0, "a")
    story.poll(0, "a", partition=1)
    assert story.found() == {Anomaly.DUPLICATE: 1}


@pytest.mark.parametrize("read_first", [True, False])
def test_a_value_read_elsewhere_than_acknowledged_is_a_duplicate(read_first: bool) -> None:
    story = Story()
    story.send("a")
    if not read_first:
        story.ok("a", 1)
    story.poll(2, "a")
    if read_first:
        story.ok("a", 1)
    assert story.found() == {Anomaly.DUPLICATE: 1}


def test_two_consumers_that_read_different_values_at_one_offset() -> None:
    story = Story()
    story.send("a")
    story.send("b", process="q")
    story.poll(0, "a")
    story.poll(0, "b", process="d")
    story.poll(0, "b", process="e")
    assert story.found() == {Anomaly.INCONSISTENT_OFFSETS: 1}


def test_two_acknowledgements_of_one_offset_are_inconsistent() -> None:
    story = Story()
    story.send("a")
    story.send("b", process="q")
    story.ok("a", 0)
    story.ok("b", 0)
    story.poll(0, "b")
    assert story.found() == {Anomaly.INCONSISTENT_OFFSETS: 1, Anomaly.LOST_WRITE: 1}


def test_a_record_that_is_read_as_null_is_inconsistent() -> None:
    story = Story()
    story.acked("a")
    story.poll(0, "a")
    story.poll(0, None, process="d")
    assert story.found() == {Anomaly.INCONSISTENT_OFFSETS: 1}


# ---- G1a, phantom, precommitted-read ----


@pytest.mark.parametrize("read_first", [True, False])
def test_a_certainly_failed_send_that_is_read_is_g1a(read_first: bool) -> None:
    story = Story()
    story.send("a")
    if not read_first:
        story.fail("a")
    story.poll(0, "a")
    if read_first:
        story.fail("a")
    assert story.found() == {Anomaly.G1A: 1}


def test_a_record_that_no_one_sent_is_a_phantom_unless_others_write_too() -> None:
    story = Story()
    story.acked("b", start=1)
    story.poll(0, "a", "b", None)
    assert story.found() == {Anomaly.PHANTOM: 2}
    assert story.found(foreign_records=True) == {}


def test_a_record_read_at_or_above_the_high_watermark_is_precommitted() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll(0, "a", "b", "c", high_watermark=2)
    assert story.found() == {Anomaly.PRECOMMITTED_READ: 1}


def test_a_record_of_unknown_outcome_that_was_read_and_is_gone_at_the_end_was_precommitted() -> None:
    story = Story()
    story.acked("a")
    story.send("b")
    story.info("b")
    story.poll(0, "a", "b", high_watermark=2)
    story.final(0, "a")
    assert story.found() == {Anomaly.PRECOMMITTED_READ: 1}


# ---- Consumers that go back or skip ----


def test_a_consumer_that_gets_an_offset_again_without_a_seek_is_nonmonotonic() -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll(0, "a", "b")
    story.poll(1, "b", "c")
    assert story.found() == {Anomaly.NONMONOTONIC_POLL: 1}


def test_a_poll_that_goes_back_within_itself_is_nonmonotonic() -> None:
    story = Story()
    story.acked("a", "b")
    story.poll(0, "a", "b")
    story.poll_records([(0, "a"), (1, "b"), (0, "a"), (1, "b")], process="d")
    assert story.found() == {Anomaly.NONMONOTONIC_POLL: 1}


def test_a_consumer_that_gets_less_than_it_sought_is_nonmonotonic() -> None:
    story = Story()
    story.acked("a", "b")
    story.seek(1)
    story.poll(0, "a", "b")
    assert story.found() == {Anomaly.NONMONOTONIC_POLL: 1}


@pytest.mark.parametrize("within", [True, False])
def test_a_consumer_that_skips_a_record_that_another_one_reads(within: bool) -> None:
    story = Story()
    story.acked("a", "b", "c")
    story.poll(0, "a", "b", "c")
    if within:
        story.poll_records([(0, "a"), (2, "c")], process="d")
    else:
        story.poll(0, "a", process="d")
        story.poll(2, "c", process="d")
    assert story.found() == {Anomaly.POLL_SKIP: 1}


def test_a_skip_counts_though_the_record_becomes_known_later() -> None:
    story = Story()
    story.send("a", "b", "c")
    story.poll_records([(0, "a"), (2, "c")])
    story.poll(0, "a", "b", "c", process="d")
    assert story.found() == {Anomaly.POLL_SKIP: 1}


def test_a_final_reader_that_says_it_came_further_than_it_did_has_skipped() -> None:
    story = Story()
    story.send("a", "b")
    story.poll(0, "a", "b")
    story.final(0, "a", end=2)
    assert story.found() == {Anomaly.POLL_SKIP: 1, Anomaly.PRECOMMITTED_READ: 1}


def test_offsets_where_no_record_is_known_are_no_skip() -> None:
    story = Story()
    story.acked("a")
    story.acked("b", start=2)
    story.poll_records([(0, "a"), (2, "b")])
    assert story.found() == {}


def test_a_seek_allows_everything() -> None:
    story = Story()
    story.acked("a", "b", "c", "d")
    story.poll(0, "a", "b", "c", "d")
    story.seek(0)
    story.poll(0, "a")
    story.seek(3)
    story.poll(3, "d")
    story.seek(-1)
    story.poll(1, "b")
    assert story.found() == {}


# ---- Order of sending ----


def test_acknowledged_offsets_that_fall_are_a_nonmonotonic_send() -> None:
    story = Story()
    story.send("a", "b")
    story.ok("b", 0)
    story.ok("a", 1)
    story.poll(0, "b", "a")
    assert story.found() == {Anomaly.NONMONOTONIC_SEND: 1}


def test_a_nonmonotonic_send_needs_no_reader() -> None:
    story = Story()
    story.send("a", "b")
    story.ok("a", 1)
    story.ok("b", 0)
    assert story.found() == {Anomaly.NONMONOTONIC_SEND: 1, Anomaly.UNSEEN: 2}


@pytest.mark.parametrize("outcome", ["info", "crash", "offset unknown"])
def test_a_record_without_a_known_offset_that_comes_late_is_reordered(outcome: str) -> None:
    story = Story()
    story.send("a", "b")
    story.ok("b", 0)
    if outcome == "info":
        story.info("a")
    elif outcome == "offset unknown":
        story.ok("a", -1)
    story.poll(0, "b", "a")
    assert story.found() == {Anomaly.REORDERED: 1}


def test_what_was_read_counts_for_more_than_what_was_acknowledged() -> None:
    """q's record is lost; that p's records are out of order is seen nevertheless."""
    story = Story()
    story.acked("v", process="q")
    story.send("a", "b")
    story.poll(0, "b", "a")
    assert story.found() == {Anomaly.INCONSISTENT_OFFSETS: 1, Anomaly.LOST_WRITE: 1, Anomaly.REORDERED: 1}


def test_a_failed_record_that_is_read_has_no_place_in_the_order() -> None:
    story = Story()
    story.send("a", "b")
    story.fail("a")
    story.poll(0, "b", "a")
    assert story.found() == {Anomaly.G1A: 1}


def test_processes_and_partitions_have_no_order_among_them() -> None:
    story = Story()
    story.send("a", process="p")
    story.send("b", process="q")
    story.ok("b", 0)
    story.ok("a", 1)
    story.send("c", "d")
    story.ok("d", 0, partition=1)
    story.ok("c", 5, partition=2)
    story.poll(0, "b", "a")
    story.poll(0, "d", partition=1)
    story.poll(5, "c", partition=2)
    assert story.found() == {}


def test_a_producer_opened_again_under_its_name_is_another_process() -> None:
    story = Story()
    story.send("a", process="p")
    story.send("b", process="q")
    again = story.operations.pop()._replace(process="p")
    story.add(again)
    story.add(again._replace(type="ok", value=None, partition=0, offset=0))
    story.poll(0, "b", "a")
    verdict = story.check()
    assert verdict.clean
    assert (verdict.acked, verdict.unknown) == (1, 1)


# ---- Stamps ----


def stamped(*stamps: tuple[int, int, int], unknown: int = 0) -> Story:
    """Records from offset 0 on, each of its own process, so that only their stamps have an order."""
    story = Story()
    for number in range(unknown):
        story.send(f"u{number}", process=f"u{number}")
    for offset, stamp in enumerate(stamps, unknown):
        story.send(f"v{offset}", process=f"p{offset}")
        story.ok(f"v{offset}", offset, stamp=stamp)
    values = [f"u{number}" for number in range(unknown)]
    story.final(0, *values, *(f"v{offset}" for offset in range(unknown, unknown + len(stamps))))
    return story


def test_sequences_that_rise_by_one_in_every_epoch_are_clean() -> None:
    assert stamped((7, 0, 0), (8, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 1), (7, 1, 1)).found() == {}


def test_sequences_wrap_to_zero() -> None:
    top = 2**31 - 1
    story = stamped((7, 0, top), (7, 0, 0), (7, 0, 1))
    assert story.found() == {Anomaly.SEQUENCE_GAP: 1}  # only that an epoch began at 2^31-1
    assert "before sequence 2147483647" in story.check().findings[0].text


@pytest.mark.parametrize(
    "stamps",
    [
        ((7, 0, 0), (7, 0, 2)),
        ((7, 0, 0), (8, 0, 0), (7, 0, 3), (7, 0, 4)),
        ((7, 0, 1),),
        ((7, 0, 0), (7, 1, 1)),
    ],
)
def test_a_sequence_that_has_no_room_in_the_log_is_a_gap(stamps: tuple[tuple[int, int, int], ...]) -> None:
    assert stamped(*stamps).found() == {Anomaly.SEQUENCE_GAP: 1}


def test_a_gap_that_records_without_a_known_stamp_may_fill_is_none() -> None:
    assert stamped((7, 0, 2), unknown=2).found() == {}
    assert stamped((7, 0, 3), unknown=2).found() == {Anomaly.SEQUENCE_GAP: 1}


def test_what_begins_an_epoch_stands_behind_the_epoch_before() -> None:
    assert stamped((7, 0, 0), (7, 1, 1), unknown=2).found() == {Anomaly.SEQUENCE_GAP: 1}


def test_a_sequence_that_comes_late_is_reordered_and_no_gap() -> None:
    assert stamped((7, 0, 0), (7, 0, 2), (7, 0, 1), (7, 0, 3)).found() == {Anomaly.REORDERED: 1}


def test_an_epoch_that_comes_late_is_reordered() -> None:
    assert stamped((7, 0, 0), (7, 1, 0), (7, 0, 1)).found() == {Anomaly.REORDERED: 1}


def test_a_sequence_that_stands_twice_is_a_duplicate() -> None:
    assert stamped((7, 0, 0), (7, 0, 1), (7, 0, 1), (7, 0, 2)).found() == {Anomaly.DUPLICATE: 1}


# ---- Clean histories with unknown outcomes ----


@pytest.mark.parametrize("in_log", [True, False])
@pytest.mark.parametrize("outcome", ["info", "fail that may have been appended", "crash"])
def test_a_send_of_unknown_outcome_may_be_in_the_log_or_not(in_log: bool, outcome: str) -> None:
    story = Story()
    story.acked("a")
    story.send("b")
    if outcome == "info":
        story.info("b")
    elif outcome != "crash":
        story.fail("b", may_have_been_appended=True)
    story.acked("c", start=2 if in_log else 1)
    log = ["a", "b", "c"] if in_log else ["a", "c"]
    story.poll(0, *log, high_watermark=3)
    story.final(0, *log)
    verdict = story.check()
    assert verdict.clean
    assert (verdict.sends, verdict.acked, verdict.failed, verdict.unknown) == (3, 2, 0, 1)


def test_a_certainly_failed_send_that_no_one_reads_is_clean() -> None:
    story = Story()
    story.send("a", "b")
    story.fail("a")
    story.ok("b", 0)
    story.final(0, "b")
    assert story.found() == {}


def test_a_record_read_before_its_acknowledgement_is_clean() -> None:
    story = Story()
    story.send("a")
    story.poll(0, "a", high_watermark=1)
    story.ok("a", 0)
    assert story.found() == {}


def test_an_empty_history_is_clean() -> None:
    assert check_history([]).clean


# ---- What is told ----


def test_a_finding_is_shown_among_the_operations_around_it() -> None:
    story = Story()
    story.acked(*(f"v{number}" for number in range(20)))
    story.send("x", process="q")
    story.fail("x")
    story.poll(0, *(f"v{number}" for number in range(10)), "x")
    verdict = check_history([to_line(operation) for operation in story.operations])
    [finding] = [finding for finding in verdict.findings if finding.anomaly is Anomaly.G1A]
    assert finding.text == "orders-0: 'x' of q certainly failed, and was read at offset 10"
    assert [(line.where, line.evidence) for line in finding.operations] == [
        ("38", False),
        ("40", False),
        ("41", True),
        ("42", True),
        ("43", True),
    ]
    assert finding.operations[2].text.endswith("q send #1 invoke orders 'x'")
    assert "11 records, offsets 0-10 […, 8:'v8', 9:'v9', 10:'x', …]" in finding.operations[4].text


def test_findings_of_one_kind_are_shown_a_few_times_and_all_counted() -> None:
    story = Story()
    story.acked(*(f"v{number}" for number in range(50)))
    verdict = story.check()
    assert verdict.counts == {Anomaly.UNSEEN: 50}
    assert len(verdict.findings) == MAX_SHOWN
    assert verdict.to_json()["anomalies"] == {"unseen": 50}


def test_an_iterator_of_lines_is_checked_without_context() -> None:
    story = Story()
    story.acked("a")
    verdict = check_history(iter(story.operations))
    assert verdict.counts == {Anomaly.UNSEEN: 1}
    assert verdict.findings[0].operations == ()


def test_long_values_are_distinguished_by_their_ends() -> None:
    story = Story()
    long = "x" * 1000
    story.acked(long + "a", long + "b")
    story.poll(0, long + "a", long + "b")
    story.poll(0, long + "b", process="d")
    assert story.found() == {Anomaly.DUPLICATE: 1, Anomaly.INCONSISTENT_OFFSETS: 1}


def test_names_that_would_steer_a_terminal_are_shown_escaped() -> None:
    story = Story()
    story.acked("a\x1b[2J\udcff", process="\x1b[2Jp")
    [finding] = story.check().findings
    assert all(text.isprintable() for text in (finding.text, *(line.text for line in finding.operations)))


# ---- misplaced-key ----


def test_a_key_in_two_partitions_is_misplaced_where_keys_place_records() -> None:
    story = Story()
    story.send("a", "b", key="k")
    story.send("c", key="l")
    story.ok("a", 0, partition=1)
    story.ok("b", 0, partition=2)
    story.ok("c", 1, partition=2)
    story.final(0, "a", partition=1)
    story.final(0, "b", "c", partition=2)
    assert story.check().clean
    verdict = story.check(one_partition_per_key=True)
    assert verdict.counts == {Anomaly.MISPLACED_KEY: 1}
    assert verdict.findings[0].text == "key 'k': 'b' is in orders-2, and 'a' in orders-1"


def test_a_record_of_unknown_outcome_counts_where_it_is_read_and_a_chosen_partition_does_not() -> None:
    story = Story()
    story.send("a", "b", key="k")
    story.send("chosen", key="k", partition=2)
    story.ok("a", 0, partition=0)
    story.info("b")
    story.ok("chosen", 0, partition=2)
    story.poll(0, "a")
    story.poll(0, "chosen", partition=2)
    assert story.check(one_partition_per_key=True).clean
    story.poll(0, "b", partition=1)
    assert story.check(one_partition_per_key=True).counts == {Anomaly.MISPLACED_KEY: 1}


def test_every_anomaly_has_a_meaning() -> None:
    assert set(MEANING) == set(Anomaly)


def test_counts_are_there_while_operations_are_fed() -> None:
    story = Story()
    story.acked("a", "b")
    story.poll(0, "a", "a")
    check = HistoryCheck()
    for operation in story.operations:
        check.feed(operation)
    assert check.counts[Anomaly.DUPLICATE] == 1


# ---- Histories that cannot be ----


def test_a_value_sent_twice_is_refused() -> None:
    story = Story()
    story.send("a", "b")
    story.send("a", process="q")
    with pytest.raises(
        BrokenHistory, match=r"line 3: value 'a' is sent to topic 'orders' a second time \(first in op.* 1 "
    ):
        story.check()


def test_a_completion_without_an_invocation_is_refused() -> None:
    story = Story()
    story.send("a")
    story.ok("a", 0)
    story.ok("a", 0)
    with pytest.raises(BrokenHistory, match="line 3: ok of send 1 of p to topic 'orders': it was never invoked, or"):
        story.check()


def test_a_final_read_that_never_began_is_refused() -> None:
    line = Operation("r", 0, "ok", "final", 0, TOPIC, 0, start_offset=0, end_offset=0)
    with pytest.raises(BrokenHistory, match="a final read of orders-0 by r ends that never began"):
        check_history([line])
