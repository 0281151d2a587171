"""Faults on requests of Fencepost's own protocol: wrapped around the handlers of a server, whatever carries them.

What a closed connection is to Kafka's clients, a call that ends with UNAVAILABLE is here. A stream's messages are requests
of their own: one that is delayed holds up those behind it. In a message of Produce each batch is a request, so that the
batches of other topics are served; the answers before one that is dropped are sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeAlias, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

from fencepost_proto.protocol.errors import ErrorCode, from_proto
from fencepost_proto.protocol.request_limits import method_of
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2
from fencepost_testing.faults.fencepost_messages import CLIENT_SERVICES, places_of, refusal_type
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.refused_batches import RefusedBatches
from fencepost_testing.faults.rules import Posted, RequestAction

PROTOCOL: Final = "fencepost"
DETAILS: Final = "a fault has closed this connection"
_BEFORE: Final = (RequestAction.DROP_REQUEST, RequestAction.DELAY, RequestAction.FAIL)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = "Callable[[Any, Any], Awaitable[Any]]"


def faulty(path: str, handler: Handler | None, faults: FaultsInside) -> Handler | None:
    """The handler of the method with that path; as it is, where the method is not one that clients call."""
    method = method_of(path)
    if handler is None or method is None or method.containing_service.full_name not in CLIENT_SERVICES:
        return handler
    read, write = handler.request_deserializer, handler.response_serializer
    # Handlers of grpc.aio are coroutine functions, whatever the types say.
    if handler.unary_unary is not None:
        behaviour = _unary(cast(Behaviour, handler.unary_unary), method, faults)
        return grpc.unary_unary_rpc_method_handler(behaviour, read, write)
    if handler.unary_stream is not None:
        behaviour = _unary(cast(Behaviour, handler.unary_stream), method, faults)
        return grpc.unary_stream_rpc_method_handler(cast(Any, behaviour), read, write)
    if handler.stream_stream is not None:
        served = cast(Behaviour, handler.stream_stream)

        async def serve(requests: Any, context: Any) -> Any:
            stream = _ProduceStream if method.name == "Produce" else _Stream
            faulty_stream = stream(requests, context, method, faults)
            await served(faulty_stream, faulty_stream.context)

        return grpc.stream_stream_rpc_method_handler(cast(Any, serve), read, write)
    return handler


def _unary(behaviour: Behaviour, method: MethodDescriptor, faults: FaultsInside) -> Behaviour:
    """A method with one request."""
    refusal = refusal_type(method)

    async def serve(request: Any, context: Any) -> Any:
        posted = _rule_for(request, method, faults)
        if posted is None:
            return await behaviour(request, context)
        rule, text = posted.rule, f"{method.name} of {PROTOCOL}"
        if rule.action in _BEFORE and faults.fire(posted, text):
            if rule.action is RequestAction.DELAY:
                await asyncio.sleep(faults.delay_s(rule))
            elif rule.action is RequestAction.FAIL and refusal is not None:
                return refusal(error=_error(rule.error))
            else:
                await context.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)
        answer = await behaviour(request, context)
        if rule.action is RequestAction.DROP_ANSWER and faults.fire(posted, f"answer of {text}"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)
        return answer

    return serve


def _rule_for(request: Any, method: MethodDescriptor, faults: FaultsInside) -> Posted | None:
    rules = [posted for posted in faults.requests(PROTOCOL, method.name) if posted.rule.client_id is None]
    return faults.first_met(rules, places_of(request, faults.topic_name)) if rules else None


def _error(code: int) -> common_pb2.Error:
    return common_pb2.Error(code=code, message=f"{ErrorCode(code).name} by a fault")


class _Context:
    """A call's context, whose messages a stream looks at before they are written."""

    def __init__(self, context: Any, write: Callable[[Any], Awaitable[None]]) -> None:
        self._context = context
        self.write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Stream:
    """Of whole messages: the answer to one is the next message that is written."""

    def __init__(self, requests: Any, context: Any, method: MethodDescriptor, faults: FaultsInside) -> None:
        self.context = _Context(context, self.write)
        self._requests = aiter(requests)
        self._under = context
        self._method = method
        self._faults = faults
        self._writing = asyncio.Lock()
        self._dropped: Posted | None = None  # the answer to the request that is served

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            request = await anext(self._requests)
            posted = _rule_for(request, self._method, self._faults)
            if posted is None or await self._passes(request, posted):
                return request

    async def _passes(self, request: Any, posted: Posted) -> bool:
        """False: it is answered here."""
        rule, text = posted.rule, f"{self._method.name} of {PROTOCOL}"
        if rule.action is RequestAction.DROP_ANSWER:
            self._dropped = posted
            return True
        if not self._faults.fire(posted, text):
            return True
        if rule.action is RequestAction.DELAY:
            await asyncio.sleep(self._faults.delay_s(rule))
            return True
        if rule.action is RequestAction.FAIL and isinstance(request, broker_pb2.FetchRequest):
            await self.write(_failed_fetch(request, rule.error))
            return False
        await self.end()
        return False

    async def write(self, message: Any) -> None:
        posted, self._dropped = self._dropped, None
        if posted is not None and self._faults.fire(posted, f"answer of {self._method.name} of {PROTOCOL}"):
            await self.end()
        async with self._writing:
            await self._under.write(message)

    async def end(self) -> None:
        """Raises what ends the call."""
        await self._under.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)


