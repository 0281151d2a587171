"""How every RPC of a broker and of the controller ends: with its answer, or with the error that says why not.

A FencepostError goes into the answer's `error` field. Anything unforeseen is logged with its traceback and answered as
UNKNOWN_SERVER_ERROR: it concerns that request only. A broken invariant concerns the process, which stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from fencepost_proto.protocol import errors
from fencepost_proto.transport.latencies import CallCounts
from fencepost_proto.transport.rpc_errors import Answer

log = logging.getLogger(__name__)


R = TypeVar("R", bound=Answer)
Context = grpc.aio.ServicerContext[Any, Any]

# How gRPC says that nothing more can be read or written: aborted on purpose, the client has gone, or this server stops.
# It takes these itself. And a request that could not be read, which the server's interceptor answers.
_STREAM_IS_OVER = (grpc.aio.BaseError, DecodeError)

# From Python 3.13 on a task group that ends with errors in a cancelled task has the task's next await raise
# CancelledError. That is to be one of ours: gRPC takes a handler that is cancelled for what it is, and where one of its
# own awaits is hit it reports a fault.
_CANCELLATION_IS_HANDED_ON = sys.version_info >= (3, 13)


class Answering:
    """Shared by the services of one process."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self.counts = CallCounts()
        self._on_failure = on_failure

    @contextlib.contextmanager
    def counted(self, api: str) -> Iterator[None]:
        """Count one request that does not end by `unary`."""
        time = asyncio.get_running_loop().time
        began = time()
        try:
            yield
        finally:
            self.counts.current.of(api).add(time() - began)

    async def unary(self, response: Callable[..., R], work: Awaitable[R]) -> R:
        """The result of `work`, or a response with its error."""
        time, api = asyncio.get_running_loop().time, getattr(response, "__name__", "").removesuffix("Response")
        began = time()
        try:
            return await work
        except Exception as caught:  # noqa: BLE001  # the one place where errors become answers
            error = self.error_of(caught)
            self.counts.current.refused[api, error.code.name] += 1
            return response(error=errors.to_proto(error))
        finally:
            self.counts.current.of(api).add(time() - began)

    async def stream(self, work: Awaitable[None], context: Context) -> None:
        """Serve one stream. What goes wrong beyond a single answer ends the stream, with its reason."""
        try:
            await work
        except Exception as caught:  # noqa: BLE001  # as above
            error = _gravest(caught)
            if _CANCELLATION_IS_HANDED_ON:
                await asyncio.sleep(0)
            if isinstance(error, _STREAM_IS_OVER):
                raise error from None
            foreseen = isinstance(error, errors.FencepostError)
            code = grpc.StatusCode.FAILED_PRECONDITION if foreseen else grpc.StatusCode.INTERNAL
            await context.abort(code, str(self.error_of(error)))

    def error_of(self, error: BaseException) -> errors.FencepostError:
        """The error to send to the caller."""
        if isinstance(error, errors.FencepostError):
            return error
        if isinstance(error, DecodeError):  # a stream's message that is none, or is outside of its bounds
            return errors.InvalidRequest(str(error))
        if isinstance(error, errors.InvariantBroken):
            self._on_failure(error)
        else:
            log.error("a request failed unforeseen", exc_info=error)
        return errors.UnknownServerError(f"{type(error).__name__}: {error}")


def _gravest(error: Exception) -> Exception:
    """The error itself; of a group, the one that matters most: a stream's reader and writer often fail together."""
    if not isinstance(error, ExceptionGroup):
        return error
    return min(map(_gravest, error.exceptions), key=_gravity)


def _gravity(error: Exception) -> int:
    """0 is the gravest."""
    expected = (errors.FencepostError, *_STREAM_IS_OVER)
    return 0 if isinstance(error, errors.InvariantBroken) else 2 if isinstance(error, expected) else 1
