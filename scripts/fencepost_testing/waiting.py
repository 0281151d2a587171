"""Waiting for a condition: looks at it again and again until it holds, or until a deadline.

`until` is for coroutines, `until_sync` for everything else. What they raise names what was waited for, for how long, and
what was seen last:

    leader = await until(lambda: leader_of(topic, 0), "a leader of orders-0", 10.0)
    left = await until(unfinished, "every move has ended", 90.0, holds=operator.not_)

The time is that of the running event loop, so that `until` works in the simulator too.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

from fencepost_testing.failures import CommandFailed

WAIT_TIMEOUT_S = 15.0  # long for anything that a cluster on this machine does
FIRST_POLL_S = 0.002  # the pause after the first look; it grows up to `poll_s`
POLL_S = 0.01
_GROWTH = 1.5
LAST_LOOK_S = 5.0  # for a look that begins near the deadline, or behind it on a machine that was busy
MAX_SEEN_CHARS = 2_000

T = TypeVar("T")


class NotInTime(CommandFailed):
    """A condition did not hold before the deadline."""


@overload
async def until(
    look: Callable[[], Awaitable[T | None]],
    what: str,
    timeout_s: float = WAIT_TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    poll_s: float = POLL_S,
    error: Callable[[str], Exception] = NotInTime,
) -> T: ...


@overload
async def until(
    look: Callable[[], T | None],
    what: str,
    timeout_s: float = WAIT_TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    poll_s: float = POLL_S,
    error: Callable[[str], Exception] = NotInTime,
) -> T: ...


async def until(
    look: Callable[[], object],
    what: str,
    timeout_s: float = WAIT_TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    poll_s: float = POLL_S,
    error: Callable[[str], Exception] = NotInTime,
) -> object:
    """The first value of `look` (a function or a coroutine function) for which `holds`.

    None stands for "nothing to see yet": `holds` is not asked about it. `what` says in words what is waited for.
    There is at least one look. Raises what `error` makes of the message; an exception of `look` ends the wait.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = min(FIRST_POLL_S, poll_s)
    seen: object = None
    while True:
        value = look()
        if inspect.isawaitable(value):
            limit = asyncio.timeout_at(max(deadline, loop.time() + LAST_LOOK_S))
            try:
                async with limit:
                    value = await value
            except TimeoutError:
                if not limit.expired():
                    raise  # of the look itself
                value = None
        if value is not None:
            if holds(value):  # type: ignore[arg-type]  # the overloads say that it is a T
                return value
            seen = value
        if loop.time() >= deadline:
            raise error(_message(what, timeout_s, seen))
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * _GROWTH, poll_s)


def until_sync(
    look: Callable[[], T | None],
    what: str,
    timeout_s: float = WAIT_TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    poll_s: float = POLL_S,
    error: Callable[[str], Exception] = NotInTime,
) -> T:
    """`until` for a plain function, outside of an event loop; it blocks."""
    deadline = time.monotonic() + timeout_s
    pause_s = min(FIRST_POLL_S, poll_s)
    seen: object = None
    while True:
        value = look()
        if value is not None:
            if holds(value):
                return value
            seen = value
        if time.monotonic() >= deadline:
            raise error(_message(what, timeout_s, seen))
        time.sleep(pause_s)
        pause_s = min(pause_s * _GROWTH, poll_s)


def _message(what: str, timeout_s: float, seen: object) -> str:
    """`seen` is left out where it is empty of information."""
    told = f"not within {timeout_s:g} s: {what}"
    if seen is None or seen is False:
        return told
    shown = str(seen)
    return f"{told}; last seen: {shown[:MAX_SEEN_CHARS]}{'…' if len(shown) > MAX_SEEN_CHARS else ''}"
