"""What no one handled: a broken invariant, a task that failed. It ends the process."""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger(__name__)


class Failure:
    """The first such error of one component, kept for the task that waits for it. Made inside a running event loop."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._error: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(self, error: BaseException) -> None:
        """The component cannot go on."""
        if not self._error.done():
            log.critical("%s cannot go on error=%r", self._component, error)
            self._error.set_exception(error)
            self._error.exception()  # else asyncio logs it as never retrieved

    @property
    def happened(self) -> bool:
        return self._error.done()

    async def wait(self) -> None:
        """Does not return; raises what was reported first."""
        await asyncio.shield(self._error)
