"""The sequencer, one rule at a time: scripts of sendings and answers, among them the gauntlet's rows about producers."""

from __future__ import annotations

import pytest

from fencepost.errors import DeliveryTimeout, ProducerIdTaken
from fencepost.producing.batch import Attempt, AttemptState, Batch, Delivered, Failed
from fencepost.producing.sequencer import MAX_IN_FLIGHT, MAX_STRIKES, Sequencer
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken
from fencepost_proto.protocol.record_batch import MAX_EPOCH, MAX_SEQUENCE
from fencepost_proto.runtime.backoff import Backoff

LEADER_EPOCH = 3


class Script:
    """A sequencer on a route, and what has been sent on it."""

    def __init__(self, sequencer: Sequencer | None = None) -> None:
        self.sequencer = sequencer or Sequencer("orders-0", 7, 0, backoff=Backoff(0.02, 0.5))
        self.now = 0.0
        self.resolved: list[Batch] = []
        self.sequencer.attach(LEADER_EPOCH)

    def add(self, count: int = 1) -> Batch:
        batch = Batch(count, self.now + 120.0)
        assert self.sequencer.has_room(self.now)
        self.sequencer.add(batch)
        return batch

    def send(self) -> list[Attempt]:
        """What goes out now; it is written to the wire."""
        attempts = self.sequencer.attempts_to_send(self.now)
        for attempt in attempts:
            attempt.state = AttemptState.WRITTEN
        return attempts

    def batches(self, count: int) -> tuple[list[Batch], list[Attempt]]:
        """So many batches, stamped and sent one after the other."""
        batches, attempts = [], []
        for _ in range(count):
            batches.append(self.add())
            attempts += self.send()
        return batches, attempts

    def ack(self, attempt: Attempt, offset: int = 0, *, duplicate: bool = False) -> list[Batch]:
        return self.sequencer.acknowledged(attempt, offset, duplicate)

    def refuse(self, attempt: Attempt, error: FencepostError) -> list[Batch]:
        return self.sequencer.refused(attempt, error, self.now)

    def later(self, seconds: float = 1.0) -> None:
        self.now += seconds


def stamps(attempts: list[Attempt]) -> list[tuple[int, int]]:
    """(epoch, base sequence) of each."""
    return [attempt.stamp[1:] for attempt in attempts]


def error_of(batch: Batch) -> FencepostError:
    assert isinstance(batch.outcome, Failed)
    return batch.outcome.error


NOT_LEADER = errors.NotLeaderOrFollower("not here")
OUT_OF_ORDER = errors.OutOfOrderSequenceNumber("gap")
UNKNOWN_ID = errors.UnknownProducerId("who?")
TIMED_OUT = errors.RequestTimedOut("not committed")


# ---- The way of a batch ----


def test_sequences_continue_by_record_counts() -> None:
    script = Script()
    for count in (3, 1, 5):
        script.add(count)
        script.send()
    assert [batch.stamp for batch in script.sequencer.unresolved] == [(7, 0, 0), (7, 0, 3), (7, 0, 4)]
    assert script.sequencer.next_sequence == 9


def test_five_batches_are_in_flight_at_most_counted_from_the_oldest_unresolved() -> None:
    script = Script()
    _, attempts = script.batches(MAX_IN_FLIGHT)
    assert not script.sequencer.has_room(script.now)
    for attempt in attempts[1:]:
        script.ack(attempt)
    assert not script.sequencer.has_room(script.now), "the leader must still remember the first one"
    script.ack(attempts[0])
    assert script.sequencer.has_room(script.now)


def test_an_attempt_has_the_leader_epoch_of_its_route() -> None:
    script = Script()
    _, [first] = script.batches(1)
    script.sequencer.attach(LEADER_EPOCH + 1)
    [second] = script.send()
    assert (first.leader_epoch, second.leader_epoch) == (LEADER_EPOCH, LEADER_EPOCH + 1)
    assert second.stamp is first.stamp


def test_nothing_is_sent_without_a_route_and_nothing_new_is_stamped() -> None:
    script = Script()
    script.batches(1)
    script.sequencer.detach()
    assert not script.sequencer.has_room(script.now)
    assert script.send() == []


