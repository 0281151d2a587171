"""The rules of producer state, row by row of the table in producer_state.py."""

from __future__ import annotations

import pytest

from fencepost_node.producers import producer_state
from fencepost_node.producers.producer_state import APPEND, UNKNOWN_CRC, Append, Duplicate, ProducerState
from fencepost_node.producers.producer_state_codec import decode_producers, encode_producers
from fencepost_proto.protocol.errors import (
    DuplicateSequenceNumber,
    InvalidProducerEpoch,
    InvariantBroken,
    OutOfOrderSequenceNumber,
    ThrottlingQuotaExceeded,
    UnknownProducerId,
)
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, NO_PRODUCER_ID, at_append_time, crcs_at
from tests.unit.batches import batch, header, header_of


def after(*batches: tuple[int, int], epoch: int = 0, start_offset: int = 100) -> ProducerState:
    """The state after batches (first sequence, count) of producer 1, from `start_offset` on."""
    state, offset = ProducerState(), start_offset
    for sequence, count in batches:
        state.record(header(count, sequence=sequence, epoch=epoch), offset)
        offset += count
    return state


def check(
    state: ProducerState, count: int = 1, *, sequence: int, epoch: int = 0, fence: int = 0, held: bool = True
) -> Append | Duplicate:
    return state.check(header(count, sequence=sequence, epoch=epoch), ever_held_records=held, fence_epoch=fence)


# ---- The table ----


def test_an_epoch_below_the_known_one_is_refused() -> None:
    with pytest.raises(InvalidProducerEpoch, match="epoch 1 of producer 1 is older than 2"):
        check(after((0, 1), epoch=2), sequence=1, epoch=1)


def test_an_epoch_below_the_fence_is_refused_even_without_state() -> None:
    with pytest.raises(InvalidProducerEpoch, match="epoch 3 of producer 1 is older than 4"):
        check(ProducerState(), sequence=0, epoch=3, fence=4)


def test_an_epoch_below_the_fence_is_refused_before_a_duplicate_is_recognised() -> None:
    with pytest.raises(InvalidProducerEpoch):
        check(after((0, 1), epoch=3), sequence=0, epoch=3, fence=4)


def test_the_fence_itself_is_allowed() -> None:
    assert check(after((0, 1), epoch=3), sequence=0, epoch=4, fence=4) is APPEND


def test_an_unknown_producer_above_sequence_0_is_out_of_order_in_a_log_that_never_held_a_record() -> None:
    with pytest.raises(OutOfOrderSequenceNumber, match="base sequence 5"):
        check(ProducerState(), sequence=5, held=False)


def test_an_unknown_producer_above_sequence_0_is_unknown_in_a_log_that_has_held_records() -> None:
    with pytest.raises(UnknownProducerId, match="base sequence 5 of producer 1"):
        check(ProducerState(), sequence=5, held=True)


def test_an_unknown_producer_begins_at_sequence_0() -> None:
    assert check(ProducerState(), sequence=0) is APPEND


def test_a_newer_epoch_begins_at_sequence_0() -> None:
    assert check(after((0, 3)), sequence=0, epoch=1) is APPEND


@pytest.mark.parametrize("held", [True, False])
def test_a_newer_epoch_above_sequence_0_is_out_of_order(held: bool) -> None:
    with pytest.raises(OutOfOrderSequenceNumber, match="a new epoch begins at 0"):
        check(after((0, 3)), sequence=3, epoch=1, held=held)


def test_each_of_the_last_five_batches_is_a_duplicate_with_its_own_offsets() -> None:
    state = after((0, 3), (3, 1), (4, 2), (6, 1), (7, 4), (11, 1))
    assert check(state, 1, sequence=3) == Duplicate(103, 103)
    assert check(state, 2, sequence=4) == Duplicate(104, 105)
    assert check(state, 1, sequence=6) == Duplicate(106, 106)
    assert check(state, 4, sequence=7) == Duplicate(107, 110)
    assert check(state, 1, sequence=11) == Duplicate(111, 111)
    assert Duplicate(107, 110).end_offset == 111


def test_a_batch_older_than_the_five_is_a_duplicate_of_unknown_offset() -> None:
    state = after((0, 3), (3, 1), (4, 2), (6, 1), (7, 4), (11, 1))
    with pytest.raises(DuplicateSequenceNumber, match=r"sequences 0 to 2 .* begin at 3"):
        check(state, 3, sequence=0)


def test_the_next_sequence_is_appended() -> None:
    assert check(after((0, 3)), sequence=3) is APPEND


