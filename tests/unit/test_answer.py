"""How an RPC ends when something goes wrong in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, NoReturn, cast

import grpc
import pytest

from fencepost_proto.protocol.errors import CurrentLeader, ErrorCode, InvariantBroken, NotLeaderOrFollower
from fencepost_proto.protocol.request_limits import RequestRefused
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.transport.answering import Answering, Context
from tests.unit.fake_controller import run


class RecordingContext:
    def __init__(self) -> None:
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.aborted = (code, details)
        raise grpc.aio.AbortError


async def failing(error: Exception) -> Any:
    raise error


def unary(error: Exception) -> tuple[broker_pb2.ListOffsetsResponse, list[BaseException]]:
    failures: list[BaseException] = []

    async def test() -> broker_pb2.ListOffsetsResponse:
        return await Answering(failures.append).unary(broker_pb2.ListOffsetsResponse, failing(error))

    return run(test()), failures


def stream(error: Exception) -> tuple[tuple[grpc.StatusCode, str] | None, list[BaseException], type[BaseException]]:
    """What the context was told, what the process was told, and what gRPC gets."""
    failures: list[BaseException] = []
    context = RecordingContext()

    async def test() -> None:
        await Answering(failures.append).stream(failing(error), cast(Context, context))

    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is the answer
        run(test())
    return context.aborted, failures, caught.type


def test_an_error_of_ours_is_the_answer_with_its_hint() -> None:
    answer, failures = unary(NotLeaderOrFollower("not here", current_leader=CurrentLeader(3, 9, "a:1")))
    assert (answer.error.code, answer.error.message) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, "not here")
    assert (answer.error.current_leader.leader_id, answer.error.current_leader.address) == (3, "a:1")
    assert not failures


def test_an_accident_is_logged_with_its_traceback_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer, failures = unary(ZeroDivisionError("by nought"))
    assert answer.error.code == ErrorCode.UNKNOWN_SERVER_ERROR
    assert "by nought" in answer.error.message
    assert not failures
    (record,) = caplog.records
    assert record.exc_info is not None


def test_a_broken_invariant_is_reported_to_the_process() -> None:
    broken = InvariantBroken("offsets went back")
    answer, failures = unary(broken)
    assert answer.error.code == ErrorCode.UNKNOWN_SERVER_ERROR
    assert failures == [broken]


def test_a_stream_ends_with_the_reason() -> None:
    assert stream(NotLeaderOrFollower("not here"))[0] == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOT_LEADER_OR_FOLLOWER: not here",
    )
    aborted, failures, _ = stream(ZeroDivisionError("by nought"))
    assert aborted is not None
    assert aborted[0] is grpc.StatusCode.INTERNAL
    assert not failures


def test_a_broken_invariant_is_found_among_the_failures_of_a_streams_tasks() -> None:
    broken = InvariantBroken("offsets went back")
    both = ExceptionGroup("", [grpc.aio.UsageError("over"), ExceptionGroup("", [ZeroDivisionError(), broken])])
    aborted, failures, _ = stream(both)
    assert failures == [broken]
    assert aborted is not None
    assert aborted[0] is grpc.StatusCode.INTERNAL


def test_a_client_that_has_gone_is_left_to_grpc(caplog: pytest.LogCaptureFixture) -> None:
    gone = ExceptionGroup("", [grpc.aio.UsageError("RPC already finished.")])
    aborted, failures, raised = stream(gone)
    assert (aborted, failures, raised) == (None, [], grpc.aio.UsageError)
    assert not caplog.records


def test_a_server_that_stops_is_no_failure_of_its_streams(caplog: pytest.LogCaptureFixture) -> None:
    """gRPC has a private error for whoever reads from a stream of a server that has just stopped."""

    class ServerStopped(grpc.aio.BaseError):
        pass

    aborted, failures, raised = stream(ExceptionGroup("", [ServerStopped("Server already stopped.")]))
    assert (aborted, failures, raised) == (None, [], ServerStopped)
    assert not caplog.records


def test_a_cancellation_that_a_task_group_hands_on_meets_no_await_of_grpcs_own() -> None:
    """A stream is cancelled, and its writer fails at the same moment. (The group does that from Python 3.13 on.)"""

    async def writer(blocked: asyncio.Event) -> None:
        blocked.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise grpc.aio.UsageError("RPC already finished.")

    async def work(blocked: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(writer(blocked))
            await asyncio.sleep(60)

    async def rpc(blocked: asyncio.Event) -> str:
        """As gRPC does: serve, take what comes out, and send the status."""
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError):
            await Answering(lambda _: None).stream(work(blocked), cast(Context, RecordingContext()))
        await asyncio.sleep(0)
        return "status sent"

    async def main() -> str:
        blocked = asyncio.Event()
        call = asyncio.create_task(rpc(blocked))
        await blocked.wait()
        call.cancel()
        return await call

    assert run(main()) == "status sent"


def test_a_message_outside_of_its_bounds_is_the_callers_fault_and_no_accident(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        answering = Answering(pytest.fail)  # type: ignore[arg-type]
        error = answering.error_of(RequestRefused("Register.address has 2000 bytes; at most 1024 are taken"))
        assert error.code == ErrorCode.INVALID_REQUEST
        assert "Register.address has 2000 bytes" in error.message

    with caplog.at_level(logging.WARNING):
        run(test())
    assert not caplog.records
