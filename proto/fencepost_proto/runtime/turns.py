"""Long work on the event loop, in turns: whatever else is due goes on between its steps."""

from __future__ import annotations

import asyncio

STEPS_PER_TURN = 64  # of some ten microseconds each; no step may take milliseconds


class Turns:
    """One owner's long work. `steps` rises for as long as it goes on."""

    def __init__(self) -> None:
        self.steps = 0

    async def step(self) -> None:
        """One step is done."""
        self.steps += 1
        if self.steps % STEPS_PER_TURN == 0:
            await asyncio.sleep(0)
