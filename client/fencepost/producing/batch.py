"""One batch as the sequencer sees it: its stamp, its attempts, its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from fencepost_proto.protocol.errors import FencepostError


class Stamp(NamedTuple):
    """Identifies a batch to every broker."""

    producer_id: int
    epoch: int
    base_sequence: int


NO_STAMP = Stamp(-1, -1, -1)  # with acks=0 and acks=1: brokers do not recognise a repeat


class AttemptState(Enum):
    QUEUED = auto()  # given to a connection that has not written any of it
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
    """The batch is in the log, and committed if acks="all"."""

    base_offset: int  # -1: the broker no longer remembers it
    duplicate: bool = False  # the leader had it already when this attempt arrived


@dataclass(frozen=True, slots=True)
class Failed:
    """The batch was given up. `error.may_have_been_appended` is true unless every attempt was definitely refused."""

    error: FencepostError


@dataclass(slots=True, eq=False)
class Batch:
    """A closed batch of one partition, as the sequencer sees it."""

    record_count: int
    deadline: float  # of its delivery, in the loop's time
    stamp: Stamp | None = None
    current: Attempt | None = None  # the unanswered one on the present route
    open_attempts: int = 0  # under the present stamp and not definitely refused: each may have appended it, or may yet
    attempts: int = 0  # under all its stamps
    strikes: int = 0  # errors that are retried a few times only
    refused: bool = False  # an attempt under the present stamp was refused
    committed: bool = False  # not answered, but in the log: a later batch of its epoch was acknowledged
    never: bool = False  # an earlier batch of its epoch never gets into a log, so this one cannot either
    alone: bool = False  # its message was too large: it is sent again in a message of its own
    pieces: tuple[Batch, ...] = ()  # of a split batch, in order: they replace it, and it gets no outcome of its own
    last_error: FencepostError | None = None
    outcome: Delivered | Failed | None = None

    def split(self, count: int) -> tuple[Batch, ...]:
        """Two batches without stamps with the same records: the first `count` of them, and the others."""
        return Batch(count, self.deadline), Batch(self.record_count - count, self.deadline)

    @property
    def certainly_absent(self) -> bool:
        """It is in no log, and will not get into one without another attempt: it may be stamped again."""
        return self.never or (self.open_attempts == 0 and not self.committed)
