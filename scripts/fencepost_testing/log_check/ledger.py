"""What a workload sent, the outcome of each record, and what each record says about itself.

A record's value begins with "RUN:ID:COUNTER:": the run of the workload, the record's id (0, 1, 2, … in the order of
sending) and its key's counter (likewise). So a reader of the log finds a record that is missing, there twice or late,
with nothing but the ledger.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from fencepost_testing.log_check.outcomes import Outcome
from fencepost_testing.log_check.sequence_order import KnownStamp

NO_OFFSET = -1
_OUTCOMES = tuple(Outcome)
_BLOCK = 4096  # records by which the columns grow


class Ledger:
    """What one run of a workload sent, by id, and the outcomes. About 30 bytes a record.

    `ordered`: the run's records of one partition stand in the order of their ids (as an idempotent producer's do).
    """

    def __init__(self, run: str, *, ordered: bool = True) -> None:
        self.run = run
        self.ordered = ordered
        self.outcomes = bytearray()
        self._partitions = array("i")
        self._offsets = array("q")
        self._producer_ids = array("q")
        self._producer_epochs = array("i")
        self._sequences = array("i")

    @property
    def sent(self) -> int:
        return len(self.outcomes)

    @property
    def acked(self) -> int:
        return self.outcomes.count(Outcome.ACKED)

    @property
    def refused(self) -> int:
        return self.outcomes.count(Outcome.REFUSED)

    def send(self) -> int:
        """The next record's id."""
        return self.send_as(len(self.outcomes))

    def send_as(self, record_id: int) -> int:
        """The same for a run that sends to several topics: ids below this one that this ledger lacks were not sent here."""
        if record_id >= len(self._offsets):
            self._extend_columns(max(_BLOCK, record_id + 1 - len(self._offsets)))
        self.outcomes.extend(bytes(record_id + 1 - len(self.outcomes)))
        self.outcomes[record_id] = Outcome.UNKNOWN
        return record_id

    def _extend_columns(self, more: int) -> None:
        for column in (self._partitions, self._producer_epochs, self._sequences):
            column.extend(array("i", [-1]) * more)
        for column in (self._offsets, self._producer_ids):
            column.extend(array("q", [-1]) * more)

    def ack(
        self, record_id: int, partition: int = -1, offset: int = NO_OFFSET, stamp: tuple[int, int, int] | None = None
    ) -> None:
        """Partition or offset -1: not known. `stamp`: producer id, producer epoch, sequence; None: not known."""
        self.outcomes[record_id] = Outcome.ACKED
        self._partitions[record_id] = partition
        self._offsets[record_id] = offset
        if stamp is not None:
            self._producer_ids[record_id], self._producer_epochs[record_id], self._sequences[record_id] = stamp

    def fail(self, record_id: int, *, may_have_been_appended: bool) -> None:
        self.outcomes[record_id] = Outcome.UNKNOWN if may_have_been_appended else Outcome.REFUSED

    def outcome(self, record_id: int) -> Outcome:
        return _OUTCOMES[self.outcomes[record_id]] if record_id < len(self.outcomes) else Outcome.NEVER_SENT

    def stamp(self, record_id: int) -> KnownStamp | None:
        """None: it is not known."""
        if record_id >= len(self.outcomes) or self._sequences[record_id] < 0:
            return None
        return KnownStamp(self._producer_ids[record_id], self._producer_epochs[record_id], self._sequences[record_id])

    def place(self, record_id: int) -> tuple[int, int]:
        """(partition, offset) as acknowledged."""
        return self._partitions[record_id], self._offsets[record_id]

    def to_json(self) -> dict[str, object]:
        """Small where all went well: only what was not acknowledged is listed. Offsets and stamps are left out."""
        return {
            "run": self.run,
            "sent": self.sent,
            "unknown": [i for i, outcome in enumerate(self.outcomes) if outcome == Outcome.UNKNOWN],
            "refused": [i for i, outcome in enumerate(self.outcomes) if outcome == Outcome.REFUSED],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, object]) -> Ledger:
        """Raises ValueError for anything but what `to_json` made."""
        run, sent, unknown, refused = said.get("run"), said.get("sent"), said.get("unknown"), said.get("refused")
        if not (
            isinstance(run, str) and isinstance(sent, int) and isinstance(unknown, list) and isinstance(refused, list)
        ):
            raise ValueError("not a workload's ledger")
        ledger = cls(run)
        ledger._extend_columns(sent)
        ledger.outcomes = bytearray([Outcome.ACKED]) * sent
        for ids, outcome in ((unknown, Outcome.UNKNOWN), (refused, Outcome.REFUSED)):
            for record_id in ids:
                if not 0 <= record_id < sent:
                    raise ValueError(f"record {record_id} in the ledger of {sent}")
                ledger.outcomes[record_id] = outcome
        return ledger


MIN_RECORD_BYTES = 40  # room for a run of 8 characters, an id and a counter below 10^14 each, and their separators
_SEPARATOR = b":"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a value says about itself."""

    run: str
    record_id: int
    counter: int  # of its key: 0, 1, 2, …


def make_value(run: str, record_id: int, counter: int, size_bytes: int) -> bytes:
    """A value of `size_bytes` (MIN_RECORD_BYTES or more)."""
    return f"{run}:{record_id}:{counter}:".encode().ljust(size_bytes, b".")


def read_mark(value: bytes | None) -> Mark | None:
    """None for a value that `make_value` did not make."""
    parts = (value or b"").split(_SEPARATOR, 3)
    if len(parts) != 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    return Mark(parts[0].decode(errors="replace"), int(parts[1]), int(parts[2]))
