"""Unclean elections: what they may take, what they must leave, and what they certainly take.

An operator was shown two offsets and ordered the election: nothing that was acknowledged is lost below the first, everything
at the second and above, and between the two what the elected log does not have. From the order on the elected log is what
is committed. So, of a record whose sending began before the order:

- at or above the first offset it may be gone, or stand elsewhere at or above it: the elected broker may have held it at
  another place, or its producer may have sent it again. It may also be read, and its acknowledgement come in, for some time
  after the order, by clients that still have answers of before.
- if it was acknowledged before the order at the second offset or above, it cannot stand there afterwards.

A record whose sending began after the order is one of the elected log. The rules take for granted that the leaders of
before are gone by then: what one that still runs acknowledges shows as lost.

An order of unknown outcome allows what an election does, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Election:
    """One order, which has not certainly failed."""

    line: int  # of the order
    kept_end_offset: int  # nothing below it is lost
    log_end_offset: int  # everything acknowledged before the order, from here on, is lost
    is_open: bool = True  # it has no outcome yet
    completed: bool = False  # and not of unknown outcome
    # (offset, value) that stood at `kept_end_offset` and above
    before: list[tuple[int, int]] = field(default_factory=list)
    # Readers that did not go back before it had an outcome: (words, lines, offset). Findings, if it was carried out.
    went_on: list[tuple[str, tuple[int, int, int], int]] = field(default_factory=list)


class Elections:
    """Those of one partition, in the order of their lines."""

    def __init__(self) -> None:
        self._elections: list[Election] = []

    def __len__(self) -> int:
        return len(self._elections)

    def __iter__(self) -> Iterator[Election]:
        return iter(self._elections)

    def add(self, election: Election) -> None:
        self._elections.append(election)

    def remove(self, election: Election) -> None:
        """It certainly was not carried out."""
        self._elections.remove(election)

    def of_line(self, line: int) -> Election:
        return next(election for election in self._elections if election.line == line)

    def may_take(self, offset: int, invoked: int) -> bool:
        """Whether a record that stood at `offset` (-1: not known), sent in line `invoked`, may be gone from there."""
        return any(
            invoked < election.line and not 0 <= offset < election.kept_end_offset for election in self._elections
        )

    def has_taken(self, offset: int, completed: int) -> bool:
        """Whether a record that was acknowledged at `offset` in line `completed` cannot stand there any more. (A later
        election may bring it back, of a broker that had it.)"""
        taken = False
        for election in self._elections:
            if offset < election.log_end_offset:
                taken = False
            elif completed < election.line and election.completed:
                taken = True
        return taken

    def may_be_of_before(self, line: int, invoked: int) -> bool:
        """Whether a record that was sent in line `invoked` may be of an earlier history than the one before `line`."""
        return any(invoked < election.line < line for election in self._elections)
