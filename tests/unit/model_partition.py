"""A model of one partition's leaders, for the sequencer to be driven against: nothing shared with the real broker.

One leader at a time has the log that counts. A failover keeps any part of what is not committed, or, while nothing has
been committed since, goes back to the log of the leader before. That one may live on as a zombie: what reaches it is
appended to its own log, and never acknowledged. Messages wait in each route's inbox, also after the client has given
the route up; answers wait in its outbox, to be delivered in any order or lost with the route.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fencepost.producing.batch import Attempt, Stamp
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE

REMEMBERED = 5
NOBODYS = range(0)  # what stands in a stranger's batch


@dataclass(frozen=True)
class Entry:
    stamp: Stamp
    count: int
    label: range  # which records of the application


@dataclass
class Answer:
    attempt: Attempt
    error: FencepostError | None = None
    position: int = -1
    duplicate: bool = False


@dataclass
class ModelLog:
    entries: list[Entry] = field(default_factory=list)
    forgotten_below: int = 0  # producer state of entries below has expired
    fence: int = 0  # lowest epoch accepted (named producers)

    def copy(self) -> ModelLog:
        return ModelLog(list(self.entries), self.forgotten_below, self.fence)

    def check(self, stamp: Stamp, count: int, label: range) -> int | FencepostError | None:
        """The position where it stands already, a refusal, or None: append it."""
        if stamp.producer_id < 0:
            return None
        known = [
            (position, entry)
            for position, entry in enumerate(self.entries)
            if entry.stamp.producer_id == stamp.producer_id and position >= self.forgotten_below
        ]
        epoch = max([self.fence, *(entry.stamp.epoch for _, entry in known)])
        if stamp.epoch < epoch:
            return errors.InvalidProducerEpoch(f"{stamp}")
        same = [(position, entry) for position, entry in known if entry.stamp.epoch == stamp.epoch]
        if not same:
            if stamp.base_sequence == 0:
                return None
            if known or not self.entries:
                return errors.OutOfOrderSequenceNumber(f"{stamp}")
            return errors.UnknownProducerId(f"{stamp}")
        remembered = same[-REMEMBERED:]
        for position, entry in remembered:
            if entry.stamp == stamp and entry.count == count:
                return position if entry.label == label else errors.DuplicateSequenceNumber(f"{stamp} of another one")
        last = remembered[-1][1]
        if stamp.base_sequence == (last.stamp.base_sequence + last.count) % (MAX_SEQUENCE + 1):
            return None
        end = stamp.base_sequence + count
        older = [e for _, e in same[:-REMEMBERED] if e.label == NOBODYS and end <= remembered[0][1].stamp.base_sequence]
        older += [entry for _, entry in same[:-REMEMBERED] if entry.stamp == stamp and entry.count == count]
        return errors.DuplicateSequenceNumber(f"{stamp}") if older else errors.OutOfOrderSequenceNumber(f"{stamp}")


@dataclass
class Route:
    leader_epoch: int
    inbox: deque[Attempt] = field(default_factory=deque)
    outbox: list[Answer] = field(default_factory=list)
    alive: bool = True  # the client still listens


class ModelPartition:
    def __init__(self, label_of: Callable[[Attempt], range]) -> None:
        self.max_records = 1_000  # of a batch
        self.label_of = label_of
        self.log = ModelLog()
        self.committed = 0
        self.leader_epoch = 1
        self.routes: list[Route] = []
        self.zombie: ModelLog | None = None
        self.zombie_epoch = 0
        self.zombie_base = 0  # what was committed when it was deposed
        self.waiting: list[tuple[Route, Attempt, int, bool]] = []
        self.refuse_next: list[FencepostError] = []
        self.appended = 0
        self.recognised = 0

    def connect(self) -> Route:
        route = Route(self.leader_epoch)
        self.routes.append(route)
        return route

    @property
    def quiet(self) -> bool:
        """Nothing is under way and nothing is uncommitted."""
        return self.committed == len(self.log.entries) and not any(route.inbox for route in self.routes)

    # ---- Events ----

    def squat(self, producer_id: int, epoch: int, counts: list[int]) -> None:
        """A stranger writes under an epoch that its owner has not begun."""
        if epoch <= max((e.stamp.epoch for e in self.log.entries if e.stamp.producer_id == producer_id), default=-1):
            return
        sequence = 0
        for count in counts:
            self.log.entries.append(Entry(Stamp(producer_id, epoch, sequence), count, NOBODYS))
            sequence += count

    def process(self, route: Route, *, swallow: bool = False) -> None:
        """The broker at the end of the route takes the next message."""
        attempt = route.inbox.popleft()
        if route.leader_epoch == self.leader_epoch:
            self._lead(route, attempt)
        elif route.leader_epoch == self.zombie_epoch and self.zombie is not None and swallow:
            count = attempt.batch.record_count
            label = self.label_of(attempt)
            if count <= self.max_records and self.zombie.check(attempt.stamp, count, label) is None:
                self.zombie.entries.append(self._entry(attempt))
        else:
            self._answer(route, Answer(attempt, errors.NotLeaderOrFollower("deposed")))

    def _lead(self, route: Route, attempt: Attempt) -> None:
        injected = self.refuse_next.pop() if self.refuse_next else None
        if injected is not None and not injected.may_have_been_appended:
            self._answer(route, Answer(attempt, injected))
            return
        if attempt.batch.record_count > self.max_records:
            self._answer(route, Answer(attempt, errors.MessageTooLarge(f"more than {self.max_records} records")))
            return
        known = self.log.check(attempt.stamp, attempt.batch.record_count, self.label_of(attempt))
        if isinstance(known, FencepostError):
            self._answer(route, Answer(attempt, known))
            return
        if known is None:
            self.appended += 1
            self.log.entries.append(self._entry(attempt))
            position, duplicate = len(self.log.entries) - 1, False
        else:
            self.recognised += 1
            position, duplicate = known, True
        if injected is not None:
            self._answer(route, Answer(attempt, injected))
        else:
            self.waiting.append((route, attempt, position, duplicate))
            self._release()

    def commit(self, count: int) -> None:
        self.committed = min(len(self.log.entries), self.committed + count)
        self._release()

    def failover(self, *, keep: int, return_of_zombie: bool, answer_waiting: bool) -> None:
        """A new leader. `keep`: how many uncommitted batches its log has."""
        old = self.log.copy()
        if return_of_zombie and self.zombie is not None and self.zombie_base == self.committed:
            self.log = self.zombie
        else:
            del self.log.entries[self.committed + keep :]
        self.zombie, self.zombie_epoch, self.zombie_base = old, self.leader_epoch, self.committed
        self.leader_epoch += 1
        for route, attempt, _, _ in self.waiting:
            if answer_waiting:
                self._answer(route, Answer(attempt, errors.RequestTimedOut("leadership ended")))
        self.waiting.clear()

    def forget_producers(self) -> None:
        self.log.forgotten_below = len(self.log.entries)

    # ---- Inside ----

    def _entry(self, attempt: Attempt) -> Entry:
        return Entry(attempt.stamp, attempt.batch.record_count, self.label_of(attempt))

    def _release(self) -> None:
        done = [w for w in self.waiting if w[2] < self.committed]
        self.waiting = [w for w in self.waiting if w[2] >= self.committed]
        for route, attempt, position, duplicate in done:
            self._answer(route, Answer(attempt, None, position, duplicate))

    @staticmethod
    def _answer(route: Route, answer: Answer) -> None:
        if route.alive:
            route.outbox.append(answer)
