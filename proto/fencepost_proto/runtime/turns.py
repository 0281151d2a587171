"""Long work on the event loop, in turns: whatever else is due goes on between its steps."""

from __future__ import annotations

import asyncio

STEPS_PER_TURN = 64  # of some ten microseconds each; no step may take milliseconds


class Turns:
    """One owner's long work. `steps` rises for as long as it goes on."""

    def __init__(self) -> None:
        self.steps = 0
        self._since = 0

    async def step(self, weight: int = 1) -> None:
        """One step is done, as long as `weight` of the usual ones."""
        self.steps += 1
        self._since += weight
        if self._since >= STEPS_PER_TURN:
            self._since = 0
            await asyncio.sleep(0)
