"""A signal between callbacks and one task that waits for it.

As asyncio.Event, for the one use that every stream here makes of it: one waiter, which takes the signal by waiting. It
costs a third of an Event's wait and clear, and each hop of a record makes one.
"""

from __future__ import annotations

import asyncio

from fencepost_proto.protocol.errors import InvariantBroken


class Signal:
    """Is set by anyone on the loop's thread, and unset by the one that waits."""

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._loop: asyncio.AbstractEventLoop | None = None  # of the one that waits; looked up once: see `LocalBroker`
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake the task that waits, or the next one to wait."""
        self._is_set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Return once it is set, and unset it. What is set later is seen by the next wait."""
        if not self._is_set:
            if self._waiter is not None:
                raise InvariantBroken("two wait for one signal")
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        self._is_set = False
