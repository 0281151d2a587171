"""A wait ends with what it saw, or says what it waited for, how long, and what it saw last."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from typing import Any

import pytest

from fencepost_testing.waiting import MAX_SEEN_CHARS, NotInTime, until, until_sync


def looks(*values: Any) -> Callable[[], Any]:
    """One value a look; the last of them again and again."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def of_coroutines(look: Callable[[], Any]) -> Callable[[], Any]:
    async def looked() -> Any:
        await asyncio.sleep(0)
        return look()

    return looked


def wait(look: Callable[[], Any], *arguments: Any, how: str, **options: Any) -> Any:
    if how == "sync":
        return until_sync(look, *arguments, **options)
    return asyncio.run(until(look if how == "function" else of_coroutines(look), *arguments, **options))


every_way = pytest.mark.parametrize("how", ["sync", "function", "coroutine"])


@every_way
def test_the_first_value_that_holds_is_returned(how: str) -> None:
    assert wait(looks(None, 0, "", 7), "a number", 10, how=how) == 7
    assert wait(looks(None, [1, 2], [2], []), "nothing left", 10, holds=operator.not_, how=how) == []
    assert wait(looks(1, 2, 3), "more than two", 10, holds=lambda seen: seen > 2, how=how) == 3


@every_way
def test_what_is_not_in_time_is_reported_with_what_was_seen_last(how: str) -> None:
    with pytest.raises(NotInTime, match=r"^not within 0\.01 s: more than two; last seen: 2$"):
        wait(looks(1, 2), "more than two", 0.01, holds=lambda seen: seen > 2, how=how)
    with pytest.raises(NotInTime, match=r"^not within 0\.01 s: a leader$"):
        wait(looks(False), "a leader", 0.01, how=how)
    with pytest.raises(LookupError, match="a leader"):
        wait(looks(None), "a leader", 0.01, error=LookupError, how=how)
    with pytest.raises(NotInTime) as failed:
        wait(looks("x" * 10_000), "short", 0.01, holds=lambda seen: len(seen) < 10, how=how)
    assert len(str(failed.value)) < MAX_SEEN_CHARS + 100


@every_way
def test_there_is_a_look_where_there_is_no_time_and_its_error_ends_the_wait(how: str) -> None:
    assert wait(looks(5), "five", 0, how=how) == 5

    def broken() -> int:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        wait(broken, "five", 10, how=how)


def test_a_look_that_does_not_return_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fencepost_testing.waiting.LAST_LOOK_S", 0.01)

    async def never() -> int:
        await asyncio.Event().wait()
        return 1

    with pytest.raises(NotInTime, match="one"):
        asyncio.run(until(never, "one", 0.02))

    async def times_out() -> int:
        raise TimeoutError("of the look")

    with pytest.raises(TimeoutError, match="of the look"):
        asyncio.run(until(times_out, "one", 10))
