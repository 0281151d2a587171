"""Requests that are no messages, or outside of their bounds: refused, naming what is wrong, before a service sees them.

gRPC reads a request by the generated deserialiser and takes what that raises for a fault of the servicer: UNKNOWN for the
client, a traceback in the log. Here it becomes an answer:

- a unary call whose response has an `error` field is answered INVALID_REQUEST in that field, like any refusal;
- any other call, and a stream, ends with the status INVALID_ARGUMENT.

The response of a unary call may be a message or its encoding.

The bounds are those of `request_limits.py`. They are checked by the deserialiser, so on every message of a stream too. The
simulated server calls `refusing` as the interceptor of the real one does.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from fencepost_proto.protocol import errors
from fencepost_proto.protocol.request_limits import RequestRefused, bounded, method_of
from fencepost_proto.protocol.v1 import common_pb2

PACKAGE = "fencepost.v1"
FOREIGN_REQUEST_BYTES = 64 * 1024  # of a request of the health and reflection services

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Wraps every method of a server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        return refusing(handler_call_details.method, await continuation(handler_call_details))


def refusing(path: str, handler: Handler | None) -> Handler | None:
    """The handler of the method with that gRPC path, for requests within their bounds only."""
    if handler is None or handler.request_deserializer is None:
        return handler  # unknown, or one that takes bytes as they are
    method = method_of(path)
    read = _bounded(handler.request_deserializer, method)
    if handler.unary_unary is not None:
        behaviour = _looked_at(handler.unary_unary, _refusal_type(method))
        write = _unless_encoded(handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(behaviour, _tolerant(read), write)
    write = handler.response_serializer
    if handler.unary_stream is not None:
        behaviour = _looked_at(handler.unary_stream, None)
        return grpc.unary_stream_rpc_method_handler(behaviour, _tolerant(read), write)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(_watched(handler.stream_unary), read, write)
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(_watched(handler.stream_stream), read, write)
    return handler


def _unless_encoded(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A service may hand out a response that it has encoded itself, once for several calls."""
    if serialize is None:
        return None

    def write(response: Any) -> bytes:
        return response if isinstance(response, bytes) else serialize(response)

    return write


def _bounded(deserialize: Callable[[bytes], Any], method: MethodDescriptor | None) -> Callable[[bytes], Any]:
    """Checks the request's bounds. Of a service that is not this project's: its size, which is that of a name or two."""
    if method is None or method.containing_service.file.package != PACKAGE:

        def read_small(data: bytes) -> Any:
            if len(data) > FOREIGN_REQUEST_BYTES:
                raise RequestRefused(f"a request of {len(data)} bytes; at most {FOREIGN_REQUEST_BYTES} are taken")
            return deserialize(data)

        return read_small

    return bounded(method, deserialize)


def _refusal_type(method: MethodDescriptor | None) -> Callable[..., Any] | None:
    """The method's response, where it has an `error` field of ours."""
    if method is None or method.containing_service.file.package != PACKAGE:
        return None
    field = method.output_type.fields_by_name.get("error")
    is_error = field is not None and field.message_type is common_pb2.Error.DESCRIPTOR
    return GetMessageClass(method.output_type) if is_error else None


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns what it cannot read as the error that says why."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return read


def _looked_at(behaviour: Callable[..., Any], refusal: Callable[..., Any] | None) -> Callable[..., Any]:
    """The method, for requests that could be read. `refusal`: the response that says in its `error` that one was not."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await _refuse(request, context)
            async for response in behaviour(request, context):
                yield response

        return generate

    async def answer(request: Any, context: Context) -> Any:
        if refusal is not None and isinstance(request, RequestRefused):
            return refusal(error=errors.to_proto(errors.InvalidRequest(str(request))))
        await _refuse(request, context)
        return await behaviour(request, context)

    return answer


def _watched(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose request iterator may raise DecodeError."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(requests, context):
                    yield response
            except DecodeError as error:
                await _refuse(error, context)

        return generate

    async def serve(requests: Any, context: Context) -> Any:
        try:
            return await behaviour(requests, context)
        except DecodeError as error:
            await _refuse(error, context)
            raise

    return serve


async def _refuse(request: Any, context: Context) -> None:
    if isinstance(request, DecodeError):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"INVALID_REQUEST: {request}")
