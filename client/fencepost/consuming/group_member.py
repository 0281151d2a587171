"""The decisions of one member of a group: what its next heartbeat says, what an answer changes, what it may do. Pure.

Theory of operation (KIP-848, the member's side). The coordinator says which partitions the member is to have (`wanted`). The
member adopts each one, reads it, and gives it up when it is wanted no more; with every heartbeat it says what it claims.

- A partition is *claimed* from the answer that grants it until it is given up, whether it is read yet or not. The
  coordinator gives nothing to another member that one claims, so no two read it (G12).
- Each grant has a number. What was found out for a partition (where to begin, what to commit) counts for that grant only: a
  partition that was away and has come back begins from what is committed by then.
- Fenced (the coordinator does not know the member, or not in this epoch): everything is lost at once, nothing of it may
  be committed, and the member joins again. `incarnation` counts these: an answer to an older one changes nothing.
- A member that has had no answer for the session timeout may have been removed without knowing it, say because its process
  was paused. Until the coordinator answers it hands out no record and adopts nothing (`is_sure`).
- An application that does not read for `max_poll_interval_s` gives its partitions to the other members: the member leaves,
  and joins again with the next read. So does one that has not given up within that time what it was to give up: the
  coordinator removes it then, since it is the rebalance timeout that the member has named.

Time is that of the event loop, in seconds; the session timeout counts from when the heartbeat was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fencepost_proto.protocol.errors import FencedMemberEpoch, FencepostError, UnknownMemberId
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.backoff import Backoff

JOINING = 0  # member epochs with a meaning of their own
LEAVING = -1
RETRY = Backoff(first_s=0.1, most_s=5.0)  # pauses after a heartbeat that was refused, or not answered
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat. `topics` None: as before."""

    incarnation: int
    epoch: int
    topics: tuple[str, ...] | None
    owned: tuple[PartitionKey, ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """What the coordinator answers. `assignment` None: as before."""

    epoch: int
    heartbeat_interval_s: float
    session_timeout_s: float
    assignment: tuple[PartitionKey, ...] | None


class GroupMember:
    """The state of one member. Only these methods change it."""

    def __init__(self, max_poll_interval_s: float) -> None:
        self.epoch = JOINING
        self.incarnation = 0
        self.failure: FencepostError | None = None  # why it cannot be a member now, for the application
        self.lost: dict[PartitionKey, None] = {}  # was adopted, and then lost: the application has not been told yet
        self._topics: tuple[str, ...] = ()
        self._max_poll_interval_s = max_poll_interval_s
        self._wanted: dict[PartitionKey, int] = {}  # by the coordinator; the number of each grant
        self._adopted: dict[PartitionKey, int] = {}  # of the grant under which it is read
        self._claimed: set[PartitionKey] = set()
        self._grants = 0
        self._says_all = True  # the next heartbeat
        self._beat_at = 0.0
        self._sure_until = 0.0
        self._poll_by = FOREVER  # the application is to read again before that
        self._give_up_by = FOREVER  # … and to have given up what is wanted no more
        self._is_away = False  # it has left, since the application does not read
        self._failures = 0  # heartbeats in a row

    # ---- The application ----

    def subscribe(self, topics: Iterable[str], now: float) -> None:
        self._topics = tuple(sorted(set(topics)))
        self._says_all, self._beat_at = True, now

    def reading(self, now: float) -> bool:
        """The application reads, or has begun to wait for records. True: a heartbeat is due because of it."""
        self._poll_by = FOREVER
        if self._is_away:
            self._is_away, self._beat_at = False, now
            return True
        return False

    def has_read(self, now: float) -> None:
        """The application works on what it has got."""
        self._poll_by = now + self._max_poll_interval_s

    # ---- Heartbeats ----

    @property
    def due_at(self) -> float:
        """When `beat` may have something to say."""
        if not self._topics or self._is_away:
            return FOREVER
        return min(self._beat_at, self._poll_by, self._give_up_by)

    def beat(self, now: float) -> Beat | None:
        """The heartbeat to send now; None: none is due. One that leaves ends the membership as it is made."""
        if now < self.due_at or self.due_at == FOREVER:
            return None
        if now >= min(self._poll_by, self._give_up_by):
            leaving = Beat(self.incarnation, LEAVING, None, ())
            was_member = self.epoch != JOINING
            self._is_away = True
            self.fence()
            return leaving if was_member else None
        topics = self._topics if self._says_all or self.epoch == JOINING else None
        return Beat(self.incarnation, self.epoch, topics, tuple(sorted(self._claimed)))

    def answered(self, beat: Beat, answer: Alive, sent_at: float, now: float) -> None:
        if beat.incarnation != self.incarnation or beat.epoch == LEAVING:
            return
        self.epoch = answer.epoch
        self.failure, self._failures = None, 0
        self._sure_until = sent_at + answer.session_timeout_s
        self._says_all = False
        self._beat_at = now + answer.heartbeat_interval_s
        if answer.assignment is not None:
            self._assigned(answer.assignment, now)
            if self._give_up_by == FOREVER and self.to_give_up():
                self._give_up_by = sent_at + self._max_poll_interval_s

    def _assigned(self, partitions: Iterable[PartitionKey], now: float) -> None:
        wanted: dict[PartitionKey, int] = {}
        for key in sorted(partitions):
            if key in self._wanted:
                wanted[key] = self._wanted[key]
            else:
                self._grants += 1
                wanted[key] = self._grants
        self._wanted = wanted
        given_up = self._claimed - wanted.keys() - self._adopted.keys()
        self._claimed = (self._claimed | wanted.keys()) - given_up
        if given_up:
            self._beat_at = now

    def refused(self, beat: Beat, error: FencepostError, now: float) -> None:
        """The heartbeat had this for an answer, or none."""
        if beat.incarnation != self.incarnation or beat.epoch == LEAVING:
            return
        if isinstance(error, FencedMemberEpoch | UnknownMemberId) and beat.epoch != JOINING:
            self.fence()
            self._beat_at = now
            return
        self._failures += 1
        self._beat_at = now + RETRY.pause_s(self._failures)
        self._says_all = True
        self.failure = None if error.retriable else error

    def fence(self) -> None:
        """The coordinator has removed this member, or may have: it has nothing any more, and joins again."""
        self.incarnation += 1
        self.epoch = JOINING
        self.lost |= dict.fromkeys(sorted(self._adopted))
        self._wanted, self._adopted, self._claimed = {}, {}, set()
        self._says_all, self._sure_until, self._give_up_by = True, 0.0, FOREVER

    def beat_now(self, now: float) -> None:
        """The coordinator is to be asked at once."""
        self._beat_at = min(self._beat_at, now)

    # ---- Partitions ----

    def is_sure(self, now: float) -> bool:
        """The coordinator counts it as a member: neither its session nor the time to give partitions up can be over yet."""
        return now < min(self._sure_until, self._give_up_by)

    def to_give_up(self) -> list[PartitionKey]:
        """Read now, and not to be read any more."""
        return [key for key, grant in self._adopted.items() if self._wanted.get(key) != grant]

    def to_adopt(self) -> dict[PartitionKey, int]:
        """Granted and not read yet, with the numbers of their grants."""
        return {key: grant for key, grant in self._wanted.items() if key not in self._adopted}

    def adopt(self, key: PartitionKey, grant: int, now: float) -> bool:
        """Read it from now on. False: that grant counts no more."""
        if self._wanted.get(key) != grant or key in self._adopted or not self.is_sure(now):
            return False
        self._adopted[key] = grant
        return True

    def given_up(self, keys: Iterable[PartitionKey], now: float) -> None:
        """They are read no more, and what was read is committed: the coordinator may give them to others."""
        for key in keys:
            if self._adopted.pop(key, None) is not None:
                if key not in self._wanted:
                    self._claimed.discard(key)
                self._beat_at = now
        if not self.to_give_up():
            self._give_up_by = FOREVER

    @property
    def adopted(self) -> Mapping[PartitionKey, int]:
        """What it reads, with the numbers of the grants."""
        return self._adopted
