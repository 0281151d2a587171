"""A task that is asked to end ends, whatever gRPC makes of its call; a call that someone else cancels ends no task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fencepost_node.controller_link import ControllerLink
from fencepost_node.replication.follow import FollowerLink
from fencepost_proto.protocol.errors import InvariantBroken, NetworkException, NotController
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only
from fencepost_proto.transport.rpc_errors import rpc_errors
from tests.asynchronous import asynchronous
from tests.asynchronous import run as run_within

GONE = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the stream broke"
)


def run(test: Coroutine[object, object, None]) -> None:
    run_within(test, 20)


async def hiding(result: object) -> object:
    """As gRPC does with a cancellation that comes at the moment at which the call ends."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if isinstance(result, Exception):
            raise result from None
    return result


async def cancelled_by_another() -> None:
    """As gRPC does with a call that the other side has cancelled."""
    raise asyncio.CancelledError


async def ending_of(work: Callable[[], Awaitable[object]]) -> BaseException | None:
    """How a task ends that does the work and is cancelled once it waits."""

    async def main() -> None:
        await work()

    task = asyncio.create_task(main())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@pytest.mark.parametrize("result", [GONE, asyncio.InvalidStateError(), StopAsyncIteration(), NetworkException("x"), 7])
def test_a_cancellation_that_the_calls_end_hides_comes_out(result: object) -> None:
    async def guarded() -> None:
        with own_cancellation_only():
            await hiding(result)

    async def test() -> None:
        assert isinstance(await ending_of(guarded), asyncio.CancelledError)

    run(test())


@pytest.mark.parametrize("bug", [InvariantBroken("1 is 2"), KeyError("a bug")])
def test_a_bug_is_hidden_by_no_cancellation(bug: Exception) -> None:
    async def guarded() -> None:
        with own_cancellation_only():
            await hiding(bug)

    async def test() -> None:
        assert await ending_of(guarded) is bug

    run(test())


@asynchronous
async def test_a_call_that_another_cancelled_is_no_cancellation_of_the_task_even_where_one_was_taken_back() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(CallCancelled), own_cancellation_only():
            await cancelled_by_another()
        task.uncancel()
    with own_cancellation_only():
        await asyncio.sleep(0)


def test_a_deadline_around_the_call_is_a_deadline() -> None:
    async def outside() -> None:
        async with asyncio.timeout(0.001):
            with own_cancellation_only():
                await hiding(GONE)

    async def inside() -> None:
        with own_cancellation_only():
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()

    async def test() -> None:
        for deadline in (outside, inside):
            with pytest.raises(TimeoutError):
                await deadline()

    run(test())


# ---- Where it matters ----


def test_a_clients_call_ends_with_its_task_or_as_a_broken_call() -> None:
    async def call() -> None:
        with rpc_errors("b:1"):
            await hiding(GONE)

    async def test() -> None:
        assert isinstance(await ending_of(call), asyncio.CancelledError)
        with pytest.raises(NetworkException, match="b:1: the call was cancelled"), rpc_errors("b:1"):
            await cancelled_by_another()

    run(test())


@asynchronous
async def test_a_question_to_the_controller_ends_with_its_task_or_as_one_that_got_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = ControllerLink(Host(), "127.0.0.1:1", 1)
    request = controller_pb2.AlterPartitionRequest()
    answers: list[Callable[[], Awaitable[object]]] = [lambda: hiding(GONE), cancelled_by_another]
    controller = SimpleNamespace(AlterPartition=lambda *_, **__: answers.pop(0)())
    monkeypatch.setattr(ControllerLink, "controller", controller)
    assert isinstance(await ending_of(lambda: link.alter_partition(request)), asyncio.CancelledError)
    with pytest.raises(NotController, match=r"127\.0\.0\.1:1: the call was cancelled"):
        await link.alter_partition(request)
    await link.close()


class HidingCall:
    """A Replicate stream that breaks just when its reader is cancelled."""

    def __init__(self) -> None:
        self.read = asyncio.Event()

    def cancel(self) -> None: ...

    async def write(self, _: object) -> None: ...

    def __aiter__(self) -> HidingCall:
        return self

    async def __anext__(self) -> object:
        self.read.set()
        return await hiding(GONE)


class HidingChannel:
    """It is its own wire."""

    def __init__(self) -> None:
        self.call = HidingCall()

    def connect(self, _: str) -> Any:
        return self

    def stream_stream(self, *_: object, **__: object) -> Callable[[], HidingCall]:
        return lambda: self.call

    async def close(self) -> None: ...


class Owner:
    """A broker that knows another one."""

    broker_id = 1
    broker_epoch = 1
    image = MetadataImage().with_changes(1, {"brokers/2": BrokerRegistration(2, "b:1", 1, "i", fenced=False)})


@asynchronous
async def test_a_followers_link_ends_when_it_is_cancelled_at_the_moment_at_which_its_stream_breaks() -> None:
    wire: Any = HidingChannel()
    owner: Any = Owner()
    task = asyncio.create_task(FollowerLink(Host(wire=wire), owner, 2).run())
    await wire.call.read.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done, "the link lives on"
    assert task.cancelled()
