"""Who has been silent for too long. Pure: no I/O, no clock; times are given, in seconds.

A broker is overdue when it has sent nothing for a session timeout, or when it sends heartbeats but makes no progress
for as long with metadata that it has not applied: then it goes on under leaderships and fences that are no longer true.
Progress is a later version applied, or more of the same one (heartbeats report both). A broker that is busy with thousands
of changes is alive: to declare it dead would make thousands more. What waits for its version (fences) goes on waiting.

Two moments are no evidence against anyone:

- The start of the controller. Every broker that was live before gets a full session timeout from then.
- A pause of the controller itself. Where a tick comes late, whatever the brokers have said meanwhile lies unread; the time
  that was missed is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

TICKS_PER_TIMEOUT = 30


class Overdue(NamedTuple):
    broker_id: int
    reason: str


@dataclass(slots=True)
class _Watch:
    heard_at: float
    reached: tuple[int, int] | None = (
        None  # as it last reported: version applied, and progress with the next, as it counts
    )
    unapplied: int = 0  # 0: none; else a version that is published, and not applied yet …
    unapplied_since: float = 0.0  # … when it was published, or the last progress since


class Liveness:
    """The brokers that are watched, and what was last heard from them."""

    def __init__(self, session_timeout_s: float, now: float) -> None:
        self.tick_interval_s = session_timeout_s / TICKS_PER_TIMEOUT
        self._session_timeout_s = session_timeout_s
        self._watches: dict[int, _Watch] = {}
        self._published = 0
        self._last_tick = now

    def expect(self, broker_id: int, now: float) -> None:
        """Watch a broker from now on; whatever was known of it is forgotten."""
        self._watches[broker_id] = _Watch(now)

    def rejoins(self, broker_id: int) -> None:
        """The process that is watched has another session. That is no sign of life: only heartbeats are, or one that can
        register and do nothing more would keep its leaderships indefinitely."""
        watch = self._watches[broker_id]
        self._watches[broker_id] = _Watch(watch.heard_at)

    def watches(self, broker_id: int) -> bool:
        return broker_id in self._watches

    def forget(self, broker_id: int) -> None:
        self._watches.pop(broker_id, None)

    def heard(self, broker_id: int, applied_version: int, now: float, progress: int = 0) -> None:
        watch = self._watches.get(broker_id)
        if watch is None:
            return
        watch.heard_at = now
        reached = (applied_version, progress)
        if watch.reached is not None and reached > watch.reached:
            watch.unapplied_since = now
        watch.reached = reached
        if applied_version >= watch.unapplied:
            behind = applied_version < self._published and watch.unapplied
            watch.unapplied, watch.unapplied_since = (self._published, now) if behind else (0, 0.0)

    def published(self, version: int, to: list[int], now: float) -> None:
        """A metadata version went out to these brokers, which are to apply it."""
        self._published = version
        for broker_id in to:
            watch = self._watches.get(broker_id)
            if watch is not None and not watch.unapplied:
                watch.unapplied, watch.unapplied_since = version, now

    def tick(self, now: float) -> list[Overdue]:
        """Call every `tick_interval_s`. Those who are overdue at `now`, in order; they stay watched."""
        missed = now - self._last_tick - 2 * self.tick_interval_s
        self._last_tick = now
        if missed > 0:
            for watch in self._watches.values():
                watch.heard_at = min(now, watch.heard_at + missed)
                watch.unapplied_since = min(now, watch.unapplied_since + missed)
        overdue = []
        for broker_id, watch in sorted(self._watches.items()):
            silent_s = now - watch.heard_at
            behind_s = now - watch.unapplied_since if watch.unapplied else 0.0
            if silent_s >= self._session_timeout_s:
                overdue.append(Overdue(broker_id, f"silent for {silent_s * 1000:.0f} ms"))
            elif behind_s >= self._session_timeout_s:
                reason = f"has not applied metadata version {watch.unapplied}, and makes no progress"
                overdue.append(Overdue(broker_id, f"{reason} for {behind_s * 1000:.0f} ms"))
        return overdue
