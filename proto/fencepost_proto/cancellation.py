"""Is it this task that is cancelled, or only the call that it waits for?

gRPC raises CancelledError for a call that the other side, or another task, has cancelled. To tell that from a cancellation
of the task itself, compare `cancel_requests()` before and after: it rises only with the latter. Its absolute value says
nothing: up to Python 3.12 a TaskGroup whose child failed leaves it raised.
"""

from __future__ import annotations

import asyncio


def cancel_requests() -> int:
    """How often the present task has been asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