def test_a_broken_stream_sends_everything_again_in_order_on_the_next() -> None:
    script = Script()
    batches, attempts = script.batches(3)
    script.sequencer.detach()
    script.sequencer.attach(LEADER_EPOCH)
    again = script.send()
    assert [attempt.batch for attempt in again] == batches
    assert [attempt.stamp for attempt in again] == [attempt.stamp for attempt in attempts]
    assert all(batch.open_attempts == 2 for batch in batches)


def test_what_was_not_written_when_the_stream_broke_was_certainly_not_sent() -> None:
    script = Script()
    written = script.add()
    script.send()
    queued = script.add()
    script.sequencer.attempts_to_send(script.now)
    script.sequencer.detach()
    assert not written.certainly_absent
    assert queued.certainly_absent


def test_a_backoff_doubles_from_round_to_round_and_ends_with_a_new_leader() -> None:
    script = Script()
    _, attempts = script.batches(2)
    waits = []
    for _ in range(7):
        for attempt in attempts:
            script.refuse(attempt, errors.NotEnoughReplicas("for now"))
        at = script.sequencer.wake_at(script.now)
        assert at is not None
        waits.append(round(at - script.now, 3))
        assert script.send() == []
        script.now = at
        attempts = script.send()
        assert len(attempts) == 2
    assert waits == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    script.refuse(attempts[0], NOT_LEADER)
    script.refuse(attempts[1], NOT_LEADER)
    script.sequencer.attach(LEADER_EPOCH + 1)
    assert len(script.send()) == 2


def test_retries_wait_for_the_answers_of_what_was_sent_behind_the_gap() -> None:
    script = Script()
    _, [first, second, third] = script.batches(3)
    script.refuse(first, errors.NotEnoughReplicas("for now"))
    script.later()
    assert script.send() == []
    script.refuse(third, OUT_OF_ORDER)
    script.later()
    assert script.send() == []
    script.refuse(second, OUT_OF_ORDER)
    script.later()
    assert stamps(script.send()) == [(0, 0), (0, 1), (0, 2)]


def test_an_acknowledgement_says_that_what_came_before_is_in_the_log() -> None:
    script = Script()
    [lost, _], [first, second] = script.batches(2)
    script.ack(second, 1)
    script.refuse(first, TIMED_OUT)
    script.later()
    [retry] = script.send()
    assert retry.batch is lost
    [resolved] = script.refuse(retry, UNKNOWN_ID)
    assert resolved.outcome == Delivered(-1, duplicate=True)
    assert script.sequencer.epoch == 0


def test_a_batch_known_to_be_in_is_delivered_and_not_failed_when_its_time_is_up() -> None:
    script = Script()
    [lost, _], [_, second] = script.batches(2)
    script.ack(second, 1)
    script.later(200)
    assert script.sequencer.expire(script.now) == [lost]
    assert lost.outcome == Delivered(-1, duplicate=True)


TAKEN = errors.DuplicateSequenceNumber("those of another batch")


def test_a_batch_whose_sequences_somebody_else_has_used_goes_out_under_the_next_epoch() -> None:
    script = Script()
    [batch], [attempt] = script.batches(1)
    assert script.refuse(attempt, TAKEN) == []
    [again] = script.send()
    assert again.stamp == (7, 1, 0)
    assert script.ack(again, 9) == [batch]
    assert batch.outcome == Delivered(9)


def test_a_taken_batch_that_may_be_in_all_the_same_is_not_said_to_be_delivered() -> None:
    script = Script()
    [batch], _ = script.batches(1)
    script.sequencer.attach(LEADER_EPOCH + 1)
    [again] = script.send()
    assert script.refuse(again, TAKEN) == [batch]
    assert error_of(batch).may_have_been_appended


def test_nothing_is_concluded_of_batches_behind_a_taken_one() -> None:
    """A stranger's record stands where the first was to be, so the second follows it, and the third may."""
    script = Script()
    [first, second, third], [one, two, _] = script.batches(3)
    assert script.refuse(one, TAKEN) == []
    assert script.send() == []  # the others' answers come first
    assert script.ack(two, 1) == [first, second]
    assert isinstance(error_of(first), ProducerIdTaken)
    assert not error_of(first).may_have_been_appended
    assert second.outcome == Delivered(1)
    script.sequencer.attach(LEADER_EPOCH + 1)  # the third's answer is lost
    [again] = script.send()
    assert again.stamp == (7, 0, 2)
    assert script.refuse(again, OUT_OF_ORDER) == [third]
    assert error_of(third).may_have_been_appended


