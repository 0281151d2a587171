"""The admin client: topics, leaders, reassignments, and descriptions of producers and replicas.

Changes go through any broker, which relays them to the controller (`controller_requests`). When a call returns, this
client's own metadata shows the change.

Descriptions come from the pushed metadata; those of producers come from the partition's leader, those of replicas from every
live broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from fencepost.cluster import ClusterClient
from fencepost.consuming.partition import TopicPartition
from fencepost.controller_requests import ControllerRequests
from fencepost.descriptions import (
    BrokerReplicas,
    ClusterDescription,
    ElectionCandidate,
    PartitionProducers,
    ProducerName,
    Reassignment,
    SettingDescription,
    TopicDescription,
)
from fencepost.draining import plan_draining
from fencepost.group_admin import GroupAdmin
from fencepost.group_descriptions import (
    CommittedOffset,
    GroupDescription,
    GroupListing,
    GroupPartition,
    OffsetReset,
    ResetTo,
)
from fencepost.unclean_election import candidates
from fencepost_proto.protocol.errors import (
    BrokerIdNotRegistered,
    CurrentLeader,
    ElectionNotNeeded,
    EligibleLeadersNotAvailable,
    FencepostError,
    InvalidConfig,
    InvalidPartitions,
    InvalidRequest,
    NoReassignmentInProgress,
    TopicAlreadyExists,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import (
    NO_LEADER,
    MetadataImage,
    Setting,
    TopicConfig,
    config_from_proto,
    format_setting,
)
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2, controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.client_ids import DEFAULT_CLIENT_ID

TIMEOUT_S = 30.0  # for an answer from a partition's leader, through failures
RETRY_BACKOFF_S = 0.1
COMMIT_TIMEOUT_MS = 2_500  # for a leader to commit what its answer about producers contains
REPLICAS_TIMEOUT_S = 3.0  # for one broker's answer about its replicas, through failures
ANY_PRODUCER = -1
NOT_OPEN = "the admin client is not open: use it as `async with AdminClient(…)`"
TO_HIGH_WATERMARK = -1  # in place of an offset
MAX_REASSIGNED = 500  # partitions of one request of drain_broker


class AdminClient:
    """Operates one cluster. An async context manager."""

    def __init__(
        self, bootstrap: str | Sequence[str], *, client_id: str = DEFAULT_CLIENT_ID, host: Host | None = None
    ) -> None:
        """`client_id`: a name for logs and faults, which goes with each call. Raises InvalidConfig."""
        self._connection = ClusterClient(bootstrap, host or Host(), client_id)
        self._requests = ControllerRequests(self._connection)
        self._group_admin = GroupAdmin(self._connection)
        self._connected = False  # between start and close

    @property
    def _cluster(self) -> ClusterClient:
        """The connection. Raises InvalidRequest before the start and after the end."""
        if not self._connected:
            raise InvalidRequest(NOT_OPEN)
        return self._connection

    @property
    def _controller(self) -> ControllerRequests:
        """Requests to the controller. Raises InvalidRequest as `_cluster`."""
        if not self._connected:
            raise InvalidRequest(NOT_OPEN)
        return self._requests

    @property
    def _groups(self) -> GroupAdmin:
        """Requests to coordinators. Raises InvalidRequest as `_cluster`."""
        if not self._connected:
            raise InvalidRequest(NOT_OPEN)
        return self._group_admin

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises NetworkException where no broker answers."""
        await self._connection.start()
        self._connected = True

    async def close(self) -> None:
        """Disconnect. May be called twice."""
        self._connected = False
        await self._connection.close()

    # ---- Topics ----

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replication_factor: int = 1,
        assignments: Sequence[Sequence[int]] | None = None,
        min_insync_replicas: int | None = None,
        retention_ms: int | None = None,
        retention_bytes: int | None = None,
        segment_bytes: int | None = None,
        max_message_bytes: int | None = None,
        flush_always: bool = False,
        message_timestamp_type: str | None = None,
        message_timestamp_before_max_ms: int | None = None,
        message_timestamp_after_max_ms: int | None = None,
        exist_ok: bool = False,
    ) -> TopicDescription:
        """Create a topic; returns once every partition has a leader.

        `exist_ok`: a topic of this name that exists already is returned as it is, whatever its settings.

        `assignments`: the brokers of each partition, the preferred leader first, instead of the two counts. None: the
        default of TopicConfig; retention and timestamp bounds -1: no limit. `message_timestamp_type`: "create", the
        producer's timestamps, within the two bounds around the leader's clock; or "append", the leader's own.

        Raises TopicAlreadyExists, InvalidTopic, InvalidPartitions, InvalidReplicationFactor, InvalidReplicaAssignment,
        InvalidConfig, each naming the value.
        """
        config = {
            "min_insync_replicas": min_insync_replicas,
            "retention_ms": retention_ms,
            "retention_bytes": retention_bytes,
            "segment_bytes": segment_bytes,
            "max_message_bytes": max_message_bytes,
            "message_timestamp_before_max_ms": message_timestamp_before_max_ms,
            "message_timestamp_after_max_ms": message_timestamp_after_max_ms,
        }
        for key, value in config.items():
            if value == 0:  # on the wire 0 means the default, which is not what the caller asked for
                raise InvalidConfig(f"{key}=0 is not possible")
        request = controller_pb2.CreateTopicRequest(
            name=name,
            partitions=0 if assignments else partitions,
            replication_factor=0 if assignments else replication_factor,
            config=common_pb2.TopicConfig(
                **{key: value for key, value in config.items() if value is not None},
                flush_always=flush_always,
                message_timestamp_type=message_timestamp_type or "",
            ),
            assignments=[controller_pb2.ReplicaAssignment(replicas=replicas) for replicas in assignments or ()],
        )
        known_before = self._cluster.image.topic_ids.get(name)
        count = len(assignments) if assignments else partitions

        def mine(image: MetadataImage) -> bool:
            """The existing topic is the one asked for: the answer to an earlier attempt was lost."""
            topic_id = image.topic_ids.get(name)
            return (
                topic_id not in (None, known_before)
                and topic_id in image.topics
                and image.topics[topic_id].config == config_from_proto(request.config)
                and len(image.partitions_of(topic_id)) == count
            )

        def led(image: MetadataImage) -> bool:
            found = image.partitions_of(image.topic_ids.get(name, ""))
            return bool(found) and all(p.leader != NO_LEADER for p in found)

        try:
            await self._controller.change(lambda admin: admin.CreateTopic, request, TopicAlreadyExists, mine)
        except TopicAlreadyExists:
            if not exist_ok:
                raise
        image = await self._controller.see(led, f"topic {name!r} is made, but not every partition has a leader yet")
        return TopicDescription.of(image, image.topics[image.topic_ids[name]])

    async def create_partitions(
        self,
        topic: str,
        partitions: int,
        *,
        assignments: Sequence[Sequence[int]] | None = None,
        validate_only: bool = False,
    ) -> TopicDescription:
        """Raise the number of a topic's partitions to `partitions`; returns once each of them has a leader.

        From then on keys are spread over all of them, so that the records of one key may be in two partitions. Consumers
        that have subscribed read the new ones too. `assignments`: the brokers of each new partition,
        the preferred leader first; None: the controller places them. `validate_only`: check it, and change nothing.

        Raises UnknownTopicOrPartition, InvalidPartitions, InvalidReplicationFactor, InvalidReplicaAssignment.
        """
        topic_id = (await self._cluster.topic(topic)).topic_id
        request = controller_pb2.CreatePartitionsRequest(
            name=topic,
            partitions=partitions,
            assignments=[controller_pb2.ReplicaAssignment(replicas=replicas) for replicas in assignments or ()],
            validate_only=validate_only,
        )
        if validate_only:
            await self._controller.ask(lambda admin: admin.CreatePartitions, request)
            return await self.describe_topic(topic)

        def mine(image: MetadataImage) -> bool:
            return len(image.partitions_of(topic_id)) == partitions

        def led(image: MetadataImage) -> bool:
            found = image.partitions_of(topic_id)
            return len(found) >= partitions and all(p.leader != NO_LEADER for p in found[:partitions])

        await self._controller.change(lambda admin: admin.CreatePartitions, request, InvalidPartitions, mine)
        await self._controller.see(
            led, f"topic {topic!r} has {partitions} partitions, but not every one has a leader yet"
        )
        return await self.describe_topic(topic)

    async def alter_topic(
        self, topic: str, *, reset: Sequence[str] = (), validate_only: bool = False, **settings: Setting
    ) -> TopicConfig:
        """Change settings of a topic while it runs, those of `TopicConfig` by their names: `retention_ms=60_000`.

        `reset`: settings that get their defaults. Returns all settings as they are then; brokers apply a change within
        moments. `validate_only`: check it, and change nothing. Raises UnknownTopicOrPartition, or InvalidConfig naming a
        setting that is unknown or a value that is not possible.
        """
        request = controller_pb2.AlterTopicConfigRequest(
            name=topic,
            set=[
                controller_pb2.TopicSetting(name=name, value=format_setting(value)) for name, value in settings.items()
            ],
            reset=reset,
            validate_only=validate_only,
        )
        if validate_only:
            await self._controller.ask(lambda admin: admin.AlterTopicConfig, request)
        else:
            await self._controller.change(lambda admin: admin.AlterTopicConfig, request, None)
        return (await self.describe_topic(topic)).config

    async def delete_records(self, topic: str, offsets: Mapping[int, int | None]) -> dict[int, int]:
        """Delete the records at the beginning of partitions: for each its number, and the offset below which all goes.

        None: all that is committed. Returns where each partition begins then. When it returns no reader is given these
        records any more, whichever replica leads; disk space is free a moment later, by whole segments.

        Raises UnknownTopicOrPartition, OffsetOutOfRange above the high watermark, or a retriable error where no leader
        answers in time.
        """
        topic_id = (await self._cluster.topic(topic)).topic_id
        for partition in offsets:
            if (topic_id, partition) not in self._cluster.image.partitions:
                raise UnknownTopicOrPartition(f"topic {topic!r} has no partition {partition}")
        starts: dict[int, int] = {}
        for partition, offset in sorted(offsets.items()):
            end_offset = TO_HIGH_WATERMARK if offset is None else offset
            if offset is not None and offset < 0:
                raise InvalidRequest(f"offset {offset} of {topic}-{partition} is negative")

            def request(
                leader: CurrentLeader, partition: int = partition, end_offset: int = end_offset
            ) -> broker_pb2.DeleteRecordsRequest:
                return broker_pb2.DeleteRecordsRequest(
                    topic_id=topic_id, partition=partition, leader_epoch=leader.leader_epoch, end_offset=end_offset
                )

            answer = await self._cluster.call_leader(
                (topic_id, partition), lambda broker: broker.DeleteRecords, request, timeout_s=TIMEOUT_S
            )
            starts[partition] = answer.log_start_offset
        return starts

    async def delete_topic(self, name: str) -> None:
        """Remove a topic and all its records. Raises UnknownTopicOrPartition."""
        known = self._cluster.image.topic_ids.get(name)
        request = controller_pb2.DeleteTopicRequest(name=name)
        await self._controller.change(
            lambda admin: admin.DeleteTopic,
            request,
            UnknownTopicOrPartition,
            lambda image: image.topic_ids.get(name, known) != known or name not in image.topic_ids,
        )

    async def list_topics(self) -> list[str]:
        """The names of all topics, sorted."""
        return sorted(self._cluster.image.topic_ids)

    async def describe_topic(self, name: str) -> TopicDescription:
        """Raises UnknownTopicOrPartition."""
        topic = await self._cluster.topic(name)
        return TopicDescription.of(self._cluster.image, topic)

    async def describe_topics(self, *names: str) -> dict[str, TopicDescription]:
        """By name; without arguments, of all topics. Raises UnknownTopicOrPartition."""
        return {name: await self.describe_topic(name) for name in names or await self.list_topics()}

    async def describe_topic_config(self, topic: str) -> list[SettingDescription]:
        """A topic's settings with their defaults, by name. Raises UnknownTopicOrPartition."""
        return SettingDescription.of_topic((await self._cluster.topic(topic)).config)

    # ---- The cluster ----

    async def describe_broker_config(self, broker_id: int) -> list[SettingDescription]:
        """The settings of a live broker's process with their defaults, by name.

        Raises BrokerIdNotRegistered, or NetworkException or RequestTimedOut where it does not answer.
        """
        broker = self._cluster.image.brokers.get(broker_id)
        if broker is None:
            raise BrokerIdNotRegistered(f"broker {broker_id} is not registered")
        answer = await self._cluster.call_broker(
            lambda stub: stub.DescribeBrokerConfig,
            broker_pb2.DescribeBrokerConfigRequest(),
            address=broker.address,
            timeout_s=REPLICAS_TIMEOUT_S,
        )
        return SettingDescription.of_broker(answer)

    async def describe_cluster(self) -> ClusterDescription:
        """The brokers, live or fenced."""
        return ClusterDescription.of(self._cluster.image)

    async def describe_producers(
        self, topic: str, partition: int, *, producer_id: int | None = None, committed: bool = True
    ) -> PartitionProducers:
        """The producer state of a partition's leader: of one producer, or of all.

        `committed`: answer once everything in the answer is committed; else the state as it is now. Raises
        UnknownTopicOrPartition, or a retriable error where no leader answers in time.
        """
        key = ((await self._cluster.topic(topic)).topic_id, partition)
        request = broker_pb2.DescribeProducersRequest(
            topic_id=key[0],
            partition=partition,
            producer_id=ANY_PRODUCER if producer_id is None else producer_id,
            commit_timeout_ms=COMMIT_TIMEOUT_MS if committed else 0,
        )

        def same(_: CurrentLeader) -> broker_pb2.DescribeProducersRequest:
            return request

        if key not in self._cluster.image.partitions:
            raise UnknownTopicOrPartition(f"topic {topic!r} has no partition {partition}")
        answer = await self._cluster.call_leader(
            key, lambda broker: broker.DescribeProducers, same, timeout_s=TIMEOUT_S
        )
        return await PartitionProducers.of(topic, partition, answer)

    async def describe_replicas(self) -> dict[int, BrokerReplicas]:
        """The replicas on every live broker, by broker id. Where a broker does not answer, `failure` says why."""
        return await self._replicas_on(self._cluster.image)

    async def _replicas_on(self, image: MetadataImage) -> dict[int, BrokerReplicas]:
        brokers = [broker for _, broker in sorted(image.brokers.items()) if not broker.fenced]
        answers = await asyncio.gather(*(self._replicas_of(broker.id, broker.address) for broker in brokers))
        return {answer.broker_id: answer for answer in answers}

    async def _replicas_of(self, broker_id: int, address: str) -> BrokerReplicas:
        """Ask a live broker until it answers or times out. While the connection to a broker that has just come back
        waits for its next attempt, calls fail without being sent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REPLICAS_TIMEOUT_S
        request = broker_pb2.DescribeLogDirsRequest()
        while True:
            try:
                answer = await self._cluster.call_broker(
                    lambda broker: broker.DescribeLogDirs, request, address=address, timeout_s=deadline - loop.time()
                )
            except FencepostError as error:
                if not error.retriable or loop.time() + RETRY_BACKOFF_S >= deadline:
                    return BrokerReplicas(broker_id, (), failure=str(error))
                await asyncio.sleep(RETRY_BACKOFF_S)
            else:
                return BrokerReplicas.of(self._cluster.image, answer)

    # ---- Leaders and replicas ----

    async def elect_leader(
        self, topic: str, partition: int, *, unclean: bool = False, leader: int | ElectionCandidate | None = None
    ) -> None:
        """Elect the preferred leader; with `unclean`, an out-of-sync replica of a partition that has no leader.

        An unclean election may lose acknowledged records: those that the new leader does not hold. `leader` (unclean
        only): which broker, or which of `unclean_candidates`, which is then elected only if it has not restarted since;
        None: the best of them. Raises ElectionNotNeeded (also where another broker has come to lead after an answer was
        lost), PreferredLeaderNotAvailable, EligibleLeadersNotAvailable, UnknownTopicOrPartition.
        """
        request = controller_pb2.ElectLeaderRequest(topic_name=topic, partition=partition, unclean=unclean)
        if unclean:
            if leader is None:
                leader = (await self.unclean_candidates(topic, partition))[0]
            if isinstance(leader, int):
                request.leader = leader
            elif leader.failure:
                raise EligibleLeadersNotAvailable(
                    f"{topic}-{partition}: broker {leader.broker_id} cannot be elected: {leader.failure}"
                )
            else:
                request.leader, request.leader_broker_epoch = leader.broker_id, leader.broker_epoch

        def is_so(image: MetadataImage) -> bool:
            found = image.partitions.get((image.topic_ids.get(topic, ""), partition))
            return not unclean or (found is not None and found.leader == request.leader)

        await self._controller.change(lambda admin: admin.ElectLeader, request, ElectionNotNeeded, is_so)

    async def unclean_candidates(self, topic: str, partition: int) -> list[ElectionCandidate]:
        """Every replica of a partition without a leader, and how much of the log its broker says that it holds: the best
        candidate first, those that cannot be elected last. Raises ElectionNotNeeded, UnknownTopicOrPartition."""
        key = ((await self._cluster.topic(topic)).topic_id, partition)
        image = self._cluster.image
        found = image.partitions.get(key)
        if found is None:
            raise UnknownTopicOrPartition(f"topic {topic!r} has no partition {partition}")
        if found.leader != NO_LEADER:
            raise ElectionNotNeeded(f"{topic}-{partition}: broker {found.leader} leads")
        return candidates(image, found, await self._replicas_on(image))

    async def reassign_partitions(self, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
        """Start moving partitions to other brokers (partition -> brokers, the preferred leader first).

        Returns once the reassignment is under way; `list_reassignments` shows when it is done. Raises
        InvalidReplicaAssignment, UnknownTopicOrPartition.
        """
        for partition, brokers in replicas.items():
            if not brokers:  # on the wire it would mean: cancel
                raise InvalidConfig(f"{topic}-{partition}: a partition needs a broker")
        await self._reassign(topic, replicas)

    async def cancel_reassignment(self, topic: str, *partitions: int) -> None:
        """Return to the replicas from before the reassignment. Raises NoReassignmentInProgress, UnknownTopicOrPartition."""
        await self._reassign(topic, dict.fromkeys(partitions, ()), NoReassignmentInProgress)

    async def list_reassignments(self) -> list[Reassignment]:
        """The reassignments under way, sorted by topic and partition."""
        image = self._cluster.image
        return sorted(
            (
                Reassignment(image.topics[p.topic_id].name, p.index, p.replicas, p.adding, p.removing)
                for p in image.partitions.values()
                if p.topic_id in image.topics and (p.adding or p.removing)
            ),
            key=lambda reassignment: (reassignment.topic, reassignment.partition),
        )

    # ---- Brokers ----

    async def drain_broker(self, broker_id: int) -> int:
        """Start moving every replica of a broker to other live brokers (`draining.py` chooses them).

        Returns how many partitions still have a replica on the broker, including those that are being moved: 0 once all have
        moved. Call it again to see the progress; partitions that are being moved already are left alone. Raises
        InvalidReplicaAssignment where there are too few other live brokers.
        """
        image = self._cluster.image
        for topic, targets in plan_draining(image, broker_id).items():
            numbers = sorted(targets)
            for first in range(0, len(numbers), MAX_REASSIGNED):
                part = numbers[first : first + MAX_REASSIGNED]
                await self._reassign(topic, {number: targets[number] for number in part})
        return sum(broker_id in p.replicas for p in self._cluster.image.partitions.values())

    async def unregister_broker(self, broker_id: int) -> None:
        """Remove a broker that is down and holds no replica from the metadata; its id is free again.

        Raises BrokerIdNotRegistered, or InvalidRequest where it is live or holds replicas.
        """
        request = controller_pb2.UnregisterBrokerRequest(broker_id=broker_id)
        await self._controller.change(
            lambda admin: admin.UnregisterBroker,
            request,
            BrokerIdNotRegistered,
            lambda image: broker_id not in image.brokers,
        )

    # ---- Groups ----

    async def list_groups(self) -> list[GroupListing]:
        """Every group of consumers, of either protocol, by id."""
        return await self._groups.list_groups()

    async def describe_group(self, group_id: str) -> GroupDescription:
        """A group's state, its members and what each is assigned. Raises GroupIdNotFound."""
        return await self._groups.describe_group(group_id)

    async def describe_group_partitions(self, group: GroupDescription) -> list[GroupPartition]:
        """Every partition that a group has committed an offset for, or is reading: its offset, its lag and its owner."""
        return await self._groups.partitions(group)

    async def list_group_offsets(self, group_id: str) -> dict[TopicPartition, CommittedOffset]:
        """What a group has committed; empty where there is no such group."""
        return await self._groups.offsets(group_id)

    async def plan_group_reset(
        self,
        group_id: str,
        to: ResetTo,
        partitions: Iterable[TopicPartition | tuple[str, int]] | None = None,
        *,
        create: bool = False,
    ) -> list[OffsetReset]:
        """Where a reset would move a group's offsets. It changes nothing: `alter_group_offsets` does.

        `partitions` None: all for which the group has committed offsets. `create`: a group that is not there is no error.
        Raises GroupIdNotFound, NonEmptyGroup where it has members, UnknownTopicOrPartition, InvalidRequest.
        """
        wanted = None if partitions is None else [TopicPartition(*tp) for tp in partitions]
        return await self._groups.plan_reset(group_id, wanted, to, create=create)

    async def alter_group_offsets(self, group_id: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets for a group that has no members; one that is not there is made.

        Raises NonEmptyGroup where it has members, UnknownTopicOrPartition.
        """
        await self._groups.commit_offsets(group_id, offsets)

    async def delete_group(self, group_id: str) -> None:
        """Forget a group without members, and its offsets. Raises GroupIdNotFound, NonEmptyGroup."""
        await self._groups.delete_group(group_id)

    # ---- Names of producers ----

    async def list_producer_names(self) -> list[ProducerName]:
        """Every name that the controller knows, sorted; also expired ones, while it remembers them."""
        found: list[ProducerName] = []
        more = True
        while more:
            request = controller_pb2.ListProducerNamesRequest(after=found[-1].name if found else "")
            answer = await self._controller.ask(lambda admin: admin.ListProducerNames, request)
            found += [ProducerName(n.name, n.producer_id, n.epoch, n.idle_ms, n.expired) for n in answer.names]
            more = answer.more and bool(answer.names)
        return found

    async def remove_producer_name(self, name: str) -> None:
        """Forget a name and what was written under it. A producer that still uses it is fenced; the next one starts
        from scratch.

        Raises InvalidRequest where the name is not known.
        """
        request = controller_pb2.RemoveProducerNameRequest(name=name)
        await self._controller.change(lambda admin: admin.RemoveProducerName, request, InvalidRequest)

    # ---- Inside ----

    async def _reassign(
        self,
        topic: str,
        replicas: Mapping[int, Sequence[int]],
        already_so: type[FencepostError] | None = None,
    ) -> None:
        request = controller_pb2.AlterPartitionReassignmentsRequest(
            topic_name=topic,
            reassignments=[
                controller_pb2.PartitionReassignment(partition=partition, replicas=brokers)
                for partition, brokers in sorted(replicas.items())
            ],
        )
        await self._controller.change(lambda admin: admin.AlterPartitionReassignments, request, already_so)
