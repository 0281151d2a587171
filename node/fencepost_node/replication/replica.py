"""One replica of one partition on this broker, and the role that it plays.

A replica owns its log. The controller's metadata gives it a role, for one leader epoch: *leader* (a `Leadership`),
*follower* (of a broker; `replication/follow.py` feeds it), or neither. Roles change in one step, on the event loop:
the old one ends (what waits for it gets an error), the new one begins. Only one thing may stand between: a truncation or
reset that a worker thread is still carrying out. Then the new role begins when that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from fencepost_node.log.log import CorruptLog, Log, OutOfRoom
from fencepost_node.replication.event_ring import EventKind
from fencepost_node.replication.leadership import AppendCounts, Leadership, LeadershipCalls
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.metadata import Partition, PartitionKey, Topic

log = logging.getLogger(__name__)

CONTRADICTION = "this log contradicts "  # begins the failure of a replica that other processes do not agree with

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Following:
    """This broker follows `leader` for one leader epoch."""

    leader: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ReplicaCalls:
    """What a replica reports to the broker around it."""

    propose_isr: Callable[[Leadership], None]  # the in-sync set may be due for a change
    sync_soon: Callable[[Replica], None]  # a flush=always log has unsynced batches
    snapshot_due: Callable[[Replica], None]  # its log may have one due
    role_changed: Callable[[Replica], None]  # a role has begun or ended: follow where it says, or nowhere
    failures_changed: Callable[[], None]  # which replicas count as failed: notify the controller


class Replica:
    """A log and its role."""

    def __init__(
        self, local: LocalBroker, partition: Partition, topic: Topic, replica_log: Log, calls: ReplicaCalls
    ) -> None:
        self.key: PartitionKey = partition.id
        self.topic = topic
        self.log = replica_log
        self.role: Leadership | Following | None = None
        self.failure = ""  # why it does nothing now; empty: it serves
        self.damaged = False  # it failed since bytes on its disk are not what was stored
        self.out_of_room = False  # it failed for want of room
        self.trouble = ""  # what it cannot do though it leads: no one else can, or no one else does yet
        self.yields = False  # it has no room, and leads on, for readers, until another one does
        self._trouble_is_room = False
        self.counts = AppendCounts()
        self._local = local
        self._calls = calls
        self._high_watermark = replica_log.base_offset  # while this replica does not lead
        self._partition = partition
        self._operation: asyncio.Future[None] | None = None  # a truncation or reset in a thread
        self._closed = False

    # ---- Role ----

    @property
    def leadership(self) -> Leadership | None:
        return self.role if isinstance(self.role, Leadership) else None

    @property
    def is_leader(self) -> bool:
        return isinstance(self.role, Leadership)

    @property
    def high_watermark(self) -> int:
        """What is known to be committed ends here: the leadership's own, or what the leader has last sent."""
        return self.role.high_watermark if isinstance(self.role, Leadership) else self._high_watermark

    @property
    def leader_epoch(self) -> int:
        return self._partition.leader_epoch

    @property
    def partition(self) -> Partition:
        """As the controller last sent it."""
        return self._partition

    def take_settings(self, topic: Topic) -> None:
        """Take the topic's settings as the controller says that they are now."""
        if topic is self.topic or topic == self.topic:
            return
        self.topic = topic
        config = topic.config
        self.log.config = replace(
            self.log.config,
            segment_bytes=config.segment_bytes,
            retention_ms=config.retention_ms,
            retention_bytes=config.retention_bytes,
        )
        if isinstance(self.role, Leadership):
            self.role.settings_changed(topic)

    def apply(self, partition: Partition, topic: Topic | None = None) -> None:
        """Take what the controller says of this partition, and of its topic at the same version; None: as before.

        A leadership that goes on takes the settings first: by a new in-sync set that counts on a higher
        `min.insync.replicas` nothing is committed with the lower one. One that is over never takes them: by a lower one it
        would commit alone what the leader since does not have.
        """
        old, self._partition = self._partition, partition
        deleted = (partition.deleted_end_offset, partition.deleted_in_epoch)
        if deleted != self.log.deleted:
            self.log.delete_below(*deleted)
        goes_on = isinstance(self.role, Leadership) and self.role.epoch == partition.leader_epoch
        changes = not goes_on and (self.role is None or partition.leader_epoch != old.leader_epoch)
        if changes:
            self._end_role()
        if topic is not None:
            self.take_settings(topic)
        if isinstance(self.role, Leadership) and goes_on and partition != old:
            self.role.partition_changed(partition)
        if changes:
            self._begin_role()
            self._calls.role_changed(self)

    def _begin_role(self) -> None:
        self.look_at_log()
        if self.failure or self._closed or self._operation is not None:
            return  # an operation begins it when it ends
        partition = self._partition
        if self.yields and partition.leader != self._local.broker_id:
            self.out_of_room, self.yields = True, False
            self.fail(self.trouble)
            return
        if partition.leader == self._local.broker_id:
            now = asyncio.get_running_loop().time()
            try:
                self.log.assign_epoch(partition.leader_epoch)
            except errors.StorageError as error:
                self.disk_refuses(error)
                return
            except InvariantBroken as contradiction:
                self.contradicted(f"its new leadership: {contradiction}")
                return
            self.role = leadership = self._lead(partition, now)
            self._local.counts.leaderships += 1
            self._note(EventKind.LEADS, self.log.log_end_offset)
            log.info(
                "became leader topic=%s partition=%d epoch=%d isr=%s start=%d end=%d high_watermark=%d",
                self.topic.name, self.key[1], partition.leader_epoch, partition.isr,
                self.log.log_start_offset, self.log.log_end_offset, self.high_watermark,
            )  # fmt: skip
            if leadership.state.durable_end_offset < self.log.log_end_offset:
                self._sync_soon()
            self._calls.propose_isr(leadership)
        elif partition.leader >= 0:
            self.role = Following(partition.leader, partition.leader_epoch)
            self._local.counts.followings += 1
            self._note(EventKind.FOLLOWS, self.log.log_end_offset)
            log.info(
                "became follower topic=%s partition=%d epoch=%d leader=%d end=%d",
                self.topic.name, self.key[1], partition.leader_epoch, partition.leader, self.log.log_end_offset,
            )  # fmt: skip

    def _lead(self, partition: Partition, now: float) -> Leadership:
        calls = LeadershipCalls(
            disk_refused=self.disk_refuses,
            room_found=self.room_again,
            log_grew=self.look_at_log,
            sync_soon=self._sync_soon,
            propose_isr=self._calls.propose_isr,
        )
        return Leadership(
            self._local,
            self.topic,
            self.log,
            partition,
            now,
            high_watermark=max(self._high_watermark, self.log.log_start_offset),  # what is deleted was committed
            calls=calls,
            counts=self.counts,
        )

    def _note(self, kind: EventKind, offset: int = -1, text: str = "") -> None:
        """For those who look on."""
        self._local.events.of_role(kind, self.topic.name, self.key[1], self.leader_epoch, offset=offset, text=text)

    def _sync_soon(self) -> None:
        self._calls.sync_soon(self)

    def _end_role(self) -> None:
        role, self.role = self.role, None
        if isinstance(role, Leadership):
            self._high_watermark = role.high_watermark
            self._note(EventKind.STOPS_LEADING, self.log.log_end_offset)
            log.info("stopped leading topic=%s partition=%d epoch=%d", self.topic.name, self.key[1], role.epoch)
            name = f"{self.topic.name}-{self.key[1]}"
            role.end(
                self._not_leader(f"broker {self._local.broker_id} does not lead {name} any more"),
                errors.RequestTimedOut(
                    f"the leadership of {name} ended before the batch was committed",
                    current_leader=self._local.image.current_leader(self._partition),
                ),
            )

    def _not_leader(self, message: str) -> errors.NotLeaderOrFollower:
        return errors.NotLeaderOrFollower(message, current_leader=self._local.image.current_leader(self._partition))

    def fail(self, reason: str) -> None:
        """The disk refuses, or holds what it should not: this replica does nothing until it is brought back (`repairs`)."""
        if self.failure:
            return
        self.failure, self.trouble, self.yields = reason, "", False
        self._local.counts.failed_replicas += 1
        self._note(EventKind.FAILS, text=reason)
        log.error("replica failed topic=%s partition=%d reason=%s", self.topic.name, self.key[1], reason)
        self._end_role()
        self._calls.role_changed(self)
        self._calls.failures_changed()

    def disk_refuses(self, error: errors.StorageError) -> None:
        """Something could not be written, synced or read. Where no one else can lead, the replica goes on with what it can
        do, unless its log has failed; otherwise it fails, and another one takes over.

        A leader that only has no room serves readers until that has happened: the controller may be away, or have no room
        either. It counts as failed for the controller meanwhile, unless there is room again before.
        """
        leads, alone = isinstance(self.role, Leadership), len(self._partition.isr) == 1
        if leads and not self.log.failure and isinstance(error, OutOfRoom):
            self._note_trouble(error)
            if not alone and not self.yields:
                self.yields = True
                self._calls.failures_changed()
            return
        if leads and alone and not self.log.failure and isinstance(error, CorruptLog):
            self._note_trouble(error)
            return
        if not self.failure:
            self.damaged, self.out_of_room = isinstance(error, CorruptLog), isinstance(error, OutOfRoom)
        self.fail(str(error))

    def _note_trouble(self, error: errors.StorageError) -> None:
        if not self.trouble:
            self.trouble, self._trouble_is_room = str(error), isinstance(error, OutOfRoom)
            log.error("leader in trouble, and %s topic=%s partition=%d reason=%s",
                      "no one else is in sync" if len(self._partition.isr) == 1 else "no one else leads yet",
                      self.topic.name, self.key[1], error)  # fmt: skip

    def room_again(self) -> None:
        """Something could be written."""
        if self.trouble and self._trouble_is_room:
            self.trouble = ""
            log.warning("leader has room again topic=%s partition=%d", self.topic.name, self.key[1])
            if self.yields:
                self.yields = False
                self._calls.failures_changed()  # it is none of those any more

    def contradicted(self, by: str) -> None:
        """What this log holds cannot be true together with that. It is given up as a damaged one is."""
        if not self.failure:
            self.damaged, self.out_of_room = True, False
        self.fail(f"{CONTRADICTION}{by}")

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do `work` on the log in a thread. Raises StorageError; see `disk_refuses`."""
        worked_on = self.log
        try:
            return await asyncio.to_thread(work)
        except errors.StorageError as error:
            if self.log is worked_on:
                self.disk_refuses(error)
            raise

    @property
    def being_cut(self) -> bool:
        """A thread is truncating the log, or starting it over."""
        return self._operation is not None

    async def let_go_of_log(self) -> None:
        """Of a failed replica: close its log, so that it can be opened again."""
        if self._operation is not None:
            await asyncio.wait([self._operation])
        with contextlib.suppress(errors.StorageError):
            await asyncio.to_thread(self.log.close, False)

    def recovered(self, opened: Log) -> None:
        """A failed replica goes on, with this log."""
        if self._closed:
            raise InvariantBroken(f"{self.key} is recovered after its end")
        opened.clock = self.log.clock
        opened.config = self.log.config  # the settings may have changed while it was opened
        opened.delete_below(*self.log.deleted)
        self.log = opened
        self._note(EventKind.RECOVERS, opened.log_end_offset)
        self.failure, self.damaged, self.out_of_room = "", False, False
        self._high_watermark = max(opened.base_offset, min(self._high_watermark, opened.log_end_offset))
        log.warning("replica recovered topic=%s partition=%d start=%d end=%d", self.topic.name, self.key[1],
                    opened.log_start_offset, opened.log_end_offset)  # fmt: skip
        self._begin_role()
        self._calls.role_changed(self)

    # ---- Following ----

    def append_as_follower(self, following: Following, base_offset: int, records: bytes) -> None:
        """Store what the leader pushed. Raises FencepostError where it is not what comes next.

        Batches that contradict the log (sequences that do not follow what it holds) fail this replica alone: no one knows
        which of the two logs is wrong, and a broker that ended here would end again at every start.
        """
        if self.role is not following:
            raise self._not_leader(f"{self.key} does not follow under epoch {following.epoch} any more")
        if base_offset != self.log.log_end_offset:
            raise errors.OffsetOutOfRange(f"pushed from {base_offset}; the log ends at {self.log.log_end_offset}")
        try:
            self.log.append_as_follower(records, following.epoch)
        except errors.StorageError as error:
            self.disk_refuses(error)
            raise
        except InvariantBroken as contradiction:
            self.contradicted(f"what broker {following.leader} pushed: {contradiction}")
            raise errors.StorageError(self.failure) from contradiction
        self._local.counts.followed_bytes += len(records)
        self.look_at_log()

    def look_at_log(self) -> None:
        """It has grown, or is another one: see whether a snapshot is due."""
        if self.log.maintenance_due:
            self._calls.snapshot_due(self)

    def leader_told(self, following: Following, high_watermark: int) -> None:
        """The high watermark of a follower is the leader's, as far as its own log reaches; it never goes back."""
        if self.role is following and high_watermark > self._high_watermark:
            self._high_watermark = max(self._high_watermark, min(high_watermark, self.log.log_end_offset))

    async def truncate(self, following: Following, offset: int) -> None:
        """Cut what the leader's history does not have."""
        operation = self._operate(following, offset, lambda: self.log.truncate_to(offset))
        self._note(EventKind.TRUNCATES, offset)
        log.info("truncating topic=%s partition=%d from=%d to=%d", self.topic.name, self.key[1],
                 self.log.log_end_offset, offset)  # fmt: skip
        await asyncio.shield(operation)

    async def start_over(self, following: Following, start_offset: int, snapshot: bytes) -> None:
        """Begin again, empty, where the leader's log starts."""
        operation = self._operate(following, start_offset, lambda: self.log.reset_to(start_offset, snapshot))
        self._note(EventKind.STARTS_OVER, start_offset)
        log.info("starting over topic=%s partition=%d end=%d at=%d", self.topic.name, self.key[1],
                 self.log.log_end_offset, start_offset)  # fmt: skip
        await asyncio.shield(operation)

    def _operate(self, following: Following, end_offset: int, operation: Callable[[], None]) -> asyncio.Future[None]:
        """Begin a cut or a reset to `end_offset` in a thread. Nothing else touches the log until it has ended."""
        if self.role is not following or self._operation is not None:
            raise self._not_leader(f"{self.key} does not follow under epoch {following.epoch} any more")
        if end_offset < self.high_watermark:
            # Only an unclean election, which an operator ordered, can ask for this.
            log.error(
                "truncating below the high watermark topic=%s partition=%d leader=%d epoch=%d high_watermark=%d to=%d",
                self.topic.name, self.key[1], following.leader, following.epoch, self.high_watermark, end_offset,
            )  # fmt: skip
            self._high_watermark = end_offset
        self._operation = asyncio.get_running_loop().run_in_executor(None, operation)
        self._operation.add_done_callback(self._operated)
        return self._operation

    def _operated(self, operation: asyncio.Future[None]) -> None:
        self._operation = None
        self.look_at_log()
        # A cut may have ended below what was asked, at a border of batches; a log that has been started over has
        # everything below its start committed. So the high watermark lies within the log, and goes on from there.
        self._high_watermark = min(max(self._high_watermark, self.log.base_offset), self.log.log_end_offset)
        error = None if operation.cancelled() else operation.exception()
        if isinstance(error, errors.StorageError):
            self.disk_refuses(error)
        elif error is not None and not isinstance(error, errors.CorruptMessage):  # of a snapshot that was not taken
            self.fail(str(error))
        if self.role is None:
            self._begin_role()
            self._calls.role_changed(self)

    # ---- The end ----

    async def stop(self) -> None:
        """End the role; nothing touches the log any more."""
        self._closed = True
        self._end_role()
        if self._operation is not None:
            await asyncio.wait([self._operation])

    async def close(self, clean: bool) -> None:
        """Stop, and close the log; with `clean`, synced and with a snapshot at its end."""
        await self.stop()
        await asyncio.to_thread(self.close_log, clean)

    def close_log(self, clean: bool) -> None:
        """[thread] After `stop`. Raises StorageError."""
        self.log.close(clean and not self.failure)
