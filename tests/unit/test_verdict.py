"""The checkers can find each thing that may be wrong with a log, and find nothing in a right one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_testing.history_check import KIND_OF, Anomaly, of_history
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import MIN_RECORD_BYTES, Ledger, Mark, make_value, read_mark
from fencepost_testing.record_check import RecordCheck
from fencepost_testing.replica_check import ReplicaSummary, Segment, check_replica, check_same
from tests.unit.history_story import Story as HistoryStory

RUN = "run00001"
Row = tuple[int, int, bytes | None, bytes | None]  # partition, offset, key, value


def kinds(findings: Findings) -> dict[Kind, int]:
    return {kind: count for kind, count in findings.counts.items() if count}


# ---- What a history says ----


def test_what_a_history_says_of_the_log_is_separate_from_what_consumers_got() -> None:
    story = HistoryStory()
    story.acked("a", "b", "c")
    story.poll(0, "a", "b", high_watermark=1)
    story.final(0, "a", "b")
    findings, misread = of_history(story.check())
    assert kinds(findings) == {Kind.LOST: 1}
    assert [text.partition(":")[0] for text in (*findings.examples, *misread)] == ["lost", "precommitted-read"]
    assert set(Anomaly) - set(KIND_OF) == {
        Anomaly.INCONSISTENT_OFFSETS,
        Anomaly.NONMONOTONIC_POLL,
        Anomaly.POLL_SKIP,
        Anomaly.PRECOMMITTED_READ,
        Anomaly.TWO_OWNERS,
        Anomaly.COMMIT_WENT_BACK,
        Anomaly.LOST_COMMIT,
        Anomaly.COMMITTED_UNREAD,
    }


# ---- What a consumer reads ----


def written(count: int, partitions: int = 2, keys: int = 4) -> tuple[Ledger, list[Row]]:
    """A workload's ledger and its records as they stand in a right log."""
    ledger, ends, counters = Ledger(RUN), [0] * partitions, [0] * keys
    rows: list[Row] = []
    for _ in range(count):
        record_id = ledger.send()
        key = record_id % keys
        partition = key % partitions
        offset = ends[partition]
        ends[partition] += 1
        rows.append((partition, offset, b"%d" % key, make_value(RUN, record_id, counters[key], MIN_RECORD_BYTES)))
        counters[key] += 1
        ledger.ack(record_id, partition, offset)
    return ledger, rows


def numbered(rows: list[Row]) -> list[Row]:
    """The rows with offsets as a log gives them, in their order."""
    ends: dict[int, int] = {}
    answer = []
    for partition, _, key, value in rows:
        answer.append((partition, ends.get(partition, 0), key, value))
        ends[partition] = ends.get(partition, 0) + 1
    return answer


def check(ledger: Ledger, rows: list[Row]) -> Findings:
    records = RecordCheck("t", [ledger])
    for row in rows:
        records.add(*row)
    return records.finish()


def forget_offsets(ledger: Ledger) -> Ledger:
    return Ledger.from_json(ledger.to_json())


def test_a_right_log_has_no_findings() -> None:
    ledger, rows = written(100)
    assert check(ledger, rows).clean
    assert check(ledger, sorted(rows, key=lambda row: row[:2])).clean  # partition by partition is fine too
    assert ledger.acked == ledger.sent == 100


def test_a_missing_acknowledged_record_is_lost() -> None:
    ledger, rows = written(100)
    del rows[40]
    findings = check(forget_offsets(ledger), numbered(rows))
    assert kinds(findings) == {Kind.LOST: 1}
    assert "record 40 of run run00001" in findings.examples[0]


def test_a_missing_tail_is_lost() -> None:
    ledger, rows = written(100)
    assert kinds(check(ledger, rows[:-3])) == {Kind.LOST: 3}
    assert kinds(check(ledger, [])) == {Kind.LOST: 100}


