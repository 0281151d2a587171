"""Session: one broker's stream, from its registration on.

The first message is the registration; what follows are heartbeats and perhaps a goodbye. Down come the registration's
answer, an image, then metadata changes in version order. The stream ends after an `error` response, after a goodbye, or
because the broker is gone. The last is noticed by the requests ending, which looks the same as a clean end: only a
goodbye distinguishes the two.

Errors: INCONSISTENT_CLUSTER_ID, DUPLICATE_BROKER_REGISTRATION and INVALID_REQUEST refuse a registration;
STALE_BROKER_EPOCH: a newer incarnation has registered; REQUEST_TIMED_OUT: the broker was declared dead, and may
register again; NOT_CONTROLLER: the controller stops, or is a standby.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc

from fencepost_controller.broker_session import BrokerSession, MetadataMessage
from fencepost_controller.session_registry import SessionRegistry
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.v1 import controller_pb2 as pb
from fencepost_proto.transport.answering import Answering, Context

log = logging.getLogger(__name__)

REGISTRATION_TIMEOUT_S = 10.0  # for the first message of a stream
LAST_RESPONSES_S = 1.0  # for what is still to be written when a session is over

Requests = AsyncIterator[pb.SessionRequest]

# What gRPC raises for a write to a stream that has broken, or of a server that stops. A read raises the first only.
_BROKEN = (grpc.aio.BaseError, asyncio.InvalidStateError)


async def serve_session(
    sessions_now: Callable[[], SessionRegistry],
    requests: Requests,
    context: Context,
    answering: Answering,
) -> None:
    """Serve one stream until it ends. `sessions_now` raises NotController where this controller does not decide."""
    try:
        sessions, session = await _register(sessions_now, requests)
    except Exception as error:  # noqa: BLE001  # `error_of` distinguishes the foreseen ones
        await _say(context, pb.SessionResponse(error=errors.to_proto(answering.error_of(error))))
        return
    reader = asyncio.create_task(_read(sessions, session, requests))
    writer = asyncio.create_task(_write(session, sessions.messages.image, context))
    follower = asyncio.create_task(sessions.follow(session))
    # A writer whose peer reads nothing does not see that the registry has ended the session.
    ended = asyncio.create_task(session.ended.wait())
    tasks = (reader, writer, follower)
    try:
        await asyncio.wait((*tasks, ended), return_when=asyncio.FIRST_COMPLETED)
        _end_for_failure(session, tasks, answering)
        if session.over:
            await asyncio.wait([writer], timeout=LAST_RESPONSES_S)
    finally:
        sessions.stream_ended(session)
        ended.cancel()
        reader.cancel()
        follower.cancel()
        # It ends by itself: the session is over. If a write is cancelled, gRPC cannot write the stream's status, and logs a
        # traceback (TOO_MANY_OPERATIONS, seen in 1.85).
        await asyncio.wait([writer], timeout=LAST_RESPONSES_S)
        writer.cancel()
        await asyncio.wait(tasks)
    _end_for_failure(session, tasks, answering)


async def _register(
    sessions_now: Callable[[], SessionRegistry], requests: Requests
) -> tuple[SessionRegistry, BrokerSession]:
    try:
        async with asyncio.timeout(REGISTRATION_TIMEOUT_S):
            first = await anext(requests.__aiter__(), None)
    except TimeoutError:
        raise errors.InvalidRequest(f"no registration within {REGISTRATION_TIMEOUT_S:g} s") from None
    except grpc.aio.BaseError as error:
        raise errors.NetworkException(f"the stream broke before its registration: {error}") from None
    if first is None or first.WhichOneof("kind") != "register":
        kind = first.WhichOneof("kind") if first is not None else "nothing"
        raise errors.InvalidRequest(f"a session begins with a registration, not with {kind!r}")
    sessions = sessions_now()
    return sessions, await sessions.register(first.register)


async def _read(sessions: SessionRegistry, session: BrokerSession, requests: Requests) -> None:
    try:
        await _take(sessions, session, requests)
    except grpc.aio.BaseError as error:
        log.debug("a session's stream is broken reason=%s", error)


async def _take(sessions: SessionRegistry, session: BrokerSession, requests: Requests) -> None:
    async for request in requests:
        match request.WhichOneof("kind"):
            case "heartbeat":
                sessions.heartbeat(session, request.heartbeat)
            case "goodbye":
                session.end()
                await sessions.goodbye(session)
                return
            case kind:
                raise errors.InvalidRequest(f"{kind!r} of broker {session.broker_id} in the middle of its session")


async def _write(session: BrokerSession, image: Callable[[], MetadataMessage], context: Context) -> None:
    while (response := await session.next_response(image)) is not None:
        if not await _say(context, response):
            return


async def _say(context: Context, response: pb.SessionResponse) -> bool:
    """False: the stream is broken."""
    try:
        await context.write(response)
    except _BROKEN as error:
        log.debug("a session's stream is broken reason=%s", error)
        return False
    return True


def _end_for_failure(session: BrokerSession, tasks: tuple[asyncio.Task[None], ...], answering: Answering) -> None:
    """End the session with the first error that one of its tasks ended with."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            session.end(answering.error_of(error))
