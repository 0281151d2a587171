"""The controller's end of a session's stream: how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from fencepost_controller.controller import Controller
from fencepost_controller.services.session_stream import serve_session
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.transport.answering import Answering, Context
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import SHORT_TIMEOUT_MS, running


class SlowContext:
    """A stream whose writes do not end before `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.writing = 0
        self.written = 0

    async def write(self, response: controller_pb2.SessionResponse) -> None:
        self.writing += 1
        await self.go_on.wait()
        self.written += 1


def serve_one(controller: Controller, context: SlowContext, gone: asyncio.Event) -> asyncio.Task[None]:
    """A stream that registers broker 1, and is silent until the broker is `gone`."""

    async def requests() -> AsyncIterator[controller_pb2.SessionRequest]:
        register = controller_pb2.Register(broker_id=1, address="127.0.0.1:9", incarnation="i" * 22)
        yield controller_pb2.SessionRequest(register=register)
        await gone.wait()

    answering = Answering(lambda _: None)
    return asyncio.create_task(
        serve_session(lambda: controller.reign().sessions, requests(), cast(Context, context), answering)
    )


@asynchronous
async def test_a_write_that_is_under_way_when_the_stream_ends_is_not_cancelled() -> None:
    """gRPC could not write the stream's status after it, and would log a traceback."""
    async with running() as controller:
        context, gone = SlowContext(), asyncio.Event()
        stream = serve_one(controller, context, gone)
        await until(lambda: context.writing == 1, "a write")
        gone.set()
        await until(lambda: 1 not in controller.reign().sessions._sessions, "the session's end")
        context.go_on.set()
        await stream
        assert context.written == context.writing >= 1


@asynchronous
async def test_a_session_that_was_declared_dead_ends_its_stream_where_its_peer_reads_nothing() -> None:
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller:
        context, gone = SlowContext(), asyncio.Event()
        stream = serve_one(controller, context, gone)
        await until(lambda: context.writing == 1, "a write")
        await until(stream.done, "the stream's end")
        assert not context.written
