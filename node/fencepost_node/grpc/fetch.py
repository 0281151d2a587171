"""Fetch: long polls on one long-lived stream.

Each request is answered before the next is looked at: as soon as its partitions have `min_bytes` below their high
watermarks, or one of them has an error, or `max_wait_ms` are over. Batches are whole and as stored; the first may begin
below the offset asked for.

Nothing is read while a request waits: what there is is counted by the positions of the batches in memory, and only in
partitions that have news. `min_bytes` above what the answer may hold counts as that. A partition whose offset is older
than what is in memory is read from the disk, in a thread, and the answer is given with whatever one read gives.

Errors of a partition: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH,
UNKNOWN_LEADER_EPOCH, OFFSET_OUT_OF_RANGE, KAFKA_STORAGE_ERROR; the other partitions are answered all the same.

A reader may say under which leader epoch the batch before its offset was written. Where the leader's history does not have
that batch, an unclean election has taken what was read: OFFSET_OUT_OF_RANGE, with a divergence that says where to look for
what is left, instead of records that do not continue what was read (KIP-320).

`high_watermark` is -1 while a new leader does not yet know one that is at least its predecessor's (KIP-207).

Limits: `max_fetch_bytes` of one answer; what `client_limits.AnswerBudget` gives the connection. Where that is less than an
answer needs, for answers that the client has not read yet, the answer is smaller, and where it is nothing for as long as
the request waits, it has no records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from fencepost_node.client_limits import AnswerBudget
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Diverged, Leadership
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import broker_pb2 as pb

MAX_WAIT_MS = 60_000
LEAST_BYTES = 64 * 1024  # an answer is not made smaller than this for want of memory
MIN_WAIT_FOR_MEMORY_S = 1.0  # also where the request itself does not wait: its client would ask again at once
PARTITIONS_IN_A_TURN = 128  # looked at, or read, before others get a turn on the loop


class FetchContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.FetchResponse) -> None: ...

    def peer(self) -> str: ...


async def fetch(
    manager: ReplicaManager, requests: AsyncIterator[pb.FetchRequest], context: FetchContext, answers: AnswerBudget
) -> None:
    """Serve one stream until the client ends it."""
    peer = context.peer()
    async for request in requests:
        poll = _Poll(manager, request)
        try:
            while await poll.enough() and not await _answer(poll, context, answers, peer):
                pass
            if not poll.answered:
                await context.write(await poll.response())
        finally:
            poll.close()


async def _answer(poll: _Poll, context: FetchContext, answers: AnswerBudget, peer: str) -> bool:
    """Read and write what there is, as far as the connection may hold it. False: there was nothing, and time is left."""
    size = await _room(poll, answers, peer)
    answers.take(peer, size)
    try:
        if size:
            taken = await poll.read(size)
            answers.take(peer, taken - size)
            size = taken
            if not taken and poll.may_wait:
                return False
        await context.write(await poll.response())
        return True
    finally:
        answers.release(peer, size)


async def _room(poll: _Poll, answers: AnswerBudget, peer: str) -> int:
    """Bytes that may be read now; 0: none for as long as the request waits."""
    least = min(poll.room, LEAST_BYTES)
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(max(poll.deadline, now + MIN_WAIT_FOR_MEMORY_S)):
            return min(poll.room, await answers.wait(peer, least))
    except TimeoutError:
        return 0


class _Wanted:
    """One partition of a request. A reader of its leadership, which calls `set` when there may be more."""

    __slots__ = ("available", "error", "is_new", "leadership", "partition", "poll", "records")

    def __init__(self, poll: _Poll, partition: pb.FetchPartition) -> None:
        self.poll = poll
        self.partition = partition
        self.leadership: Leadership | None = None
        self.error: FencepostError | None = None
        self.available = 0
        self.records = b""
        self.is_new = True

    def add_to(self, response: pb.FetchResponse) -> None:
        """Raises what is wrong with the partition."""
        if self.error is not None:
            raise self.error
        assert self.leadership is not None  # it was looked at
        response.partitions.add(
            topic_id=self.partition.topic_id,
            partition=self.partition.partition,
            high_watermark=_high_watermark(self.leadership),
            log_start_offset=self.leadership.log.log_start_offset,
            records=self.records,
        )
        self.records = b""

    def set(self) -> None:
        """For the leadership: there may be more to read, or it has ended."""
        if not self.is_new:
            self.is_new = True
            self.poll.changed(self)


class _Poll:
    """One request, from its arrival to its answer."""

    def __init__(self, manager: ReplicaManager, request: pb.FetchRequest) -> None:
        limit = manager.config.max_fetch_bytes
        self.room = max(1, min(request.max_bytes or limit, limit))
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + max(0, min(request.max_wait_ms, MAX_WAIT_MS)) / 1000
        self._manager = manager
        self._limit = limit
        self.answered = False
        self._needed = max(1, min(request.min_bytes, self.room))
        self._wanted = [_Wanted(self, partition) for partition in request.partitions]
        self._changed = self._wanted  # to be looked at
        self._available = 0  # bytes below the high watermarks, as last seen
        self._failed = False
        self._on_disk = False  # some of what is asked for is older than what is in memory
        self._news = asyncio.Event()

    def changed(self, wanted: _Wanted) -> None:
        self._changed.append(wanted)
        self._news.set()

    async def enough(self) -> bool:
        """Wait for enough to answer with; False: the time is up, and there is nothing to read."""
        self._on_disk = False
        while True:
            changed, self._changed = self._changed, []
            self._news.clear()
            for number, wanted in enumerate(changed, 1):
                self._look(wanted)
                if number % PARTITIONS_IN_A_TURN == 0:
                    await asyncio.sleep(0)
            if self._failed or self._on_disk or self._available >= self._needed:
                return True
            if self._loop.time() >= self.deadline:
                return self._available > 0
            try:
                async with asyncio.timeout_at(self.deadline):
                    await self._news.wait()
            except TimeoutError:
                continue  # one last look

    def _look(self, wanted: _Wanted) -> None:
        """Count what there is in one partition."""
        wanted.is_new = False
        partition = wanted.partition
        self._available -= wanted.available
        wanted.available = 0
        try:
            leadership = self._manager.leader(partition.topic_id, partition.partition, partition.leader_epoch)
            if wanted.leadership is not leadership:  # the first look, or a later epoch
                wanted.leadership = leadership
                leadership.add_reader(wanted)
            if partition.HasField("last_epoch"):
                leadership.check_continues(partition.fetch_offset, partition.last_epoch)
            available = leadership.available(partition.fetch_offset)
        except FencepostError as error:
            wanted.error = error
            self._failed = True
            return
        if available is None:
            self._on_disk = True
        else:
            wanted.available = min(available, max(1, partition.max_bytes or self._limit))
            self._available += wanted.available

    @property
    def may_wait(self) -> bool:
        return not self._failed and self._loop.time() < self.deadline

    async def read(self, room: int) -> int:
        """Read up to `room` bytes (but one batch at least, where there is one); how many were read."""
        taken = 0
        for number, wanted in enumerate(self._wanted, 1):
            if wanted.leadership is not None and wanted.error is None and taken < room:
                limit = max(1, min(wanted.partition.max_bytes or self._limit, room - taken))
                try:
                    wanted.records = await wanted.leadership.read_committed(
                        wanted.partition.fetch_offset, limit, mismatch=wanted.partition.mismatch
                    )
                except FencepostError as error:
                    wanted.error = error
                    self._failed = True
                taken += len(wanted.records)
            if number % PARTITIONS_IN_A_TURN == 0:
                await asyncio.sleep(0)
        return taken

    async def response(self) -> pb.FetchResponse:
        """The answer, with what was read."""
        self.answered = True
        response = pb.FetchResponse()
        for number, wanted in enumerate(self._wanted, 1):
            try:
                wanted.add_to(response)
            except FencepostError as error:
                response.partitions.append(_failed(wanted.partition, error))
            if number % PARTITIONS_IN_A_TURN == 0:
                await asyncio.sleep(0)
        return response

    def close(self) -> None:
        for wanted in self._wanted:
            if wanted.leadership is not None:
                wanted.leadership.remove_reader(wanted)


def _high_watermark(leadership: Leadership) -> int:
    """Raises NotLeaderOrFollower."""
    try:
        return leadership.latest_offset()
    except errors.OffsetNotAvailable:
        return -1


def _failed(partition: pb.FetchPartition, error: FencepostError) -> pb.FetchedPartition:
    failed = pb.FetchedPartition(
        topic_id=partition.topic_id,
        partition=partition.partition,
        error=errors.to_proto(error),
        high_watermark=-1,
        log_start_offset=-1,
    )
    if isinstance(error, Diverged):
        failed.divergence.epoch, failed.divergence.end_offset = error.parted.epoch, error.parted.end_offset
    return failed