def test_a_missing_record_of_unknown_or_refused_outcome_is_not_lost() -> None:
    ledger, rows = written(10)
    ledger.fail(4, may_have_been_appended=True)
    ledger.fail(7, may_have_been_appended=False)
    kept = numbered([row for index, row in enumerate(rows) if index not in (4, 7)])
    assert check(forget_offsets(ledger), kept).clean
    assert check(forget_offsets(ledger), numbered([row for index, row in enumerate(rows) if index != 7])).clean


def test_a_refused_record_in_the_log_is_resurrected() -> None:
    ledger, rows = written(10)
    ledger.fail(7, may_have_been_appended=False)
    assert kinds(check(ledger, rows)) == {Kind.RESURRECTED: 1}


def test_a_record_read_twice_is_duplicated() -> None:
    ledger, rows = written(10)
    assert kinds(check(forget_offsets(ledger), numbered([*rows[:5], rows[4], *rows[5:]]))) == {Kind.DUPLICATED: 1}


def test_a_record_twice_in_different_partitions_is_duplicated() -> None:
    ledger, rows = written(10)
    other = (1 - rows[3][0], 0, rows[3][2], rows[3][3])
    assert kinds(check(forget_offsets(ledger), numbered([*rows, other]))) == {Kind.DUPLICATED: 1}


def test_two_records_of_one_key_that_changed_places_are_reordered() -> None:
    ledger, rows = written(12)
    rows[0], rows[4] = rows[4], rows[0]
    assert set(kinds(check(forget_offsets(ledger), numbered(rows)))) == {Kind.REORDERED}


def test_two_records_of_different_keys_that_changed_places_are_reordered() -> None:
    ledger, rows = written(12)
    rows[0], rows[2] = rows[2], rows[0]  # keys 0 and 2 share partition 0
    assert kinds(check(forget_offsets(ledger), numbered(rows))) == {Kind.REORDERED: 1}


def test_a_record_at_another_offset_than_acknowledged_is_moved() -> None:
    ledger, rows = written(10)
    ledger.ack(9, rows[9][0], rows[9][1] + 1)
    assert kinds(check(ledger, rows)) == {Kind.MOVED: 1}
    ledger.ack(9, rows[9][0], -1)  # acknowledged without an offset
    assert check(ledger, rows).clean


def test_a_key_in_two_partitions_is_misplaced() -> None:
    ledger, rows = written(9)
    partition, _, key, value = rows[8]
    rows[8] = (1 - partition, 0, key, value)
    assert kinds(check(forget_offsets(ledger), numbered(rows))) == {Kind.MISPLACED: 1}


@pytest.mark.parametrize("value", [None, b"", b"hello", b"a:b:c:", make_value(RUN, 10, 0, MIN_RECORD_BYTES)])
def test_a_record_that_the_workload_did_not_write_is_foreign(value: bytes | None) -> None:
    ledger, rows = written(10)
    assert kinds(check(ledger, [*rows, (0, 5, None, value)])) == {Kind.FOREIGN: 1}


def test_a_skipped_offset_is_found() -> None:
    ledger, rows = written(10, partitions=1)
    shifted = [(p, offset + (offset >= 5), k, v) for p, offset, k, v in rows]
    assert kinds(check(forget_offsets(ledger), shifted)) == {Kind.CORRUPT: 1}


def test_a_run_without_a_ledger_is_checked_for_order_and_repeats_only() -> None:
    _, rows = written(10)
    records = RecordCheck("t", [])
    for row in numbered([*rows[:4], *rows[5:], rows[6]]):
        records.add(*row)
    assert kinds(records.finish()) == {Kind.DUPLICATED: 1}
    assert records.runs_without_ledger == [RUN]