@pytest.mark.parametrize(
    ("count", "sequence"),
    [(1, 4), (2, 2), (4, 0), (2, 0), (1, 1), (3, 3 + 2**30), (1, MAX_SEQUENCE), (3, 2**30 + 5)],
    ids=["gap", "overlap-end", "superset", "prefix", "inside", "far", "last-number", "half"],
)
def test_a_gap_or_an_overlap_in_part_is_out_of_order(count: int, sequence: int) -> None:
    with pytest.raises(OutOfOrderSequenceNumber, match="3 is next"):
        check(after((0, 3)), count, sequence=sequence)


def test_a_batch_that_joins_two_remembered_ones_is_out_of_order() -> None:
    with pytest.raises(OutOfOrderSequenceNumber):
        check(after((0, 1), (1, 1), (2, 1)), 2, sequence=1)


def test_a_batch_that_reaches_from_below_into_the_remembered_ones_is_out_of_order() -> None:
    state = after((0, 3), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1))
    with pytest.raises(OutOfOrderSequenceNumber):
        check(state, 2, sequence=2)


def test_a_producer_that_is_not_idempotent_bypasses_everything() -> None:
    state = ProducerState()
    anonymous = header(producer_id=NO_PRODUCER_ID, epoch=-1, sequence=-1)
    assert state.check(anonymous, ever_held_records=True, fence_epoch=7) is APPEND
    state.record(anonymous, 0)
    assert len(state) == 0


def test_check_changes_nothing() -> None:
    state = after((0, 3))
    before = state.copy()
    check(state, sequence=3)
    check(state, 3, sequence=0)
    with pytest.raises(OutOfOrderSequenceNumber):
        check(state, sequence=9)
    assert state == before


# ---- The wrap ----


def near_wrap(*, used: int) -> ProducerState:
    """Producer 1 with one batch up to `used` below the last sequence."""
    return after((0, MAX_SEQUENCE + 1 - used))


def test_the_sequence_after_the_last_is_0() -> None:
    state = near_wrap(used=0)
    assert check(state, sequence=0) is APPEND
    state.record(header(2, sequence=0), 5_000_000_000)
    assert check(state, sequence=2) is APPEND
    assert check(state, 2, sequence=0) == Duplicate(5_000_000_000, 5_000_000_001)


def test_a_batch_that_spans_the_wrap_is_appended_and_recognised_again() -> None:
    state = near_wrap(used=2)
    spanning = header(5, sequence=MAX_SEQUENCE - 1)
    assert spanning.last_sequence == 2
    assert state.check(spanning, ever_held_records=True) is APPEND
    state.record(spanning, 5_000_000_000)
    assert state.check(spanning, ever_held_records=True) == Duplicate(5_000_000_000, 5_000_000_004)
    assert check(state, sequence=3) is APPEND
    with pytest.raises(OutOfOrderSequenceNumber):
        check(state, sequence=0)


def test_batches_before_the_wrap_are_older_than_the_window_after_it() -> None:
    state = after((0, MAX_SEQUENCE - 3), (MAX_SEQUENCE - 3, 4), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1))
    with pytest.raises(DuplicateSequenceNumber):
        check(state, 4, sequence=MAX_SEQUENCE - 3)
    with pytest.raises(OutOfOrderSequenceNumber):
        check(state, sequence=6)


def test_a_number_far_ahead_is_a_gap_and_not_older_while_nothing_has_wrapped() -> None:
    with pytest.raises(OutOfOrderSequenceNumber):
        check(after((0, 1)), sequence=MAX_SEQUENCE)


def test_that_sequences_have_wrapped_survives_encoding() -> None:
    state = after((0, MAX_SEQUENCE + 1), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1))
    state = decode_producers(encode_producers(state))
    with pytest.raises(DuplicateSequenceNumber):
        check(state, sequence=MAX_SEQUENCE)


def test_a_first_batch_that_spans_the_wrap_counts_as_wrapped() -> None:
    """On a replica that had forgotten the producer."""
    state = ProducerState()
    state.record(header(4, sequence=MAX_SEQUENCE - 1), 0)
    for sequence in range(2, 7):
        state.record(header(sequence=sequence), 10 + sequence)
    with pytest.raises(DuplicateSequenceNumber):
        check(state, 4, sequence=MAX_SEQUENCE - 1)


# ---- Recording ----


def test_a_duplicate_is_no_longer_recognised_under_a_newer_epoch() -> None:
    state = after((0, 1), (1, 1))
    state.record(header(sequence=0, epoch=1), 200)
    with pytest.raises(InvalidProducerEpoch):
        check(state, sequence=1)
    assert check(state, sequence=0, epoch=1) == Duplicate(200, 200)


