"""What can be wrong with a log, in one list for all checks, and what they have found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

MAX_EXAMPLES = 20  # findings that are kept with their texts; all are counted


class Kind(StrEnum):
    """What can be wrong."""

    LOST = "lost"  # acknowledged, and not in the log
    DUPLICATED = "duplicated"  # in the log more than once: a record, or a sequence number
    REORDERED = "reordered"  # in the log after something that was sent later
    GAP = "gaps"  # a sequence number of a producer is missing
    RESURRECTED = "resurrected"  # definitely refused, and in the log nevertheless
    MOVED = "moved"  # not at the offset that was acknowledged
    MISPLACED = "misplaced"  # a key in two partitions
    FOREIGN = "foreign"  # a record that no sender in question has sent
    CORRUPT = "corrupt"  # bytes that are no batch, a bad CRC, a hole in the offsets
    DIVERGED = "diverged"  # replicas differ below the high watermark
    MISREAD = "misread"  # a consumer was given something else than what stands in the log
    SKIPPED = "skipped"  # a group was given what stands before and behind it, and not this


class Example(NamedTuple):
    """One thing that is wrong, in words: they name topic, partition and offset, and producer and sequence where known."""

    kind: Kind
    text: str
    offset: int = -1  # where it is, in a check of one partition; -1: not known

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Findings:
    """How often each thing is wrong, and the first examples."""

    counts: Counter[Kind] = field(default_factory=Counter)
    shown: list[Example] = field(default_factory=list)

    def add(self, kind: Kind, text: str, count: int = 1, *, offset: int = -1) -> None:
        self.counts[kind] += count
        if len(self.shown) < MAX_EXAMPLES:
            self.shown.append(Example(kind, text, offset))

    def merge(self, other: Findings) -> None:
        self.counts += other.counts
        self.shown = (self.shown + other.shown)[:MAX_EXAMPLES]

    @property
    def examples(self) -> list[str]:
        """The kind and the text of each."""
        return [str(example) for example in self.shown]

    @property
    def clean(self) -> bool:
        return self.counts.total() == 0
