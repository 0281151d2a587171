"""The timeline: what has happened in the cluster, as a visitor reads it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from fencepost_proto.protocol.v1 import broker_pb2

MAX_ENTRIES: Final = 300
MAX_OF_ONE_KIND: Final = 5  # in one message of a broker: the rest is one line (a thousand partitions elect at once)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    number: int
    time_ms: int
    kind: str  # as in KINDS
    text: str
    node: str  # the broker's id, "controller" or empty
    partition: str = ""  # topic-index
    producer: str = ""  # of a batch, like the next
    first: int = -1  # sequence


KINDS: Final = {
    "election": "A broker leads a partition under a new epoch",
    "repeat": "A batch was recognised as one that is in the log",
    "refused": "A batch was refused and not appended",
    "fence": "Older epochs of a producer may not write any more",
    "lost": "An acknowledgement was lost on purpose",
    "process": "A process was started, killed, paused or resumed, or ended",
    "isr": "The in-sync set of a partition has changed",
    "log": "A log was cut, started over, failed or recovered",
    "story": "A step of the story",
}


class Timeline:
    """The last entries, and what has come since a message was last made of it."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)
        self._new: list[Entry] = []
        self._number = 0

    def add(
        self,
        time_ms: int,
        kind: str,
        text: str,
        *,
        node: str = "",
        partition: str = "",
        batch: tuple[int, int] | None = None,
    ) -> None:
        """`batch`: (producer id, first sequence)."""
        self._number += 1
        producer, first = ("", -1) if batch is None else (str(batch[0]), batch[1])
        entry = Entry(self._number, time_ms, kind, text, node, partition, producer, first)
        self.entries.append(entry)
        self._new.append(entry)
        del self._new[:-MAX_ENTRIES]

    def take_new(self) -> list[dict[str, Any]]:
        """Entries since the last call, oldest first."""
        new, self._new = self._new, []
        return [asdict(entry) for entry in new]

    def all(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.entries]

    def add_events(self, broker_id: int, events: Sequence[broker_pb2.BrokerEvent]) -> None:
        """What a broker says that it has done."""
        of_kind: dict[str, int] = {}
        last_ms = 0
        for event in events:
            told = line_of(broker_id, event)
            if told is None:
                continue
            kind, text = told
            last_ms = event.time_ms
            of_kind[kind] = of_kind.get(kind, 0) + 1
            if of_kind[kind] <= MAX_OF_ONE_KIND:
                batch = None if event.producer_id < 0 else (event.producer_id, event.first_sequence)
                name = f"{event.topic}-{event.partition}"
                self.add(event.time_ms, kind, text, node=str(broker_id), partition=name, batch=batch)
        for kind, count in of_kind.items():
            if count > MAX_OF_ONE_KIND:
                self.add(
                    last_ms, kind, f"Broker {broker_id}: {count - MAX_OF_ONE_KIND} more of these", node=str(broker_id)
                )


def line_of(broker_id: int, event: broker_pb2.BrokerEvent) -> tuple[str, str] | None:
    """(kind, text) of a broker's event; None: it is not shown."""
    name = f"{event.topic}-{event.partition}"
    batch = (
        f"producer {event.producer_id} epoch {event.producer_epoch}, "
        f"sequences {event.first_sequence} to {event.last_sequence}"
    )
    match event.kind:
        case "LEADS" if event.leader_epoch > 0:
            return "election", f"Broker {broker_id} leads {name} under epoch {event.leader_epoch}"
        case "REPEAT":
            return "repeat", (
                f"Broker {broker_id} recognised a repeat in {name}: {batch} is in the log at offset {event.offset} already, "
                "and is not appended again"
            )
        case "REFUSED" if event.text.startswith("INVALID_PRODUCER_EPOCH"):
            return "fence", f"Broker {broker_id} refused a fenced producer in {name}: {event.text}"
        case "REFUSED":
            return "refused", f"Broker {broker_id} refused a batch in {name} ({batch}): {event.text}"
        case "TRUNCATES":
            return (
                "log",
                f"Broker {broker_id} cuts its log of {name} at offset {event.offset}: the leader has no more of it",
            )
        case "STARTS_OVER":
            return "log", f"Broker {broker_id} begins its log of {name} again at offset {event.offset}"
        case "FAILS":
            return "log", f"Broker {broker_id} cannot serve {name}: {event.text}"
        case "RECOVERS":
            return "log", f"Broker {broker_id} serves {name} again"
    return None