def test_a_batch_that_was_refused_and_is_overtaken_fails_for_certain() -> None:
    """By a leader that lies, or by a stranger's record in its place."""
    script = Script()
    [first, second], [one, two] = script.batches(2)
    script.refuse(one, NOT_LEADER)
    assert script.ack(two, 1) == [first, second]
    assert isinstance(error_of(first), ProducerIdTaken)
    assert not error_of(first).may_have_been_appended


def test_of_a_batch_that_was_ever_refused_nothing_is_concluded_from_its_successors() -> None:
    script = Script()
    [first, second], [one, two] = script.batches(2)
    script.sequencer.attach(LEADER_EPOCH + 1)
    assert len(script.send()) == 2
    script.refuse(one, NOT_LEADER)  # late; the second attempt is open
    assert script.ack(two, 1) == [second]
    script.later(200)
    assert script.sequencer.expire(script.now) == [first]
    assert error_of(first).may_have_been_appended


def test_what_was_refused_behind_a_taken_batch_waits_for_the_next_epoch() -> None:
    script = Script()
    [first, second, third], [one, two, three] = script.batches(3)
    script.refuse(one, TAKEN)
    script.refuse(two, OUT_OF_ORDER)
    assert script.refuse(three, OUT_OF_ORDER) == []
    script.later()
    attempts = script.send()
    assert stamps(attempts) == [(1, 0), (1, 1), (1, 2)]
    assert [attempt.batch for attempt in attempts] == [first, second, third]


def test_where_epoch_after_epoch_is_taken_another_id_is_asked_for() -> None:
    script = Script()
    [batch], [attempt] = script.batches(1)
    sent = []
    while not script.sequencer.awaiting_identity:
        sent.append(attempt)
        script.refuse(attempt, errors.InvalidProducerEpoch("older than 32000"))
        script.later()
        attempt = next(iter(script.send()), attempt)
    assert stamps(sent) == [(0, 0), (1, 0), (2, 0)]
    script.sequencer.grant(8, 0)
    [attempt] = script.send()
    assert attempt.stamp == (8, 0, 0)
    assert script.ack(attempt, 3) == [batch]


def test_a_late_answer_from_an_old_route_still_counts() -> None:
    script = Script()
    [batch], [old] = script.batches(1)
    script.sequencer.attach(LEADER_EPOCH + 1)
    [new] = script.send()
    assert script.ack(old, 5) == [batch]
    assert script.ack(new, 5, duplicate=True) == []
    assert batch.outcome == Delivered(5)


def test_a_late_refusal_from_an_old_route_decides_nothing_alone() -> None:
    script = Script()
    [batch], [old] = script.batches(1)
    script.sequencer.attach(LEADER_EPOCH + 1)
    [new] = script.send()
    script.refuse(old, UNKNOWN_ID)
    assert batch.outcome is None
    assert script.sequencer.epoch == 0
    script.ack(new)
    assert batch.outcome == Delivered(0)


# ---- The next epoch ----


def test_forgotten_state_is_answered_with_the_next_epoch_and_no_error() -> None:
    """idle-past-expiry, stuck-until-restart"""
    script = Script()
    _, [attempt] = script.batches(1)
    script.ack(attempt)
    batches, attempts = script.batches(3)
    script.refuse(attempts[0], UNKNOWN_ID)
    again = script.send()
    assert stamps(again) == [(1, 0), (1, 1), (1, 2)]
    for attempt in attempts[1:]:
        script.refuse(attempt, OUT_OF_ORDER)
    for offset, attempt in enumerate(again):
        script.ack(attempt, offset)
    assert [batch.outcome for batch in batches] == [Delivered(0), Delivered(1), Delivered(2)]
    assert script.sequencer.epoch == 1


def test_a_batch_that_may_be_in_is_never_stamped_anew() -> None:
    script = Script()
    _, [attempt] = script.batches(1)
    script.ack(attempt)
    [batch], [attempt] = script.batches(1)
    script.sequencer.attach(LEADER_EPOCH)  # the stream broke: its outcome is unknown
    [retry] = script.send()
    [failed] = script.refuse(retry, UNKNOWN_ID)
    assert failed is batch
    assert error_of(batch).may_have_been_appended
    assert isinstance(error_of(batch), errors.UnknownProducerId)
    script.batches(1)
    assert script.sequencer.unresolved[0].stamp == (7, 1, 0)


