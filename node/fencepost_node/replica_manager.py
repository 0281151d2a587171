"""All replicas of one broker: which there are, and that each plays the role that the controller's metadata gives it.

`apply_in_turns` takes each metadata image: fences and leaderships stand when it returns, so that its version may be
acknowledged to the controller. It looks at what has changed and at nothing else. Where that is much, whatever is due on the
event loop goes on in between; then some replicas play their new role already and others the one before, as they do on two
brokers that receive a change one after the other. One that a client or a follower asks for gets its new role at once.

What takes time (creating a folder, recovering a log, deleting one) goes through one queue, in the order of the metadata; the
role begins when the log is there. Creations that follow one another there are done side by side: each waits for the disk
more than once, and a topic may have a thousand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Protocol

from fencepost_node.config import BrokerConfig
from fencepost_node.folders.partition_folders import LOGS_PER_JOB, PartitionFolders
from fencepost_node.log.disk import Disk
from fencepost_node.log.log import Log
from fencepost_node.log.names import PARTITION_METADATA
from fencepost_node.maintenance.log_maintenance import LogMaintenance
from fencepost_node.maintenance.repairs import Repairs, StartReplicaOverClient
from fencepost_node.maintenance.scrubber import Scrubber
from fencepost_node.producers.expiry import ProducerExpiry
from fencepost_node.replication.early_subscriptions import EarlySubscriptions, may_lead_soon
from fencepost_node.replication.event_ring import EventRing
from fencepost_node.replication.follow import FollowerLink
from fencepost_node.replication.isr_proposals import AlterPartitionClient, IsrProposals
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_node.replication.replica import Following, Replica, ReplicaCalls
from fencepost_node.replication.tail import TailBudget
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.metadata import FIRST_NAMED_ID, NO_LEADER, MetadataImage, Partition, PartitionKey, Topic
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.runtime.turns import Turns

log = logging.getLogger(__name__)

CLOSING_THREADS = 4
WEIGHT_OF_A_ROLE = 4  # of a turn's steps: that of one partition with its log lines
MAX_CREATIONS = 16  # logs made at the same time; the disk syncs them together


class ReplicaController(AlterPartitionClient, StartReplicaOverClient, Protocol):
    """What the controller is asked for."""


class ReplicaManager:
    """The replicas on this broker. Raises nothing on its own: what no one can handle goes to `on_failure`."""

    def __init__(
        self,
        host: Host,
        disk: Disk,
        config: BrokerConfig,
        controller: ReplicaController,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        events = EventRing(host.wall_clock_ms)
        self.local = LocalBroker(config.broker_id, TailBudget(config.tail_bytes), events=events)
        self.replicas: dict[PartitionKey, Replica] = {}
        self.early = EarlySubscriptions()
        self.unopened: dict[PartitionKey, str] = {}  # logs that the disk refuses to open, and why
        self.on_failed_replica: Callable[[], None] = lambda: None  # set by the session: a heartbeat is due now
        self.on_lost_leader: Callable[[], None] = lambda: None  # set by the broker: see `lost_leaders`
        self.on_role_changed: Callable[[Replica], None] = lambda _: None  # set by the coordinators of groups
        self.config = config
        self._host = host
        self._disk = disk
        self._tasks = Tasks(on_failure)
        self._folders = PartitionFolders(host, disk, config)
        self._isr_proposals = IsrProposals(self.local, controller, self._tasks, config.replica_lag_time_max_ms)
        self._log_maintenance = LogMaintenance(
            host,
            disk,
            self.replicas,
            self._tasks,
            config.retention_check_interval_ms,
            expiry=ProducerExpiry(
                config.producer_expiration_ms, config.max_delivery_timeout_ms, is_kept=self._is_kept_producer
            ),
        )
        self.scrubber = Scrubber(host, disk, config, self.replicas, self._tasks)
        self._repairs = Repairs(
            host,
            self.local,
            self.replicas,
            unopened=self.unopened,
            folders=self._folders,
            controller=controller,
            tasks=self._tasks,
            in_turn=self._in_turn,
            open_again=self._open_again,
            on_recovered=self._tell_failures,
        )
        self._calls = ReplicaCalls(
            propose_isr=self._isr_proposals.propose,
            sync_soon=self._log_maintenance.sync_soon,
            snapshot_due=self._log_maintenance.maintain_soon,
            role_changed=self._role_changed,
            failures_changed=self._failures_changed,
        )
        self._links: dict[int, tuple[FollowerLink, asyncio.Task[None]]] = {}
        # At most one entry for each replica that appears (its key) or goes.
        self._work: asyncio.Queue[PartitionKey | Callable[[], Coroutine[object, object, None]]] = asyncio.Queue()
        self._expected: set[PartitionKey] = set()  # their creation is in the queue
        self._to_apply: dict[PartitionKey, Partition] = {}  # of the image; their replicas' roles are of an earlier one
        self._failing: list[PartitionKey] | None = None  # replicas that have failed or yield; None: not looked up

    @property
    def broker_id(self) -> int:
        return self.local.broker_id

    @property
    def broker_epoch(self) -> int:
        return self.local.broker_epoch

    @property
    def image(self) -> MetadataImage:
        return self.local.image

    # ---- What replicas and repairs call ----

    def _is_kept_producer(self, producer_id: int) -> bool:
        """[any thread] A named producer is not forgotten while its name is known, or no metadata says that it is not."""
        image = self.image
        return producer_id >= FIRST_NAMED_ID and (not image.version or producer_id in image.fences)

    def _failures_changed(self) -> None:
        self._tell_failures()
        self._repairs.wake()

    def _tell_failures(self) -> None:
        self._failing = None
        self.on_failed_replica()

    async def _in_turn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it when nothing else is done to the folders of logs. Raises what it raises."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def in_queue() -> None:
            try:
                await work()
            except (OSError, errors.FencepostError) as error:
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(None)

        self._work.put_nowait(in_queue)
        await done

    def _open_again(self, key: PartitionKey) -> None:
        """Try once more to open a log that could not be opened."""
        if key not in self._expected and key not in self._folders.recovered:
            self._expected.add(key)
            self._work.put_nowait(key)

    @property
    def damaged(self) -> dict[PartitionKey, str]:
        """Folders of logs that are broken below their end."""
        return self._folders.damaged

    @property
    def recovered(self) -> dict[PartitionKey, Log]:
        """Logs that wait for the metadata."""
        return self._folders.recovered

    @property
    def failed_replicas(self) -> list[PartitionKey]:
        """Replicas that the disk has refused: this broker neither leads nor follows there, or leads until another does."""
        unopened = [key for key in self.unopened if not self._waits(key)]
        if self._failing is None:
            self._failing = [replica.key for replica in self.replicas.values() if replica.failure or replica.yields]
        return [*unopened, *self._failing]

    # ---- Services ----

    def leader(self, topic_id: str, partition: int, leader_epoch: int) -> Leadership:
        """This broker's leadership of that partition. `leader_epoch` -1: whichever epoch.

        Raises UnknownTopicId, UnknownTopicOrPartition, NotLeaderOrFollower, FencedLeaderEpoch, UnknownLeaderEpoch.
        """
        entity = self._entity(topic_id, partition)
        if leader_epoch >= 0 and leader_epoch != entity.leader_epoch:
            hint = self.image.current_leader(entity)
            older = leader_epoch < entity.leader_epoch
            raise (errors.FencedLeaderEpoch if older else errors.UnknownLeaderEpoch)(
                f"leader epoch {leader_epoch} of {topic_id}-{partition} is {'older' if older else 'newer'} than "
                f"{entity.leader_epoch}, which broker {self.broker_id} knows",
                current_leader=hint,
            )
        if entity.id in self._to_apply:
            self._take_part(self._to_apply.pop(entity.id))
        replica = self.replicas.get(entity.id)
        leadership = None if replica is None else replica.leadership
        if leadership is None:
            raise errors.NotLeaderOrFollower(
                f"broker {self.broker_id} does not lead {topic_id}-{partition}",
                current_leader=self.image.current_leader(entity),
            )
        return leadership

    def lost_leaders(self, within_s: float) -> list[int]:
        """Brokers that this one follows, and whose stream has ended so lately that an election may be under way."""
        since = asyncio.get_running_loop().time() - within_s
        return [
            leader for leader, (link, _) in self._links.items() if link.lost_at is not None and link.lost_at > since
        ]

    def may_lead_soon(self, key: PartitionKey, leader_epoch: int) -> bool:
        """A caller that asks for that leadership here may know more than this broker does."""
        return may_lead_soon(self.image, self.broker_id, key, leader_epoch, log_is_coming=key in self._expected)

    def _entity(self, topic_id: str, partition: int) -> Partition:
        entity = self.image.partitions.get((topic_id, partition))
        if entity is None:
            topic = self.image.topics.get(topic_id)
            if topic is None:
                raise errors.UnknownTopicId(f"topic id {topic_id!r} is not known to broker {self.broker_id}")
            raise errors.UnknownTopicOrPartition(f"topic {topic.name} has no partition {partition}")
        return entity

    # ---- Start and end ----

    async def open_logs(self, *, power_lost: bool = True, was_clean: bool = False) -> None:
        """Recover every log in the data folder; see `PartitionFolders.recover`."""
        await self._folders.recover(power_lost=power_lost, was_clean=was_clean)

    def start(self) -> None:
        """Begin the work that goes on in the background."""
        self._tasks.spawn(self._work_queue(), "log-folders")
        self._isr_proposals.start()
        self._log_maintenance.start()
        self._tasks.spawn(self._folders.strays.watch(), "stray logs")
        self._repairs.start()
        self.scrubber.start()

    async def close(self, clean: bool) -> None:
        """End every role and close every log."""
        self.early.close()
        await self._tasks.close()
        self._links.clear()
        turns = Turns()
        for replica in self.replicas.values():
            await replica.stop()
            await turns.step()
        await self._close_logs(list(self.replicas.values()), clean)
        await self._folders.close(clean, [replica.log for replica in self.replicas.values()])

    async def _close_logs(self, replicas: Sequence[Replica], clean: bool) -> None:
        """All of them, even where the disk refuses one. Raises the first StorageError."""
        limit = asyncio.Semaphore(CLOSING_THREADS)
        refused: list[errors.StorageError] = []

        def close(some: Sequence[Replica]) -> None:
            for replica in some:
                try:
                    replica.close_log(clean)
                except errors.StorageError as error:
                    refused.append(error)

        async def close_some(some: Sequence[Replica]) -> None:
            async with limit:
                await asyncio.to_thread(close, some)

        async with asyncio.TaskGroup() as group:
            for start in range(0, len(replicas), LOGS_PER_JOB):
                group.create_task(close_some(replicas[start : start + LOGS_PER_JOB]))
        if refused:
            raise refused[0]

    # ---- Metadata ----

    def apply(self, image: MetadataImage, broker_epoch: int, *, whole: bool = False) -> None:
        """Take an image, in one step. Returns with every fence and every role of an open log in place.

        `whole`: it came as an image, not as changes of the one before. What it does not know was not deleted for all that
        this broker has received, and is set aside.
        """
        for _ in self._applying(image, broker_epoch, None, whole):
            pass

    async def apply_in_turns(
        self, image: MetadataImage, broker_epoch: int, changed: Collection[PartitionKey] | None, turns: Turns
    ) -> None:
        """As `apply`. `changed`: all partitions in which the image differs from the one before; None: it came whole.

        If it is cancelled, the next image has to come whole.
        """
        for _ in self._applying(image, broker_epoch, changed, changed is None):
            await turns.step(WEIGHT_OF_A_ROLE)

    def _applying(
        self, image: MetadataImage, broker_epoch: int, changed: Collection[PartitionKey] | None, whole: bool
    ) -> Iterator[None]:
        """A step for each partition: those that go; those that are led here as before, where writes may wait for another
        in-sync set; those with a new leader, here or elsewhere, in the order of the metadata, so that leader and followers
        come to the same ones at about the same time; and the rest."""
        if image.brokers is not self.image.brokers:
            self._isr_proposals.brokers_changed()
        self.local.image = image
        self._repairs.image_changed()
        if broker_epoch != self.broker_epoch:
            self.local.broker_epoch = broker_epoch
            for link, _ in self._links.values():
                link.reconnect()  # the streams' first message names the broker epoch
        led: dict[PartitionKey, Partition] = {}
        new: dict[PartitionKey, Partition] = {}
        rest: dict[PartitionKey, Partition] = {}
        self._to_apply = {}
        for key in self._all_keys() if changed is None else changed:
            partition = image.partitions.get(key)
            if partition is not None and self.broker_id in partition.replicas:
                replica = self.replicas.get(key)
                if replica is None or replica.leader_epoch != partition.leader_epoch:
                    new[key] = partition
                else:
                    (led if partition.leader == self.broker_id else rest)[key] = partition
            else:
                self._leave(key, delete=not whole)
                yield
        self._to_apply = to_apply = {**led, **new, **rest}
        while to_apply:
            key = next(iter(to_apply))
            self._take_part(to_apply.pop(key))
            yield
        self._retarget_links()

    def _all_keys(self) -> Collection[PartitionKey]:
        """Of every replica that is here, or is to be."""
        folders = self._folders
        here = (self.replicas, folders.recovered, self.damaged, self.unopened)
        return dict.fromkeys(chain(*here, self.image.hosted_by(self.broker_id)))

    def _leave(self, key: PartitionKey, *, delete: bool) -> None:
        """This broker has no replica there (any more): its log is deleted, or set aside."""
        if key in self.replicas:
            self._drop(key, delete=delete)
        if key in self._folders.recovered:
            opened = self._folders.recovered.pop(key)
            self._work.put_nowait(
                partial(self._folders.delete, opened) if delete else partial(self._folders.keep_stray, opened, key)
            )
        if key in self.damaged:
            folder = self.damaged.pop(key)
            self._work.put_nowait(
                partial(self._folders.remove, folder)
                if delete
                else partial(self._folders.keep_stray_folder, folder, key)
            )
        self.unopened.pop(key, None)

    def _take_part(self, partition: Partition) -> None:
        """This broker has a replica there: it gets its role, or first its log."""
        key = partition.id
        replica = self.replicas.get(key)
        if replica is not None:
            replica.apply(partition, self.image.topics[key[0]])
        elif key in self._folders.recovered and key not in self.unopened:
            self._take(partition, self.image.topics[key[0]])
        elif key not in self._expected and (key not in self.unopened or self._can_begin_anew(partition)):
            self._expected.add(key)
            self._work.put_nowait(key)

    def _hosts(self, partition: Partition | None) -> bool:
        return partition is not None and self.broker_id in partition.replicas

    def _take(self, partition: Partition, topic: Topic) -> None:
        """The role of a log that was recovered at the start."""
        try:
            opened = self._folders.take_recovered(partition.id, topic)
        except errors.StorageError as error:
            self._cannot_open(partition, topic, str(error))
        else:
            self._add(partition, topic, opened)

    def _cannot_open(self, partition: Partition, topic: Topic, reason: str) -> None:
        if self.unopened.get(partition.id) != reason:
            log.error("log cannot be opened topic=%s partition=%d error=%s", topic.name, partition.index, reason)
        self.unopened[partition.id] = reason
        self.on_failed_replica()
        self._repairs.wake()

    def _can_begin_anew(self, partition: Partition) -> bool:
        """What is in the log's place does not say that it is that log, and now another replica leads."""
        return partition.id in self._folders.unidentified and self._led_elsewhere(partition)

    def _waits(self, key: PartitionKey) -> bool:
        """For another replica to lead. Where this one counts it fails instead: a failure stands until the next start."""
        partition = self.image.partitions.get(key)
        counts = partition is not None and self.broker_id in (partition.leader, *partition.isr, *partition.eligible)
        return key in self._folders.unidentified and not counts

    def _led_elsewhere(self, partition: Partition) -> bool:
        """Another replica leads, and does not count on this one."""
        counted = self.broker_id in (*partition.isr, *partition.eligible)
        return partition.leader not in (NO_LEADER, self.broker_id) and not counted

    def _add(self, partition: Partition, topic: Topic, opened: Log) -> None:
        if partition.id in self.replicas:
            raise InvariantBroken(f"the log of {topic.name}-{partition.index} was opened twice")
        opened.clock = self._host.wall_clock_ms
        replica = self.replicas[partition.id] = Replica(self.local, partition, topic, opened, self._calls)
        replica.apply(partition, self.image.topics[partition.topic_id])  # which may have changed while it was opened

    def _drop(self, key: PartitionKey, *, delete: bool) -> None:
        replica = self.replicas.pop(key)
        self._failing = None
        self._unfollow(key)
        self._work.put_nowait(partial(self._close_and_delete if delete else self._close_and_set_aside, replica))

    # ---- Folders: in the order of the metadata ----

    async def _work_queue(self) -> None:
        """Creations side by side; anything else alone, for a folder that goes may have the name of one that comes."""
        creating: set[asyncio.Task[None]] = set()
        while True:
            work = await self._work.get()
            most = MAX_CREATIONS - 1 if isinstance(work, tuple) else 0
            while len(creating) > most:
                _, creating = await asyncio.wait(creating, return_when=asyncio.FIRST_COMPLETED)
            if isinstance(work, tuple):
                creating.add(self._tasks.spawn(self._create(work), f"create-{work}"))
            else:
                await work()

    async def _create(self, key: PartitionKey) -> None:
        """Open the log once, whatever metadata comes meanwhile: until it is there the key stays expected."""
        try:
            await self._open_log(key)
        finally:
            self._expected.discard(key)

    async def _open_log(self, key: PartitionKey) -> None:
        partition, topic = self.image.partitions.get(key), self.image.topics.get(key[0])
        if topic is None or partition is None or not self._hosts(partition):
            return  # deleted meanwhile
        if (folder := self._folders.unidentified.get(key)) and not self._led_elsewhere(partition):
            reason = (
                f"{folder} does not say that it is this log, and no other replica leads, to make it again from. Mend "
                f"{PARTITION_METADATA} in it, or move it away for an empty log, and start the broker again"
            )
            self._cannot_open(partition, topic, reason)
            return
        try:
            self._check_room(topic, partition)
            opened = await self._opened(partition, topic)
        except (OSError, errors.StorageError) as error:
            self._cannot_open(partition, topic, str(error))
            return
        if self.unopened.pop(key, None) is not None:
            self.on_failed_replica()
        partition = self.image.partitions.get(key)
        if partition is not None and self._hosts(partition):
            self._add(partition, topic, opened)
        else:
            holds_something = opened.log_end_offset > 0  # it was a stray log, or damage has been healed by it
            await (self._folders.keep_stray(opened, key) if holds_something else self._folders.delete(opened))

    async def _opened(self, partition: Partition, topic: Topic) -> Log:
        """Raises OSError, StorageError."""
        try:
            return await self._folders.open(partition.index, topic)
        except errors.StorageError:
            await self._folders.look_at_place(partition.index, topic)
            now = self.image.partitions.get(partition.id)
            if partition.id not in self._folders.unidentified or now is None or not self._led_elsewhere(now):
                raise
        return await self._folders.open(partition.index, topic)

    async def _close_and_set_aside(self, replica: Replica) -> None:
        try:
            await replica.close(clean=True)
        except errors.StorageError as error:
            log.error("log could not be synced topic_id=%s partition=%d error=%s", *replica.key, error)
        await self._folders.keep_stray(replica.log, replica.key)

    def _check_room(self, topic: Topic, partition: Partition) -> None:
        """Raises StorageError where one more log is one too many."""
        most = self._disk.most_logs()
        if len(self.replicas) >= most:
            raise errors.StorageError(
                f"{topic.name}-{partition.index} would be one more than {most} logs, the most that broker "
                f"{self.broker_id} can keep with its budget of open files: raise 'ulimit -n' or max_open_files"
            )

    async def _close_and_delete(self, replica: Replica) -> None:
        await replica.close(clean=False)
        await self._folders.delete(replica.log)

    # ---- Links to leaders ----

    def _role_changed(self, replica: Replica) -> None:
        """Make the links fit the replica's role."""
        self.on_role_changed(replica)
        role = replica.role
        if not isinstance(role, Following):
            self._unfollow(replica.key)
            if replica.is_leader:
                self.early.leadership_began(replica.key)
            return
        link = self._links[role.leader][0] if role.leader in self._links else None
        if link is not None and link.following(replica.key) is role:
            return
        self._unfollow(replica.key)
        if link is None:
            link = FollowerLink(self._host, self.local, role.leader)
            link.on_lost = self.on_lost_leader
            task = self._tasks.spawn(link.run(), f"follow-{role.leader}")
            self._links[role.leader] = (link, task)
        link.follow(replica, role)

    def _unfollow(self, key: PartitionKey) -> None:
        for link, _ in self._links.values():
            link.unfollow(key)

    def _retarget_links(self) -> None:
        """End links that nothing follows on; begin again those whose broker has moved or started again."""
        for leader, (link, task) in list(self._links.items()):
            broker = self.image.brokers.get(leader)
            if link.idle:
                task.cancel()
                del self._links[leader]
            elif broker is not None and link.address not in ("", broker.address):
                link.reconnect()
