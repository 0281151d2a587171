"""Faults on Fencepost's own protocol, requests and links of clients: wrapped around the handlers of a server, whatever
carries them.

What a closed connection is to Kafka's clients, a call that ends with UNAVAILABLE is here. A stream's messages are requests
of their own: one that is delayed holds up those behind it. In a message of Produce each batch is a request, so that the
batches of other topics are served; the answers before one that is dropped are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeAlias, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

from fencepost_proto.protocol.errors import ErrorCode, from_proto
from fencepost_proto.protocol.request_limits import method_of
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2
from fencepost_proto.transport.client_ids import client_id_in
from fencepost_testing.faults.called import RESET_DETAILS
from fencepost_testing.faults.fencepost_messages import CLIENT_SERVICES, places_of, refusal_type
from fencepost_testing.faults.inside import FaultsInside, PostedRequest
from fencepost_testing.faults.links import Incoming, Line, Outgoing
from fencepost_testing.faults.refused_batches import RefusedBatches
from fencepost_testing.faults.rules import RequestAction, RequestRule, client_party

PROTOCOL: Final = "fencepost"
MAX_CLIENTS: Final = 256  # of one method, whose links are remembered: by their ids
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
        unary = _unary(cast(Behaviour, handler.unary_unary), method, faults)
        return grpc.unary_unary_rpc_method_handler(unary, read, write)
    if handler.unary_stream is not None:
        stream = _streamed(cast(Behaviour, handler.unary_stream), _Answers, method, faults)
        return grpc.unary_stream_rpc_method_handler(cast(Any, stream), read, write)
    if handler.stream_stream is not None:
        kind = _ProduceStream if method.name == "Produce" else _Stream
        stream = _streamed(cast(Behaviour, handler.stream_stream), kind, method, faults)
        return grpc.stream_stream_rpc_method_handler(cast(Any, stream), read, write)
    return handler


def _unary(behaviour: Behaviour, method: MethodDescriptor, faults: FaultsInside) -> Behaviour:
    """A method with one request and one answer."""
    refusal = refusal_type(method)
    lines = _Lines(faults)

    async def serve(request: Any, context: Any) -> Any:
        client_id = client_id_in(context.invocation_metadata())
        client = client_party(client_id)
        coming, going = lines.of(client)
        if coming.has_rules or going.has_rules:
            if faults.is_reset(client):
                await context.abort(grpc.StatusCode.UNAVAILABLE, RESET_DETAILS)
            await coming.carry(request.ByteSize)
        one = _rule_for(request, method, faults, client_id)
        text = f"{method.name} of {PROTOCOL}"
        if one is not None and one.rule.action in _BEFORE and faults.fire(one.posted, text):
            if one.rule.action is RequestAction.DELAY:
                await asyncio.sleep(faults.delay_s(one.rule))
            elif one.rule.action is RequestAction.FAIL and refusal is not None:
                return refusal(error=_error(one.rule.error))
            else:
                await context.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)
        answer = await behaviour(request, context)
        is_lost = one is not None and one.rule.action is RequestAction.DROP_ANSWER
        if one is not None and is_lost and faults.fire(one.posted, f"answer of {text}"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)
        await going.carry(lambda: len(answer) if isinstance(answer, bytes) else answer.ByteSize())
        return answer

    return serve


def _streamed(behaviour: Behaviour, kind: type[_Answers], method: MethodDescriptor, faults: FaultsInside) -> Behaviour:
    """A method with many answers."""

    async def serve(requests: Any, context: Any) -> Any:
        stream = kind(requests, context, method, faults)
        try:
            await stream.begin()
            await behaviour(stream.requests, stream.context)
            await stream.outgoing.flush()
        except asyncio.CancelledError:
            if not stream.was_reset:
                raise
            stream.task.uncancel()
            await context.abort(grpc.StatusCode.UNAVAILABLE, RESET_DETAILS)
        finally:
            stream.close()

    return serve


class _Lines:
    """There and back, of each client of a method."""

    def __init__(self, faults: FaultsInside) -> None:
        self._faults = faults
        self._known: dict[str, tuple[Line, Line]] = {}

    def of(self, client: str) -> tuple[Line, Line]:
        known = self._known.get(client)
        if known is None:
            if len(self._known) >= MAX_CLIENTS:
                del self._known[next(iter(self._known))]
            party = self._faults.party
            known = self._known[client] = Line(self._faults, client, party), Line(self._faults, party, client)
        return known


def _rules_for(method: MethodDescriptor, faults: FaultsInside, client_id: str) -> list[PostedRequest]:
    return [one for one in faults.requests(PROTOCOL, method.name) if one.rule.is_client(client_id)]


def _rule_for(request: Any, method: MethodDescriptor, faults: FaultsInside, client_id: str) -> PostedRequest | None:
    rules = _rules_for(method, faults, client_id)
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


class _Answers:
    """A call with one request and many answers. The answer to a request is the next message that is written."""

    def __init__(self, requests: Any, context: Any, method: MethodDescriptor, faults: FaultsInside) -> None:
        self.client_id = client_id_in(context.invocation_metadata())
        self.client = client_party(self.client_id)
        self.requests = requests  # as the service is to see it
        self.context = _Context(context, self.write)
        self.outgoing: Outgoing[Any] = Outgoing(Line(faults, faults.party, self.client), context.write)
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.was_reset = False
        self._under = context
        self._method = method
        self._faults = faults
        self._writing = asyncio.Lock()
        self._dropped: PostedRequest | None = None  # the answer to the request that is served
        self._failed: broker_pb2.FetchResponse | None = None  # what belongs to that answer
        faults.watch(self)

    def rules_changed(self) -> None:
        if not self.was_reset and self._faults.is_reset(self.client):
            self.was_reset = True
            self.task.cancel()

    async def begin(self) -> None:
        """What happens to the request before it is served."""
        await self._meet(self.requests)

    async def _meet(self, request: Any) -> bool:
        """False: it is answered here."""
        one = _rule_for(request, self._method, self._faults, self.client_id)
        if one is None:
            return True
        if one.rule.action is RequestAction.DROP_ANSWER:
            self._dropped = one
            return True
        if not self._faults.fire(one.posted, f"{self._method.name} of {PROTOCOL}"):
            return True
        if one.rule.action is RequestAction.DELAY:
            await asyncio.sleep(self._faults.delay_s(one.rule))
            return True
        if one.rule.action is RequestAction.FAIL and isinstance(request, broker_pb2.FetchRequest):
            self._failed = self._fail_some(request, one.rule)
            if request.partitions:
                return True
            await self.write(broker_pb2.FetchResponse())
            return False
        await self.end()
        return False

    def _fail_some(self, request: broker_pb2.FetchRequest, rule: RequestRule) -> broker_pb2.FetchResponse:
        """Take those partitions that a rule meets from the request, and answer them."""
        failed, rest = broker_pb2.FetchResponse(), []
        for asked in request.partitions:
            if rule.meets_place(self._faults.topic_name(asked.topic_id), asked.partition):
                failed.partitions.append(_failed_partition(asked, rule.error))
            else:
                rest.append(asked)
        del request.partitions[:]
        request.partitions.extend(rest)
        request.max_wait_ms = 0  # an error does not wait for records
        return failed

    async def write(self, message: Any) -> None:
        if self._failed is not None:
            message.partitions.extend(self._failed.partitions)
            self._failed = None
        one, self._dropped = self._dropped, None
        if one is not None and self._faults.fire(one.posted, f"answer of {self._method.name} of {PROTOCOL}"):
            await self.end()
        await self._write(message)

    async def _write(self, message: Any) -> None:
        async with self._writing:
            await self.outgoing.send(message)

    async def end(self) -> None:
        """Raises what ends the call, once what was answered has left."""
        await self.outgoing.flush()
        await self._under.abort(grpc.StatusCode.UNAVAILABLE, DETAILS)

    def close(self) -> None:
        self.outgoing.close()


class _Stream(_Answers):
    """A call with many requests."""

    def __init__(self, requests: Any, context: Any, method: MethodDescriptor, faults: FaultsInside) -> None:
        super().__init__(self, context, method, faults)
        messages = aiter(requests)
        self._incoming: Incoming[Any] = Incoming(Line(faults, self.client, faults.party), lambda: anext(messages))

    async def begin(self) -> None:
        """Each request is met when it comes."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            request = await self._incoming.next()
            if await self._meet(request):
                return request

    def close(self) -> None:
        super().close()
        self._incoming.close()


