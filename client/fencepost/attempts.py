"""Repeats one request to the controller until it is answered or times out.

The pause between two rounds of attempts doubles up to a bound. After `WARN_AFTER_S` without an answer the reason is logged
once, so that the user knows why the call takes so long.
"""

from __future__ import annotations

import asyncio
import logging

from fencepost_proto.protocol.errors import FencepostError, RequestTimedOut
from fencepost_proto.runtime.backoff import Backoff

log = logging.getLogger(__name__)

WARN_AFTER_S = 3.0  # without an answer
PAUSES = Backoff(first_s=0.1, most_s=1.0)


class Attempts:
    """`error`: what the last attempt failed with; before the first one, RequestTimedOut."""

    def __init__(self, request_name: str, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._request_name = request_name
        self._began = self._loop.time()
        self._deadline = self._began + timeout_s
        self._rounds = 0
        self._is_warned = False
        self.error: FencepostError = RequestTimedOut(f"no broker answered within {timeout_s:g} s")

    @property
    def left_s(self) -> float:
        """Until the deadline; 0 or less: it has passed."""
        return self._deadline - self._loop.time()

    def failed(self, error: FencepostError) -> None:
        """An attempt failed with this error."""
        self.error = error
        if not self._is_warned and self._loop.time() - self._began >= WARN_AFTER_S:
            self._is_warned = True
            log.warning(
                "the controller has not answered yet, still asking request=%s reason=%s", self._request_name, error
            )

    async def pause(self) -> None:
        """Every broker was asked: wait before the next round, not beyond the deadline."""
        self._rounds += 1
        await asyncio.sleep(max(0.0, min(PAUSES.pause_s(self._rounds), self.left_s)))
