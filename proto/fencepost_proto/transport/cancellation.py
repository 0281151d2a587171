"""Tells a cancelled task from a cancelled RPC. grpc.aio (seen in 1.85) confuses them in both directions:

- *A call is cancelled* by another task or by the other side: it raises CancelledError in the task that awaits the call,
  although that task was not cancelled.
- *A task is cancelled* at the moment when its call ends: the cancellation is lost, and the call's own error is raised. A
  task that takes this for a broken connection and connects again would live on, and the task that awaits its end would
  wait indefinitely.
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
    """The call was cancelled; the task that awaits it was not."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


@contextmanager
def own_cancellation_only() -> Iterator[None]:
    """Around a call of gRPC: raises CancelledError if, and only if, this task was cancelled meanwhile.

    Raises CallCancelled where only the call was cancelled.
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
    """How often the present task was cancelled. Only a difference of two values has a meaning: until Python 3.12 a TaskGroup
    whose child has failed leaves the count raised."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