def _failed_fetch(request: broker_pb2.FetchRequest, error: int) -> broker_pb2.FetchResponse:
    response = broker_pb2.FetchResponse()
    for asked in request.partitions:
        response.partitions.add(
            topic_id=asked.topic_id,
            partition=asked.partition,
            error=_error(error),
            high_watermark=-1,
            log_start_offset=-1,
        )
    return response


class _ProduceStream(_Stream):
    """Of messages with batches; each has an answer of its own."""

    def __init__(self, requests: Any, context: Any, method: MethodDescriptor, faults: FaultsInside) -> None:
        super().__init__(requests, context, method, faults)
        self._refused = RefusedBatches()
        self._answers: dict[int, Posted] = {}  # by correlation id: those that are not to come
        self._rest: deque[broker_pb2.ProduceRequest] = deque()

    async def __anext__(self) -> Any:
        request = await anext(self._requests)
        rules = self._faults.requests(PROTOCOL, self._method.name)
        if not request.batches or not (rules or self._refused):
            return request
        passed, failed = broker_pb2.ProduceRequest(), broker_pb2.ProduceResponse()
        for batch in request.batches:
            error = await self._look_at(batch, [posted for posted in rules if posted.rule.client_id is None])
            if error:
                failed.results.add(correlation_id=batch.correlation_id, error=_error(error), base_offset=-1)
            else:
                passed.batches.append(batch)
        if failed.results:
            await self._write(failed)
        return passed

    async def _look_at(self, batch: broker_pb2.ProduceBatch, rules: list[Posted]) -> int:
        """The error that a batch is answered with; 0: it is passed on."""
        place = (self._faults.topic_name(batch.topic_id), batch.partition)
        posted = self._faults.first_met(rules, [place])
        if posted is not None:
            rule, text = posted.rule, f"Produce of {PROTOCOL} to {place[0]}-{place[1]}"
            if rule.action is RequestAction.DROP_ANSWER:
                self._answers[batch.correlation_id] = posted
            elif self._faults.fire(posted, text):
                if rule.action is RequestAction.FAIL:
                    if from_proto(_error(rule.error)).retriable:
                        self._refused.refuse(place, batch.records, rule.error)
                    return rule.error
                if rule.action is RequestAction.DROP_REQUEST:
                    await self.end()
                await asyncio.sleep(self._faults.delay_s(rule))
        return self._refused.error_for(place, batch.records) if self._refused else 0

    async def write(self, message: Any) -> None:
        if self._answers:
            for number, result in enumerate(message.results):
                posted = self._answers.pop(result.correlation_id, None)
                if posted is not None and self._faults.fire(posted, f"answer of Produce of {PROTOCOL}"):
                    if number:
                        await self._write(broker_pb2.ProduceResponse(results=message.results[:number]))
                    await self.end()
        await self._write(message)

    async def _write(self, message: broker_pb2.ProduceResponse) -> None:
        async with self._writing:
            await self._under.write(message)
