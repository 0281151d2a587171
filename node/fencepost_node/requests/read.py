"""Read committed batches of many partitions: a long poll.

A poll is answered as soon as its partitions have `min_bytes` below their high watermarks, or one of them has an error, or
its time is over. Batches are whole and as stored; the first may begin below the offset asked for.

Nothing is read while a poll waits: what there is is counted by the positions of the batches in memory, and only in
partitions that have news. `min_bytes` above what the answer may hold counts as that. A partition whose offset is older
than what is in memory is read from the disk, in a thread, and the answer is given with whatever one read gives.

A reader may say under which leader epoch the batch before its offset was written. Where the leader's history does not have
that batch, an unclean election has taken what was read: `Diverged` (KIP-320).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fencepost_node.client_limits import AnswerBudget
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Leadership
from fencepost_proto.protocol.errors import FencepostError

MAX_WAIT_MS = 60_000
LEAST_BYTES = 64 * 1024  # an answer is not made smaller than this for want of memory
MIN_WAIT_FOR_MEMORY_S = 1.0  # also where the request itself does not wait: its client would ask again at once
PARTITIONS_IN_A_TURN = 128  # looked at, or read, before others get a turn on the loop


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader is in one partition."""

    topic_id: str
    partition: int
    leader_epoch: int  # -1: whichever
    offset: int
    last_epoch: int | None  # leader epoch of the batch before `offset`, where the reader knows it
    max_bytes: int  # 0: no bound but the answer's
    mismatch: bool  # what was read there before was not sound


@dataclass(frozen=True, slots=True)
class Records:
    """What one partition answers."""

    high_watermark: int  # as this leader knows it
    is_below_epoch_start: bool  # then it may have gone back from the one that the leader's predecessor knew (KIP-207)
    log_start_offset: int
    records: bytes


class _Wanted:
    """One partition of a poll. A reader of its leadership, which calls `set` when there may be more."""

    __slots__ = ("available", "error", "is_new", "leadership", "poll", "position", "records")

    def __init__(self, poll: Poll, position: Position) -> None:
        self.poll = poll
        self.position = position
        self.leadership: Leadership | None = None
        self.error: FencepostError | None = None
        self.available = 0
        self.records = b""
        self.is_new = True

    def answer(self) -> Records:
        """Once. Raises what is wrong with the partition."""
        if self.error is not None:
            raise self.error
        assert self.leadership is not None  # it was looked at
        records, self.records = self.records, b""
        leadership = self.leadership
        leadership.require_leading()
        return Records(
            leadership.high_watermark,
            leadership.high_watermark < leadership.state.epoch_start_offset,
            leadership.log.log_start_offset,
            records,
        )

    def set(self) -> None:
        """For the leadership: there may be more to read, or it has ended."""
        if not self.is_new:
            self.is_new = True
            self.poll.changed(self)


class Poll:
    """One request, from its arrival to its answer."""

    def __init__(
        self,
        manager: ReplicaManager,
        positions: Sequence[Position],
        *,
        min_bytes: int,
        max_bytes: int,
        max_wait_ms: int,
    ) -> None:
        """`max_bytes` 0: as much as the broker allows."""
        limit = manager.config.max_fetch_bytes
        self.room = max(1, min(max_bytes or limit, limit))
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + max(0, min(max_wait_ms, MAX_WAIT_MS)) / 1000
        self._manager = manager
        self._limit = limit
        self._needed = max(1, min(min_bytes, self.room))
        self._wanted = [_Wanted(self, position) for position in positions]
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
        position = wanted.position
        self._available -= wanted.available
        wanted.available = 0
        try:
            leadership = self._manager.leader(position.topic_id, position.partition, position.leader_epoch)
            if wanted.leadership is not leadership:  # the first look, or a later epoch
                wanted.leadership = leadership
                leadership.add_reader(wanted)
            if position.last_epoch is not None:
                leadership.check_continues(position.offset, position.last_epoch)
            available = leadership.available(position.offset)
        except FencepostError as error:
            wanted.error = error
            self._failed = True
            return
        if available is None:
            self._on_disk = True
        else:
            wanted.available = min(available, max(1, position.max_bytes or self._limit))
            self._available += wanted.available

    @property
    def may_wait(self) -> bool:
        return not self._failed and self._loop.time() < self.deadline

    async def read(self, room: int) -> int:
        """Read up to `room` bytes (but one batch at least, where there is one); how many were read."""
        taken = 0
        for number, wanted in enumerate(self._wanted, 1):
            if wanted.leadership is not None and wanted.error is None and taken < room:
                limit = max(1, min(wanted.position.max_bytes or self._limit, room - taken))
                try:
                    wanted.records = await wanted.leadership.read_committed(
                        wanted.position.offset, limit, mismatch=wanted.position.mismatch
                    )
                except FencepostError as error:
                    wanted.error = error
                    self._failed = True
                taken += len(wanted.records)
            if number % PARTITIONS_IN_A_TURN == 0:
                await asyncio.sleep(0)
        return taken

    async def answers(self, take: Callable[[Position, Records | FencepostError], None]) -> None:
        """Hand out, once, what was read of each partition, or what is wrong with it; in turns."""
        for number, wanted in enumerate(self._wanted, 1):
            try:
                answer: Records | FencepostError = wanted.answer()
            except FencepostError as error:
                answer = error
            take(wanted.position, answer)
            if number % PARTITIONS_IN_A_TURN == 0:
                await asyncio.sleep(0)

    def close(self) -> None:
        for wanted in self._wanted:
            if wanted.leadership is not None:
                wanted.leadership.remove_reader(wanted)


async def answer_poll(poll: Poll, answers: AnswerBudget, peer: str, write: Callable[[], Awaitable[None]]) -> None:
    """Wait until the poll is due, read, and call `write` once, which takes `poll.answers`.

    Not more is read than the connection `peer` may hold unwritten. Where that is less than an answer needs, the answer is
    smaller, and where it is nothing for as long as the poll waits, it has no records.
    """
    try:
        while await poll.enough():
            if await _read_and_write(poll, answers, peer, write):
                return
        await write()
    finally:
        poll.close()


async def _read_and_write(poll: Poll, answers: AnswerBudget, peer: str, write: Callable[[], Awaitable[None]]) -> bool:
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
        await write()
        return True
    finally:
        answers.release(peer, size)


async def _room(poll: Poll, answers: AnswerBudget, peer: str) -> int:
    """Bytes that may be read now; 0: none for as long as the poll waits."""
    least = min(poll.room, LEAST_BYTES)
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(max(poll.deadline, now + MIN_WAIT_FOR_MEMORY_S)):
            return min(poll.room, await answers.wait(peer, least))
    except TimeoutError:
        return 0
