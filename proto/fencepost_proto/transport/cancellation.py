"""Is it this task that is cancelled, or only the call that it waits for?

gRPC takes the one for the other, both ways. For a call that another task, or the other side, has cancelled it raises
CancelledError. And it swallows a cancellation of the task that comes at the very moment at which its call ends: the call's
error is raised as if nothing had been asked, so a task that takes this for a broken connection and tries again would live
on, and whoever awaits its end with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from fencepost_proto.protocol.errors import FencepostError

_ENDS: Final = (grpc.RpcError, asyncio.InvalidStateError, StopAsyncIteration, FencepostError)  # of calls, and no bug's


class CallCancelled(Exception):
    """The call was cancelled, and not by the end of the task that waits for it."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


@contextmanager
def own_cancellation_only() -> Iterator[None]:
    """Around calls of gRPC: CancelledError comes out of it exactly where this task has been asked to end meanwhile.

    Raises CallCancelled for a call that was cancelled otherwise.
    """
    before = _cancel_requests()
    try:
        yield
    except asyncio.CancelledError:
        if _cancel_requests() > before:
            raise
        raise CallCancelled from None
    except _ENDS:
        if _cancel_requests() > before:
            raise asyncio.CancelledError from None
        raise
    if _cancel_requests() > before:
        raise asyncio.CancelledError


def _cancel_requests() -> int:
    """How often the present task has been asked to end. Only its rise tells anything: up to Python 3.12 a TaskGroup whose
    child failed leaves it raised."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
