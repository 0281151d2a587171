"""What every call to a broker has in common: its errors as this project's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from fencepost_proto.protocol.errors import (
    FencepostError,
    InvalidRequest,
    NetworkException,
    RequestTimedOut,
    UnknownServerError,
)
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only


class Answer(Protocol):
    """Every response that says in `error` whether the request was refused."""

    @property
    def error(self) -> common_pb2.Error: ...


def error_of(error: grpc.aio.AioRpcError, address: str) -> FencepostError:
    """What a failed call means here: most often, that the broker is gone."""
    code, text = error.code(), f"broker {address}: {error.details()}"
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestTimedOut(text)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.ABORTED:
            return NetworkException(text)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return InvalidRequest(text)
        case _:
            return UnknownServerError(f"{code.name}: {text}")


@contextmanager
def rpc_errors(address: str) -> Iterator[None]:
    """Errors of this project for what gRPC raises inside; only this task's own cancellation passes as one."""
    try:
        with own_cancellation_only():
            yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, address) from error
    except CallCancelled as error:
        raise NetworkException(f"broker {address}: {error}") from None
