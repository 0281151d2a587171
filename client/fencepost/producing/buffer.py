"""Bounds a producer's memory, and makes `send` yield to the event loop now and then.

`used` counts the bytes of records that are neither acknowledged nor failed; `send` adds to it. Where `used` has reached
`pause_at`, `send` calls `acquire` first:

- every `TURN_BYTES`, so that the event loop gets on with sending while an application calls `send` in a loop;
- at the limit, where sends wait for room in the order in which they came.

A record is accepted wherever there is any room, so `used` exceeds the limit by one record at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fencepost.errors import BufferFull

TURN_BYTES = 64 * 1024  # accepted before the event loop gets a turn
ALWAYS = -1


class Buffer:
    """`check` raises where no record may be accepted; `flush_now` is called when a send has to wait for room."""

    def __init__(
        self, limit_bytes: int, max_block_s: float, check: Callable[[], None], flush_now: Callable[[], None]
    ) -> None:
        self.used = 0
        self.pause_at = ALWAYS
        self._limit = limit_bytes
        self._max_block_s = max_block_s
        self._check = check
        self._flush_now = flush_now
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Wait until a record may be accepted. Raises BufferFull after max_block_ms, and what `check` raises."""
        self._check()
        if self.used >= self._limit or self._waiting:
            await self._wait_for_room()
        else:
            await asyncio.sleep(0)
        self._check()
        self.pause_at = min(self.used + TURN_BYTES, self._limit)

    def pause_next(self) -> None:
        """A batch is ready to be sent: the next `send` gives the event loop a turn."""
        self.pause_at = min(self.pause_at, self.used)

    def free(self, size_bytes: int) -> None:
        self.used -= size_bytes
        self.pause_at = min(self.pause_at, self.used + TURN_BYTES)
        self._wake_next()

    def close(self) -> None:
        """From now on `check` decides about every send, also about those that wait."""
        self._closed = True
        self.pause_at = ALWAYS
        self._wake_next()

    async def _wait_for_room(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._flush_now()
        try:
            async with asyncio.timeout(self._max_block_s):
                await waiter
                while self.used >= self._limit and not self._closed:
                    # The send before this one used up the room. This one stays first in line.
                    waiter = self._waiting[0] = asyncio.get_running_loop().create_future()
                    await waiter
        except TimeoutError:
            raise BufferFull(
                f"{self.used} bytes are buffered and not acknowledged; no room within {self._max_block_s} s "
                f"(buffer_memory is {self._limit})"
            ) from None
        finally:
            self._waiting.remove(waiter)
            self._wake_next()

    def _wake_next(self) -> None:
        """Wake the first send that waits, if there is room; it wakes the next one when it is done."""
        if self._waiting and not self._waiting[0].done() and (self._closed or self.used < self._limit):
            self._waiting[0].set_result(None)
