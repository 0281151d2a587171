"""This broker's leadership of one partition, for one leader epoch: the shell around the pure `LeaderState`.

It checks and appends what clients produce, hands it to the followers' streams, and lets go of whoever waits for a commit
when the high watermark has moved.

A success is never answered before its commit (G6), for a repeat as for the original. When the leadership ends, those
who still wait hear an error that leaves the outcome open: the next leader may have the batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fencepost_node.log.config import NO_LIMIT
from fencepost_node.log.log import OutOfRoom
from fencepost_node.producers.identities import lowest_epoch
from fencepost_node.producers.producer_state import Admit, Duplicate
from fencepost_node.replication.leader_state import LeaderState, Proposal
from fencepost_node.replication.tail import Tail
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken
from fencepost_proto.protocol.metadata import APPEND_TIME, Partition, TopicConfig
from fencepost_proto.protocol.record_batch import BatchHeader, at_append_time, check_produced

if TYPE_CHECKING:
    from fencepost_node.replication.replica import Replica

ALL_ACKS = -1
FIRST_ROOM_PAUSE_S = 0.1  # between appends of a leader without room, which nobody else can take the place of; doubles
LONGEST_ROOM_PAUSE_S = 2.0
MAX_WAITERS = 65_536  # produced batches that wait for the high watermark of one partition

Committed = Callable[[FencepostError | None], None]  # called once: None when committed


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a produced batch: offsets [base_offset, end_offset), new or recognised."""

    base_offset: int
    end_offset: int
    duplicate: bool


class Subscriber(Protocol):
    """A follower that is fed from this leadership (`push.Subscription`)."""

    @property
    def broker_id(self) -> int: ...

    @property
    def broker_epoch(self) -> int: ...

    def appended(self) -> None:
        """There is more to send."""
        ...

    def high_watermark_moved(self) -> None: ...

    def ended(self, error: FencepostError) -> None:
        """The leadership is over, or this follower is no part of it any more."""
        ...


def _nothing(_: Leadership) -> None: ...


