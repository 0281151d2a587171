"""Requests that are no messages: refused with INVALID_ARGUMENT, naming what is wrong, and not an accident of the server.

gRPC reads a request by the generated deserialiser and takes what that raises for a fault of the servicer: UNKNOWN for the
client, a traceback in the log. The interceptor here makes it an answer. It costs nothing for each message: a single
request is looked at once, and a stream is only watched for the exception.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Wraps every method of a server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler  # unknown, or one that takes bytes as they are
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary is not None:
            method = _looked_at(handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(method, _tolerant(read), write)
        if handler.unary_stream is not None:
            method = _looked_at(handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(method, _tolerant(read), write)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(_watched(handler.stream_unary), read, write)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(_watched(handler.stream_stream), read, write)
        return handler


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns what it cannot read as the error that says why."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return read


def _looked_at(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """The method, for requests that could be read."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await _refuse(request, context)
            async for response in behaviour(request, context):
                yield response

        return generate

    async def answer(request: Any, context: Context) -> Any:
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
