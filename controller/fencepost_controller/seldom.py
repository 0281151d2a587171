"""Bounds how often something is logged that others can bring about."""

from __future__ import annotations


class Seldom:
    """At most once in `every_s` seconds; what comes between is counted."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_at = float("-inf")
        self._skipped = 0

    def is_due(self, now: float) -> bool:
        """Is this one to be logged? `now`: in seconds, rising."""
        if now < self._next_at:
            self._skipped += 1
            return False
        self._next_at = now + self._every_s
        return True

    def skipped(self) -> int:
        """How many were not, since this was last asked."""
        count, self._skipped = self._skipped, 0
        return count
