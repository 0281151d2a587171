"""A signal that one task waits for."""

from __future__ import annotations

import asyncio

import pytest

from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.runtime.signal import Signal
from tests.asynchronous import asynchronous


@asynchronous
async def test_what_is_set_before_the_wait_or_during_it_wakes_once() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    await asyncio.wait_for(signal.wait(), 1)
    assert not signal.is_set
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.set()
    signal.set()
    await asyncio.wait_for(waiting, 1)
    assert not signal.is_set


@asynchronous
async def test_one_that_is_cancelled_leaves_the_signal_to_the_next() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert signal.is_set
    await asyncio.wait_for(signal.wait(), 1)


@asynchronous
async def test_two_do_not_wait_for_one() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    with pytest.raises(InvariantBroken, match="two wait"):
        await signal.wait()
    signal.set()
    await asyncio.wait_for(waiting, 1)
