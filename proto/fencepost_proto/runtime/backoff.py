"""Growing pauses between attempts: each one twice as long as the one before, up to a limit. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_DOUBLINGS = 30  # any limit is reached long before; a larger exponent would overflow a float


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: `first_s` after the first failure in a row, then doubling up to `most_s`.

    `jitter`: a pause is multiplied by a random number between these two, so that many who failed together do not all
    try again at the same moment.
    """

    first_s: float
    most_s: float
    jitter: tuple[float, float] = (1.0, 1.0)

    def pause_s(self, failures: int) -> float:
        """The pause after so many failures in a row (the first one: 1), without jitter."""
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))

    def jittered_pause_s(self, failures: int, chance: random.Random) -> float:
        """`pause_s`, multiplied by a number from `jitter`. `chance`: the host's source of random numbers."""
        return self.pause_s(failures) * chance.uniform(*self.jitter)

    def pauses_s(self) -> Iterator[float]:
        """The pauses after the first failure, the second one, and so on, without end and without jitter."""
        failures = 1
        while True:
            yield self.pause_s(failures)
            failures += 1