def test_behind_a_failed_batch_what_may_be_in_keeps_its_stamp() -> None:
    """A given-up batch and its follower may both still arrive: the follower must not arrive twice."""
    script = Script()
    [first, second, third], _ = script.batches(3)
    second.deadline = third.deadline = 500.0
    script.sequencer.detach()
    script.later(200)
    assert script.sequencer.expire(script.now) == [first]
    assert error_of(first).may_have_been_appended
    script.sequencer.attach(LEADER_EPOCH)
    again = script.send()
    assert stamps(again) == [(0, 1), (0, 2)], "both may be in the log under this stamp"
    assert script.refuse(again[0], OUT_OF_ORDER) == [second]
    assert error_of(second).may_have_been_appended
    assert third.outcome is None


def test_an_error_that_is_final_for_one_batch_costs_its_followers_nothing() -> None:
    script = Script()
    [before, large, after], [first, second, third] = script.batches(3)
    assert script.refuse(second, errors.MessageTooLarge("5 MB")) == [large]
    assert not error_of(large).may_have_been_appended
    script.refuse(third, OUT_OF_ORDER)
    assert script.send() == [], "the first is not resolved: the next epoch would shut it out"
    assert not script.sequencer.has_room(script.now)
    script.ack(first)
    script.later()
    assert stamps(script.send()) == [(1, 0)]
    assert before.outcome == Delivered(0)
    assert after.outcome is None


def test_what_follows_a_certainly_absent_batch_is_certainly_absent_though_its_answer_was_lost() -> None:
    script = Script()
    [large, after], [first, _] = script.batches(2)
    script.refuse(first, errors.MessageTooLarge("5 MB"))
    assert error_of(large).may_have_been_appended is False
    [again] = script.send()
    assert (again.batch, again.stamp) == (after, (7, 1, 0))


def test_a_timeout_is_definite_only_where_nothing_is_open() -> None:
    script = Script()
    [refused, unknown], [first, second] = script.batches(2)
    script.refuse(first, NOT_LEADER)
    script.refuse(second, OUT_OF_ORDER)
    script.later(200)
    script.sequencer.expire(script.now)
    for batch in (refused, unknown):
        assert isinstance(error_of(batch), DeliveryTimeout)
        assert not error_of(batch).may_have_been_appended
    assert "NOT_LEADER_OR_FOLLOWER" in str(error_of(refused))


def test_a_failing_disk_is_not_taken_at_its_word() -> None:
    script = Script()
    [batch], [attempt] = script.batches(1)
    script.refuse(attempt, errors.StorageError("No space left on device"))
    assert not batch.certainly_absent


def test_after_the_next_epoch_an_idle_partition_begins_at_zero() -> None:
    """idle-partition-after-bump: each partition has epochs of its own, and a named producer's all begin again."""
    sequencer = Sequencer("orders-0", 7, 4, named=True, next_sequence=90)
    sequencer.hold()
    assert sequencer.awaiting_identity
    sequencer.grant(7, 5)
    script = Script(sequencer)
    _, [attempt] = script.batches(1)
    assert attempt.stamp == (7, 5, 0)


def test_epochs_refused_one_after_the_other_are_not_burnt_in_a_loop() -> None:
    script = Script()
    _, [attempt] = script.batches(1)
    script.refuse(attempt, UNKNOWN_ID)
    [attempt] = script.send()
    script.refuse(attempt, UNKNOWN_ID)
    assert script.send() == []
    script.later()
    [attempt] = script.send()
    assert attempt.stamp == (7, 2, 0)


def test_a_lying_leader_is_found_out() -> None:
    script = Script()
    [_, after], [first, second] = script.batches(2)
    script.refuse(first, errors.MessageTooLarge("no"))
    assert after.stamp == (7, 1, 0)
    with pytest.raises(InvariantBroken, match="cannot be in any log"):
        script.ack(second)

    script = Script()
    _, [first] = script.batches(1)
    script.refuse(first, errors.InvalidRecord("no"))
    with pytest.raises(InvariantBroken, match="refused permanently"):
        script.ack(first)


# ---- Where numbers end ----


