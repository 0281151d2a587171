"""How long the batches of a log have been in it, as far as this process has seen. Pure.

A producer's state may be forgotten only when its last batch is so old that no repeat of it can come any more. The clock on
the wall cannot show it (it is set forward and back), the batch's timestamp neither (it is the client's, and may lie far
in the past). What can show it is an observation of this process: at that time the log had already reached beyond the
batch. So a batch is never taken to be older than it is; a process that has just started has observed nothing, and takes
nothing to be old.

Time here is the running time of the process: a clock that stands while the process is paused (`running_time.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

OBSERVATIONS = 16  # how finely the horizon is divided: a batch counts as old up to a sixteenth of it too late


class Idleness:
    """Which offsets of one log have been there for `horizon_ms`."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] = []  # (running time in ms, log end offset then), both rising

    def __len__(self) -> int:
        return len(self._seen)

    def observe(self, end_offset: int, now_ms: int, horizon_ms: int) -> None:
        """The log reaches to `end_offset` now. Kept sixteen times in the horizon, so that there are few."""
        if not self._seen or now_ms - self._seen[-1][0] >= max(horizon_ms // OBSERVATIONS, 1):
            self._seen.append((now_ms, end_offset))

    def idle_below(self, now_ms: int, horizon_ms: int) -> int:
        """Every batch whose base offset is below this has been in the log for `horizon_ms`; 0: none is known to have."""
        old = bisect_right(self._seen, now_ms - horizon_ms, key=lambda seen: seen[0])
        if not old:
            return 0
        del self._seen[: old - 1]  # they say less than the newest of the old ones
        return self._seen[0][1]

    def truncate(self, end_offset: int) -> None:
        """The log was cut: other batches may come at these offsets."""
        self._seen = [(now_ms, min(seen, end_offset)) for now_ms, seen in self._seen]


class IdlenessByHorizon:
    """The same for several horizons: one object for each, made when it is first observed."""

    __slots__ = ("_by_horizon_ms",)

    def __init__(self) -> None:
        self._by_horizon_ms: dict[int, Idleness] = {}

    def observe(self, end_offset: int, now_ms: int, horizons_ms: Iterable[int]) -> None:
        for horizon_ms in horizons_ms:
            self._by_horizon_ms.setdefault(horizon_ms, Idleness()).observe(end_offset, now_ms, horizon_ms)

    def idle_below(self, now_ms: int, horizon_ms: int) -> int:
        idleness = self._by_horizon_ms.get(horizon_ms)
        return idleness.idle_below(now_ms, horizon_ms) if idleness is not None else 0

    def truncate(self, end_offset: int) -> None:
        for idleness in self._by_horizon_ms.values():
            idleness.truncate(end_offset)
