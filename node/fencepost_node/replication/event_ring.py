"""What a broker has done lately that an observer should see: roles, recognised repeats, refusals, truncations.

It is for those who look (`grpc/observe.py`), never for a decision. It holds the last MAX_EVENTS and costs an append each;
none of them is on the way of a batch that is simply appended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import NamedTuple, Protocol

from fencepost_proto.protocol.record_batch import BatchHeader

MAX_EVENTS = 1_024
MAX_TEXT = 300  # characters

NO_PRODUCER = -1


class EventKind(Enum):
    LEADS = 1
    FOLLOWS = 2
    STOPS_LEADING = 3
    REPEAT = 4  # a batch was recognised as a repeat, and not appended
    REFUSED = 5  # a batch was refused, and not appended
    TRUNCATES = 6
    STARTS_OVER = 7
    FAILS = 8
    RECOVERS = 9


class Event(NamedTuple):
    """One event of one partition. Of a batch: the producer, its epoch, the sequences and the offset it has."""

    number: int  # rises by one
    time_ms: int  # by the broker's wall clock
    kind: EventKind
    topic: str
    partition: int
    leader_epoch: int
    offset: int = -1
    text: str = ""
    producer_id: int = NO_PRODUCER
    producer_epoch: int = -1
    first_sequence: int = -1
    last_sequence: int = -1


class Wakes(Protocol):
    """Is set when there is a new event."""

    def set(self) -> None: ...


class EventRing:
    """The last events of one broker. `number` is that of the newest; 0: there was none."""

    def __init__(self, clock_ms: Callable[[], int] = lambda: 0) -> None:
        self.number = 0
        self.watchers: dict[Wakes, None] = {}
        self._clock_ms = clock_ms
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def of_role(
        self, kind: EventKind, topic: str, partition: int, leader_epoch: int, *, offset: int = -1, text: str = ""
    ) -> None:
        """Something has happened to a replica."""
        self._add(Event(self._next(), self._clock_ms(), kind, topic, partition, leader_epoch, offset, text[:MAX_TEXT]))

    def of_batch(
        self,
        kind: EventKind,
        topic: str,
        partition: int,
        leader_epoch: int,
        header: BatchHeader,
        *,
        offset: int = -1,
        text: str = "",
    ) -> None:
        """Something has happened to a producer's batch, other than that it was appended."""
        self._add(
            Event(
                self._next(),
                self._clock_ms(),
                kind,
                topic,
                partition,
                leader_epoch,
                offset,
                text[:MAX_TEXT],
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.last_sequence,
            )
        )

    def after(self, number: int) -> tuple[list[Event], int]:
        """The events after that one, oldest first, and how many there were that are forgotten."""
        there_were = self.number - number
        if there_were <= 0:
            return [], 0
        kept = min(there_were, len(self._events))
        return list(islice(self._events, len(self._events) - kept, None)), there_were - kept

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _add(self, event: Event) -> None:
        self._events.append(event)
        for watcher in self.watchers:
            watcher.set()
