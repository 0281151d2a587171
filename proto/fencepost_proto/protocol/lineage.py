"""Which start of the controller committed which metadata versions.

Version numbers alone do not reveal a store that was put back from a backup: it may have gone on, and passed the versions
that it lost. So each start of the controller, and each recovery of its store, begins a *lineage* with a random id at the
version that it commits. The history of them is part of the metadata, as leader epochs are part of a log. Whoever was told
of a version keeps the version and its lineage; a store whose history does not have that lineage at that version is not
the one that committed it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from fencepost_proto.protocol.entity import Entity

UNKNOWN_LINEAGE = 0  # in place of an id: only the version is known
MAX_LINEAGES = 1_000  # starts that are remembered; some 20 bytes each


class LineageStart(NamedTuple):
    lineage_id: int
    first_version: int


class VersionCheck(Enum):
    """The relation of a version that a broker knows to a history."""

    SOUND = auto()  # one of its own versions, or one too old to be compared
    AHEAD = auto()  # newer than its newest
    FORKED = auto()  # here that version belongs to another lineage


@dataclass(frozen=True, slots=True)
class Lineage(Entity):
    """The history: first versions rise. Below the first one that is kept, nothing is known."""

    starts: tuple[LineageStart, ...] = ()

    @property
    def key(self) -> str:
        return "lineage"

    @property
    def current_id(self) -> int:
        return self.starts[-1].lineage_id if self.starts else UNKNOWN_LINEAGE

    @property
    def oldest_id(self) -> int:
        return self.starts[0].lineage_id if self.starts else UNKNOWN_LINEAGE

    def knows(self, lineage_id: int) -> bool:
        """Is it the id of one of these starts?"""
        return any(start.lineage_id == lineage_id for start in self.starts)

    def begin(self, lineage_id: int, version: int) -> Lineage:
        """The history with one more start, and without the oldest beyond `MAX_LINEAGES`."""
        return Lineage((*self.starts, LineageStart(lineage_id, version))[-MAX_LINEAGES:])

    def id_at(self, version: int) -> int:
        """The lineage that committed `version`."""
        at = bisect_right(self.starts, version, key=lambda start: start.first_version)
        return self.starts[at - 1].lineage_id if at else UNKNOWN_LINEAGE

    def check(self, version: int, lineage_id: int, newest: int) -> VersionCheck:
        """Is `version` of that lineage one of this history, whose newest version is `newest`?"""
        if version > newest:
            return VersionCheck.AHEAD
        here = self.id_at(version)
        unknown = UNKNOWN_LINEAGE in (lineage_id, here)
        return VersionCheck.SOUND if unknown or here == lineage_id else VersionCheck.FORKED
