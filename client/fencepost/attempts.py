"""One request to the controller, repeated until it is answered or its time is over.

The pause between two rounds of attempts doubles up to a bound. A request that has had no answer for `WARN_AFTER_S` is logged
once, with the reason, so that its user does not wait in front of silence.
"""

from __future__ import annotations

import asyncio
import logging

from fencepost_proto.protocol.errors import FencepostError, RequestTimedOut
from fencepost_proto.runtime.backoff import Backoff

log = logging.getLogger(__name__)

WARN_AFTER_S = 3.0  # without an answer: then the user is told why
PAUSES = Backoff(first_s=0.1, most_s=1.0)


class Attempts:
    """`error` is what the last attempt failed with; before the first one, that nobody answered."""

    def __init__(self, request_name: str, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._request_name = request_name
        self._began = self._loop.time()
        self._deadline = self._began + timeout_s
        self._rounds = 0
        self._told = False
        self.error: FencepostError = RequestTimedOut(f"no broker answered within {timeout_s:g} s")

    @property
    def left_s(self) -> float:
        """Until the time is over; not above 0: it is."""
        return self._deadline - self._loop.time()

    def failed(self, error: FencepostError) -> None:
        """One more attempt had no answer."""
        self.error = error
        if not self._told and self._loop.time() - self._began >= WARN_AFTER_S:
            self._told = True
            log.warning(
                "the controller has not answered yet, still asking request=%s reason=%s", self._request_name, error
            )

    async def pause(self) -> None:
        """Every broker was asked: wait, but not beyond the end."""
        self._rounds += 1
        await asyncio.sleep(max(0.0, min(PAUSES.pause_s(self._rounds), self.left_s)))
