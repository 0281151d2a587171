"""Every value of a history, sent or only read, and all that is known of it: columns, about 300 bytes a value.

A value is known by a number, in the order in which values appear. Lines are known by their ordinal in the history, from
1; 0 stands for a line that there is not.
"""

from __future__ import annotations

from array import array
from enum import IntFlag
from hashlib import blake2b

from fencepost.history_format import Value
from fencepost_testing.log_check.sequence_order import KnownStamp

NOWHERE = -1  # an offset or partition that is not known
MAX_VALUE_CHARS = 128  # a longer value is kept as its beginning and a digest
_SHOWN_CHARS = 40
_DIGEST_BYTES = 16
_BLOCK = 4096  # values by which the columns grow


class Said(IntFlag):
    """What has been said of a value, to say it once."""

    DUPLICATE = 1
    INCONSISTENT = 2
    PRECOMMITTED = 4


class Sends:
    """Columns, indexed by a value's number."""

    def __init__(self) -> None:
        self.values: list[str | bytes] = []  # as kept: see MAX_VALUE_CHARS
        self.outcome = bytearray()
        self.said = bytearray()
        self.process = array("i")  # that sent it
        self.acked_partition = array("i")
        self.acked_offset = array("q")
        self.read_partition = array("i")  # where it was first read
        self.read_offset = array("q")
        self.invoked = array("I")  # line
        self.completed = array("I")  # line
        self.read = array("I")  # line of its first reading
        self.final = array("I")  # line that began the last final read that saw it
        self.producer_id = array("q")
        self.producer_epoch = array("i")
        self.sequence = array("i")
        self._numbers: dict[str, dict[str | bytes, int]] = {}
        self._room = 0

    def __len__(self) -> int:
        return len(self.values)

    def topic(self, topic: str) -> dict[str | bytes, int]:
        """The numbers of a topic's values, by `identity`."""
        numbers = self._numbers.get(topic)
        if numbers is None:
            numbers = self._numbers[topic] = {}
        return numbers

    def number(self, numbers: dict[str | bytes, int], value: str | bytes) -> int:
        """A value's number in its topic; a new one if it has not appeared before."""
        if len(value) > MAX_VALUE_CHARS:
            value = _identity(value)
        found = numbers.get(value)
        if found is not None:
            return found
        number = len(self.values)
        if number == self._room:
            self._grow()
        self.values.append(value)
        numbers[value] = number
        return number

    def evidence(self, number: int) -> tuple[int, int, int]:
        """The lines about a value."""
        return self.invoked[number], self.completed[number], self.read[number]

    def stamp(self, number: int) -> KnownStamp | None:
        """None: it is not known."""
        if self.sequence[number] == NOWHERE:
            return None
        return KnownStamp(self.producer_id[number], self.producer_epoch[number], self.sequence[number])

    def described(self, number: int) -> str:
        """A value in a sentence, with its stamp."""
        stamp = self.stamp(number)
        return shown(self.values[number]) + (f" ({stamp})" if stamp is not None else "")

    def _grow(self) -> None:
        self._room += _BLOCK
        for flags in (self.outcome, self.said):
            flags.extend(bytes(_BLOCK))
        for column in (self.invoked, self.completed, self.read, self.final):
            column.extend(array("I", [0]) * _BLOCK)
        for column in (self.process, self.acked_partition, self.read_partition, self.producer_epoch, self.sequence):
            column.extend(array("i", [NOWHERE]) * _BLOCK)
        for column in (self.acked_offset, self.read_offset, self.producer_id):
            column.extend(array("q", [NOWHERE]) * _BLOCK)


def _identity(value: str | bytes) -> str:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return f"{value[:_SHOWN_CHARS]!s}…{blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()}"


def shown(value: Value) -> str:
    """A value in a sentence, where its beginning must do."""
    if value is None:
        return "null"
    return repr(value) if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]!r}…"