def test_a_ledger_survives_json() -> None:
    ledger, _ = written(10)
    ledger.fail(3, may_have_been_appended=True)
    ledger.fail(5, may_have_been_appended=False)
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert (again.run, again.outcomes, again.acked, again.refused) == (RUN, ledger.outcomes, 8, 1)
    with pytest.raises(ValueError, match="record 10 in the ledger of 10"):
        Ledger.from_json({"run": RUN, "sent": 10, "unknown": [10], "refused": []})
    with pytest.raises(ValueError, match="not a workload's ledger"):
        Ledger.from_json({"run": RUN})


def test_values_carry_their_mark_and_have_their_size() -> None:
    value = make_value(RUN, 123, 45, 100)
    assert len(value) == 100
    assert read_mark(value) == Mark(RUN, 123, 45)
    assert len(make_value(RUN, 10**14 - 1, 10**14 - 1, MIN_RECORD_BYTES)) == MIN_RECORD_BYTES


# ---- What the disks hold ----

Batch = tuple[int, int, int, int]  # producer id, epoch, base sequence, count


def log_of(batches: list[Batch], base_offset: int = 0, leader_epoch: int = 0) -> bytes:
    parts, offset = [], base_offset
    for producer, epoch, sequence, count in batches:
        builder = BatchBuilder(Compression.NONE, 10_000)
        for index in range(count):
            builder.append(1_700_000_000_000, None, b"%d" % index, [])
        parts.append(stamp(builder.build(producer, epoch, sequence), offset, leader_epoch))
        offset += count
    return b"".join(parts)


def summary_of(*segments: Segment) -> ReplicaSummary:
    return check_replica(1, "t-0", segments)


RIGHT: list[Batch] = [
    (7, 0, 0, 3),
    (8, 0, 0, 2),
    (7, 0, 3, 1),
    (7, 0, 4, 5),
    (8, 1, 0, 4),
    (-1, -1, -1, 2),
    (7, 0, 9, 1),
]


def test_a_right_replica_has_no_findings() -> None:
    summary = summary_of((0, log_of(RIGHT)))
    assert summary.findings.clean, summary.findings
    assert (summary.records, summary.end_offset) == (18, 18)
    assert summary.producers == {(7, 0), (8, 0), (8, 1)}


def test_sequences_wrap_from_the_highest_to_zero() -> None:
    right: list[Batch] = [(7, 0, MAX_SEQUENCE - 2, 3), (7, 0, 0, 2), (7, 0, 2, 1)]
    across: list[Batch] = [(7, 0, MAX_SEQUENCE - 2, 5), (7, 0, 2, 1)]
    for batches in (right, across):
        assert summary_of((5, log_of(batches, base_offset=5))).findings.clean
    gap = summary_of((5, log_of([right[0], (7, 0, 1, 1)], base_offset=5))).findings
    assert kinds(gap) == {Kind.GAP: 1}


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([(7, 0, 0, 3), (7, 0, 4, 1)], {Kind.GAP: 1}),
        ([(7, 0, 1, 3)], {Kind.GAP: 1}),  # its beginning is missing
        ([(7, 0, 0, 3), (7, 0, 0, 3)], {Kind.DUPLICATED: 3}),
        ([(7, 0, 0, 3), (7, 0, 2, 2)], {Kind.DUPLICATED: 1}),  # overlaps in part
        ([(7, 0, 0, 3), (7, 0, 5, 2), (7, 0, 3, 2)], {Kind.REORDERED: 2}),
        (
            [(7, 0, 0, 3), (7, 0, 5, 2), (7, 0, 3, 2), (7, 0, 3, 2)],
            {Kind.REORDERED: 2, Kind.DUPLICATED: 2},
        ),
        ([(7, 1, 0, 3), (7, 0, 0, 2)], {Kind.REORDERED: 2}),  # an old epoch after a new one
    ],
)
def test_wrong_sequences_are_found(batches: list[Batch], expected: dict[Kind, int]) -> None:
    assert kinds(summary_of((0, log_of(batches))).findings) == expected


