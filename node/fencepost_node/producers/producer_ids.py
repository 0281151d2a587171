"""Producer ids for anonymous producers, handed out from blocks that the controller has reserved for this broker.

The controller persists a block as used before it hands it out, so an id is fresh whatever dies (G8); ids left in a
block when a broker stops are simply never used. Blocks are fetched ahead, the first one as soon as the broker has registered
and the next one when half of a block is left, so that producers start while the controller is away; they wait, or are
refused, only where all that was fetched is used up meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fencepost_proto.protocol.errors import CoordinatorNotAvailable, FencepostError
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

PREFETCH_BELOW = 500  # ids left: half of a block
RETRY = Backoff(first_s=0.4, most_s=10.0)  # pauses before a block is fetched ahead again
MAX_WAITERS = 1_000  # callers that wait for a block at the same time


class ProducerIds:
    """Hands out each id once. The fetch under way belongs to `tasks`."""

    def __init__(self, allocate: Callable[[], Awaitable[range]], tasks: Tasks) -> None:
        self._allocate = allocate
        self._tasks = tasks
        self._current = range(0)
        self._next_block = range(0)
        self._fetch: asyncio.Task[None] | None = None
        self._failure: FencepostError | None = None  # of the newest fetch
        self._failures = 0  # in a row
        self._ahead_again_at = 0.0
        self._waiters = 0

    async def next_id(self) -> int:
        """A producer id that was never handed out. Raises CoordinatorNotAvailable where none can be had now."""
        while not (self._current or self._next_block):
            await self._wait_for_block()
        if not self._current:
            self._current, self._next_block = self._next_block, range(0)
        producer_id, self._current = self._current[0], self._current[1:]
        few_left = len(self._current) < PREFETCH_BELOW and not self._next_block
        if few_left and asyncio.get_running_loop().time() >= self._ahead_again_at:
            self._ensure_fetch()
        return producer_id

    async def fetch_first(self) -> None:
        """Return when there are ids; to be called as soon as the controller may be asked for some."""
        while not (self._current or self._next_block):
            await asyncio.wait([self._ensure_fetch()])
            if self._failure is not None:
                await asyncio.sleep(RETRY.pause_s(self._failures))

    async def _wait_for_block(self) -> None:
        if self._waiters >= MAX_WAITERS:
            raise CoordinatorNotAvailable(f"{MAX_WAITERS} callers wait for a block of producer ids already")
        self._waiters += 1
        try:
            await asyncio.wait([self._ensure_fetch()])  # a cancelled caller does not cancel the fetch
        finally:
            self._waiters -= 1
        if self._failure is not None:
            raise CoordinatorNotAvailable(f"no producer ids left, and no new block: {self._failure}")

    def _ensure_fetch(self) -> asyncio.Task[None]:
        """The fetch under way, or a new one: at most one runs, and none while a block waits unused."""
        if self._fetch is None or self._fetch.done():
            self._failure = None
            self._fetch = self._tasks.spawn(self._fetch_block(), "fetch-producer-ids")
        return self._fetch

    async def _fetch_block(self) -> None:
        try:
            self._next_block = await self._allocate()
            self._failures = 0
        except FencepostError as error:
            self._failure = error
            self._failures += 1
            self._ahead_again_at = asyncio.get_running_loop().time() + RETRY.pause_s(self._failures)
            log.warning("no new block of producer ids left=%d error=%s", len(self._current), error)
