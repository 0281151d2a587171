"""Figures out of a history: how long sends took, how much went through, how long each partition was silent.

Pure: feed it every operation in the order of time. Times are seconds since the run's start.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fencepost.history_format import Operation
from fencepost_testing.read_back import FINAL_READER

NOTICEABLE_S = 1.0  # silences of at least so long are listed one by one


@dataclass(frozen=True, slots=True)
class Silence:
    """A time in which a partition acknowledged nothing."""

    partition: int
    began_s: float
    ended_s: float

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True)
class Outage:
    """Noticeable silences of some partitions, each of which overlaps with another one."""

    silences: tuple[Silence, ...]

    @property
    def began_s(self) -> float:
        return min(silence.began_s for silence in self.silences)

    @property
    def ended_s(self) -> float:
        return max(silence.ended_s for silence in self.silences)

    @property
    def longest_s(self) -> float:
        return max(silence.duration_s for silence in self.silences)

    @property
    def partitions(self) -> list[int]:
        return sorted({silence.partition for silence in self.silences})


def outages(silences: Sequence[Silence]) -> list[Outage]:
    """Silences put together where they overlap, by time."""
    together: list[list[Silence]] = []
    ended_s = float("-inf")
    for silence in sorted(silences, key=lambda silence: silence.began_s):
        if silence.began_s >= ended_s:
            together.append([])
        together[-1].append(silence)
        ended_s = max(ended_s, silence.ended_s)
    return [Outage(tuple(group)) for group in together]


@dataclass(slots=True)
class Measure:
    """`sent_at` and `latency` are of the acknowledged sends, in the order of their acknowledgement."""

    started_at_ns: int
    operations: int = 0  # sends and polls, as they were invoked
    sent_at: array[float] = field(default_factory=lambda: array("d"))
    latency: array[float] = field(default_factory=lambda: array("d"))
    acked_in_second: Counter[int] = field(default_factory=Counter)
    failed_in_second: Counter[int] = field(default_factory=Counter)
    unknown_in_second: Counter[int] = field(default_factory=Counter)
    read_in_second: Counter[int] = field(default_factory=Counter)
    longest_silence: dict[int, Silence] = field(default_factory=dict)  # by partition
    noticeable: list[Silence] = field(default_factory=list)
    first_send_s: float = -1.0
    _invoked: dict[tuple[str, int], float] = field(default_factory=dict)
    _last_ack: dict[int, float] = field(default_factory=dict)  # by partition

    def add(self, operation: Operation) -> None:
        at = (operation.time_ns - self.started_at_ns) / 1e9
        if operation.op == "send":
            self._send(operation, at)
        elif operation.op == "poll":
            if operation.type == "invoke":
                self.operations += 1
            elif operation.process != FINAL_READER:
                self.read_in_second[int(at)] += len(operation.records)

    def _send(self, operation: Operation, at: float) -> None:
        key = operation.process, operation.id
        if operation.type == "invoke":
            self.operations += 1
            self._invoked[key] = at
            if self.first_send_s < 0:
                self.first_send_s = at
            return
        sent_at = self._invoked.pop(key)
        if operation.type == "ok":
            self.sent_at.append(sent_at)
            self.latency.append(at - sent_at)
            self.acked_in_second[int(at)] += 1
            self._acked(operation.partition, at)
        elif operation.may_have_been_appended:
            self.unknown_in_second[int(at)] += 1
        else:
            self.failed_in_second[int(at)] += 1

    def _acked(self, partition: int, at: float) -> None:
        """Silence counts from the first send on; what comes after the last one is no silence."""
        silence = Silence(partition, self._last_ack.get(partition, self.first_send_s), at)
        self._last_ack[partition] = at
        known = self.longest_silence.get(partition)
        if known is None or silence.duration_s > known.duration_s:
            self.longest_silence[partition] = silence
        if silence.duration_s >= NOTICEABLE_S:
            self.noticeable.append(silence)

    @property
    def longest_unavailability(self) -> Silence | None:
        return max(self.longest_silence.values(), key=lambda silence: silence.duration_s, default=None)

    def latency_ms(self, share: float) -> float:
        """The latency that `share` of the acknowledged sends did not exceed."""
        if not self.latency:
            return float("nan")
        ordered = sorted(self.latency)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