def test_a_replica_that_forgot_a_producer_takes_any_sequence_from_its_leader() -> None:
    state = ProducerState()
    state.record(header(2, sequence=57), 300)
    assert check(state, sequence=59) is APPEND
    assert check(state, 2, sequence=57) == Duplicate(300, 301)


@pytest.mark.parametrize("epoch", [0, 3, 4])
def test_a_producer_that_only_the_leader_forgot_starts_afresh(epoch: int) -> None:
    state = after((0, 2), (2, 2), epoch=3)
    state.record(header(1, sequence=0, epoch=epoch), 300)
    entry = state.get(1)
    assert entry is not None
    assert (entry.epoch, len(entry.batches), entry.next_sequence) == (epoch, 1, 1)


@pytest.mark.parametrize(("sequence", "epoch"), [(3, 0), (1, 0), (2, 1), (2, -1)])
def test_recording_what_cannot_follow_breaks_an_invariant_and_changes_nothing(sequence: int, epoch: int) -> None:
    state = after((0, 2))
    before = state.copy()
    with pytest.raises(InvariantBroken, match="producer 1"):
        state.record(header(sequence=sequence, epoch=epoch), 200)
    assert state == before


def test_staging_changes_nothing_until_it_is_applied() -> None:
    state = after((0, 2))
    before = state.copy()
    staged = state.stage([header(sequence=2, base_offset=200), header(sequence=3, base_offset=201)])
    assert state == before
    state.apply(staged)
    assert check(state, sequence=3) == Duplicate(201, 201)


# ---- Forgetting ----


NOBODY = 0  # in place of an offset: no batch stands below it


def keep_none(_: int) -> bool:
    return False


def known(state: ProducerState, *producer_ids: int) -> list[bool]:
    return [state.get(producer_id) is not None for producer_id in producer_ids]


def test_a_producer_whose_last_batch_is_old_is_forgotten() -> None:
    state = after((0, 1))
    assert state.idle(100, NOBODY, 101, keep_none) == []
    assert state.forget(state.idle(101, NOBODY, 101, keep_none)) == 1
    assert state.get(1) is None


def test_a_producer_with_an_uncommitted_batch_is_never_forgotten() -> None:
    state = after((0, 2))
    assert state.idle(1_000, 1_000, 101, keep_none) == []
    assert len(state.idle(1_000, 1_000, 102, keep_none)) == 1


def test_a_producer_that_is_kept_does_not_keep_those_behind_it() -> None:
    state = fill(3)
    assert state.forget(state.idle(3, NOBODY, 3, lambda producer_id: producer_id == 0)) == 2
    assert known(state, 0, 1, 2) == [True, False, False]


def test_a_producer_that_sends_while_the_idle_are_being_looked_for_stays() -> None:
    state = after((0, 1))
    state.record(header(producer_id=2), 101)
    idle = state.copy().idle(102, NOBODY, 102, keep_none)
    state.record(header(sequence=1), 102)
    assert state.forget(idle) == 1
    assert known(state, 1, 2) == [True, False]


def fill(count: int) -> ProducerState:
    """Producers 0 to count - 1, each with one record, at the offset that is its id."""
    state = ProducerState()
    for producer_id in range(count):
        state.record(header(producer_id=producer_id), producer_id)
    return state


def test_above_the_bound_the_longest_idle_go_as_soon_as_no_repeat_of_theirs_can_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producer_state, "MAX_PRODUCERS", 3)
    state = fill(5)
    state.record(header(producer_id=0, sequence=1), 5)  # so 1 is idle for longest
    assert state.idle(NOBODY, 1, 6, keep_none) == []  # all of them may still repeat
    assert state.forget(state.idle(NOBODY, 4, 6, keep_none)) == 2
    assert known(state, 0, 1, 2, 3, 4) == [True, False, False, True, True]
    assert state.idle(NOBODY, 4, 6, keep_none) == []  # not more than is needed


def test_with_no_room_for_a_new_producer_it_is_refused_and_no_one_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_state, "MAX_PRODUCERS", 2)
    monkeypatch.setattr(producer_state, "ROOM_FOR_THE_YOUNG", 1)
    state = fill(2)
    assert state.check(header(producer_id=9), ever_held_records=True) is APPEND
    state.record(header(producer_id=9), 2)
    with pytest.raises(ThrottlingQuotaExceeded, match="no room for producer 10: the partition holds 3 producers"):
        state.check(header(producer_id=10), ever_held_records=True)
    assert state.check(header(producer_id=1, sequence=1), ever_held_records=True) is APPEND
    assert state.check(header(producer_id=1, epoch=1), ever_held_records=True) is APPEND
    assert state.check(header(producer_id=0), ever_held_records=True) == Duplicate(0, 0)


