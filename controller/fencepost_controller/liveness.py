"""Who has been silent for too long. Pure: no I/O, no clock; times are given, in seconds.

A broker is overdue when it has sent nothing for a session timeout, or when it sends heartbeats but makes no progress
for as long with metadata that it has not applied: then it goes on under leaderships and fences that are no longer true.
Progress is a later version applied, or more of the same one (heartbeats report both). A broker that is busy with thousands
of changes is alive: to declare it dead would make thousands more. What waits for its version (fences) goes on waiting.

Some times are no evidence against anyone:

- Before the start of the controller. Every broker that was live before gets a full session timeout from then.
- A pause of the controller itself. Where a tick comes late, whatever the brokers have said meanwhile lies unread; the time
  that was missed is not counted.
- While the controller lets a registration wait, for other brokers at its start or for its store: before it is answered
  the broker can say nothing more.
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
    waiting: int = 0  # registrations that the controller lets wait …
    waits_since: float = 0.0  # … since when, where there are any

    def judged_at(self, now: float) -> float:
        """Until when its time is counted."""
        return self.waits_since if self.waiting else now

    def spare(self, seconds: float, now: float) -> None:
        """Do not count these, until now."""
        self.heard_at = min(now, self.heard_at + seconds)
        self.unapplied_since = min(now, self.unapplied_since + seconds)


class Liveness:
    """The brokers that are watched, and what was last heard from them."""

    def __init__(self, session_timeout_s: float, now: float) -> None:
        self.tick_interval_s = session_timeout_s / TICKS_PER_TIMEOUT
        self._session_timeout_s = session_timeout_s
        self._watches: dict[int, _Watch] = {}
        self._published = 0
        self._last_tick = now

    def expect(self, broker_id: int, now: float) -> None:
        """Watch a broker from now on. What was known of it is forgotten, but that registrations of it wait."""
        before = self._watches.get(broker_id)
        self._watches[broker_id] = _Watch(now, waiting=before.waiting if before is not None else 0, waits_since=now)

    def waits(self, broker_id: int, now: float) -> None:
        """The controller lets a registration of this broker wait."""
        watch = self._watches.get(broker_id)
        if watch is not None:
            watch.waits_since = watch.waits_since if watch.waiting else now
            watch.waiting += 1

    def waits_no_more(self, broker_id: int, now: float) -> None:
        """After `waits`: it is decided, or its stream broke."""
        watch = self._watches.get(broker_id)
        if watch is not None and watch.waiting:
            watch.waiting -= 1
            if not watch.waiting:
                watch.spare(now - watch.waits_since, now)

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
                if not watch.waiting:  # else that time is not counted anyway
                    watch.spare(missed, now)
        overdue = []
        for broker_id, watch in sorted(self._watches.items()):
            silent_s = watch.judged_at(now) - watch.heard_at
            behind_s = watch.judged_at(now) - watch.unapplied_since if watch.unapplied else 0.0
            if silent_s >= self._session_timeout_s:
                overdue.append(Overdue(broker_id, f"silent for {silent_s * 1000:.0f} ms"))
            elif behind_s >= self._session_timeout_s:
                reason = f"has not applied metadata version {watch.unapplied}, and makes no progress"
                overdue.append(Overdue(broker_id, f"{reason} for {behind_s * 1000:.0f} ms"))
        return overdue