def test_sequences_wrap_inside_a_batch() -> None:
    script = Script(Sequencer("orders-0", 7, 0, next_sequence=MAX_SEQUENCE - 2))
    script.add(5)
    script.send()
    script.add(1)
    assert stamps(script.send()) == [(0, 2)]


@pytest.mark.parametrize("named", [False, True])
def test_sequences_never_wrap_to_a_batch_that_begins_at_zero(named: bool) -> None:
    """A leader without state would take it as a beginning, though what comes before it may be missing."""
    script = Script(Sequencer("orders-0", 7, 0, named=named, next_sequence=MAX_SEQUENCE - 1))
    before = script.add(1)
    [attempt] = script.send()
    last = script.add(1)
    assert script.send() == []
    assert before.stamp == (7, 0, MAX_SEQUENCE - 1)
    script.ack(attempt)
    if named:
        assert script.sequencer.awaiting_identity
        script.sequencer.grant(7, 1)
    assert stamps(script.send()) == [(1, 0)]
    assert last.stamp == (7, 1, 0)


def test_a_used_up_epoch_asks_for_another_producer_id_and_goes_on() -> None:
    script = Script(Sequencer("orders-0", 7, MAX_EPOCH, next_sequence=4))
    [batch], [attempt] = script.batches(1)
    script.refuse(attempt, UNKNOWN_ID)
    assert script.sequencer.awaiting_identity
    assert script.send() == []
    script.sequencer.grant(1_234, 0)
    [attempt] = script.send()
    assert attempt.stamp == (1_234, 0, 0)
    assert batch.outcome is None


# ---- Named producers ----


def named_script() -> Script:
    return Script(Sequencer("orders-0", 7, 2, named=True))


def test_a_newer_instance_fences_a_named_producer() -> None:
    script = named_script()
    [batch], [attempt] = script.batches(1)
    script.refuse(attempt, errors.InvalidProducerEpoch("epoch 2 < 3"))
    assert script.sequencer.fenced is not None
    assert not script.sequencer.has_room(script.now)
    assert script.sequencer.fail_all(errors.ProducerFenced("taken over")) == [batch]
    assert not error_of(batch).may_have_been_appended


def test_fenced_batches_without_an_answer_may_be_in_the_log() -> None:
    script = named_script()
    [first, second], [attempt, _] = script.batches(2)
    script.ack(attempt)
    [third], [late] = script.batches(1)
    script.refuse(late, errors.InvalidProducerEpoch("epoch 2 < 3"))
    script.sequencer.fail_all(errors.ProducerFenced("taken over"))
    assert first.outcome == Delivered(0)
    assert error_of(second).may_have_been_appended
    assert not error_of(third).may_have_been_appended


def test_its_own_bump_does_not_look_like_a_fence() -> None:
    script = named_script()
    [batch], [attempt] = script.batches(1)
    script.sequencer.hold()
    assert not script.sequencer.awaiting_identity, "the batch may be in the log"
    script.refuse(attempt, errors.InvalidProducerEpoch("epoch 2 < 3"))
    assert script.sequencer.fenced is None
    assert script.sequencer.awaiting_identity
    script.sequencer.grant(7, 3)
    assert stamps(script.send()) == [(3, 0)]
    assert batch.outcome is None


def test_a_partition_that_is_held_resolves_what_may_be_in_and_stamps_nothing_new() -> None:
    script = named_script()
    _, [first, second] = script.batches(2)
    script.sequencer.hold()
    assert not script.sequencer.has_room(script.now)
    script.refuse(first, TIMED_OUT)
    script.refuse(second, TIMED_OUT)
    script.later()
    again = script.send()
    assert stamps(again) == [(2, 0), (2, 1)]
    script.ack(again[0], 0, duplicate=True)
    assert not script.sequencer.awaiting_identity
    script.ack(again[1], 1, duplicate=True)
    assert script.sequencer.awaiting_identity


def test_an_identity_is_not_taken_while_a_batch_may_be_in_the_log() -> None:
    script = named_script()
    script.batches(1)
    with pytest.raises(InvariantBroken, match="may be in the log"):
        script.sequencer.grant(7, 3)


# ---- The gauntlet's rows about producers ----


