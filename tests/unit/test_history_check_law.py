"""Laws of the history checker: what a correct log does is clean, and each thing that goes wrong in it is found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fencepost.history_format import Operation, ReadRecord, from_line, to_line
from fencepost_testing.history_check import Anomaly, check_history
from tests.unit.model_history import CONSUMERS, ModelHistory

EXAMPLES = settings(max_examples=60, deadline=None)
randoms = st.builds(Random, st.integers(0, 2**32))  # far faster than hypothesis's own; `steps` shrinks
steps = st.integers(0, 120)
many_steps = st.integers(80, 160)  # nearly every run has some of everything


@EXAMPLES
@given(randoms, steps, st.booleans())
def test_whatever_a_correct_log_does_is_clean(random: Random, steps: int, with_final_reads: bool) -> None:
    verdict = check_history(ModelHistory(random, with_final_reads).run(steps))
    assert verdict.counts == {}
    assert [finding.text for finding in verdict.findings] == []


@EXAMPLES
@given(randoms, steps)
def test_lines_are_read_as_they_were_written(random: Random, steps: int) -> None:
    for operation in ModelHistory(random).run(steps):
        assert from_line(to_line(operation)) == operation


def change_reads(
    operations: list[Operation], change: Callable[[Operation, ReadRecord], ReadRecord | None]
) -> list[Operation]:
    """Every record that was read, changed or taken out."""

    def changed(operation: Operation) -> Operation:
        records = [change(operation, record) for record in operation.records]
        return operation._replace(records=[record for record in records if record is not None])

    return [changed(operation) if operation.records else operation for operation in operations]


def some_read(random: Random, operations: list[Operation]) -> tuple[Operation, ReadRecord]:
    reads = [(operation, record) for operation in operations for record in operation.records]
    assume(reads)
    return random.choice(reads)


@EXAMPLES
@given(randoms, many_steps)
def test_an_acknowledged_record_that_no_one_reads_is_a_lost_write(random: Random, steps: int) -> None:
    model = ModelHistory(random)
    history = model.run(steps)
    assume(model.acked)
    lost = random.choice(sorted(model.acked))
    broken = change_reads(history, lambda _, record: None if record[1] == lost else record)
    assert check_history(broken).counts[Anomaly.LOST_WRITE] == 1


@EXAMPLES
@given(randoms, many_steps)
def test_an_acknowledged_record_that_is_gone_at_the_end_is_a_lost_write(random: Random, steps: int) -> None:
    model = ModelHistory(random)
    history = model.run(steps)
    assume(model.acked)
    lost = random.choice(sorted(model.acked))
    broken = change_reads(
        history, lambda poll, record: None if poll.process == "reader" and record[1] == lost else record
    )
    assert check_history(broken).counts[Anomaly.LOST_WRITE] == 1


@EXAMPLES
@given(randoms, steps)
def test_a_record_that_is_read_in_place_of_another_is_a_duplicate(random: Random, steps: int) -> None:
    history = ModelHistory(random).run(steps)
    _, copied = some_read(random, history)
    poll, replaced = some_read(random, history)
    assume(copied != replaced)
    broken = change_reads(
        history, lambda at, record: (record[0], copied[1]) if at is poll and record == replaced else record
    )
    counts = check_history(broken).counts
    assert counts[Anomaly.DUPLICATE] >= 1


@EXAMPLES
@given(randoms, many_steps)
def test_a_failed_record_that_is_read_is_g1a(random: Random, steps: int) -> None:
    model = ModelHistory(random)
    history = model.run(steps)
    assume(model.failed)
    failed = random.choice(sorted(model.failed))
    poll, replaced = some_read(random, history)
    broken = change_reads(
        history, lambda at, record: (record[0], failed) if at is poll and record == replaced else record
    )
    assert check_history(broken).counts[Anomaly.G1A] == 1


@EXAMPLES
@given(randoms, steps)
def test_a_poll_that_a_consumer_gets_twice_is_nonmonotonic(random: Random, steps: int) -> None:
    history = ModelHistory(random).run(steps)
    poll, _ = some_read(random, history)
    index = next(index for index, operation in enumerate(history) if operation is poll)
    counts = check_history([*history[: index + 1], poll, *history[index + 1 :]]).counts
    assert counts == {Anomaly.NONMONOTONIC_POLL: 1}


@EXAMPLES
@given(randoms, steps)
def test_a_record_that_one_consumer_does_not_get_is_a_skip(random: Random, steps: int) -> None:
    model = ModelHistory(random)
    model.poll_of_three()
    history = model.run(steps)
    polls = [operation for operation in history if operation.process in CONSUMERS and len(operation.records) > 2]
    poll = random.choice(polls)
    skipped = poll.records[1]
    broken = change_reads(history, lambda at, record: None if at is poll and record == skipped else record)
    assert check_history(broken).counts == {Anomaly.POLL_SKIP: 1}


@EXAMPLES
@given(randoms, steps)
def test_a_read_above_the_high_watermark_is_precommitted(random: Random, steps: int) -> None:
    history = ModelHistory(random).run(steps)
    poll, record = some_read(random, history)
    broken = [operation._replace(high_watermark=record[0]) if operation is poll else operation for operation in history]
    above = sum(offset >= record[0] for offset, _ in poll.records)
    assert check_history(broken).counts == {Anomaly.PRECOMMITTED_READ: above}


@EXAMPLES
@given(randoms, many_steps)
def test_neighbours_of_one_process_that_change_places_everywhere_are_out_of_order(random: Random, steps: int) -> None:
    model = ModelHistory(random)
    history = model.run(steps)
    pairs = [
        (first, second) for log in model.logs for first, second in pairwise(log) if first.process == second.process
    ]
    assume(pairs)
    first, second = random.choice(pairs)
    swapped = {first.value: second.offset, second.value: first.offset}
    values = {sent.id: sent.value for log in model.logs for sent in log}

    def change(operation: Operation) -> Operation:
        if operation.type == "ok" and operation.op == "send" and operation.offset >= 0:
            return operation._replace(offset=swapped.get(values[operation.id], operation.offset))
        other = {first.value: second.value, second.value: first.value}
        records = [(offset, other.get(str(value), value)) for offset, value in operation.records]
        return operation._replace(records=records) if records else operation

    counts = check_history([change(operation) for operation in history]).counts
    assert counts.get(Anomaly.NONMONOTONIC_SEND, 0) + counts.get(Anomaly.REORDERED, 0) >= 1
    # Where only the second one's stamp is known, the first one's sequence is missing before it.
    assert counts.keys() <= {Anomaly.NONMONOTONIC_SEND, Anomaly.REORDERED, Anomaly.SEQUENCE_GAP}
