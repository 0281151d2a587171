"""The coordinators of one broker: which group is whose, and one shell for each partition of the internal topic led here.

The coordinator of a group is the leader of partition `hash(group id) mod n` of `__consumer_offsets`, with the hash that
Kafka takes. So it moves when leaders move, and no one has to be told but by metadata.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from fencepost_node.config import BrokerConfig
from fencepost_node.controller_link import ControllerLink
from fencepost_node.coordination.coordinator import Answer, Question
from fencepost_node.coordination.limits import MAX_ID_CHARACTERS
from fencepost_node.coordination.messages import ListedGroup
from fencepost_node.coordination.moment import ConsumerSettings, TopicFacts
from fencepost_node.coordinators.internal_topic import create_internal_topic
from fencepost_node.coordinators.partition_coordinator import GroupSettings, PartitionCoordinator
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC, group_hash
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage, Partition, PartitionKey
from fencepost_proto.protocol.topic_ids import to_wire
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

MAX_PREFIX_CHARACTERS = 200  # of a member id that is made here
SWEEP_INTERVAL_S = 600.0  # as Kafka's `offsets.retention.check.interval.ms`


class ImageTopics:
    """The topics of one metadata image, for those who assign their partitions."""

    def __init__(self, image: MetadataImage) -> None:
        self.version = image.version
        self._image = image

    def find(self, name: str) -> TopicFacts | None:
        topic_id = self._image.topic_ids.get(name)
        if topic_id is None:
            return None
        return TopicFacts(to_wire(topic_id), len(self._image.partitions_of(topic_id)))


class GroupCoordinators:
    """Made once for a broker. `start` before the first metadata comes."""

    def __init__(
        self,
        host: Host,
        config: BrokerConfig,
        manager: ReplicaManager,
        feed: MetadataFeed,
        *,
        link: ControllerLink,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._host = host
        self._config = config
        self._manager = manager
        self._feed = feed
        self._link = link
        self._tasks = Tasks(on_failure)
        self._settings = GroupSettings(
            config.group_initial_rebalance_delay_ms,
            config.offsets_retention_ms,
            ConsumerSettings(
                config.group_consumer_session_timeout_ms / 1000, config.group_consumer_heartbeat_interval_ms
            ),
        )
        self._led: dict[PartitionKey, PartitionCoordinator] = {}
        self._absent: frozenset[str] = frozenset()  # topics that offsets name and that were not there at the last sweep
        self._creating = asyncio.Lock()

    def start(self) -> None:
        self._manager.on_role_changed = self._role_changed
        self._tasks.spawn(self._sweep_for_ever(), "group-offsets")

    async def close(self) -> None:
        await self._tasks.close()

    # ---- Which partitions are led here ----

    def _role_changed(self, replica: Replica) -> None:
        if replica.topic.name == OFFSETS_TOPIC:
            self._of_replica(replica)

    def _of_replica(self, replica: Replica) -> PartitionCoordinator | None:
        """The coordinator of its leadership; None where it does not lead."""
        leadership = replica.leadership
        known = self._led.get(replica.key)
        if known is not None and known.leadership is leadership:
            return known
        self._led.pop(replica.key, None)  # its leadership has told it of its end
        if leadership is None:
            return None
        began = self._led[replica.key] = PartitionCoordinator(
            leadership, self._settings, self._host.wall_clock_ms, lambda: ImageTopics(self._manager.image)
        )
        self._tasks.spawn(began.load(), f"load {leadership.name}")
        return began

    # ---- Questions ----

    def partition_of(self, group_id: str) -> Partition | None:
        """The partition whose leader coordinates that group; None: there is no internal topic yet."""
        image = self._manager.image
        topic_id = image.topic_ids.get(OFFSETS_TOPIC)
        partitions = image.partitions_of(topic_id) if topic_id is not None else []
        return partitions[group_hash(group_id) % len(partitions)] if partitions else None

    async def find(self, group_id: str, timeout_s: float) -> int:
        """The broker that coordinates that group. The internal topic is created if it is not there yet.

        Raises CoordinatorNotAvailable, InvalidGroupId.
        """
        if len(group_id) > MAX_ID_CHARACTERS:
            raise errors.InvalidGroupId(
                f"a group id of {len(group_id)} characters: at most {MAX_ID_CHARACTERS} are possible"
            )
        partition = self.partition_of(group_id)
        if partition is None:
            async with self._creating:
                if self.partition_of(group_id) is None:
                    await create_internal_topic(OFFSETS_TOPIC, self._link, self._feed, self._config, timeout_s)
            partition = self.partition_of(group_id)
        if partition is None or partition.leader == NO_LEADER:
            raise errors.CoordinatorNotAvailable(
                f"the partition of {OFFSETS_TOPIC} that group {group_id!r} belongs to has no leader"
            )
        return partition.leader

    def fresh_member_id(self, prefix: str) -> str:
        """For a member that has none yet: with its client id, or its instance id, in front, for who reads logs."""
        return f"{prefix[:MAX_PREFIX_CHARACTERS]}-{UUID(bytes=self._host.random.randbytes(16), version=4)}"

    async def ask(self, question: Question) -> Answer:
        """The answer of that group's coordinator; an error is returned, not raised."""
        counts, name, time = self._manager.local.counts.groups, type(question).__name__, asyncio.get_running_loop().time
        began = time()
        try:
            answer = await self._here(question.group_id).ask(question)
        except FencepostError as error:
            answer = error
        finally:
            counts.of(name).add(time() - began)
        if isinstance(answer, FencepostError):
            counts.refused[name, answer.code.name] += 1
        return answer

    def refusal(self, group_id: str) -> FencepostError | None:
        """Why this broker does not coordinate that group; None: it does."""
        try:
            self._here(group_id)
        except FencepostError as error:
            return error
        return None

    def _here(self, group_id: str) -> PartitionCoordinator:
        """Raises NotCoordinator."""
        partition = self.partition_of(group_id)
        if partition is None:
            raise errors.NotCoordinator(f"there is no {OFFSETS_TOPIC} yet: find the coordinator of group {group_id!r}")
        return self._of_partition(partition.id, f"group {group_id!r}")

    def _of_partition(self, key: PartitionKey, what: str) -> PartitionCoordinator:
        """Raises NotCoordinator."""
        try:
            self._manager.leader(*key, -1)  # its role may be due
        except FencepostError as error:
            raise errors.NotCoordinator(f"{what}: {error.message}") from error
        found = self._of_replica(self._manager.replicas[key])
        if found is None:
            raise errors.NotCoordinator(f"broker {self._config.broker_id} does not coordinate {what}")
        return found

    def list_of_partition(self, index: int) -> list[ListedGroup]:
        """The groups of one partition of the internal topic. Raises NotCoordinator, CoordinatorLoadInProgress."""
        topic_id = self._manager.image.topic_ids.get(OFFSETS_TOPIC)
        if topic_id is None:
            raise errors.NotCoordinator(f"there is no {OFFSETS_TOPIC} yet")
        return self._of_partition((topic_id, index), f"the groups of {OFFSETS_TOPIC}-{index}").list_groups()

    def list_groups(self) -> tuple[list[ListedGroup], FencepostError | None]:
        """The groups that are coordinated here, and an error where those of some partition are not known yet."""
        found: list[ListedGroup] = []
        trouble: FencepostError | None = None
        for coordinator in list(self._led.values()):
            try:
                found += coordinator.list_groups()
            except errors.NotCoordinator:
                continue
            except FencepostError as error:
                trouble = error
        return found, trouble

    # ---- Forgetting ----

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            await self.sweep()

    async def sweep(self) -> None:
        """A topic has to be away twice: a controller that was recovered may not know it at once."""
        image = self._manager.image
        absent: set[str] = set()

        def is_gone(topic: str, topic_id: bytes) -> bool:
            known = image.topic_ids.get(topic)
            if known is None:
                absent.add(topic)
                return topic in self._absent
            return any(topic_id) and to_wire(known) != topic_id

        for coordinator in list(self._led.values()):
            await coordinator.sweep(is_gone)
        self._absent = frozenset(absent)
