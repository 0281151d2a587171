"""Counts of how long things took, for the metrics: plain numbers on the objects that do the work, read at a scrape.

Adding one costs a bisection over 14 numbers and two additions: a request or a batch can afford it, a record could not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from contextvars import ContextVar
from typing import Final

LEAN: Final = "lean"
GRPC: Final = "grpc"

# By what the call came that is being served; the lean server sets it for its own, once for each call.
CARRIER: Final[ContextVar[str]] = ContextVar("carrier", default=GRPC)

# Upper bounds of the buckets, inclusive, in seconds; one more bucket is for what took longer.
BOUNDS_S = (0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Latencies:
    """A histogram. One thread at a time may add; with more of them a count may be lost, and nothing else."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  # of each bucket by itself
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)


class RequestCounts:
    """Requests of one protocol, by API. The names are those of the code, so there are only so many."""

    __slots__ = ("latencies", "refused")

    def __init__(self) -> None:
        self.latencies: dict[str, Latencies] = {}
        self.refused: Counter[tuple[str, str]] = Counter()  # by API and error

    def of(self, api: str) -> Latencies:
        """The latencies of one API, to be kept by who adds often."""
        known = self.latencies.get(api)
        if known is None:
            known = self.latencies[api] = Latencies()
        return known


class CallCounts:
    """Calls of Fencepost's own protocol, by the carrier that they came by."""

    __slots__ = ("grpc", "lean")

    def __init__(self) -> None:
        self.grpc = RequestCounts()
        self.lean = RequestCounts()

    @property
    def current(self) -> RequestCounts:
        """Those of the carrier of the call that is being served."""
        return self.lean if CARRIER.get() == LEAN else self.grpc

    def by_protocol(self) -> list[tuple[str, RequestCounts]]:
        """For the metrics."""
        return [(GRPC, self.grpc), (LEAN, self.lean)]
