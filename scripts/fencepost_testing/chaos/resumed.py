"""Compares the final log with the answers that named producers got when they began (promise G9).

A new instance of a name asks what its predecessors got into a partition. The answer is definite: that record stands there,
and nothing of any predecessor comes after it. Who came before whom is a matter of epochs: of two instances that begin at
the same time, either may get the first. Pure.

An unclean election after the question may take what was answered: at or above the offset from which the operator was shown
that records may be lost, the elected log says what is so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

NOTHING = -1  # the offset where a partition has no record of a name


@dataclass(frozen=True, slots=True)
class ResumeAnswer:
    """The answer to one instance about one partition."""

    process: str  # "role.number"
    partition: int
    offset: int  # of the last record of its name, or NOTHING
    value: str | None
    producer_id: int  # with the epoch: its identity, of which later instances have higher ones
    epoch: int
    asked_at_ns: int = 0  # on the clock of the histories

    @property
    def identity(self) -> tuple[int, int]:
        return self.producer_id, self.epoch

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_line(line: str) -> ResumeAnswer:
        return ResumeAnswer(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Overruled:
    """An unclean election."""

    partition: int
    ordered_at_ns: int
    kept_end_offset: int


class ResumedCheck:
    """Feed it every record of the final log, then `finish`."""

    def __init__(self, told: Iterable[ResumeAnswer], overruled: Iterable[Overruled] = ()) -> None:
        self.told = list(told)
        self._overruled = list(overruled)
        self._wanted = {(answer.partition, answer.offset) for answer in self.told}
        self._values: dict[tuple[int, int], str] = {}
        self._last_offset: dict[tuple[int, str], int] = {}  # of each instance, in each partition

    def add(self, partition: int, offset: int, value: str) -> None:
        self._last_offset[partition, value.partition(":")[0]] = offset
        if (partition, offset) in self._wanted:
            self._values[partition, offset] = value

    def finish(self) -> list[str]:
        """What does not hold."""
        problems = []
        # All who have sent anything have reported.
        identities = {answer.process: answer.identity for answer in self.told}
        for answer in self.told:
            role = _role(answer.process)
            where = (
                f"{answer.process} got the answer that its name's last record in partition {answer.partition} is at "
            )
            where += str(answer.offset) if answer.offset != NOTHING else "no offset"
            stands = self._values.get((answer.partition, answer.offset))
            kept = self._kept_end(answer)
            if NOTHING < answer.offset < kept and stands != answer.value:
                problems.append(f"{where} and is {answer.value!r}; there stands {stands!r}")
            for earlier, identity in identities.items():
                last = self._last_offset.get((answer.partition, earlier), NOTHING)
                if _role(earlier) == role and identity < answer.identity and kept > last > answer.offset:
                    problems.append(f"{where}; a record of {earlier}, of a lower epoch, stands at {last}")
        return problems

    def _kept_end(self, answer: ResumeAnswer) -> float:
        """Below it no unclean election after the question may have taken anything."""
        return min(
            (
                election.kept_end_offset
                for election in self._overruled
                if election.partition == answer.partition and answer.asked_at_ns < election.ordered_at_ns
            ),
            default=math.inf,
        )


def _role(process: str) -> str:
    return process.rpartition(".")[0]
