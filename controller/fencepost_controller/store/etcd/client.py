"""The calls of etcd's v3 API that the controller makes, to whichever endpoint answers.

The messages and stubs are aetcd's. Its client is not used: it speaks to one endpoint, without TLS, never renews a
token that has expired, and does not notice a watch that the server has cancelled.

A call goes to one endpoint, once; after it failed the next call goes to the next endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd import rpc  # an optional dependency: this module is imported only where the store is etcd

from fencepost_controller.store.etcd.calls import (
    Change,
    Comparison,
    Created,
    Delete,
    EtcdRefused,
    EtcdUnreachable,
    Get,
    Holds,
    KeyValue,
    Modified,
    Operation,
    Put,
    Txn,
)
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only
from fencepost_proto.transport.rpc_errors import reason_of
from fencepost_proto.transport.wire import CHANNEL_OPTIONS, Wire

REQUEST_TIMEOUT_S = 1.0
WATCH_SILENCE_S = 1.5  # a watch that has brought nothing for so long is broken
NEEDS_LEADER = (("hasleader", "true"),)  # a member that is cut off from the others ends the stream
# etcd's answers that say that the request was looked at and not carried out.
_DEFINITE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ALREADY_EXISTS,
)
_TOKEN_IS_OLD = "revision of auth store is old"


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """Where etcd is, and as whom to ask it."""

    endpoints: tuple[str, ...]  # host:port
    ca: bytes | None = None  # PEM; None: without TLS
    certificate: bytes | None = None
    private_key: bytes | None = None
    user: str = ""
    password: str = ""


class EtcdClient:
    """Implements `calls.Etcd`. Made in a running event loop; connects at the first call."""

    def __init__(self, wire: Wire, access: EtcdAccess) -> None:
        self._access = access
        self._wire = wire.with_carrier("grpc")
        self._at = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._token = ""

    @property
    def endpoint(self) -> str:
        """Where the next call goes."""
        return self._access.endpoints[self._at]

    # ---- Keys ----

    async def transact(
        self, compare: Iterable[Comparison], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Txn:
        request = rpc.TxnRequest(
            compare=[_comparison(one) for one in compare],
            success=[_operation(one) for one in success],
            failure=[_operation(one) for one in failure],
        )
        answer = await self._call(rpc.KVStub, "Txn", request)
        found = [
            [_key_value(kv) for kv in response.response_range.kvs]
            for response in answer.responses
            if response.WhichOneof("response") == "response_range"
        ]
        return Txn(answer.succeeded, answer.header.revision, found)

    async def get(self, what: Get) -> list[KeyValue]:
        return [_key_value(kv) for kv in (await self._call(rpc.KVStub, "Range", _range(what))).kvs]

    # ---- Leases ----

    async def grant(self, ttl_s: int) -> int:
        return int((await self._call(rpc.LeaseStub, "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_s))).ID)

    async def renew(self, lease_id: int) -> bool:
        call, endpoint = await self._stream(rpc.LeaseStub, "LeaseKeepAlive", timeout_s=REQUEST_TIMEOUT_S)
        try:
            with self._errors(endpoint):
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                answer = await call.read()
            if answer is grpc.aio.EOF:
                self._leave(endpoint)
                raise EtcdUnreachable(f"etcd {endpoint}: the stream ended")
            return bool(answer.TTL > 0)
        finally:
            call.cancel()

    async def revoke(self, lease_id: int) -> None:
        await self._call(rpc.LeaseStub, "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease_id))

    # ---- Watching ----

    @asynccontextmanager
    async def watch(self, start: bytes, end: bytes, revision: int) -> AsyncIterator[AsyncIterator[list[Change]]]:
        call, endpoint = await self._stream(rpc.WatchStub, "Watch", metadata=NEEDS_LEADER)
        create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=revision, fragment=True)
        asking: asyncio.Task[None] | None = None
        try:
            with self._errors(endpoint):
                await call.write(rpc.WatchRequest(create_request=create))
            first = await self._next_of_watch(call, endpoint)
            if not first.created:
                raise EtcdUnreachable(f"etcd {endpoint}: a watch does not begin")
            asking = asyncio.create_task(_ask_for_progress(call))
            yield self._changes(call, endpoint)
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.wait([asking])
            call.cancel()

    async def _changes(self, call: Any, endpoint: str) -> AsyncIterator[list[Change]]:
        while True:
            answer = await self._next_of_watch(call, endpoint)
            if answer.events:
                yield [_change(event) for event in answer.events]

    async def _next_of_watch(self, call: Any, endpoint: str) -> Any:
        """A paused member says nothing, and does not break the stream."""
        try:
            async with asyncio.timeout(WATCH_SILENCE_S):
                with self._errors(endpoint):
                    answer = await call.read()
        except TimeoutError:
            self._leave(endpoint)
            raise EtcdUnreachable(f"etcd {endpoint}: the watch is silent") from None
        if answer is grpc.aio.EOF:
            self._leave(endpoint)
            raise EtcdUnreachable(f"etcd {endpoint}: the watch ended")
        if answer.compact_revision:
            raise EtcdRefused(f"etcd has forgotten what was before revision {answer.compact_revision}")
        if answer.canceled:
            self._leave(endpoint)
            raise EtcdUnreachable(f"etcd {endpoint}: the watch was cancelled: {answer.cancel_reason}")
        return answer

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    # ---- One call ----

    async def _call(self, stub: Any, method: str, request: Any) -> Any:
        metadata, endpoint = await self._credentials(), self.endpoint
        with self._errors(endpoint):
            return await getattr(stub(self._channel()), method)(request, timeout=REQUEST_TIMEOUT_S, metadata=metadata)

    async def _stream(
        self, stub: Any, method: str, metadata: Any = (), timeout_s: float | None = None
    ) -> tuple[Any, str]:
        """The call, and the endpoint that it goes to."""
        credentials = await self._credentials() or ()
        call = getattr(stub(self._channel()), method)(timeout=timeout_s, metadata=(*metadata, *credentials) or None)
        return call, self.endpoint

    async def _credentials(self) -> tuple[tuple[str, str], ...] | None:
        access = self._access
        if not access.user:
            return None
        if not self._token:
            request = rpc.AuthenticateRequest(name=access.user, password=access.password)
            with self._errors(self.endpoint):
                answer = await rpc.AuthStub(self._channel()).Authenticate(request, timeout=REQUEST_TIMEOUT_S)
            self._token = answer.token
        return (("token", self._token),)

    def _channel(self) -> grpc.aio.Channel:
        channel = self._channels.get(self.endpoint)
        if channel is None:
            channel = self._channels[self.endpoint] = self._connect()
        return channel

    def _connect(self) -> grpc.aio.Channel:
        access = self._access
        if access.ca is None:
            return self._wire.connect(self.endpoint)
        credentials = grpc.ssl_channel_credentials(access.ca, access.private_key, access.certificate)
        return grpc.aio.secure_channel(self.endpoint, credentials, options=CHANNEL_OPTIONS)

    def _leave(self, endpoint: str) -> None:
        """It has failed. Several calls may fail there at once."""
        if endpoint == self.endpoint:
            self._at = (self._at + 1) % len(self._access.endpoints)

    @contextmanager
    def _errors(self, endpoint: str) -> Iterator[None]:
        """Around a call: what gRPC raises becomes EtcdRefused or EtcdUnreachable."""
        try:
            with own_cancellation_only():
                yield
        except (grpc.RpcError, grpc.aio.BaseError, CallCancelled, asyncio.InvalidStateError) as error:
            raise self._failed(error, endpoint) from None

    def _failed(self, error: BaseException, endpoint: str) -> Exception:
        """What an error of gRPC means."""
        if not isinstance(error, grpc.aio.AioRpcError):
            self._leave(endpoint)
            return EtcdUnreachable(f"etcd {endpoint}: {reason_of(error)}")
        text = f"etcd {endpoint}: {error.code().name}: {reason_of(error)}"
        if error.code() is grpc.StatusCode.UNAUTHENTICATED or _TOKEN_IS_OLD in reason_of(error):
            self._token = ""  # the next call gets another one
            return EtcdUnreachable(text)
        if error.code() in _DEFINITE:
            return EtcdRefused(text)
        self._leave(endpoint)
        return EtcdUnreachable(text)


async def _ask_for_progress(call: Any) -> None:
    """Have etcd say something on a watch from time to time, so that its silence can be noticed."""
    with suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        while True:
            await asyncio.sleep(WATCH_SILENCE_S / 3)
            await call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))


# ---- Messages ----


def _comparison(one: Comparison) -> Any:
    compare = rpc.Compare(key=one.key, result=rpc.Compare.EQUAL)
    match one:
        case Created(_, revision):
            compare.target, compare.create_revision = rpc.Compare.CREATE, revision
        case Modified(_, revision):
            compare.target, compare.mod_revision = rpc.Compare.MOD, revision
        case Holds(_, value):
            compare.target, compare.value = rpc.Compare.VALUE, value
    return compare


def _operation(one: Operation) -> Any:
    match one:
        case Put(key, value, lease_id):
            return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease_id))
        case Delete(key, end):
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))
        case Get():
            return rpc.RequestOp(request_range=_range(one))


def _range(what: Get) -> Any:
    return rpc.RangeRequest(key=what.key, range_end=what.end, limit=what.limit)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _change(event: Any) -> Change:
    kv = event.kv
    deleted = event.type == rpc.Event.DELETE
    return Change(kv.key, None if deleted else kv.value, kv.create_revision, kv.lease, kv.mod_revision)
