"""What a failed gRPC call means in this project's errors. One mapping, for every call to a broker or the controller."""

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
    """A response with an `error` field: its code is not NONE where the request was refused."""

    @property
    def error(self) -> common_pb2.Error: ...


def reason_of(error: BaseException) -> str:
    """Why a call ended, in words: the status details of gRPC, else the error's text, else the name of its class."""
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return text or type(error).__name__


def error_of(
    error: grpc.aio.AioRpcError,
    address: str,
    peer: str = "broker",
    unreachable: type[FencepostError] = NetworkException,
) -> FencepostError:
    """The error of this project for a failed call to the peer at `address`. Most often the peer is gone."""
    code, text = error.code(), f"{peer} {address}: {reason_of(error)}"
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestTimedOut(text)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.ABORTED:
            return unreachable(text)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return InvalidRequest(text)
        case _:
            return UnknownServerError(f"{code.name}: {text}")


@contextmanager
def rpc_errors(
    address: str, peer: str = "broker", unreachable: type[FencepostError] = NetworkException
) -> Iterator[None]:
    """Around a call to the peer at `address`: what gRPC raises inside comes out as an error of this project.

    `unreachable`: the error for a peer that is gone, starting or closing, so that another attempt may meet it.
    CancelledError comes out only where this task itself was cancelled.
    """
    try:
        with own_cancellation_only():
            yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, address, peer, unreachable) from error
    except CallCancelled as error:
        raise unreachable(f"{peer} {address}: {error}") from None
