"""All replicas of one broker: which there are, and that each plays the role that the controller's metadata gives it.

`apply` takes each metadata image in one synchronous step: fences and leaderships stand the moment it returns, so its
version may be acknowledged to the controller. What takes time (creating a folder, recovering a log, deleting one) goes
through one queue, in the order of the metadata; the role begins when the log is there.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Protocol

from fencepost_node.config import BrokerConfig
from fencepost_node.log.disk import Disk
from fencepost_node.log.log import CorruptLog, Log, LogConfig, read_topic_id
from fencepost_node.replica import Following, Replica
from fencepost_node.replication.follow import FollowerLink
from fencepost_node.replication.leader_state import Proposal
from fencepost_node.replication.leadership import Leadership
from fencepost_proto import errors
from fencepost_proto.errors import ErrorCode, FencepostError, InvariantBroken
from fencepost_proto.host import Host
from fencepost_proto.metadata import MetadataImage, Partition, PartitionKey, Topic
from fencepost_proto.tasks import Tasks
from fencepost_proto.v1 import controller_pb2

log = logging.getLogger(__name__)

ISR_CHECK_INTERVAL_S = 0.25  # how often lag is looked at; joining needs no check, it follows an acknowledgement
MAINTENANCE_INTERVAL_S = 0.1  # how often logs are asked whether snapshots are due
ALTER_PARTITION_RETRY_S = 0.1
RECOVERY_THREADS = 2

_FOLDER = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)")
_DELETED_SUFFIX = ".deleted"
_DAMAGED_SUFFIX = ".damaged"


class Controller(Protocol):
    """What the manager asks of the controller."""

    async def alter_partition(
        self, request: controller_pb2.AlterPartitionRequest
    ) -> controller_pb2.AlterPartitionResponse: ...


class ReplicaManager:
    """The replicas on this broker. Raises nothing on its own: what no one can handle goes to `on_failure`."""

    def __init__(
        self,
        host: Host,
        disk: Disk,
        config: BrokerConfig,
        controller: Controller,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.image = MetadataImage()
        self.broker_epoch = -1
        self.replicas: dict[PartitionKey, Replica] = {}
        self.damaged: dict[PartitionKey, str] = {}  # folders of logs that are broken below their end
        self.unopened: dict[PartitionKey, str] = {}  # logs that the disk refuses to open, and why
        self.on_failed_replica: Callable[[], None] = lambda: None  # set by the session: a heartbeat is due now
        self._host = host
        self._disk = disk
        self.config = config
        self._controller = controller
        self._tasks = Tasks(on_failure)
        self._found: dict[PartitionKey, Log] = {}  # recovered at start, not yet in the metadata
        self._links: dict[int, tuple[FollowerLink, asyncio.Task[None]]] = {}
        # At most one entry for each replica that appears or goes.
        self._work: asyncio.Queue[Callable[[], Coroutine[object, object, None]]] = asyncio.Queue()
        self._expected: set[PartitionKey] = set()  # their creation is in the queue
        self._syncing: set[PartitionKey] = set()

    # ---- What replicas ask (ReplicaOwner) and links ask (LinkOwner) ----

    @property
    def broker_id(self) -> int:
        return self.config.broker_id

    @property
    def tail_bytes(self) -> int:
        return self.config.tail_bytes

    def propose_isr(self, leadership: Leadership) -> None:
        if self.broker_epoch < 0:
            return
        eligible = frozenset(b.id for b in self.image.brokers.values() if not b.fenced and not b.shutting_down)
        lag_max_s = self.config.replica_lag_time_max_ms / 1000
        proposal = leadership.state.propose(eligible, lag_max_s, asyncio.get_running_loop().time())
        if proposal is not None:
            self._tasks.spawn(self._alter_partition(leadership, proposal), f"alter-partition-{leadership.replica.key}")

    def sync_soon(self, replica: Replica) -> None:
        if replica.key not in self._syncing:
            self._syncing.add(replica.key)
            self._tasks.spawn(self._sync(replica), f"sync-{replica.key}")

    def replica_failed(self) -> None:
        self.on_failed_replica()

    @property
    def failed_replicas(self) -> list[PartitionKey]:
        """Replicas that the disk has refused: this broker neither leads nor follows there."""
        return [*self.unopened, *(replica.key for replica in self.replicas.values() if replica.failure)]

    # ---- Services ----

    def leader(self, topic_id: str, partition: int, leader_epoch: int) -> Replica:
        """The replica that leads here. `leader_epoch` -1: whichever epoch.

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
        replica = self.replicas.get(entity.id)
        if replica is None or not replica.is_leader:
            raise errors.NotLeaderOrFollower(
                f"broker {self.broker_id} does not lead {topic_id}-{partition}",
                current_leader=self.image.current_leader(entity),
            )
        return replica

    def _entity(self, topic_id: str, partition: int) -> Partition:
        entity = self.image.partitions.get((topic_id, partition))
        if entity is None:
            topic = self.image.topics.get(topic_id)
            if topic is None:
                raise errors.UnknownTopicId(f"topic id {topic_id!r} is not known to broker {self.broker_id}")
            raise errors.UnknownTopicOrPartition(f"topic {topic.name} has no partition {partition}")
        return entity

    # ---- Start and end ----

    async def open_logs(self, *, power_lost: bool = True) -> None:
        """Recover every log in the data folder. Raises OSError, StorageError where the disk cannot be read.

        `power_lost`: the machine may have gone down with unsynced data. Otherwise a log may only lack an unfinished append;
        one that lacks more is damaged, since its replica counts as in sync.
        """
        data_dir = self.config.data_dir
        limit = asyncio.Semaphore(RECOVERY_THREADS)

        async def recover(folder: str, topic_id: str, partition: int) -> None:
            async with limit:
                try:
                    self._found[(topic_id, partition)] = await asyncio.to_thread(
                        Log.open,
                        self._disk,
                        folder,
                        self._log_config(topic_id, None),
                        self._host.wall_clock_ms(),
                        power_lost=power_lost,
                    )
                except CorruptLog as error:
                    log.error("log is damaged folder=%s error=%s", folder, error)
                    self.damaged[(topic_id, partition)] = folder

        async with asyncio.TaskGroup() as group:
            for name in self._disk.list(data_dir):
                folder = f"{data_dir}/{name}"
                if name.endswith(_DELETED_SUFFIX):
                    await asyncio.to_thread(self._disk.remove_tree, folder)
                elif (match := _FOLDER.fullmatch(name)) and (topic_id := read_topic_id(self._disk, folder)):
                    group.create_task(recover(folder, topic_id, int(match["partition"])))

    def start(self) -> None:
        """Begin the work that goes on in the background."""
        self._tasks.spawn(self._work_queue(), "log-folders")
        self._tasks.spawn(self._check_isr(), "isr")
        self._tasks.spawn(self._maintain(), "maintenance")
        self._tasks.spawn(self._retain(), "retention")

    async def close(self, clean: bool) -> None:
        """End every role and close every log."""
        await self._tasks.close()
        self._links.clear()
        for replica in self.replicas.values():
            await replica.close(clean)
        for found in self._found.values():
            await asyncio.to_thread(found.close, clean)

    # ---- Metadata ----

    def apply(self, image: MetadataImage, broker_epoch: int) -> None:
        """Take an image, or the next one. Returns with every fence and every role of an open log in place."""
        old, self.image = self.image, image
        if broker_epoch != self.broker_epoch:
            self.broker_epoch = broker_epoch
            for link, _ in self._links.values():
                link.reconnect()  # the streams' first message names the broker epoch
        for key in [key for key in self.replicas if not self._hosts(image.partitions.get(key))]:
            self._drop(key)
        for key in [
            key for key in self._found if key not in image.partitions or not self._hosts(image.partitions[key])
        ]:
            found = self._found.pop(key)
            self._work.put_nowait(partial(self._delete, found))
        for key in [key for key in self.damaged if not self._hosts(image.partitions.get(key))]:
            self._work.put_nowait(partial(self._remove, self.damaged.pop(key)))
        for key in [key for key in self.unopened if not self._hosts(image.partitions.get(key))]:
            del self.unopened[key]
        for key, partition in image.partitions.items():
            if not self._hosts(partition):
                continue
            replica = self.replicas.get(key)
            if replica is not None:
                if old.partitions.get(key) is not partition:
                    replica.apply(partition)
            elif key in self._found:
                found = self._found.pop(key)
                topic = image.topics[key[0]]
                found.config = self._log_config(topic.topic_id, topic)
                self._add(partition, topic, found)
            elif key not in self._expected:
                self._expected.add(key)
                self._work.put_nowait(partial(self._create, key))
        self._retarget_links()

    def _hosts(self, partition: Partition | None) -> bool:
        return partition is not None and self.broker_id in partition.replicas

    def _add(self, partition: Partition, topic: Topic, opened: Log) -> None:
        if partition.id in self.replicas:
            raise InvariantBroken(f"the log of {topic.name}-{partition.index} was opened twice")
        replica = self.replicas[partition.id] = Replica(self, partition, topic, opened)
        replica.apply(partition)

    def _drop(self, key: PartitionKey) -> None:
        replica = self.replicas.pop(key)
        self._unfollow(key)
        self._work.put_nowait(partial(self._close_and_delete, replica))

    # ---- Folders: one thing at a time, in the order of the metadata ----

    async def _work_queue(self) -> None:
        while True:
            work = await self._work.get()
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
        folder = f"{self.config.data_dir}/{topic.name}-{partition.index}"
        config = self._log_config(topic.topic_id, topic)
        try:
            if key in self.damaged:
                await asyncio.to_thread(self._set_aside, self.damaged.pop(key), _DAMAGED_SUFFIX)
            opened = await asyncio.to_thread(Log.open, self._disk, folder, config, self._host.wall_clock_ms())
        except (OSError, errors.StorageError) as error:
            log.error("log cannot be opened folder=%s error=%s", folder, error)
            self.unopened[key] = str(error)
            self.on_failed_replica()
            return
        partition = self.image.partitions.get(key)
        if partition is not None and self._hosts(partition):
            self._add(partition, topic, opened)
        else:
            await self._delete(opened)

    async def _close_and_delete(self, replica: Replica) -> None:
        await replica.close(clean=False)
        await self._remove(replica.log.directory)

    async def _delete(self, opened: Log) -> None:
        await asyncio.to_thread(opened.close, False)
        await self._remove(opened.directory)

    async def _remove(self, folder: str) -> None:
        """Renamed first: a deletion is never visible half done."""
        log.info("deleting folder=%s", folder)
        try:
            aside = await asyncio.to_thread(self._set_aside, folder, _DELETED_SUFFIX)
            await asyncio.to_thread(self._disk.remove_tree, aside)
        except OSError as error:
            log.error("folder cannot be deleted folder=%s error=%s", folder, error)

    def _set_aside(self, folder: str, suffix: str) -> str:
        number = 0
        while self._disk.exists(aside := f"{folder}.{number}{suffix}"):
            number += 1
        self._disk.rename(folder, aside)
        self._disk.sync_directory(self.config.data_dir)
        return aside

    def _log_config(self, topic_id: str, topic: Topic | None) -> LogConfig:
        """The log's settings; the defaults of topics until the metadata is there."""
        settings = topic.config if topic else Topic(topic_id, "").config
        return LogConfig(
            topic_id=topic_id,
            segment_bytes=settings.segment_bytes,
            retention_ms=settings.retention_ms,
            retention_bytes=settings.retention_bytes,
            snapshot_interval_bytes=self.config.snapshot_interval_bytes,
            producer_expiration_ms=self.config.producer_expiration_ms,
        )

    # ---- Links to leaders ----

    def role_changed(self, replica: Replica) -> None:
        """Make the links fit the replica's role."""
        role = replica.role
        if not isinstance(role, Following):
            self._unfollow(replica.key)
            return
        link = self._links[role.leader][0] if role.leader in self._links else None
        if link is not None and link.following(replica.key) is role:
            return
        self._unfollow(replica.key)
        if link is None:
            link = FollowerLink(self._host, self, role.leader)
            task = self._tasks.spawn(link.run(), f"follow-{role.leader}")
            self._links[role.leader] = (link, task)
        link.follow(replica, role)

    def _unfollow(self, key: PartitionKey) -> None:
        for link, _ in self._links.values():
            link.unfollow(key)

    def _retarget_links(self) -> None:
        """End links that nothing follows on; begin anew those whose broker has moved or started again."""
        for leader, (link, task) in list(self._links.items()):
            broker = self.image.brokers.get(leader)
            if link.idle:
                task.cancel()
                del self._links[leader]
            elif broker is not None and link.address not in ("", broker.address):
                link.reconnect()

    # ---- In the background ----

    async def _alter_partition(self, leadership: Leadership, proposal: Proposal) -> None:
        """Ask until the controller has definitely answered, or the proposal is closed by metadata."""
        replica, partition = leadership.replica, leadership.state.partition
        brokers = self.image.brokers
        request = controller_pb2.AlterPartitionRequest(
            broker_id=self.broker_id,
            topic_id=partition.topic_id,
            partition=partition.index,
            leader_epoch=leadership.epoch,
            partition_epoch=proposal.partition_epoch,
        )
        for member in proposal.isr:
            known = brokers[member].broker_epoch if member in brokers else -1
            joins = member not in partition.isr
            request.new_isr.add(
                broker_id=member, broker_epoch=leadership.state.broker_epoch_of(member) if joins else known
            )
        log.info(
            "proposing isr topic=%s partition=%d epoch=%d isr=%s was=%s",
            replica.topic.name, partition.index, leadership.epoch, proposal.isr, partition.isr,
        )  # fmt: skip
        while replica.role is leadership and leadership.state.proposal is proposal:
            request.broker_epoch = self.broker_epoch
            try:
                errors.raise_for((await self._controller.alter_partition(request)).error)
            except FencepostError as error:
                if error.code in _PROPOSAL_OVERTAKEN:
                    return  # metadata is on its way that closes the proposal
                if not error.retriable and error.code != ErrorCode.STALE_BROKER_EPOCH:
                    log.warning(
                        "isr refused topic=%s partition=%d error=%s", replica.topic.name, partition.index, error
                    )
                    leadership.proposal_refused(proposal)
                    return
                await asyncio.sleep(ALTER_PARTITION_RETRY_S)
            else:
                return

    async def _sync(self, replica: Replica) -> None:
        """Group commit: one sync for all that was appended before it began, then the next."""
        try:
            while (
                isinstance(role := replica.role, Leadership)
                and role.state.durable_end_offset < replica.log.log_end_offset
            ):
                try:
                    end_offset = await asyncio.to_thread(replica.log.sync)
                except errors.StorageError as error:
                    replica.fail(str(error))
                    return
                if replica.role is role:
                    role.durable(end_offset)
        finally:
            self._syncing.discard(replica.key)

    async def _check_isr(self) -> None:
        while True:
            await asyncio.sleep(ISR_CHECK_INTERVAL_S)
            for replica in list(self.replicas.values()):
                if isinstance(replica.role, Leadership):
                    self.propose_isr(replica.role)

    async def _maintain(self) -> None:
        """Snapshots and syncs that the logs have due."""
        while True:
            await asyncio.sleep(MAINTENANCE_INTERVAL_S)
            for replica in list(self.replicas.values()):
                if replica.log.maintenance_due and not replica.failure:
                    await self._on_log(replica, replica.log.maintain)

    async def _retain(self) -> None:
        while True:
            await asyncio.sleep(self.config.retention_check_interval_ms / 1000)
            for replica in list(self.replicas.values()):
                now_ms, high_watermark = self._host.wall_clock_ms(), replica.high_watermark
                await self._on_log(replica, partial(replica.log.apply_retention, now_ms, high_watermark))

    async def _on_log(self, replica: Replica, work: Callable[[], None]) -> None:
        if replica.failure or self.replicas.get(replica.key) is not replica:
            return
        try:
            await asyncio.to_thread(work)
        except errors.StorageError as error:
            replica.fail(str(error))


# The controller has already moved on from what the proposal was based on.
_PROPOSAL_OVERTAKEN = frozenset(
    (
        ErrorCode.INVALID_UPDATE_VERSION,
        ErrorCode.NEW_LEADER_ELECTED,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
    )
)
