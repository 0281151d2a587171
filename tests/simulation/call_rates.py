"""How often a process calls another. A retry without a pause harms no record, so no other judge sees it."""

from __future__ import annotations

from collections import Counter

from tests.simulation.loop import SimLoop

MAX_CALLS_PER_S = 100  # of one method; forty were seen, and several hundred where a pause is missing


class CallRates:
    """Of all processes, over each second of virtual time. What is too much fails the run."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._second = -1
        self._calls: Counter[tuple[str, str]] = Counter()  # in this second, by (node, method)

    def note(self, node: str, method: str) -> None:
        second = int(self._loop.time())
        if second != self._second:
            self._second = second
            self._calls.clear()
        self._calls[node, method] += 1
        if self._calls[node, method] == MAX_CALLS_PER_S + 1:
            self._loop.failures.append(f"{node} calls {method} more than {MAX_CALLS_PER_S} times in second {second}")
