"""Tasks with an owner.

Every task of a broker and of the controller belongs to a `Tasks`, which cancels and awaits it at the end and hands what
went wrong in it to `on_failure`: nothing fails unseen. An error that a task did not handle is fatal to the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class Tasks:
    """The running tasks of one owner."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their start

    def spawn(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    async def close(self) -> None:
        """Cancel what still runs and wait for its end."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
