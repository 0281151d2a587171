"""What the sequencer knows of one batch: its stamp, its attempts, what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from fencepost_proto.protocol.errors import FencepostError


class Stamp(NamedTuple):
    """What makes a batch recognisable to every broker."""

    producer_id: int
    epoch: int
    base_sequence: int


NO_STAMP = Stamp(-1, -1, -1)  # acks=0 and acks=1: no broker recognises a repeat


class AttemptState(Enum):
    QUEUED = auto()  # handed to a connection that has not written a byte of it
    WRITTEN = auto()  # may have reached the broker
    ANSWERED = auto()
    WITHDRAWN = auto()  # was never written and never will be


@dataclass(slots=True, eq=False)
class Attempt:
    """One sending of one batch, under one stamp, to one leader."""

    batch: Batch
    stamp: Stamp
    leader_epoch: int
    state: AttemptState = AttemptState.QUEUED


@dataclass(frozen=True, slots=True)
class Delivered:
    """In the log, committed as far as acks asks."""

    base_offset: int  # -1: the broker does not remember it any more
    duplicate: bool = False  # a retry found the batch there


@dataclass(frozen=True, slots=True)
class Failed:
    """Given up; `error.may_have_been_appended` is true unless every attempt was definitely refused."""

    error: FencepostError


@dataclass(slots=True, eq=False)
class Batch:
    """A closed batch of one partition, as the sequencer sees it."""

    record_count: int
    deadline: float  # of its delivery, in the loop's time
    stamp: Stamp | None = None
    current: Attempt | None = None  # unanswered, on the present route
    open_attempts: int = 0  # under the present stamp, not known to have been refused: any of them may (have) appended
    attempts: int = 0  # under any stamp
    strikes: int = 0  # answers of the kind that is retried a few times only
    refused: bool = False  # an attempt under the present stamp was
    committed: bool = False  # not answered, but a later batch of its epoch was acknowledged: it is in
    never: bool = False  # an earlier batch of its epoch is in no log and never will be: neither can this one
    alone: bool = False  # the message that it came in was too large: the next one carries nothing else
    pieces: tuple[Batch, ...] = ()  # what has taken its place, in order: it is split and has no outcome of its own
    last_error: FencepostError | None = None
    outcome: Delivered | Failed | None = None

    def split(self, count: int) -> tuple[Batch, ...]:
        """The same records as two batches without stamps: the first `count` of them, and the others."""
        return Batch(count, self.deadline), Batch(self.record_count - count, self.deadline)

    @property
    def certainly_absent(self) -> bool:
        """No log has it, and without another attempt none ever will: it may be stamped anew."""
        return self.never or (self.open_attempts == 0 and not self.committed)
