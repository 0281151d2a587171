"""An event loop in a thread of its own, for synchronous calls of coroutines: one for the whole process, made at first use.

A thread that has a running loop itself (an asynchronous test that calls a synchronous method) may use it too.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CANCEL_TIMEOUT_S = 10.0

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has no thread that runs its parent's


def run_in_background(main: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns; blocks. Interrupted (Ctrl-C), it is cancelled, and has ended when this raises."""
    ended = threading.Event()

    async def run() -> T:
        try:
            return await main
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(run(), _loop())
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait(CANCEL_TIMEOUT_S)
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="fencepost-testing", daemon=True).start()
        return loop