def test_first_batches_reordered() -> None:
    """A is refused as not-leader while B is in flight: both go again, in order, as they are."""
    script = Script()
    batches, [a, b] = script.batches(2)
    script.refuse(a, NOT_LEADER)
    script.refuse(b, OUT_OF_ORDER)
    script.sequencer.attach(LEADER_EPOCH + 1)
    again = script.send()
    assert [attempt.batch for attempt in again] == batches
    assert stamps(again) == [(0, 0), (0, 1)]
    for offset, attempt in enumerate(again):
        script.ack(attempt, offset)
    assert [batch.outcome for batch in batches] == [Delivered(0), Delivered(1)]


def test_first_batches_reordered_with_the_answers_the_other_way_round() -> None:
    script = Script()
    batches, [a, b] = script.batches(2)
    script.refuse(b, UNKNOWN_ID)
    assert batches[1].outcome is None
    script.refuse(a, NOT_LEADER)
    script.later()
    assert stamps(script.send()) == [(0, 0), (0, 1)]
    assert script.sequencer.epoch == 0


def test_bump_duplicates_elsewhere() -> None:
    """One partition's next epoch leaves another partition's unanswered batch as it is."""
    here, there = Script(), Script(Sequencer("orders-1", 7, 0))
    _, [unanswered] = there.batches(1)
    _, [attempt] = here.batches(1)
    here.refuse(attempt, OUT_OF_ORDER)
    assert here.sequencer.epoch == 1
    there.sequencer.attach(LEADER_EPOCH + 1)
    [retry] = there.send()
    assert retry.stamp is unanswered.stamp


def test_migration_during_bump() -> None:
    """The leader moves while the next epoch is wanted: what may be in goes to the new one as it was."""
    script = Script()
    [first, second], [a, _] = script.batches(2)
    first.deadline = 10.0
    script.refuse(a, TIMED_OUT)
    script.later(20)
    assert script.sequencer.expire(script.now) == [first]
    assert script.sequencer.bump_needed
    script.sequencer.attach(LEADER_EPOCH + 1)
    [rerouted] = script.send()
    assert (rerouted.batch, rerouted.stamp) == (second, (7, 0, 1))


def test_desync_after_rejoin() -> None:
    """A broker comes back without state and leads: no fatal error, everything goes on."""
    script = Script()
    _, [attempt] = script.batches(1)
    script.ack(attempt)
    script.sequencer.attach(LEADER_EPOCH + 1)
    batches, attempts = script.batches(3)
    for attempt in attempts:
        script.refuse(attempt, OUT_OF_ORDER)
    script.later()
    for offset, attempt in enumerate(script.send()):
        script.ack(attempt, offset)
    assert all(isinstance(batch.outcome, Delivered) for batch in batches)


# ---- Errors that are retried a few times ----


@pytest.mark.parametrize(
    ("error", "unknown"), [(errors.CorruptMessage("CRC"), False), (errors.UnknownServerError("bug"), True)]
)
def test_some_errors_are_retried_a_few_times_only(error: FencepostError, unknown: bool) -> None:
    script = Script()
    [batch], attempts = script.batches(1)
    for _ in range(MAX_STRIKES):
        assert script.refuse(attempts[0], error) == []
        script.later()
        attempts = script.send()
    assert script.refuse(attempts[0], error) == [batch]
    assert error_of(batch).code == error.code
    assert error_of(batch).may_have_been_appended is unknown


# ---- Without stamps ----


def unstamped_script() -> Script:
    return Script(Sequencer("orders-0", -1, -1, idempotent=False))


def test_without_stamps_one_batch_is_under_way_at_a_time() -> None:
    script = unstamped_script()
    [batch], [attempt] = script.batches(1)
    assert attempt.stamp == (-1, -1, -1)
    assert not script.sequencer.has_room(script.now)
    script.ack(attempt, 9)
    assert batch.outcome == Delivered(9)
    assert script.sequencer.has_room(script.now)


def test_without_stamps_only_a_definite_refusal_is_retried() -> None:
    script = unstamped_script()
    [batch], [attempt] = script.batches(1)
    assert script.refuse(attempt, NOT_LEADER) == []
    script.later()
    [attempt] = script.send()
    assert script.refuse(attempt, TIMED_OUT) == [batch]
    assert error_of(batch).may_have_been_appended

    [batch], _ = script.batches(1)
    assert script.sequencer.detach() == [batch]
    assert error_of(batch).may_have_been_appended
    assert isinstance(error_of(batch), errors.NetworkException)
