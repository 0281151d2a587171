"""For how long a process has run, whatever happens to clocks, and without the time for which it is paused."""

from __future__ import annotations


class RunningTime:
    """Adds up the event loop's time between calls. Pauses (SIGSTOP, a machine that sleeps) do not count.

    What has to be old before it is forgotten is measured by it: a leader that was paused may find a repeat in its sockets
    that is as old as the pause.
    """

    __slots__ = ("_before_s", "_limit_s", "_running_s")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s  # between two calls; what is more was a pause
        self._before_s: float | None = None
        self._running_s = 0.0

    def advance(self, now_s: float) -> int:
        """The running time in ms. `now_s`: the event loop's time."""
        if self._before_s is not None:
            self._running_s += min(max(now_s - self._before_s, 0.0), self._limit_s)
        self._before_s = now_s
        return int(self._running_s * 1000)
