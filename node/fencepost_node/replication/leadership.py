"""This broker's leadership of one partition, for one leader epoch: the shell around the pure `LeaderState`.

It checks and appends what clients produce, hands it to the followers' streams, answers readers, and completes
the waits for a commit when the high watermark has moved.

A success is never answered before its commit (G6), for a repeat as for the original. When the leadership ends, those
that still wait get an error that leaves the outcome open: the next leader may have the batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from fencepost_node.log.leader_epochs import NO_EPOCH
from fencepost_node.log.log import Log, OutOfRoom
from fencepost_node.producers.identities import lowest_epoch
from fencepost_node.producers.producer_state import Admit, Duplicate
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replication.event_ring import EventKind
from fencepost_node.replication.leader_state import LeaderState, Proposal
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_node.replication.reconciliation import FollowerPosition, Push, Truncate, answer_subscribe
from fencepost_node.replication.tail import Tail
from fencepost_node.replication.timestamps import check_timestamps
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError, InvariantBroken
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS
from fencepost_proto.protocol.metadata import APPEND_TIME, Partition, Topic
from fencepost_proto.protocol.record_batch import BatchHeader, Buffer, at_append_time, check_produced, crcs_at
from fencepost_proto.runtime.backoff import Backoff

ALL_ACKS = -1
ROOM = Backoff(first_s=0.1, most_s=2.0)  # pauses between appends of a leader without room, whom no other can replace
NO_TIME = -1
MAX_WAITERS = 65_536  # produced batches that wait for the high watermark of one partition

Committed = Callable[[FencepostError | None], None]  # called once: None when committed


class _Waiter(NamedTuple):
    """Who waits until all below an offset is committed."""

    end_offset: int
    done: Committed
    patient: bool  # also while too few are in sync


class AppendOrigin(Enum):
    """Who appends to a leader's log. What a follower stores comes by `Log.append_as_follower`."""

    CLIENT = "client"
    COORDINATOR = "coordinator"  # of groups: the only one that may write to an internal topic


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a produced batch: offsets [base_offset, end_offset), new or recognised."""

    base_offset: int
    end_offset: int
    duplicate: bool
    append_time_ms: int = NO_TIME  # where the leader has given the records its own


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


class Reader(Protocol):
    """Waits for a leadership's news: an asyncio.Event, or something that remembers which partition it was."""

    def set(self) -> None: ...


class Diverged(errors.OffsetOutOfRange):
    """What a reader has read is not in the log any more. `parted`: as the answer to a follower would be to truncate; its
    epoch is -1 where nothing is left of it, and its offset then the log's start."""

    def __init__(self, message: str, parted: Truncate) -> None:
        super().__init__(message)
        self.parted = parted


@dataclass(slots=True)
class AppendCounts:
    """Batches that one replica has taken from clients since the broker's start, under all its leaderships."""

    appended: int = 0
    repeated: int = 0  # recognised, and not appended


@dataclass(frozen=True, slots=True)
class LeadershipCalls:
    """What a leadership reports to the replica that it is the role of."""

    disk_refused: Callable[[errors.StorageError], None]
    room_found: Callable[[], None]  # something could be written
    log_grew: Callable[[], None]
    sync_soon: Callable[[], None]  # a flush=always log has unsynced batches
    propose_isr: Callable[[Leadership], None]  # the in-sync set may be due for a change


def _nothing(_: Leadership) -> None: ...


