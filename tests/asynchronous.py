"""Tests that are coroutines: `@asynchronous` runs one to its end, within a deadline."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

TEST_TIMEOUT_S = 90.0  # before pytest's own, which cannot tell where a task waits

P = ParamSpec("P")


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test for pytest, with the same fixtures. When it takes too long, it says where every task stands."""

    @functools.wraps(test)
    def run(*arguments: P.args, **fixtures: P.kwargs) -> None:
        asyncio.run(_bounded(test(*arguments, **fixtures)))

    return run


async def _bounded(test: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(test)
    done, _ = await asyncio.wait([task], timeout=TEST_TIMEOUT_S)
    if not done:
        for other in asyncio.all_tasks():
            print(other.get_name(), " <- ".join(reversed(_waits(other.get_coro()))))
        task.cancel()
        raise TimeoutError(f"not done in {TEST_TIMEOUT_S:g} s")
    task.result()


def _waits(coroutine: Any) -> list[str]:
    """Where a coroutine waits, outermost first."""
    places = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame else repr(coroutine))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return places
