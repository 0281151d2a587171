"""The latch: what a broker refused for a passing reason holds up what its producer sends behind it, and nothing else."""

from __future__ import annotations

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
    UnknownProducerId,
)
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader
from tests.unit.batches import header

PLACE = ("t", 0)
NOT_LEADER = NotLeaderOrFollower("broker 2 leads")
GAP = OutOfOrderSequenceNumber("a gap")


def told(
    refusals: Refusals,
    batch: BatchHeader,
    error: FencepostError = GAP,
    now: float = 0.0,
    place: tuple[str, int] = PLACE,
) -> FencepostError:
    return refusals.answer(place, batch, error, now)


def refused(sequence: int = 3, count: int = 2, epoch: int = 0) -> Refusals:
    refusals = Refusals()
    batch = header(count, sequence=sequence, epoch=epoch)
    assert told(refusals, batch, NOT_LEADER) is NOT_LEADER
    return refusals


def test_a_gap_that_a_refusal_has_made_is_answered_like_it_until_the_refused_batch_is_back() -> None:
    refusals = refused(sequence=3, count=2)
    assert told(refusals, header(1, sequence=5)) is NOT_LEADER
    assert told(refusals, header(1, sequence=6), UnknownProducerId("not even the first")) is NOT_LEADER
    refusals.passed(PLACE, header(2, sequence=3), 0.0)
    # The one behind it was refused, too: one that comes before it is back would find a gap.
    assert told(refusals, header(1, sequence=6)) is NOT_LEADER
    refusals.passed(PLACE, header(1, sequence=5), 0.0)
    refusals.passed(PLACE, header(1, sequence=6), 0.0)
    assert not refusals
    assert told(refusals, header(1, sequence=9)) is GAP


def test_gaps_of_the_producers_own_are_told() -> None:
    refusals = refused(sequence=3)
    assert told(refusals, header(1, sequence=2)) is GAP
    assert told(refusals, header(1, sequence=9, producer_id=2)) is GAP
    assert told(refusals, header(1, sequence=9), place=("t", 1)) is GAP
    assert told(refusals, header(1, sequence=9)) is NOT_LEADER


def test_a_refusal_of_a_reason_of_its_own_is_told_as_it_is() -> None:
    refusals, other = refused(sequence=3), NotEnoughReplicas("1 in sync")
    assert told(refusals, header(1, sequence=5), other) is other
    invalid = InvalidRecord("never")
    assert told(refusals, header(1, sequence=6), invalid) is invalid
    assert told(refusals, header(1, sequence=6)) is NOT_LEADER


def test_with_a_newer_epoch_nothing_is_awaited_and_an_older_one_passes_by() -> None:
    refusals = refused(sequence=3, epoch=4)
    assert told(refusals, header(1, sequence=9, epoch=3)) is GAP
    assert refusals
    assert told(refusals, header(1, sequence=9, epoch=5)) is GAP
    assert not refusals


def test_the_awaited_batch_may_be_refused_again_and_for_another_reason() -> None:
    refusals, other = refused(sequence=3), NotEnoughReplicas("1 in sync")
    assert told(refusals, header(2, sequence=3), other) is other
    assert told(refusals, header(1, sequence=5)) is other
    told(refusals, header(2, sequence=3), InvalidRecord("it never will be taken"))
    assert not refusals


def test_an_earlier_batch_that_is_refused_is_awaited_first() -> None:
    refusals, other = refused(sequence=3), NotEnoughReplicas("1 in sync")
    told(refusals, header(1, sequence=2), other)
    assert told(refusals, header(2, sequence=3)) is other


def test_a_refusal_that_does_not_pass_holds_up_nothing() -> None:
    refusals = Refusals()
    for error in (InvalidRecord("no"), GAP):
        assert told(refusals, header(1, sequence=3), error) is error
    told(refusals, header(1, producer_id=-1, sequence=-1, epoch=-1), NOT_LEADER)
    assert not refusals


def test_a_batch_that_has_been_given_up_is_forgotten_after_a_time() -> None:
    refusals = refused(sequence=3)
    assert told(refusals, header(1, sequence=5), now=FORGOTTEN_AFTER_S - 1) is NOT_LEADER
    assert told(refusals, header(1, sequence=5), now=FORGOTTEN_AFTER_S) is GAP
    assert not refusals


def test_one_connection_has_so_many_latches_and_the_oldest_opens() -> None:
    refusals = Refusals()
    for producer_id in range(MAX_LATCHES + 1):
        told(refusals, header(1, producer_id=producer_id), NOT_LEADER)
    assert len(refusals) == MAX_LATCHES
    assert told(refusals, header(1, producer_id=0, sequence=1)) is GAP
    assert told(refusals, header(1, producer_id=1, sequence=1)) is NOT_LEADER


def test_sequences_that_wrap_are_in_order() -> None:
    refusals = refused(sequence=MAX_SEQUENCE, count=1)
    assert told(refusals, header(1, sequence=0)) is NOT_LEADER
    refusals.passed(PLACE, header(1, sequence=MAX_SEQUENCE), 0.0)
    refusals.passed(PLACE, header(1, sequence=0), 0.0)
    assert not refusals


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
            answer: FencepostError | None = None
            try:
                if refusals_left and data.draw(st.booleans()):
                    refusals_left -= 1
                    raise NOT_LEADER
                assert isinstance(state.check(batch, ever_held_records=False), Append)
            except FencepostError as error:
                answer = told(refusals, batch, error)
            else:
                state.record(batch, starts[number])
                refusals.passed(PLACE, batch, 0.0)
            assert answer in (None, NOT_LEADER)
            answers.append((number, answer is None))
        else:
            number, taken = answers.pop(0)
            in_flight.remove(number)
            if taken:
                assert number == len(done)
                done.append(number)
            else:  # it goes out again, behind no later one that has not gone out yet
                to_send.append(number)
                to_send.sort()