def test_a_log_whose_beginning_was_removed_may_begin_anywhere() -> None:
    assert summary_of((40, log_of([(7, 0, 12, 3), (7, 0, 15, 1)], base_offset=40))).findings.clean


def damage_crc(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_damaged_bytes_are_found() -> None:
    data = log_of(RIGHT)
    wrong: list[Callable[[bytes], bytes]] = [damage_crc, lambda d: d[:-1], lambda d: d + b"\0" * 7, lambda d: d[1:]]
    for damage in wrong:
        assert kinds(summary_of((0, damage(data))).findings) == {Kind.CORRUPT: 1}


def test_holes_between_offsets_and_falling_leader_epochs_are_found() -> None:
    first, second = log_of([(7, 0, 0, 3)]), log_of([(7, 0, 3, 1)], base_offset=4)
    assert kinds(summary_of((0, first + second)).findings) == {Kind.CORRUPT: 1}
    assert kinds(summary_of((0, first), (4, second)).findings) == {Kind.CORRUPT: 1}
    newer = log_of([(7, 0, 0, 3)], leader_epoch=4)
    older = log_of([(7, 0, 3, 1)], base_offset=3, leader_epoch=3)
    assert kinds(summary_of((0, newer + older)).findings) == {Kind.CORRUPT: 1}
    assert kinds(summary_of((0, newer), (3, older)).findings) == {Kind.CORRUPT: 1}


def test_replicas_are_compared_below_the_high_watermark_only() -> None:
    shared = log_of(RIGHT)
    tail = log_of([(9, 0, 0, 2)], base_offset=18)
    replicas = [summary_of((0, shared + tail)), summary_of((0, shared)), summary_of((0, shared))]
    assert check_same(replicas, 18).clean
    assert kinds(check_same(replicas, 20)) == {Kind.DIVERGED: 2}


def test_replicas_with_other_bytes_at_an_offset_have_diverged() -> None:
    first, epoch = summary_of((0, log_of(RIGHT))), summary_of((0, log_of(RIGHT, leader_epoch=1)))
    assert kinds(check_same([first, epoch], 18)) == {Kind.DIVERGED: 1}
    regrouped = summary_of((0, log_of([(7, 0, 0, 2), (7, 0, 2, 1), *RIGHT[1:]])))
    assert kinds(check_same([first, regrouped], 18)) == {Kind.DIVERGED: 1}


def test_replicas_may_begin_at_different_offsets() -> None:
    whole = log_of(RIGHT)
    cut = len(log_of(RIGHT[:2]))
    replicas = [summary_of((0, whole)), summary_of((5, whole[cut:]))]
    assert check_same(replicas, 18).clean


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch_dropped_repeated_or_moved_is_found(data: st.DataObject) -> None:
    ends, batches = {1: 0, 2: 0}, []
    for _ in range(data.draw(st.integers(3, 12), "batches")):
        producer, count = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 4))
        batches.append((producer, 0, ends[producer], count))
        ends[producer] += count
    assert summary_of((0, log_of(batches))).findings.clean
    victim = data.draw(st.integers(0, len(batches) - 1), "victim")
    damage = data.draw(st.sampled_from(["drop", "repeat", "move"]))
    producer = batches[victim][0]
    later = [index for index in range(victim + 1, len(batches)) if batches[index][0] == producer]
    wrong = list(batches)
    if damage == "drop":
        del wrong[victim]
        if not later:  # no one below can know of a missing tail: that is the ledger's to find
            return
        expected = {Kind.GAP}
    elif damage == "repeat":
        wrong.insert(data.draw(st.integers(victim + 1, len(batches))), batches[victim])
        expected = {Kind.DUPLICATED}
    elif later:
        wrong.insert(later[0] + 1, wrong[victim])
        del wrong[victim]
        expected = {Kind.REORDERED}
    else:
        return
    assert set(kinds(summary_of((0, log_of(wrong))).findings)) == expected
