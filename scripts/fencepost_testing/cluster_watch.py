"""What went wrong in a cluster by itself: processes that ended though no one ended them, faults that they logged.

A watch looks at what came since it began, so that of two tests on one cluster each is shown its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fencepost_testing.cluster_folder import ClusterFolder, Happening
from fencepost_testing.faults.rules import FaultError
from fencepost_testing.member import Member, name_of

EXIT_FAULT = 70  # as `fencepost_proto.runtime.process` has it, which a look at a cluster need not import
TRACEBACK = "Traceback (most recent call last)"
_CRITICAL = " CRITICAL "
_SHOWN_LINES = 30
_MOST_BYTES = 1 << 20  # of one log, that are looked at or shown: the last


class ClusterWatch:
    """Of one cluster, from now on. `ends`: whether a process that ended by itself is a problem too."""

    def __init__(self, cluster: ClusterFolder, *, ends: bool = True) -> None:
        self.cluster = cluster
        self._ends = ends
        self._from = {member.log_file: _size(member.log_file) for member in cluster.members.values()}
        self._began_s = time.time()

    def problems(self) -> list[str]:
        """In words; empty where all is well. What was killed or stopped through the cluster's own methods is well."""
        return [problem for member in self.cluster.members.values() for problem in self._problems_of(member)]

    def _problems_of(self, member: Member) -> Iterator[str]:
        name = name_of(member.node)
        text = self.log_of(member)
        code = member.child.poll() if member.child is not None else None
        if code == EXIT_FAULT or _CRITICAL in text:
            yield f"{name} ended because an invariant was broken:\n{_around(text, _CRITICAL)}"
        elif TRACEBACK in text:
            yield f"{name} logged a traceback:\n{_around(text, TRACEBACK)}"
        elif self._ends and member.ended_by_itself():
            with_code = "" if code is None else f" with exit code {code}"
            yield f"{name} ended by itself{with_code}; the end of its log:\n{_end(text, _SHOWN_LINES)}"

    def log_of(self, member: Member) -> str:
        """What it has logged since the watch began."""
        try:
            with member.log_file.open("rb") as file:
                start = self._from.get(member.log_file, 0)
                file.seek(max(start, _size(member.log_file) - _MOST_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def log_ends(self, lines: int) -> dict[str, str]:
        """By process: the last lines that it logged since the watch began. Those that logged nothing are left out."""
        ends = {name_of(m.node): _end(self.log_of(m), lines) for m in self.cluster.members.values()}
        return {name: end for name, end in ends.items() if end}

    def timeline(self) -> list[Happening]:
        """What was done to the cluster since the watch began, with the faults that were set on it, and fired."""
        faults = (Happening(each["at"], f"fault {each['what']}: {each['text']}") for each in self._faults())
        happened = sorted((*self.cluster.timeline, *faults), key=lambda each: each.at_s)
        return [each for each in happened if each.at_s >= self._began_s]

    def _faults(self) -> list[dict[str, Any]]:
        try:
            return self.cluster.faults.timeline()
        except FaultError:  # it has none, or has ended, and its temporary folder with it
            return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _end(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _around(text: str, mark: str) -> str:
    """The lines from a little before the mark on."""
    lines = text.splitlines()
    at = next((number for number, line in enumerate(lines) if mark.strip() in line), max(0, len(lines) - _SHOWN_LINES))
    return "\n".join(lines[max(0, at - 3) : at + _SHOWN_LINES])
