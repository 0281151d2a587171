"""What the nemeses did: one JSON line for each beginning and end of a fault, and for what was skipped."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fencepost_testing.chaos.faults import Fault, Party


@dataclass(slots=True)
class Happened:
    """One fault, as it was carried out. Times are those of time.monotonic()."""

    fault: Fault
    targets: tuple[Party, ...]  # who it was in the end
    began_at: float
    ended_at: float = 0.0
    note: str = ""


class NemesisLog:
    """One JSON line for each beginning and end, and for what was skipped."""

    def __init__(self, path: Path, started_at: float, tell: Callable[[str], None]) -> None:
        self.happened: list[Happened] = []
        self.skipped: Counter[str] = Counter()
        self._file = path.open("w", encoding="utf-8")
        self.started_at = started_at
        self._tell = tell

    def close(self) -> None:
        self._file.close()

    @property
    def counts(self) -> Counter[str]:
        return Counter(happened.fault.kind.value for happened in self.happened)

    def began(self, fault: Fault, targets: tuple[Party, ...], note: str) -> Happened:
        happened = Happened(fault, targets, time.monotonic(), note=note)
        self.happened.append(happened)
        self._write("began", fault, targets, note)
        self._tell(f"{fault.kind} {', '.join(targets)}{f' ({note})' if note else ''}")
        return happened

    def ended(self, happened: Happened) -> None:
        happened.ended_at = time.monotonic()
        self._write("ended", happened.fault, happened.targets, happened.note)

    def skip(self, fault: Fault, why: str) -> None:
        self.skipped[fault.kind.value] += 1
        self._write("skipped", fault, fault.targets, why)

    def _write(self, event: str, fault: Fault, targets: Sequence[Party], note: str) -> None:
        line = {
            "at_s": round(time.monotonic() - self.started_at, 3),
            "event": event,
            "nemesis": fault.nemesis.value,
            "kind": fault.kind.value,
            "targets": list(targets),
            "note": note,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