class Leadership:
    """This broker leads one partition for one leader epoch."""

    def __init__(self, replica: Replica, partition: Partition, now: float) -> None:
        self.replica = replica
        self.epoch = partition.leader_epoch
        self.state = LeaderState(
            replica.owner.broker_id,
            partition,
            replica.log.log_end_offset,
            replica.high_watermark,
            now,
            # What came as a follower, or was found at the start, may not be synced yet; what is committed is.
            durable_end_offset=replica.high_watermark if replica.topic.config.flush_always else None,
        )
        self.tail = Tail(replica.log.log_end_offset, replica.owner.tail_bytes, replica.tail_budget)
        self._waiters: deque[tuple[int, Committed]] = deque()  # by end offset, rising
        self._subscriptions: dict[Subscriber, None] = {}
        self._ended: FencepostError | None = None
        self._room_looked_for_at = 0.0  # after an append that found none: not before; 0: there was room
        self._room_pause_s = FIRST_ROOM_PAUSE_S
        self.on_append: Callable[[Leadership], None] = _nothing  # followers may lag from now on; set by `IsrProposals`

    @property
    def high_watermark(self) -> int:
        return self.state.high_watermark

    # ---- Produce ----

    def append(self, batch: bytes, acks: int, now: float, admit: Admit | None = None) -> Appended:
        """Check and append one batch as it came from a client. All or nothing; raises FencepostError for nothing.

        `admit` is asked before a producer that this partition does not know is let in.
        """
        replica = self.replica
        config = replica.topic.config
        if len(batch) > config.max_message_bytes:
            raise errors.MessageTooLarge(
                f"batch of {len(batch)} bytes; topic {replica.topic.name} takes at most {config.max_message_bytes}"
            )
        header = check_produced(batch)
        if acks == ALL_ACKS and len(self.state.partition.isr) < config.min_insync_replicas:
            raise errors.NotEnoughReplicas(
                f"{replica.topic.name}-{replica.key[1]} has {len(self.state.partition.isr)} replicas in sync, "
                f"{config.min_insync_replicas} are needed"
            )
        if len(self._waiters) >= MAX_WAITERS:
            raise errors.NotEnoughReplicas(f"{len(self._waiters)} batches wait for their commit already")
        duplicate = self._known(header, batch, admit)
        if duplicate is not None:
            replica.deduplicated_batches += 1
            return Appended(duplicate.base_offset, duplicate.end_offset, duplicate=True)
        now_ms = replica.log.now_ms()
        if config.message_timestamp_type == APPEND_TIME:
            header, batch = at_append_time(batch, now_ms)
        else:  # not before the repeats: one that was in time once is recognised for ever
            check_timestamps(header, config, now_ms, replica.topic.name)
        base_offset = replica.log.log_end_offset
        stamped = self._append(header, batch, now)
        replica.appended_batches += 1
        end_offset = replica.log.log_end_offset
        self.tail.append(base_offset, end_offset, stamped)
        replica.look_at_log()
        self.on_append(self)
        if config.flush_always:
            replica.owner.sync_soon(replica)
            self._after(self.state.appended(end_offset, self.state.durable_end_offset, now))
        else:
            self._after(self.state.appended(end_offset, end_offset, now))
        for subscription in self._subscriptions:
            subscription.appended()
        return Appended(base_offset, end_offset, duplicate=False)

    def _append(self, header: BatchHeader, batch: bytes, now: float) -> bytes:
        """Raises StorageError; where there is no room, at once and with growing pauses between attempts."""
        replica = self.replica
        if now < self._room_looked_for_at:
            raise errors.StorageError(replica.trouble or f"{replica.log.directory} has no room")
        try:
            stamped = replica.log.append_as_leader(header, batch, self.epoch)
        except errors.StorageError as error:
            replica.disk_refuses(error)
            self._room_looked_for_at = now + self._room_pause_s
            self._room_pause_s = min(2 * self._room_pause_s, LONGEST_ROOM_PAUSE_S)
            raise
        if self._room_looked_for_at:
            self._room_looked_for_at, self._room_pause_s = 0.0, FIRST_ROOM_PAUSE_S
            replica.room_again()
        return stamped

    def _known(self, header: BatchHeader, batch: bytes, admit: Admit | None) -> Duplicate | None:
        if not header.idempotent:
            return None
        fence_epoch = lowest_epoch(header.producer_id, header.producer_epoch, self.replica.owner.image)
        answer = self.replica.log.producers.check(
            header,
            fence_epoch=fence_epoch,
            ever_held_records=self.replica.log.ever_held_records,
            admit=admit,
            crc_at=lambda time_ms: at_append_time(batch, time_ms)[0].crc,
        )
        return answer if isinstance(answer, Duplicate) else None

    def when_committed(self, end_offset: int, done: Committed) -> None:
        """Call `done` once all below `end_offset` is committed, or with an error when this can no longer be promised."""
        if end_offset <= self.high_watermark:
            done(self._commit_error())
        elif self._waiters and end_offset < self._waiters[-1][0]:
            # A repeat of a batch that is not yet committed: behind the batches that end no later.
            index = next(i for i, (end, _) in enumerate(self._waiters) if end > end_offset)
            self._waiters.insert(index, (end_offset, done))
        else:
            self._waiters.append((end_offset, done))

    def _commit_error(self) -> FencepostError | None:
        in_sync, needed = len(self.state.partition.isr), self.replica.topic.config.min_insync_replicas
        if in_sync >= needed:
            return None
        return errors.NotEnoughReplicasAfterAppend(
            f"appended, and {self.replica.topic.name}-{self.replica.key[1]} has only {in_sync} of {needed} replicas"
        )

    # ---- Reading ----

    async def read(self, offset: int, max_bytes: int, end_offset: int, *, mismatch: bool = False) -> bytes:
        """Whole batches below `end_offset`, from the one that holds `offset`: out of memory, or from the disk.

        `mismatch`: what was read there before was not sound; the disk is read and checked. Raises OffsetOutOfRange,
        StorageError; see `Replica.disk_refuses`.
        """
        replica = self.replica
        if mismatch:
            replica.log.distrust(offset)
        elif (records := self.tail.read(offset, max_bytes, end_offset)) is not None:
            return records
        return await self._on_disk(lambda: replica.log.read(offset, max_bytes, end_offset))

    async def producer_snapshot(self) -> bytes:
        """The producer state at the log's start, for a follower that begins there. Raises StorageError."""
        return await self._on_disk(self.replica.log.snapshot_at_log_start)

    async def _on_disk(self, work: Callable[[], bytes]) -> bytes:
        try:
            return await asyncio.to_thread(work)
        except OutOfRoom:
            raise
        except errors.StorageError as error:
            if self.replica.role is self:
                self.replica.disk_refuses(error)
            raise

    # ---- Followers ----

    @property
    def subscribers(self) -> frozenset[int]:
        """Brokers that follow now."""
        return frozenset(subscription.broker_id for subscription in self._subscriptions)

    def check_incarnation(self, broker_id: int, broker_epoch: int) -> None:
        """Raises StaleBrokerEpoch for what a follower's earlier process has said, where a later one is known.

        What that one holds is not known to be held by the later one, whose machine may have lost it.
        """
        registered = self.replica.owner.image.brokers.get(broker_id)
        known = max(self.state.broker_epoch_of(broker_id), registered.broker_epoch if registered else -1)
        if broker_epoch < known:
            raise errors.StaleBrokerEpoch(f"broker epoch {broker_epoch} of follower {broker_id} is older than {known}")

    def add_subscription(self, subscription: Subscriber, end_offset: int) -> None:
        broker_id, broker_epoch = subscription.broker_id, subscription.broker_epoch
        for other in [s for s in self._subscriptions if s.broker_id == broker_id]:
            del self._subscriptions[other]  # of a stream that has broken and does not know it yet
            other.ended(errors.NetworkException(f"broker {broker_id} subscribed {self.replica.key} anew"))
        self._subscriptions[subscription] = None
        self._after(self.state.follower_joined(broker_id, broker_epoch, end_offset, self._now()))
        self.replica.owner.propose_isr(self)
        self.replica.notify_readers()

    def remove_subscription(self, subscription: Subscriber) -> None:
        self._subscriptions.pop(subscription, None)

    def follower_acked(self, broker_id: int, end_offset: int) -> None:
        self._after(self.state.follower_acked(broker_id, end_offset, self._now()))
        if broker_id not in self.state.partition.isr:
            self.replica.owner.propose_isr(self)

    # ---- Changes ----

    def durable(self, end_offset: int) -> None:
        """A flush=always log is synced below `end_offset`."""
        self._after(self.state.appended(self.state.log_end_offset, end_offset, self._now()))

    def partition_changed(self, partition: Partition) -> None:
        self._after(self.state.partition_changed(partition, self._now()))
        self.replica.notify_readers()
        for subscription in list(self._subscriptions):
            if not self.state.follows(subscription.broker_id):
                self._subscriptions.pop(subscription)
                subscription.ended(errors.NotLeaderOrFollower(f"broker is no replica of {partition.key}"))
        self.replica.owner.propose_isr(self)

    def proposal_refused(self, proposal: Proposal) -> None:
        self._after(self.state.proposal_refused(proposal))

    def end(self, error: FencepostError, unknown: FencepostError) -> None:
        """This broker leads no more: followers hear `error`; batches that were appended and wait hear `unknown`."""
        self._ended = error
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions:
            subscription.ended(error)
        waiters, self._waiters = self._waiters, deque()
        for _, done in waiters:
            done(unknown)
        self.tail.close()
        self.replica.notify_readers()

    def _after(self, high_watermark_moved: bool) -> None:
        """What a moved high watermark sets free."""
        if not high_watermark_moved:
            return
        high_watermark = self.state.high_watermark
        self.replica.high_watermark = high_watermark
        if high_watermark > self.replica.log.log_end_offset:
            raise InvariantBroken(
                f"high watermark {high_watermark} above the log end {self.replica.log.log_end_offset} "
                f"of {self.replica.topic.name}-{self.replica.key[1]}"
            )
        error = self._commit_error()
        while self._waiters and self._waiters[0][0] <= high_watermark:
            self._waiters.popleft()[1](error)
        for subscription in self._subscriptions:
            subscription.high_watermark_moved()
        self.replica.notify_readers()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def check_timestamps(header: BatchHeader, config: TopicConfig, now_ms: int, topic_name: str) -> None:
    """Raises InvalidTimestamp where the batch's first or newest record lies outside of the topic's bounds."""
    before_ms, after_ms = config.message_timestamp_before_max_ms, config.message_timestamp_after_max_ms
    for timestamp_ms in (header.base_timestamp, header.max_timestamp):
        if after_ms != NO_LIMIT and timestamp_ms > now_ms + after_ms:
            raise errors.InvalidTimestamp(
                f"timestamp {timestamp_ms} is {timestamp_ms - now_ms} ms in the future, by the leader's clock; "
                f"topic {topic_name} takes {after_ms} ms (message_timestamp_after_max_ms)"
            )
        if before_ms != NO_LIMIT and timestamp_ms < now_ms - before_ms:
            raise errors.InvalidTimestamp(
                f"timestamp {timestamp_ms} is {now_ms - timestamp_ms} ms in the past, by the leader's clock; "
                f"topic {topic_name} takes {before_ms} ms (message_timestamp_before_max_ms)"
            )