class Leadership:
    """This broker leads one partition for one leader epoch."""

    def __init__(
        self,
        local: LocalBroker,
        topic: Topic,
        log: Log,
        partition: Partition,
        now: float,
        *,
        high_watermark: int,
        calls: LeadershipCalls,
        counts: AppendCounts,
    ) -> None:
        self.key = partition.id
        self.topic = topic
        self.log = log
        self.epoch = partition.leader_epoch
        self.state = LeaderState(
            local.broker_id,
            partition,
            log.log_end_offset,
            high_watermark,
            now,
            # What came as a follower, or was found at the start, may not be synced yet; what is committed is.
            durable_end_offset=high_watermark if topic.config.flush_always else None,
            min_insync_replicas=topic.config.min_insync_replicas,
        )
        self.tail = Tail(log.log_end_offset, local.tails)
        self._origin = AppendOrigin.COORDINATOR if topic.name in INTERNAL_TOPICS else AppendOrigin.CLIENT
        self._local = local
        self._calls = calls
        self._counts = counts
        self._now = local.loop.time
        self._readers: dict[Reader, None] = {}
        self._waiters: deque[_Waiter] = deque()  # by end offset, rising
        self._subscriptions: dict[Subscriber, None] = {}
        self._ended: FencepostError | None = None
        self._room_refusal = ""  # the refusal of the last append that found no room
        self._room_looked_for_at = 0.0  # after such an append: not before; 0: there was room
        self._without_room = 0  # appends in a row that found none
        self.on_append: Callable[[Leadership], None] = _nothing  # followers may lag from now on; set by `IsrProposals`

    @property
    def high_watermark(self) -> int:
        return self.state.high_watermark

    @property
    def name(self) -> str:
        """TOPIC-PARTITION, for messages."""
        return f"{self.topic.name}-{self.key[1]}"

    @property
    def is_over(self) -> bool:
        """This broker leads no more, or leads under a later epoch."""
        return self._ended is not None

    def require_leading(self, when: str = "before") -> None:
        """Raises NotLeaderOrFollower, with a hint, once the leadership is over. `when` it ended is part of the message."""
        if self._ended is not None:
            image = self._local.image
            raise errors.NotLeaderOrFollower(
                f"the leadership of {self.name} by broker {self._local.broker_id} ended {when}",
                current_leader=image.current_leader(image.partitions.get(self.key, self.state.partition)),
            )

    # ---- Produce ----

    def append_batch(
        self,
        batch: Buffer,
        acks: int,
        now: float,
        admit: Admit | None = None,
        origin: AppendOrigin = AppendOrigin.CLIENT,
    ) -> Appended:
        """Check and append one batch as it came from a client. All or nothing; raises FencepostError for nothing.

        `admit` is asked before a producer that this partition does not know is let in.
        """
        self.require_leading()
        if origin is not self._origin:
            raise errors.InvalidTopic(f"a {origin.value} does not write to the topic {self.topic.name}")
        config = self.topic.config
        if len(batch) > config.max_message_bytes:
            raise errors.MessageTooLarge(
                f"batch of {len(batch)} bytes; topic {self.topic.name} takes at most {config.max_message_bytes}"
            )
        header = check_produced(batch)
        if acks == ALL_ACKS and not self.state.can_commit:
            raise errors.NotEnoughReplicas(
                f"{self.name} has {len(self.state.partition.isr)} replicas in sync, "
                f"{config.min_insync_replicas} are needed"
            )
        if len(self._waiters) >= MAX_WAITERS:
            raise errors.NotEnoughReplicas(f"{len(self._waiters)} batches wait for their commit already")
        duplicate = self._known(header, batch, admit)
        if duplicate is not None:
            self._counts.repeated += 1
            self._local.counts.repeated_batches += 1
            self._local.events.of_batch(
                EventKind.REPEAT, self.topic.name, self.key[1], self.epoch, header, offset=duplicate.base_offset
            )
            return Appended(duplicate.base_offset, duplicate.end_offset, duplicate=True)
        now_ms, append_time_ms = self.log.now_ms(), NO_TIME
        if config.message_timestamp_type == APPEND_TIME:
            header, batch = at_append_time(batch, now_ms)
            append_time_ms = now_ms
        else:  # not before the repeats: one that was in time once is recognised indefinitely
            check_timestamps(header, config, now_ms, self.topic.name)
        base_offset = self.log.log_end_offset
        stamped = self._append(header, batch, now)
        self._counts.appended += 1
        counts = self._local.counts
        counts.appended_batches += 1
        counts.appended_bytes += len(batch)
        end_offset = self.log.log_end_offset
        self.tail.append(base_offset, end_offset, stamped)
        self._calls.log_grew()
        self.on_append(self)
        if config.flush_always:
            self._calls.sync_soon()
            self._after(self.state.appended(end_offset, self.state.durable_end_offset, now))
        else:
            self._after(self.state.appended(end_offset, end_offset, now))
        for subscription in self._subscriptions:
            subscription.appended()
        return Appended(base_offset, end_offset, duplicate=False, append_time_ms=append_time_ms)

    def _append(self, header: BatchHeader, batch: Buffer, now: float) -> bytes:
        """Raises StorageError; where there is no room, at once and with growing pauses between attempts."""
        if now < self._room_looked_for_at:
            raise errors.StorageError(self._room_refusal)
        try:
            stamped = self.log.append_as_leader(header, batch, self.epoch)
        except errors.StorageError as error:
            self._room_refusal = str(error)
            self._calls.disk_refused(error)
            self._without_room += 1
            self._room_looked_for_at = now + ROOM.pause_s(self._without_room)
            raise
        if self._room_looked_for_at:
            self._room_looked_for_at, self._without_room = 0.0, 0
            self._calls.room_found()
        return stamped

    def _known(self, header: BatchHeader, batch: Buffer, admit: Admit | None) -> Duplicate | None:
        if not header.idempotent:
            return None
        fence_epoch = lowest_epoch(header.producer_id, header.producer_epoch, self._local.image)
        answer = self.log.states[PRODUCERS].check(
            header,
            fence_epoch=fence_epoch,
            ever_held_records=self.log.ever_held_records,
            admit=admit,
            crcs_at=lambda time_ms: crcs_at(batch, time_ms),
        )
        return answer if isinstance(answer, Duplicate) else None

    def when_committed(self, end_offset: int, done: Committed, *, patient: bool = False) -> None:
        """Call `done` once all below `end_offset` is committed, or with an error when this can no longer be promised: the
        leadership ends, or too few are in sync, which a `patient` caller waits out."""
        if end_offset <= self.high_watermark:
            done(None)
        elif not patient and not self.state.can_commit:
            done(self._too_few_in_sync())
        elif self._waiters and end_offset < self._waiters[-1].end_offset:
            # A repeat of a batch that is not yet committed: behind the batches that end no later.
            index = next(i for i, waiter in enumerate(self._waiters) if waiter.end_offset > end_offset)
            self._waiters.insert(index, _Waiter(end_offset, done, patient))
        else:
            self._waiters.append(_Waiter(end_offset, done, patient))

    def _too_few_in_sync(self) -> FencepostError:
        in_sync, needed = len(self.state.partition.isr), self.state.min_insync_replicas
        return errors.NotEnoughReplicasAfterAppend(f"appended, and {self.name} has only {in_sync} of {needed} replicas")

    def _look_whether_enough(self) -> None:
        """The in-sync set, or how many it needs, has changed: who does not wait for more of them is answered."""
        if self.state.can_commit or not self._waiters:
            return
        impatient = [waiter for waiter in self._waiters if not waiter.patient]
        self._waiters = deque(waiter for waiter in self._waiters if waiter.patient)
        for waiter in impatient:
            waiter.done(self._too_few_in_sync())

    # ---- Reading ----

    async def read(self, offset: int, max_bytes: int, end_offset: int, *, mismatch: bool = False) -> bytes:
        """Whole batches below `end_offset`, from the one that holds `offset`: out of memory, or from the disk.

        `mismatch`: what was read there before was not sound; the disk is read and checked. Raises OffsetOutOfRange,
        StorageError; see `Replica.disk_refuses`.
        """
        if mismatch:
            self.log.distrust(offset)
        elif (records := self.tail.read(offset, max_bytes, end_offset)) is not None:
            return records
        return await self._on_disk(lambda: self.log.read_batches(offset, max_bytes, end_offset))

    async def snapshot_at_base(self) -> bytes:
        """The snapshot where the log's files begin, for a follower that begins there. Raises StorageError."""
        return await self._on_disk(self.log.snapshot_at_base)

    async def _on_disk(self, work: Callable[[], bytes]) -> bytes:
        try:
            return await asyncio.to_thread(work)
        except OutOfRoom:
            raise
        except errors.StorageError as error:
            if not self.is_over:
                self._calls.disk_refused(error)
            raise

    # ---- Readers of what is committed ----

    def latest_offset(self) -> int:
        """The high watermark. Raises OffsetNotAvailable until it has reached this leader epoch's start (KIP-207)."""
        self.require_leading()
        if self.high_watermark < self.state.epoch_start_offset:
            raise errors.OffsetNotAvailable(
                f"high watermark {self.high_watermark} of {self.name} has not reached the "
                f"start {self.state.epoch_start_offset} of leader epoch {self.epoch}"
            )
        return self.high_watermark

    def available(self, offset: int) -> int | None:
        """How many bytes `read_committed` would give, had it no bound; None: it would read the disk. Raises as it does."""
        self.require_leading()
        self._check_within(offset)
        return self.tail.available(offset, self.high_watermark)

    def check_continues(self, offset: int, last_epoch: int) -> None:
        """Raises Diverged where this leader's log does not have the batch of `last_epoch` that a reader found just before
        `offset`, NotLeaderOrFollower where this broker does not lead. Below the log's start nothing is known of it."""
        self.require_leading()
        start, end = self.log.log_start_offset, self.log.log_end_offset
        if offset < start:
            return
        base = self.log.base_offset
        answer = answer_subscribe(FollowerPosition(offset, last_epoch), self.log.leader_epochs, base, end)
        if not isinstance(answer, Push):
            parted = answer if isinstance(answer, Truncate) else Truncate(NO_EPOCH, start)
            raise Diverged(
                f"{self.name} no longer has the batch of leader epoch {last_epoch} before offset "
                f"{offset}; its history is the same up to offset {parted.end_offset} at most",
                parted,
            )

    async def read_committed(self, offset: int, max_bytes: int, *, mismatch: bool = False) -> bytes:
        """Whole batches below the high watermark, from the one that holds `offset`; b"" where there is none yet.
        `mismatch`: see `read`.

        Raises OffsetOutOfRange outside of the log, NotLeaderOrFollower where this broker does not lead.
        """
        self.require_leading()
        self._check_within(offset)
        end_offset = self.high_watermark
        if offset >= end_offset:
            return b""
        records = await self.read(offset, max_bytes, end_offset, mismatch=mismatch)
        self.require_leading("during the read")
        return records

    def _check_within(self, offset: int) -> None:
        if not self.log.log_start_offset <= offset <= self.log.log_end_offset:
            raise errors.OffsetOutOfRange(
                f"offset {offset} of {self.name} is outside of {self.log.log_start_offset} to {self.log.log_end_offset}"
            )

    async def wait_committed(self, end_offset: int) -> None:
        """Return once all below `end_offset` is committed. Raises FencepostError when leadership ends before."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def committed(error: FencepostError | None) -> None:
            if not done.done():
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(None)

        self.require_leading()
        self.when_committed(end_offset, committed, patient=True)
        await done

    async def wait_for_start(self, offset: int) -> None:
        """Return once the log begins at `offset` or above. Raises NotLeaderOrFollower when leadership ends before."""
        news = asyncio.Event()
        self.add_reader(news)
        try:
            while not self.is_over and self.log.log_start_offset < offset:
                await news.wait()
                news.clear()
        finally:
            self.remove_reader(news)
        self.require_leading("meanwhile")

    async def wait_final(self, end_offset: int) -> None:
        """Return once all below `end_offset` is committed and nothing else of before can ever be: until everyone who may be
        elected has joined this leadership, one of them may hold a batch of an earlier epoch and be elected with it.

        Raises FencepostError when leadership ends before.
        """
        await self.wait_committed(end_offset)
        news = asyncio.Event()
        self.add_reader(news)
        try:
            while not self.is_over and not self.state.electable_joined:
                await news.wait()
                news.clear()
        finally:
            self.remove_reader(news)
        self.require_leading("meanwhile")

    def add_reader(self, reader: Reader) -> None:
        """Call its `set` when there may be more to read, or the leadership ends."""
        self._readers[reader] = None

    def remove_reader(self, reader: Reader) -> None:
        self._readers.pop(reader, None)

    @property
    def has_readers(self) -> bool:
        return bool(self._readers)

    def _notify_readers(self) -> None:
        for reader in self._readers:
            reader.set()

    # ---- Followers ----

    @property
    def subscribers(self) -> frozenset[int]:
        """Brokers that follow now."""
        return frozenset(subscription.broker_id for subscription in self._subscriptions)

    def check_incarnation(self, broker_id: int, broker_epoch: int) -> None:
        """Raises StaleBrokerEpoch for what a follower's earlier process has said, where a later one is known.

        What that one holds is not known to be held by the later one, whose machine may have lost it.
        """
        registered = self._local.image.brokers.get(broker_id)
        known = max(self.state.broker_epoch_of(broker_id), registered.broker_epoch if registered else -1)
        if broker_epoch < known:
            raise errors.StaleBrokerEpoch(f"broker epoch {broker_epoch} of follower {broker_id} is older than {known}")

    def add_subscription(self, subscription: Subscriber, end_offset: int) -> None:
        broker_id, broker_epoch = subscription.broker_id, subscription.broker_epoch
        for other in [s for s in self._subscriptions if s.broker_id == broker_id]:
            del self._subscriptions[other]  # of a stream that has broken and does not know it yet
            other.ended(errors.NetworkException(f"broker {broker_id} subscribed {self.key} again"))
        self._subscriptions[subscription] = None
        self._after(self.state.follower_joined(broker_id, broker_epoch, end_offset, self._now()))
        self._calls.propose_isr(self)
        self._notify_readers()

    def remove_subscription(self, subscription: Subscriber) -> None:
        self._subscriptions.pop(subscription, None)

    def follower_acked(self, broker_id: int, end_offset: int) -> None:
        self._after(self.state.follower_acked(broker_id, end_offset, self._now()))
        if broker_id not in self.state.partition.isr:
            self._calls.propose_isr(self)

    # ---- Changes ----

    def durable(self, end_offset: int) -> None:
        """A flush=always log is synced below `end_offset`."""
        end_offset = max(end_offset, self.state.durable_end_offset)  # more counts where that setting is off meanwhile
        self._after(self.state.appended(self.state.log_end_offset, end_offset, self._now()))

    def settings_changed(self, topic: Topic) -> None:
        """What waits for a sync, and need not any more, counts at once. `flush_always` holds for what is appended from now
        on: what was acknowledged without a sync stays so."""
        waited_for_sync = self.topic.config.flush_always
        self.topic = topic
        self._after(self.state.settings_changed(topic.config.min_insync_replicas))
        self._look_whether_enough()
        if waited_for_sync and not topic.config.flush_always:
            end_offset = self.state.log_end_offset
            self._after(self.state.appended(end_offset, end_offset, self._now()))

    def partition_changed(self, partition: Partition) -> None:
        self._after(self.state.partition_changed(partition, self._now()))
        self._look_whether_enough()
        self._notify_readers()
        for subscription in list(self._subscriptions):
            if not self.state.follows(subscription.broker_id):
                self._subscriptions.pop(subscription)
                subscription.ended(errors.NotLeaderOrFollower(f"broker is no replica of {partition.key}"))
        self._calls.propose_isr(self)

    def proposal_refused(self, proposal: Proposal) -> None:
        self._after(self.state.proposal_refused(proposal))

    def end(self, error: FencepostError, unknown: FencepostError) -> None:
        """This broker leads no more: followers get `error`; batches that were appended and wait get `unknown`."""
        self._ended = error
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions:
            subscription.ended(error)
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.done(unknown)
        self.tail.close()
        self._notify_readers()

    def _after(self, high_watermark_moved: bool) -> None:
        """What a moved high watermark sets free."""
        if not high_watermark_moved:
            return
        high_watermark = self.state.high_watermark
        if high_watermark > self.log.log_end_offset:
            raise InvariantBroken(
                f"high watermark {high_watermark} above the log end {self.log.log_end_offset} of {self.name}"
            )
        while self._waiters and self._waiters[0].end_offset <= high_watermark:
            self._waiters.popleft().done(None)
        for subscription in self._subscriptions:
            subscription.high_watermark_moved()
        self._notify_readers()
