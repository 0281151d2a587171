"""Metric families as values: a name, what it means, and numbers by label. No I/O, and no library.

Names follow Prometheus' conventions: `fencepost_` first, the unit last (`_seconds`, `_bytes`), `_total` behind a counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fencepost_proto.transport.latencies import Latencies, RequestCounts


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(slots=True)
class Family:
    """All samples of one name. A sample is its labels as text (`labels_text`; empty: none) and its value."""

    name: str
    kind: Kind
    help: str
    samples: list[tuple[str, float | Latencies]] = field(default_factory=list)  # Latencies: of a histogram

    def add(self, value: float | Latencies, **labels: str | int) -> None:
        self.samples.append((labels_text(labels.items()), value))


def labels_text(labels: Iterable[tuple[str, str | int]]) -> str:
    """`topic="orders",partition="0"`, escaped as the text format has it."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str | int) -> str:
    text = str(value)
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text


def counter(name: str, help_text: str, value: float | None = None) -> Family:
    """`value`: where it has no labels."""
    return _family(name, Kind.COUNTER, help_text, value)


def gauge(name: str, help_text: str, value: float | None = None) -> Family:
    return _family(name, Kind.GAUGE, help_text, value)


def histogram(name: str, help_text: str, value: Latencies | None = None) -> Family:
    return _family(name, Kind.HISTOGRAM, help_text, value)


def _family(name: str, kind: Kind, help_text: str, value: float | Latencies | None) -> Family:
    return Family(name, kind, help_text, [] if value is None else [("", value)])


def requests(protocols: Sequence[tuple[str, RequestCounts]]) -> list[Family]:
    """What a process was asked for, by protocol and API."""
    durations = histogram("fencepost_request_duration_seconds", "From a request's arrival until its answer is made.")
    refused = counter("fencepost_refused_requests_total", "Requests answered with an error.")
    for protocol, counts in protocols:
        add_counts(durations, refused, counts, "api", protocol=protocol)
    return [durations, refused]


def add_counts(durations: Family, refused: Family, counts: RequestCounts, by: str, **labels: str) -> None:
    """Both families of what was asked. `by`: the label that says what; it stands behind `labels`, before `error`."""
    for name, latencies in sorted(counts.latencies.items()):
        durations.add(latencies, **labels, **{by: name})
    for (name, error), count in sorted(counts.refused.items()):
        refused.add(count, **labels, **{by: name}, error=error)