def test_a_follower_takes_whom_its_leader_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_state, "MAX_PRODUCERS", 2)
    monkeypatch.setattr(producer_state, "ROOM_FOR_THE_YOUNG", 0)
    assert known(fill(4), 0, 1, 2, 3) == [True] * 4


# ---- What someone else has written under the same stamp ----


def test_a_batch_with_a_remembered_ones_sequences_and_other_bytes_is_no_repeat() -> None:
    mine, others = (header_of(batch(3, producer_id=7, value=value)) for value in (b"mine", b"others"))
    state = ProducerState()
    state.record(others, 40)
    with pytest.raises(
        DuplicateSequenceNumber, match=r"0 to 2 of producer 7 epoch 0 are those of .* at offset 40: CRC"
    ):
        state.check(mine, ever_held_records=True)
    assert state.check(others, ever_held_records=True) == Duplicate(40, 42)
    with pytest.raises(DuplicateSequenceNumber, match="those of another batch"):
        decode_producers(encode_producers(state)).check(mine, ever_held_records=True)


def test_no_crc_that_a_batch_can_have_stands_for_an_unknown_one() -> None:
    """Whoever writes under another's id can choose the bytes, so also the CRC."""
    mine = header_of(batch(producer_id=7, value=b"mine"))
    for crc in (0, 2**31, 2**32 - 1):
        state = ProducerState()
        state.record(mine._replace(crc=crc), 40)
        with pytest.raises(DuplicateSequenceNumber, match="those of another batch"):
            decode_producers(encode_producers(state)).check(mine, ever_held_records=True)


def test_batches_of_a_snapshot_without_crcs_are_recognised_by_their_sequences() -> None:
    mine = header_of(batch(producer_id=7, value=b"mine"))
    state = ProducerState()
    state.record(mine._replace(crc=UNKNOWN_CRC), 40)
    assert decode_producers(encode_producers(state)).check(mine, ever_held_records=True) == Duplicate(40, 40)


def test_a_repeat_is_recognised_under_the_time_that_its_leader_gave_it() -> None:
    sent = batch(producer_id=7, value=b"mine")
    state = ProducerState()
    state.record(at_append_time(sent, 5_000)[0], 40)
    for data, same in ((sent, True), (batch(producer_id=7, value=b"others"), False)):

        def possible(time_ms: int, data: bytes = data) -> tuple[int, ...]:
            return crcs_at(data, time_ms)

        if same:
            assert state.check(header_of(data), ever_held_records=True, crcs_at=possible) == Duplicate(40, 40)
        else:
            with pytest.raises(DuplicateSequenceNumber, match="those of another batch"):
                state.check(header_of(data), ever_held_records=True, crcs_at=possible)


def test_a_repeat_is_recognised_though_its_client_encoded_it_again_at_another_time() -> None:
    """As kafkajs does before every retry."""
    first, again, others = (
        batch(3, producer_id=7, value=value, timestamp_ms=time_ms)
        for value, time_ms in ((b"mine", 1_000), (b"mine", 1_450), (b"others", 1_450))
    )
    state = ProducerState()
    state.record(header_of(first), 40)
    assert header_of(first).crc != header_of(again).crc
    repeat = state.check(header_of(again), ever_held_records=True, crcs_at=lambda time_ms: crcs_at(again, time_ms))
    assert repeat == Duplicate(40, 42)
    with pytest.raises(DuplicateSequenceNumber, match="those of another batch"):
        state.check(header_of(others), ever_held_records=True, crcs_at=lambda time_ms: crcs_at(others, time_ms))


def test_only_a_producer_that_is_new_here_is_asked_about() -> None:
    def refuse(producer_id: int) -> None:
        raise ThrottlingQuotaExceeded(f"not now, {producer_id}")

    state = after((0, 1))
    assert state.check(header(sequence=1), ever_held_records=True, admit=refuse) is APPEND
    assert state.check(header(epoch=1), ever_held_records=True, admit=refuse) is APPEND
    assert state.check(header(), ever_held_records=True, admit=refuse) == Duplicate(100, 100)
    with pytest.raises(ThrottlingQuotaExceeded, match="not now, 2"):
        state.check(header(producer_id=2), ever_held_records=True, admit=refuse)


def test_a_copy_does_not_change_with_its_original() -> None:
    state = after((0, 3))
    copy = state.copy()
    state.record(header(sequence=3), 103)
    assert check(copy, sequence=3) is APPEND
    assert check(state, sequence=3) == Duplicate(103, 103)
