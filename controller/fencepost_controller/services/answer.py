"""How every RPC of the controller ends: with its answer, or with the error that says why not.

A FencepostError goes into the answer's `error` field. A broken invariant ends the process. Anything else unforeseen is
logged with its traceback and answered as UNKNOWN_SERVER_ERROR: it concerns that request only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from fencepost_proto import errors
from fencepost_proto.v1 import common_pb2

log = logging.getLogger(__name__)


class HasError(Protocol):
    """A response with an `error` field."""

    @property
    def error(self) -> common_pb2.Error: ...


R = TypeVar("R", bound=HasError)
OnFailure = Callable[[BaseException], None]


async def answered(response: Callable[..., R], work: Awaitable[R], on_failure: OnFailure) -> R:
    """The result of `work`, or a response with its error."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # the one place where errors become answers
        return response(error=errors.to_proto(as_answer(error, on_failure)))


def as_answer(error: BaseException, on_failure: OnFailure) -> errors.FencepostError:
    if isinstance(error, errors.FencepostError):
        return error
    if isinstance(error, errors.InvariantBroken):
        on_failure(error)
    else:
        log.error("a request failed unforeseen", exc_info=error)
    return errors.UnknownServerError(f"{type(error).__name__}: {error}")
