"""Hands what changes to every open page, as server-sent events.

Each page gets a snapshot first and then patches. What changes is gathered for a moment, so that many changes are one
message; the pause grows with the time that making a message takes. A page that does not read loses its queue, and gets a
new snapshot when it reads again: it holds up no one, and no memory but one queue.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

MAX_PAGES: Final = 16
MAX_QUEUE: Final = 64  # messages that one page has not read
PAUSE_S: Final = 0.03  # for which changes are gathered
SHARE: Final = 10  # making a message takes at most one part in so many of the time
PING_S: Final = 10.0  # a comment, so that a page that is gone is noticed


class TooManyPages(Exception):
    """One more page would be one too many."""


class Hub:
    """`patch` and `snapshot` make the messages."""

    def __init__(self, patch: Callable[[], dict[str, Any]], snapshot: Callable[[], dict[str, Any]]) -> None:
        self._patch = patch
        self._snapshot = snapshot
        self._changed = asyncio.Event()
        self._pages: dict[asyncio.Queue[str | None], None] = {}
        self._closed = False

    def changed(self) -> None:
        """Something is to be told."""
        self._changed.set()

    async def run(self) -> None:
        """Tell every page of what changes, for the server's life."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(PAUSE_S)
            self._changed.clear()
            began = time.monotonic()
            patch = self._patch()
            if patch:
                self._send(message("patch", patch))
            await asyncio.sleep(SHARE * (time.monotonic() - began))

    def close(self) -> None:
        """End every page's stream, and begin none."""
        self._closed = True
        for queue in self._pages:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait("")

    def _send(self, text: str) -> None:
        for queue in self._pages:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)  # it starts over
            elif not queue.empty() and _starts_over(queue):
                continue
            else:
                queue.put_nowait(text)

    async def events(self) -> AsyncIterator[str]:
        """The messages for one page. Raises TooManyPages."""
        if len(self._pages) >= MAX_PAGES:
            raise TooManyPages(f"{MAX_PAGES} pages are open, which is the most")
        queue: asyncio.Queue[str | None] = asyncio.Queue(MAX_QUEUE)
        self._pages[queue] = None
        try:
            yield message("snapshot", self._snapshot())
            while not self._closed:
                try:
                    async with asyncio.timeout(PING_S):
                        text = await queue.get()
                except TimeoutError:
                    yield ": ping\n\n"
                    continue
                if self._closed:
                    return
                yield message("snapshot", self._snapshot()) if text is None else text
        finally:
            del self._pages[queue]


def _starts_over(queue: asyncio.Queue[str | None]) -> bool:
    """It has not read that yet: whatever comes is in the snapshot that it will get."""
    return queue.qsize() == 1 and queue._queue[0] is None  # type: ignore[attr-defined]


def message(event: str, data: dict[str, Any]) -> str:
    """One server-sent event. JSON has no line feed outside of strings, and there it is escaped."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
