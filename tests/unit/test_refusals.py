"""The latch: what a broker refused for a passing reason holds up what its producer sends behind it, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node.producers.producer_state import Append, ProducerState
from fencepost_node.producers.refusals import FORGOTTEN_AFTER_S, MAX_LATCHES, Refusals
from fencepost_proto.protocol.errors import (
    FencepostError,
    InvalidRecord,
    NotEnoughReplicas,
    NotLeaderOrFollower,
    OutOfOrderSequenceNumber,
)
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader
from tests.unit.batches import header

PLACE = ("t", 0)
NOT_LEADER = NotLeaderOrFollower("broker 2 leads")


def latched(refusals: Refusals, batch: BatchHeader, now: float = 0.0, place: tuple[str, int] = PLACE) -> bool:
    try:
        refusals.check(place, batch, now)
    except FencepostError:
        return True
    return False


def refused(sequence: int = 3, count: int = 2, epoch: int = 0) -> Refusals:
    refusals = Refusals()
    refusals.refused(PLACE, header(count, sequence=sequence, epoch=epoch), NOT_LEADER, 0.0)
    return refusals


def test_what_follows_is_refused_with_the_same_error_until_the_refused_batch_is_back() -> None:
    refusals = refused(sequence=3, count=2)
    with pytest.raises(NotLeaderOrFollower, match="broker 2 leads"):
        refusals.check(PLACE, header(1, sequence=5), 1.0)
    first = header(2, sequence=3)
    assert not latched(refusals, first)
    refusals.passed(PLACE, first)
    # The one behind it was refused, too: one that comes before it is back would find a gap.
    assert latched(refusals, header(1, sequence=6))
    for sequence in (5, 6):
        batch = header(1, sequence=sequence)
        assert not latched(refusals, batch)
        refusals.passed(PLACE, batch)
    assert not refusals


def test_batches_that_come_before_the_awaited_one_or_of_others_are_checked_as_usual() -> None:
    refusals = refused(sequence=3)
    assert not latched(refusals, header(1, sequence=2))
    assert not latched(refusals, header(1, sequence=9, producer_id=2))
    assert not latched(refusals, header(1, sequence=9), place=("t", 1))
    assert latched(refusals, header(1, sequence=9))


def test_a_newer_epoch_opens_the_latch_and_an_older_one_passes_by() -> None:
    refusals = refused(sequence=3, epoch=4)
    assert not latched(refusals, header(1, sequence=9, epoch=3))
    assert refusals
    assert not latched(refusals, header(1, sequence=9, epoch=5))
    assert not refusals


def test_the_awaited_batch_may_be_refused_again_and_for_another_reason() -> None:
    refusals = refused(sequence=3)
    again = header(2, sequence=3)
    refusals.check(PLACE, again, 1.0)
    refusals.refused(PLACE, again, NotEnoughReplicas("1 in sync"), 1.0)
    with pytest.raises(NotEnoughReplicas):
        refusals.check(PLACE, header(1, sequence=5), 2.0)
    refusals.refused(PLACE, again, InvalidRecord("it never will be taken"), 3.0)
    assert not refusals


def test_an_earlier_batch_that_is_refused_is_awaited_first() -> None:
    refusals = refused(sequence=3)
    refusals.refused(PLACE, header(1, sequence=2), NOT_LEADER, 0.0)
    assert latched(refusals, header(2, sequence=3))


@pytest.mark.parametrize("error", [InvalidRecord("no"), OutOfOrderSequenceNumber("a gap of the producer's own")])
def test_a_refusal_that_does_not_pass_holds_up_nothing(error: FencepostError) -> None:
    refusals = Refusals()
    refusals.refused(PLACE, header(1, sequence=3), error, 0.0)
    refusals.refused(PLACE, header(1, producer_id=-1, sequence=-1, epoch=-1), NOT_LEADER, 0.0)
    assert not refusals


def test_a_refusal_is_forgotten_when_nothing_comes_for_a_time() -> None:
    refusals = refused(sequence=3)
    assert latched(refusals, header(1, sequence=5), FORGOTTEN_AFTER_S - 1)
    assert latched(refusals, header(1, sequence=6), 2 * FORGOTTEN_AFTER_S - 2)
    assert not latched(refusals, header(1, sequence=7), 4 * FORGOTTEN_AFTER_S)
    assert not refusals


def test_one_connection_has_so_many_latches_and_the_oldest_opens() -> None:
    refusals = Refusals()
    for producer_id in range(MAX_LATCHES + 1):
        refusals.refused(PLACE, header(1, producer_id=producer_id), NOT_LEADER, 0.0)
    assert len(refusals) == MAX_LATCHES
    assert not latched(refusals, header(1, producer_id=0, sequence=1))
    assert latched(refusals, header(1, producer_id=1, sequence=1))


def test_sequences_that_wrap_are_in_order() -> None:
    refusals = refused(sequence=MAX_SEQUENCE, count=1)
    assert latched(refusals, header(1, sequence=0))
    awaited = header(1, sequence=MAX_SEQUENCE)
    refusals.check(PLACE, awaited, 1.0)
    refusals.passed(PLACE, awaited)
    assert not latched(refusals, header(1, sequence=0))


@settings(max_examples=60)
@given(st.data())
def test_a_client_that_keeps_its_order_is_never_told_that_it_does_not(data: st.DataObject) -> None:
    """G14: five in flight on one connection, sent again in order once refused; the broker refuses when it likes."""
    state, refusals = ProducerState(), Refusals()
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    starts = [sum(counts[:number]) for number in range(len(counts))]
    to_send = list(range(len(counts)))  # batches by number, in order
    wire: list[int] = []  # sent and not yet looked at by the broker
    answers: list[tuple[int, bool]] = []  # not yet looked at by the client
    in_flight: list[int] = []
    done: list[int] = []
    refusals_left = 6
    while len(done) < len(counts):
        moves = []
        if to_send and len(in_flight) < 5:
            moves.append("send")
        if wire:
            moves.append("take")
        if answers:
            moves.append("hear")
        move = data.draw(st.sampled_from(moves))
        if move == "send":
            number = to_send.pop(0)
            in_flight.append(number)
            wire.append(number)
        elif move == "take":
            number = wire.pop(0)
            batch = header(counts[number], sequence=starts[number])
            taken = False
            if not latched(refusals, batch):
                if refusals_left and data.draw(st.booleans()):
                    refusals_left -= 1
                    refusals.refused(PLACE, batch, NOT_LEADER, 0.0)
                else:
                    assert isinstance(state.check(batch, ever_held_records=False), Append)
                    state.record(batch, starts[number])
                    refusals.passed(PLACE, batch)
                    taken = True
            answers.append((number, taken))
        else:
            number, taken = answers.pop(0)
            in_flight.remove(number)
            if taken:
                assert number == len(done)
                done.append(number)
            else:  # it goes out again, behind no later one that has not gone out yet
                to_send.append(number)
                to_send.sort()
