"""Asks one question for each of many things, so many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

MAX_CONCURRENT_QUESTIONS = 32

Thing = TypeVar("Thing")
Found = TypeVar("Found")


async def for_each(things: Iterable[Thing], ask: Callable[[Thing], Awaitable[Found]]) -> list[Found]:
    """The answers, in the order of the things. Raises the first error.

    No task group: where one fails it leaves the application's task marked as cancelled (until Python 3.13), and then a
    call that a broker cancels would end that task (`rpc_errors`).
    """
    slots = asyncio.Semaphore(MAX_CONCURRENT_QUESTIONS)

    async def one(thing: Thing) -> Found:
        async with slots:
            return await ask(thing)

    tasks = [asyncio.create_task(one(thing)) for thing in things]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
