"""The sequencer: gets one partition's batches into the log, each exactly once and in order. Pure.

Theory of operation
-------------------
A batch is *stamped* (producer id, epoch, base sequence) when it enters the window, and keeps its stamp and its bytes
through all retries: the leader recognises a repeat by the stamp, and appends a batch only behind its predecessor.
The window holds at most five batches, from the oldest unresolved one on, because a leader remembers five.

Batches travel on a *route*: one stream to one leader under one leader epoch. `attach` and `detach` begin and end it.
On a route, sequence order is kept: a batch is sent only behind all its unresolved predecessors, and where one of them
must be sent again, the answers to those already sent behind it are awaited (they come soon: a leader refuses at once
what follows a gap), then all are sent again, in order. A new leader or stream ends the wait: nothing that was sent on the
old route can do harm, so everything unresolved is sent on the new one immediately.

What is known of a batch is kept by counting its *open attempts*: sendings under its present stamp that have not been
definitely refused. While there is one, the batch may be in the log, now or later. Two conclusions go beyond the count:

- An acknowledgement of a batch says that all its predecessors of the same epoch are in the log (`committed`), except one
  that was ever refused: that one must be sent again, since another producer's batch may stand in its place (below).
- Where a batch is certainly absent, and will not be sent again under its stamp, then no later batch of its epoch can be
  in any log, whatever its attempts met (`never`): no leader appends behind a gap. (A leader without state takes sequence
  0 as a beginning. So no batch but an epoch's first has it: where numbers would wrap to exactly 0, an epoch ends.)

**The rule that everything serves: a stamped batch is stamped again only when it is certainly absent.**

An answer that makes the present epoch unusable for what follows (a batch was given up, or the leader has no state to
continue from) sets `bump_needed`. From then on nothing new is stamped and nothing certainly absent is sent; batches
that may be in the log are retried as they are until they are resolved, in order. Once only certainly absent batches are
left (`drained`), they are stamped again, from sequence 0, under the next epoch. An anonymous producer begins that epoch by
itself, for this partition alone: the errors of one partition never affect another's batches. A named producer gets the
epoch from the controller: `awaiting_identity` asks for it, `hold` makes the other partitions drain as well, `grant` is
called with it.

Copies of a given-up batch may still be under way when the next epoch begins. One may be appended before the next
epoch's first batch: its failure said so. None can be afterwards: the leader refuses older epochs from then on. So the
log holds every batch at most once and in order, always. (One accepted exception: after 32,768 epochs a partition goes on
under a new producer id, and leaders do not compare epochs across ids. A copy of a batch that failed as "may have been
appended" just then, and that is still under way, would be appended late, though never twice.)

A batch that is larger than a leader takes is *split*: two halves take its place in the window and divide its sequences
between them. So no other batch's stamp changes and no epoch ends: what was sent behind it was refused for the gap, and
fits behind the halves as it fitted behind the whole. The whole is not sent again. Attempts at it whose outcome is
unknown count as open attempts at both halves: should one have been appended nevertheless (by a leader that accepts larger
batches), the halves' sequences are in the log already, no leader appends them a second time, and until that is resolved
none of them is stamped again. After a split a window may hold more than five batches; only the first five are sent.

An id is not secret: another producer may have written under it, earlier or at the same time. Leaders compare the bytes of a
repeat, so a batch whose sequences are *taken* is refused and is in no log (the table's "taken"). From then on nothing is
concluded from one batch to another, since the other producer's batch may stand in the place of a predecessor: each is sent
until its own answer has come. A batch whose successor got into the log cannot get into it in order any more, so it fails,
as certainly not appended. The others are stamped again under the next epoch, and, where the next two are taken as well,
under another id.

Only a retry finds out whether a batch is in the log, by the leader's answer.

Error → reaction
----------------
=============================================  =========================================================================
answer to a batch's present attempt            reaction
=============================================  =========================================================================
success                                        delivered; its predecessors are `committed`
OUT_OF_ORDER_SEQUENCE_NUMBER,                  with an unresolved predecessor: wait, and go again behind it; else, if
UNKNOWN_PRODUCER_ID                            `committed`: delivered, offset unknown (-1); else, if certainly absent:
                                               next epoch, stamped again, no error; else: failed, may have been
                                               appended; next epoch for what follows
DUPLICATE_SEQUENCE_NUMBER                      likewise, and its sequences are *taken*: a leader would have recognised a
                                               repeat. The same for a batch with sequence 0, which a leader always
                                               accepts, at any of the errors above and below but UNKNOWN_PRODUCER_ID
INVALID_PRODUCER_EPOCH,                        of a named producer: it is fenced, and all that is pending fails
PRODUCER_FENCED                                permanently; of an anonymous one, and while a named one waits for its own
                                               next epoch: as OUT_OF_ORDER_SEQUENCE_NUMBER
MESSAGE_TOO_LARGE                              split, down to one record, which fails alone
RECORD_LIST_TOO_LARGE                          sent again in a message of its own; then as MESSAGE_TOO_LARGE
CORRUPT_MESSAGE,                               retried, five times at most, then failed; next epoch for what follows
UNKNOWN_SERVER_ERROR
any other retriable error                      retried with the same stamp, after a backoff or a new leader
any other error                                failed; next epoch for what follows
no answer (broken stream, new leader)          the attempt stays open; sent again on the next route
delivery timeout                               failed; next epoch for what follows
=============================================  =========================================================================

A failure says `may_have_been_appended` unless the batch is certainly absent. acks=0 and acks=1 have no stamps: one batch
at a time is under way, is retried only after a definite refusal, and otherwise fails as "may have been appended".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from fencepost.errors import DeliveryTimeout, ProducerIdTaken
from fencepost.producing.batch import NO_STAMP, Attempt, AttemptState, Batch, Delivered, Failed, Stamp
from fencepost.producing.reactions import ANY_OTHER, ANY_OTHER_RETRIABLE, OF_STAMPS, REACTIONS, Reaction
from fencepost_proto.protocol.errors import ErrorCode as Code
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken, NetworkException, StorageError
from fencepost_proto.protocol.record_batch import MAX_EPOCH, add_sequence
from fencepost_proto.runtime.backoff import Backoff

MAX_IN_FLIGHT = 5  # batches that every leader remembers of a producer
MAX_STRIKES = 5  # retries of a batch after errors that are retried a few times only
DEFAULT_BACKOFF = Backoff(first_s=0.02, most_s=0.5)  # as ProducerConfig has it
MAX_TAKEN_EPOCHS = 2  # in a row; then another id is asked for


class Sequencer:
    """One partition of one producer. Methods that resolve batches return them, oldest first, each exactly once."""

    def __init__(
        self,
        name: str,  # of the partition, for messages
        producer_id: int,
        epoch: int,
        *,
        named: bool = False,
        idempotent: bool = True,
        backoff: Backoff = DEFAULT_BACKOFF,
        next_sequence: int = 0,
    ) -> None:
        self.name = name
        self.producer_id = producer_id
        self.epoch = epoch
        self.next_sequence = next_sequence
        self.named = named
        self.idempotent = idempotent
        self.bump_needed = False
        self.awaiting_identity = False  # drained, and the next identity must come from outside
        self.fenced: FencepostError | None = None
        self._backoff = backoff
        self._limit = MAX_IN_FLIGHT if idempotent else 1
        self._window: deque[Batch] = deque()  # in sequence order; a resolved one stays while an older one is unresolved
        self._attached = False
        self._leader_epoch = -1
        self._resume_at = 0.0  # nothing is sent before
        self._failures = 0  # rounds of refusals since the last success
        self._bumps = 0  # epochs begun since the last success
        self._taken = False  # another producer writes under the present id and epoch

    # ---- Questions ----

    @property
    def unresolved(self) -> list[Batch]:
        return [batch for batch in self._window if batch.outcome is None]

    @property
    def oldest(self) -> Batch | None:
        """The oldest unresolved batch."""
        return self._window[0] if self._window else None

    @property
    def in_flight(self) -> int:
        return len(self._window)

    def has_room(self, now: float) -> bool:
        """Another batch may be stamped, and would be sent at once."""
        return (
            self._attached
            and not self.bump_needed
            and self.fenced is None
            and len(self._window) < self._limit
            and now >= self._resume_at
            and all(batch.current is not None for batch in self._window if batch.outcome is None)
        )

    @property
    def drained(self) -> bool:
        """Every unresolved batch is certainly absent."""
        return all(batch.certainly_absent for batch in self._window if batch.outcome is None)

    def wake_at(self, now: float) -> float | None:
        """When `attempts_to_send` or `expire` has something to do if nothing happens before; None: never."""
        times = [batch.deadline for batch in self._window if batch.outcome is None]
        if self._attached and self._resume_at > now:
            times.append(self._resume_at)
        return min(times, default=None)

    # ---- Sending ----

    def add(self, batch: Batch) -> None:
        """Stamp a batch; it is the last one to send. Only where `has_room`."""
        if self.bump_needed or len(self._window) >= self._limit:
            raise InvariantBroken(f"{self.name}: a batch was added to a window without room")
        self._window.append(batch)
        self._stamp(batch)
        if self.idempotent and self.next_sequence == 0:
            self.bump_needed = True  # this batch begins the next epoch
            self._settle()

    def attempts_to_send(self, now: float) -> list[Attempt]:
        """The attempts to send now, in this order, on the present route."""
        if not self._attached or now < self._resume_at or self.fenced is not None:
            return []
        unresolved = self.unresolved
        first = next((n for n, batch in enumerate(unresolved) if batch.current is None), len(unresolved))
        waiting = unresolved[first:]
        if any(batch.current is not None for batch in waiting):
            return []  # some were sent behind a gap: their answers must come first
        attempts = []
        within: Iterable[Batch] = waiting
        if len(self._window) > self._limit:  # after a split: no more than a leader remembers
            within = [b for b in islice(self._window, self._limit) if b.outcome is None and b.current is None]
        for batch in within:
            if self.bump_needed and batch.certainly_absent:
                if self._taken:
                    continue  # a later batch may be in the log
                break  # kept for the next epoch
            assert batch.stamp is not None
            batch.current = Attempt(batch, batch.stamp, self._leader_epoch)
            batch.open_attempts += 1
            batch.attempts += 1
            attempts.append(batch.current)
        return attempts

    # ---- The route ----

    def attach(self, leader_epoch: int) -> list[Batch]:
        """Begin a route: a stream to the leader of this epoch is open. It replaces an earlier route."""
        resolved = self.detach()
        self._attached = True
        self._leader_epoch = leader_epoch
        self._resume_at = 0.0
        return resolved

    def detach(self) -> list[Batch]:
        """End the route. Attempts that were written to it may have arrived, or may yet; the others never will."""
        self._attached = False
        resolved = []
        for batch in self.unresolved:
            self._let_go(batch)
            if not self.idempotent and not batch.certainly_absent:
                error = NetworkException(f"{self.name}: the connection broke before the answer came")
                resolved.append(self._fail(batch, error))
        self._settle()
        return resolved

    @staticmethod
    def _let_go(batch: Batch) -> None:
        """Stop waiting for the answer to the batch's present attempt. If it was not written yet, it never will be."""
        attempt, batch.current = batch.current, None
        if attempt is not None and attempt.state is AttemptState.QUEUED:
            attempt.state = AttemptState.WITHDRAWN
            batch.open_attempts -= 1

    # ---- Answers ----

    def acknowledged(self, attempt: Attempt, base_offset: int, duplicate: bool) -> list[Batch]:
        """The answer to any attempt ever made: success."""
        attempt.state = AttemptState.ANSWERED
        batch = attempt.batch
        if batch.outcome is not None:
            if isinstance(batch.outcome, Failed) and not batch.outcome.error.may_have_been_appended:
                raise InvariantBroken(
                    f"{self.name}: {attempt.stamp} was acknowledged, and had been refused permanently"
                )
            return []
        if batch.pieces and batch.open_attempts > 0 and attempt.stamp is batch.stamp:
            return self._whole_is_there(batch)
        if attempt.stamp is not batch.stamp or batch.never:
            raise InvariantBroken(
                f"{self.name}: {attempt.stamp} was acknowledged, which cannot be in any log: it is {batch.stamp} now"
            )
        overtaken = self._conclude_committed_before(batch) if self.idempotent else []
        self._failures = self._bumps = 0
        self._resolve(batch, Delivered(base_offset, duplicate))
        self._settle()
        return [*overtaken, batch]

    def _whole_is_there(self, batch: Batch) -> list[Batch]:
        """A split batch was acknowledged as a whole: each piece is in the log; the answers to their own retries resolve
        them."""
        pieces = _pieces_of(batch)
        for piece in pieces:
            if piece.outcome is None:
                piece.committed = True
        if (first := next((piece for piece in pieces if piece.outcome is None), None)) is not None:
            return self._conclude_committed_before(first)
        return []

    def _conclude_committed_before(self, batch: Batch) -> list[Batch]:
        """Mark the predecessors of an acknowledged batch as committed. One that is certainly absent has lost its place
        to another producer's batch, and fails."""
        overtaken = []
        for earlier in list(self._window):
            if earlier is batch:
                break
            if earlier.outcome is not None:
                continue
            if earlier.certainly_absent:
                self._find_taken()
                overtaken.append(self._fail(earlier, ProducerIdTaken(
                    f"{self.name}: someone else writes under producer id {self.producer_id}: in the place of "
                    f"{earlier.stamp} stands another record, and {batch.stamp} is behind it"
                )))  # fmt: skip
            elif not self._taken and not earlier.refused:
                earlier.committed = True
        return overtaken

    def _find_taken(self) -> None:
        """Another producer has written under this id and epoch: conclusions from successors may be wrong."""
        self._taken = True
        for batch in self.unresolved:
            batch.committed = False

    def refused(self, attempt: Attempt, error: FencepostError, now: float) -> list[Batch]:
        """The answer to any attempt ever made: an error."""
        attempt.state = AttemptState.ANSWERED
        batch = attempt.batch
        reaction = self._reaction(attempt, error)
        if attempt.stamp is batch.stamp and _is_definite(error):
            batch.open_attempts -= 1
        if batch.outcome is None and attempt.stamp is batch.stamp:
            batch.refused = True
            if reaction is Reaction.TAKEN:
                self._find_taken()
        if reaction is Reaction.FENCED:
            self.fenced = error
            return []  # the sender fails everything, in all partitions
        if batch.outcome is not None or batch.current is not attempt:
            self._settle()
            return []  # an answer from an earlier route: the present attempt decides
        batch.current = None
        batch.last_error = error
        resolved = []
        if reaction in (Reaction.OUT_OF_SEQUENCE, Reaction.TAKEN):
            resolved = self._out_of_sequence(batch, error, now)
        elif reaction is Reaction.SPLIT and self._may_split(batch):
            self._split(batch)
        elif reaction is Reaction.RETRY and (self.idempotent or batch.certainly_absent):
            self._back_off(now)
        else:
            resolved = [self._fail(batch, error)]
        self._settle()
        return resolved

    def _reaction(self, attempt: Attempt, error: FencepostError) -> Reaction:
        """What to do about an error, by the table: OUT_OF_SEQUENCE, TAKEN, FENCED, SPLIT, RETRY or FAIL."""
        batch = attempt.batch
        otherwise = ANY_OTHER_RETRIABLE if error.retriable else ANY_OTHER
        reaction = REACTIONS.get(error.code, otherwise)
        if not self.idempotent and reaction in OF_STAMPS:
            reaction = otherwise
        match reaction:
            case Reaction.ALONE if not batch.alone:
                batch.alone = True
                return Reaction.RETRY
            case Reaction.ALONE | Reaction.SPLIT:
                return Reaction.SPLIT if batch.record_count > 1 else Reaction.FAIL
            case Reaction.RETRY_A_FEW_TIMES:
                return self._strike(batch, error)
            case Reaction.FENCED if self.named and not self.bump_needed and attempt.stamp[:2] == self._identity:
                return Reaction.FENCED
            case Reaction.OUT_OF_SEQUENCE | Reaction.FENCED:
                # A leader takes the first batch of an epoch, unless another producer's stands in its place.
                is_taken = attempt.stamp.base_sequence == 0 and error.code != Code.UNKNOWN_PRODUCER_ID
                return Reaction.TAKEN if is_taken else Reaction.OUT_OF_SEQUENCE
        return reaction

    def _strike(self, batch: Batch, error: FencepostError) -> Reaction:
        """Count an error that is retried a few times only."""
        if not self.idempotent and not error.retriable:
            return Reaction.FAIL
        batch.strikes += 1
        return Reaction.RETRY if batch.strikes <= MAX_STRIKES else Reaction.FAIL

    @property
    def _identity(self) -> tuple[int, int]:
        return self.producer_id, self.epoch

    def _out_of_sequence(self, batch: Batch, error: FencepostError, now: float) -> list[Batch]:
        if batch is not next(b for b in self._window if b.outcome is None):
            self._back_off(now)  # a predecessor is unresolved: send it again behind that one
            return []
        if batch.committed:
            return [self._resolve(batch, Delivered(-1, duplicate=True))]
        self.bump_needed = True
        if self._bumps:
            self._back_off(now)  # the epoch before this one was refused as well
        if batch.certainly_absent:
            return []
        return [self._fail(batch, error)]

    def _back_off(self, now: float) -> None:
        """Send nothing for a pause. The refusals of one round count once."""
        if now >= self._resume_at:
            self._failures += 1
            self._resume_at = now + self._backoff.pause_s(self._failures)

    # ---- Time, and the end ----

    def expire(self, now: float, where: str = "") -> list[Batch]:
        """Fail batches whose deadline has passed. `where`: what is known of the leader, for the message."""
        resolved = []
        for batch in self.unresolved:
            if batch.deadline <= now:
                last = f"; last error: {batch.last_error}" if batch.last_error is not None else ""
                known = f"; {where}" if where else ""
                error = DeliveryTimeout(
                    f"{self.name}: not acknowledged in time after {batch.attempts} attempts{last}{known}"
                )
                error.__cause__ = batch.last_error
                resolved.append(self._fail(batch, error))
        self._settle()
        return resolved

    def fail_all(self, error: FencepostError) -> list[Batch]:
        """Fail everything in the window: the producer or the topic has ended."""
        self.bump_needed = True
        resolved = []
        for batch in self.unresolved:
            resolved.append(self._fail(batch, error))
        self._window.clear()
        return resolved

    def _fail(self, batch: Batch, error: FencepostError) -> Batch:
        """Give up a batch; its error says whether it may be in the log."""
        self._let_go(batch)
        if batch.committed:
            return self._resolve(batch, Delivered(-1, duplicate=True))
        may_have_been_appended = not batch.certainly_absent
        if self.idempotent:
            self.bump_needed = True
            if not may_have_been_appended and not self._taken:
                self._rule_out_behind(batch)
        final = type(error)(
            error.message, current_leader=error.current_leader, may_have_been_appended=may_have_been_appended
        )
        final.__cause__ = error.__cause__
        return self._resolve(batch, Failed(final))

    def _resolve(self, batch: Batch, outcome: Delivered | Failed) -> Batch:
        self._let_go(batch)
        batch.outcome = outcome
        return batch

    # ---- Epochs ----

    def hold(self) -> None:
        """The named producer's epoch is about to change: stamp nothing, drain, and wait for `grant`."""
        self.bump_needed = True
        self._settle()

    def grant(self, producer_id: int, epoch: int) -> None:
        """Go on under this identity, from sequence 0; what is still in the window is stamped again."""
        unresolved = self.unresolved
        for batch in unresolved:
            if not batch.certainly_absent:
                raise InvariantBroken(f"{self.name}: {batch.stamp} may be in the log and would be stamped again")
        self.producer_id, self.epoch, self.next_sequence = producer_id, epoch, 0
        self.bump_needed = self.awaiting_identity = self._taken = False
        self._bumps += 1
        self._window = deque(unresolved)
        for batch in unresolved:
            self._let_go(batch)
            self._stamp(batch)

    def _stamp(self, batch: Batch) -> None:
        batch.stamp = Stamp(self.producer_id, self.epoch, self.next_sequence) if self.idempotent else NO_STAMP
        batch.open_attempts, batch.never, batch.refused = 0, False, False
        if self.idempotent:
            self.next_sequence = add_sequence(self.next_sequence, batch.record_count)

    def _split_at(self, batch: Batch) -> int:
        """How many records the first half gets: the second half must not begin with sequence 0."""
        assert batch.stamp is not None
        half = batch.record_count // 2
        wraps = self.idempotent and add_sequence(batch.stamp.base_sequence, half) == 0
        return half + 1 if wraps else half

    def _may_split(self, batch: Batch) -> bool:
        """Without stamps, only a batch that is certainly absent. Not two records around the last number (see above)."""
        return self._split_at(batch) < batch.record_count and (self.idempotent or batch.certainly_absent)

    def _split(self, batch: Batch) -> None:
        """Replace a batch by two halves, under its sequences."""
        assert batch.stamp is not None
        pieces, sequence = batch.split(self._split_at(batch)), batch.stamp.base_sequence
        for piece in pieces:
            piece.stamp, piece.never, piece.alone, piece.refused = batch.stamp, batch.never, batch.alone, batch.refused
            piece.open_attempts, piece.committed, piece.last_error = (
                batch.open_attempts, batch.committed, batch.last_error,
            )  # fmt: skip
            if self.idempotent:
                piece.stamp = batch.stamp._replace(base_sequence=sequence)
                sequence = add_sequence(sequence, piece.record_count)
        batch.pieces = pieces
        window = list(self._window)
        position = window.index(batch)
        window[position : position + 1] = pieces
        self._window = deque(window)

    def _rule_out_behind(self, absent: Batch) -> None:
        """`absent` is in no log and is not sent again: so no later batch of its epoch can get into a log either."""
        position = next(n for n, batch in enumerate(self._window) if batch is absent)
        for batch in list(self._window)[position + 1 :]:
            if batch.outcome is None:
                if batch.committed:
                    raise InvariantBroken(f"{self.name}: {batch.stamp} is in the log; {absent.stamp} is not")
                batch.never = True

    def _settle(self) -> None:
        """After every event: drop resolved batches from the front, and begin the next epoch when it is time."""
        while self._window and self._window[0].outcome is not None:
            self._window.popleft()
        if not self.bump_needed or self.awaiting_identity or self.fenced is not None:
            return
        if self._window and self._window[0].certainly_absent and not self._taken:
            self._rule_out_behind(self._window[0])
        if self.drained:
            if self.named or self.epoch >= MAX_EPOCH or (self._taken and self._bumps >= MAX_TAKEN_EPOCHS):
                self.awaiting_identity = True
            else:
                self.grant(self.producer_id, self.epoch + 1)


def _is_definite(error: FencepostError) -> bool:
    """The answer says that this attempt appended nothing and never will.

    StorageError says so too, but a disk that has just failed is not trusted. DUPLICATE_SEQUENCE_NUMBER says that a
    batch is in the log, but not by this attempt.
    """
    if error.code == Code.DUPLICATE_SEQUENCE_NUMBER:
        return True
    return not error.may_have_been_appended and not isinstance(error, StorageError)


def _pieces_of(batch: Batch) -> list[Batch]:
    """The unsplit pieces of a batch, in order; the batch itself if it is not split."""
    return [piece for part in batch.pieces for piece in _pieces_of(part)] if batch.pieces else [batch]