def _failed_partition(asked: broker_pb2.FetchPartition, error: int) -> broker_pb2.FetchedPartition:
    return broker_pb2.FetchedPartition(
        topic_id=asked.topic_id,
        partition=asked.partition,
        error=_error(error),
        high_watermark=-1,
        log_start_offset=-1,
    )


class _ProduceStream(_Stream):
    """Of messages with batches; each has an answer of its own."""

    def __init__(self, requests: Any, context: Any, method: MethodDescriptor, faults: FaultsInside) -> None:
        super().__init__(requests, context, method, faults)
        self._refused = RefusedBatches()
        self._lost: dict[int, PostedRequest] = {}  # answers that are not to come, by correlation id

    async def __anext__(self) -> Any:
        request = await self._incoming.next()
        rules = _rules_for(self._method, self._faults, self.client_id)
        if not request.batches or not (rules or self._refused):
            return request
        passed, failed = broker_pb2.ProduceRequest(), broker_pb2.ProduceResponse()
        for batch in request.batches:
            error = await self._look_at(batch, rules)
            if error:
                failed.results.add(correlation_id=batch.correlation_id, error=_error(error), base_offset=-1)
            else:
                passed.batches.append(batch)
        if failed.results:
            await self._write(failed)
        return passed

    async def _look_at(self, batch: broker_pb2.ProduceBatch, rules: list[PostedRequest]) -> int:
        """The error that a batch is answered with; 0: it is passed on."""
        place = (self._faults.topic_name(batch.topic_id), batch.partition)
        one = self._faults.first_met(rules, [place])
        if one is not None:
            if one.rule.action is RequestAction.DROP_ANSWER:
                self._lost[batch.correlation_id] = one
            elif self._faults.fire(one.posted, f"Produce of {PROTOCOL} to {place[0]}-{place[1]}"):
                if one.rule.action is RequestAction.FAIL:
                    if from_proto(_error(one.rule.error)).retriable:
                        self._refused.refuse(place, batch.records, one.rule.error)
                    return one.rule.error
                if one.rule.action is RequestAction.DROP_REQUEST:
                    await self.end()
                await asyncio.sleep(self._faults.delay_s(one.rule))
        return self._refused.error_for(place, batch.records) if self._refused else 0

    async def write(self, message: Any) -> None:
        if self._lost:
            for number, result in enumerate(message.results):
                one = self._lost.pop(result.correlation_id, None)
                if one is not None and self._faults.fire(one.posted, f"answer of Produce of {PROTOCOL}"):
                    if number:
                        await self._write(broker_pb2.ProduceResponse(results=message.results[:number]))
                    await self.end()
        await self._write(message)
