"""Tests that are coroutines: `@asynchronous` makes one of a coroutine function, `run` runs one; both within a deadline."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

TEST_TIMEOUT_S = 90.0  # before pytest's own, which cannot tell where a task waits

P = ParamSpec("P")
T = TypeVar("T")


def run(test: Awaitable[T], timeout_s: float = TEST_TIMEOUT_S) -> T:
    """What the test returns. When it takes too long, it says where every task stands."""
    return asyncio.run(_bounded(test, timeout_s))


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test for pytest, with the same fixtures, run by `run`."""

    @functools.wraps(test)
    def run_it(*arguments: P.args, **fixtures: P.kwargs) -> None:
        run(test(*arguments, **fixtures))

    return run_it


async def _bounded(test: Awaitable[T], timeout_s: float) -> T:
    task = asyncio.ensure_future(test)
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    if not done:
        for other in asyncio.all_tasks():
            print(other.get_name(), " <- ".join(reversed(_waits(other.get_coro()))))
        task.cancel()
        raise TimeoutError(f"not done in {timeout_s:g} s")
    return task.result()


def _waits(coroutine: Any) -> list[str]:
    """Where a coroutine waits, outermost first."""
    places = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame else repr(coroutine))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return places
