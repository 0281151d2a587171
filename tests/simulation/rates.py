"""How often a process does the same. A retry without a pause harms no record, so no other judge sees it."""

from __future__ import annotations

from collections import Counter

from tests.simulation.loop import SimLoop

MOST_PER_S = (
    100  # calls of one method, lines of one kind; forty were seen, and several hundred where a pause is missing
)


class Rates:
    """Of all processes, over each second of virtual time. What is too much fails the run."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._second = -1
        self._done: Counter[tuple[str, str]] = Counter()  # in this second, by (process, what)

    def note(self, process: str, what: str) -> None:
        """`what`: with a verb, such as "calls …"."""
        second = int(self._loop.time())
        if second != self._second:
            self._second = second
            self._done.clear()
        self._done[process, what] += 1
        if self._done[process, what] == MOST_PER_S + 1:
            self._loop.failures.append(f"{process} {what} more than {MOST_PER_S} times in second {second}")
