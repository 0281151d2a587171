"""How late the event loop is: what everything else on it waits for, too."""

from __future__ import annotations

import asyncio

from fencepost_proto.transport.latencies import Latencies

PAUSE_S = 0.25


async def measure_loop_lag(latencies: Latencies) -> None:
    """Add how much later than it should a short sleep ends, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PAUSE_S
        await asyncio.sleep(PAUSE_S)
        latencies.add(max(0.0, loop.time() - due))
