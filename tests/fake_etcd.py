"""An etcd in memory that behaves as the real one does, served by its own gRPC interface.

One `EtcdCluster` is what a majority has agreed on: keys with their revisions, leases, the history of changes. A
`EtcdMember` is a server that clients speak to. What a test or the simulation decides is whether a member reaches a
majority, how long that takes, and what becomes of a request whose client has left: it is carried out nevertheless, as
etcd's is once it is proposed.

As in etcd 3.4 (tests/integration/test_etcd.py compares the two):

- each transaction that writes has the next revision; its comparisons and reads see one moment;
- a key that is created again has a new creation revision; an expired or revoked lease deletes its keys, in one revision;
- a lease that is over cannot be renewed (TTL 0) or put under (NOT_FOUND); while no majority is there nothing expires,
  and then each lease has its whole time again;
- a watch from a revision brings all that has happened since then, then what happens, in order; from a revision that
  is compacted it is refused; from one that is yet to come it waits;
- a member that is cut off from the majority answers nothing, and ends the watches that ask for a leader.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

MAX_REQUEST_BYTES = 1_572_864
MAX_OPERATIONS = 128


@dataclass(slots=True)
class Stored:
    """One key."""

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int

    def message(self, key: bytes) -> Any:
        return rpc.KeyValue(
            key=key,
            value=self.value,
            create_revision=self.create_revision,
            mod_revision=self.mod_revision,
            version=self.version,
            lease=self.lease_id,
        )


@dataclass(slots=True)
class LeaseState:
    ttl_s: int
    expires_at: float
    keys: dict[bytes, None] = field(default_factory=dict)


class Refused(Exception):
    """etcd's answer is this error."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class EtcdCluster:
    """What a majority has agreed on. Synchronous: each method is one moment."""

    def __init__(self, time: Callable[[], float], first_lease_id: int = 0x1000) -> None:
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, Stored] = {}
        self.history: list[tuple[int, Any]] = []  # (revision, event)
        self.leases: dict[int, LeaseState] = {}
        self.has_majority = True
        self.on_write: Callable[[int, list[Any]], None] = lambda revision, events: None  # for a judge
        self._time = time
        self._lease_ids = itertools.count(first_lease_id)
        self._watchers: dict[object, Callable[[], None]] = {}

    # ---- Keys ----

    def range(self, request: Any) -> Any:
        if request.revision and request.revision < self.compacted:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        found = sorted(self._within(request.key, request.range_end))
        limit = request.limit or len(found)
        kvs = [self.keys[key].message(key) for key in found[:limit]]
        return rpc.RangeResponse(header=self.header(), kvs=kvs, count=len(found), more=len(found) > limit)

    def _within(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self.keys else []
        return [one for one in self.keys if key <= one < end]

    def transact(self, request: Any) -> Any:
        self._check(request)
        succeeded = all(map(self._holds, request.compare))
        operations = request.success if succeeded else request.failure
        writes = any(one.WhichOneof("request") != "request_range" for one in operations)
        revision = self.revision + 1
        events: list[Any] = []
        before = dict(self.keys)
        responses = []
        try:
            for one in operations:
                match one.WhichOneof("request"):
                    case "request_put":
                        events.append(self._put(one.request_put, revision))
                        responses.append(rpc.ResponseOp(response_put=rpc.PutResponse()))
                    case "request_delete_range":
                        doomed = self._within(one.request_delete_range.key, one.request_delete_range.range_end)
                        events += [self._delete(key, revision) for key in sorted(doomed)]
                        deleted = rpc.DeleteRangeResponse(deleted=len(doomed))
                        responses.append(rpc.ResponseOp(response_delete_range=deleted))
                    case _:
                        responses.append(rpc.ResponseOp(response_range=self.range(one.request_range)))
        except Refused:
            self.keys = before
            raise
        if events and writes:
            self._happened(revision, events)
        return rpc.TxnResponse(header=self.header(), succeeded=succeeded, responses=responses)

    def _check(self, request: Any) -> None:
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
        if max(len(request.compare), len(request.success), len(request.failure)) > MAX_OPERATIONS:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
        for branch in (request.success, request.failure):
            puts = [one.request_put.key for one in branch if one.WhichOneof("request") == "request_put"]
            deletes = [o.request_delete_range for o in branch if o.WhichOneof("request") == "request_delete_range"]
            twice = len(puts) != len(set(puts))
            if twice or any(one.key <= put < (one.range_end or one.key + b"\0") for one in deletes for put in puts):
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")

    def _holds(self, compare: Any) -> bool:
        stored = self.keys.get(compare.key)
        match compare.target:
            case rpc.Compare.CREATE:
                found, wanted = (stored.create_revision if stored else 0), compare.create_revision
            case rpc.Compare.MOD:
                found, wanted = (stored.mod_revision if stored else 0), compare.mod_revision
            case rpc.Compare.VALUE:
                if stored is None:
                    return False
                return bool(stored.value == compare.value)
            case _:
                found, wanted = (stored.version if stored else 0), compare.version
        return bool(found == wanted)

    def _put(self, put: Any, revision: int) -> Any:
        if put.lease and put.lease not in self.leases:
            raise Refused(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
        old = self.keys.get(put.key)
        if old is not None and old.lease_id in self.leases:
            self.leases[old.lease_id].keys.pop(put.key, None)
        if put.lease:
            self.leases[put.lease].keys[put.key] = None
        create, version = (old.create_revision, old.version + 1) if old is not None else (revision, 1)
        stored = self.keys[put.key] = Stored(put.value, create, revision, version, put.lease)
        return rpc.Event(type=rpc.Event.PUT, kv=stored.message(put.key))

    def _delete(self, key: bytes, revision: int) -> Any:
        old = self.keys.pop(key)
        if old.lease_id in self.leases:
            self.leases[old.lease_id].keys.pop(key, None)
        return rpc.Event(type=rpc.Event.DELETE, kv=rpc.KeyValue(key=key, mod_revision=revision))

    def _happened(self, revision: int, events: list[Any]) -> None:
        self.revision = revision
        self.history += [(revision, event) for event in events]
        self.on_write(revision, events)
        for wake in list(self._watchers.values()):
            wake()

    def header(self) -> Any:
        return rpc.ResponseHeader(cluster_id=1, member_id=1, revision=self.revision, raft_term=1)

    def compact(self, revision: int) -> None:
        self.compacted = revision
        self.history = [(at, event) for at, event in self.history if at >= revision]

    # ---- Leases ----

    def grant(self, ttl_s: int) -> int:
        lease_id = next(self._lease_ids)
        self.leases[lease_id] = LeaseState(max(ttl_s, 2), self._time() + max(ttl_s, 2))
        return lease_id

    def renew(self, lease_id: int) -> int:
        """The time that it has now; 0: it is over."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return 0
        lease.expires_at = self._time() + lease.ttl_s
        return lease.ttl_s

    def revoke(self, lease_id: int) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
        if lease.keys:
            revision = self.revision + 1
            self._happened(revision, [self._delete(key, revision) for key in sorted(lease.keys)])

    def expire_leases(self) -> None:
        """Called now and then."""
        if not self.has_majority:
            return
        for lease_id in [i for i, lease in self.leases.items() if lease.expires_at <= self._time()]:
            self.revoke(lease_id)

    def majority(self, there: bool) -> None:
        """A majority is there, or is not. With a new leader each lease has its whole time again."""
        if there and not self.has_majority:
            for lease in self.leases.values():
                lease.expires_at = self._time() + lease.ttl_s
        self.has_majority = there
        for wake in list(self._watchers.values()):
            wake()

    # ---- Watches ----

    def watch(self, who: object, wake: Callable[[], None]) -> None:
        self._watchers[who] = wake

    def unwatch(self, who: object) -> None:
        self._watchers.pop(who, None)

    def since(self, revision: int) -> list[tuple[int, Any]]:
        """What has happened from that revision on."""
        at = len(self.history)
        while at and self.history[at - 1][0] >= revision:
            at -= 1
        return self.history[at:]

    # ---- Backups ----

    def back_up(self) -> tuple[int, dict[bytes, Stored], dict[int, LeaseState]]:
        leases = {i: LeaseState(lease.ttl_s, 0.0, dict(lease.keys)) for i, lease in self.leases.items()}
        return self.revision, dict(self.keys), leases

    def restore(self, backup: tuple[int, dict[bytes, Stored], dict[int, LeaseState]]) -> None:
        """As `etcdctl snapshot restore` does: keys and revision of then, no history. Streams break: the members are
        new processes."""
        self.revision, keys, leases = backup
        self.keys = dict(keys)
        self.leases = {i: LeaseState(one.ttl_s, self._time() + one.ttl_s, dict(one.keys)) for i, one in leases.items()}
        self.history, self.compacted = [], self.revision


class EtcdMember:
    """The services of one member."""

    def __init__(
        self,
        cluster: EtcdCluster,
        *,
        reaches_majority: Callable[[], bool] = lambda: True,
        delay_s: Callable[[], float] = lambda: 0.0,
        author_of: Callable[[Any], object] = lambda context: None,
    ) -> None:
        """`author_of`: who has made the call with this context."""
        self.cluster = cluster
        self.author_of = author_of
        self.on_author: Callable[[object], None] = lambda author: None  # just before a transaction is carried out
        self._reaches_majority = reaches_majority
        self._delay_s = delay_s
        self._proposals: dict[asyncio.Task[Any], None] = {}
        self.lost_answers = 0  # so many of the next transactions are carried out, and not answered
        self.late_requests = 0  # so many of the next transactions fail at once, and are carried out a little later
        self.late_s = 0.0

    def add_to(self, server: Any) -> None:
        rpc_pb2_grpc.add_KVServicer_to_server(_KV(self), server)
        rpc_pb2_grpc.add_LeaseServicer_to_server(_Lease(self), server)
        rpc_pb2_grpc.add_WatchServicer_to_server(_Watch(self), server)

    async def propose(self, do: Callable[[], Any], context: Any) -> Any:
        """Carry something out once a majority has it, whether the caller still waits or not."""
        task = asyncio.create_task(self._carry_out(do))
        self._proposals[task] = None
        task.add_done_callback(lambda done: self._proposals.pop(done, None))
        try:
            answer = await asyncio.shield(task)
        except Refused as refused:
            await context.abort(refused.code, refused.text)
            raise
        if not self._reaches_majority():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
        return answer

    async def _carry_out(self, do: Callable[[], Any]) -> Any:
        await asyncio.sleep(self._delay_s())
        while not (self._reaches_majority() and self.cluster.has_majority):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
        return do()


class _KV(rpc_pb2_grpc.KVServicer):  # type: ignore[misc]  # it has no types
    def __init__(self, member: EtcdMember) -> None:
        self._member = member

    async def Range(self, request: Any, context: Any) -> Any:
        return await self._member.propose(lambda: self._member.cluster.range(request), context)

    async def Txn(self, request: Any, context: Any) -> Any:
        member = self._member
        author = member.author_of(context)

        def carry_out() -> tuple[Any, bool]:
            """The answer, and whether it gets lost."""
            member.on_author(author)
            answer = member.cluster.transact(request)
            loses = member.lost_answers > 0
            member.lost_answers -= loses
            return answer, loses

        def carry_out_late() -> None:
            with suppress(Refused):  # its lease may be over by now
                carry_out()

        if member.late_requests:
            member.late_requests -= 1
            asyncio.get_running_loop().call_later(member.late_s, carry_out_late)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")
        answer, loses = await member.propose(carry_out, context)
        if loses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
        return answer


class _Lease(rpc_pb2_grpc.LeaseServicer):  # type: ignore[misc]  # it has no types
    def __init__(self, member: EtcdMember) -> None:
        self._member = member

    async def LeaseGrant(self, request: Any, context: Any) -> Any:
        cluster = self._member.cluster
        lease_id = await self._member.propose(lambda: cluster.grant(request.TTL), context)
        return rpc.LeaseGrantResponse(header=cluster.header(), ID=lease_id, TTL=cluster.leases[lease_id].ttl_s)

    async def LeaseRevoke(self, request: Any, context: Any) -> Any:
        await self._member.propose(lambda: self._member.cluster.revoke(request.ID), context)
        return rpc.LeaseRevokeResponse(header=self._member.cluster.header())

    async def LeaseKeepAlive(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        cluster = self._member.cluster
        async for request in requests:
            ttl_s = await self._member.propose(partial(cluster.renew, request.ID), context)
            yield rpc.LeaseKeepAliveResponse(header=cluster.header(), ID=request.ID, TTL=ttl_s)


class _Watch(rpc_pb2_grpc.WatchServicer):  # type: ignore[misc]  # it has no types
    def __init__(self, member: EtcdMember) -> None:
        self._member = member

    async def Watch(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One watch for each stream, which is what the controller asks for."""
        cluster = self._member.cluster
        request = await anext(aiter(requests), None)
        if request is None:  # its end has come before its beginning
            return
        create = request.create_request
        wake = asyncio.Event()
        asked = [0, 0]  # for signs of life, and how many were given
        cluster.watch(wake, wake.set)
        reading = asyncio.create_task(self._count(requests, asked, wake))
        try:
            while not self._is_fit():  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
            following = create.start_revision or cluster.revision + 1
            yield rpc.WatchResponse(header=cluster.header(), created=True)
            if following < cluster.compacted:
                yield rpc.WatchResponse(header=cluster.header(), canceled=True, compact_revision=cluster.compacted)
                return
            while self._is_fit():
                wake.clear()
                happened = cluster.since(following)
                if happened:
                    following = happened[-1][0] + 1
                    events = [event for _, event in happened if create.key <= event.kv.key < create.range_end]
                    if events:
                        await asyncio.sleep(self._member._delay_s())
                        yield rpc.WatchResponse(header=cluster.header(), events=events)
                    continue
                if asked[1] < asked[0]:
                    asked[1] = asked[0]
                    yield rpc.WatchResponse(header=cluster.header())
                try:
                    async with asyncio.timeout(0.25):
                        await wake.wait()
                except TimeoutError:
                    continue
            await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        finally:
            cluster.unwatch(wake)
            reading.cancel()

    @staticmethod
    async def _count(requests: AsyncIterator[Any], asked: list[int], wake: asyncio.Event) -> None:
        async for _ in requests:
            asked[0] += 1
            wake.set()

    def _is_fit(self) -> bool:
        return self._member._reaches_majority() and self._member.cluster.has_majority


async def expire_leases(cluster: EtcdCluster) -> None:
    """A task for the cluster's life."""
    while True:
        await asyncio.sleep(0.1)
        cluster.expire_leases()
