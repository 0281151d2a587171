"""CreateTopic, DeleteTopic, CreatePartitions, AlterTopicConfig, AlterPartitionReassignments, ElectLeader and
UnregisterBroker: what operators ask for.

Each answers the metadata version that carries the change; brokers learn of it a moment later. With `validate_only` the
answer is that of a change, and nothing is changed. The rules and errors are in `decisions/topics.py`, `partition_count.py`,
`topic_config.py`, `reassignment.py`, `elections.py` and `brokers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from fencepost_controller.commands import Commands
from fencepost_controller.decisions.brokers import UnregisterBroker
from fencepost_controller.decisions.elections import ElectPreferredLeader, ElectUncleanLeader
from fencepost_controller.decisions.partition_count import CreatePartitions
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_controller.decisions.topic_config import AlterTopicConfig
from fencepost_controller.decisions.topics import CreateTopic, DeleteTopic
from fencepost_controller.random_id import random_id
from fencepost_proto.protocol.metadata import config_from_proto
from fencepost_proto.protocol.v1 import controller_pb2 as pb


async def create_topic(
    commands: Commands, random: Random, request: pb.CreateTopicRequest, min_segment_bytes: int
) -> pb.CreateTopicResponse:
    topic_id = random_id(random)
    while topic_id in commands.image.topics:
        topic_id = random_id(random)
    command = CreateTopic(
        name=request.name,
        topic_id=topic_id,
        partitions=request.partitions,
        replication_factor=request.replication_factor,
        config=config_from_proto(request.config),
        assignments=_assignments(request.assignments),
        min_segment_bytes=min_segment_bytes,
    )
    committed = await (commands.check if request.validate_only else commands.submit)(command)
    return pb.CreateTopicResponse(topic_id=topic_id, version=committed.version)


async def delete_topic(commands: Commands, request: pb.DeleteTopicRequest) -> pb.DeleteTopicResponse:
    committed = await commands.submit(DeleteTopic(request.name, request.topic_id))
    return pb.DeleteTopicResponse(version=committed.version)


async def create_partitions(commands: Commands, request: pb.CreatePartitionsRequest) -> pb.CreatePartitionsResponse:
    command = CreatePartitions(request.name, request.partitions, _assignments(request.assignments))
    committed = await (commands.check if request.validate_only else commands.submit)(command)
    return pb.CreatePartitionsResponse(version=committed.version)


def _assignments(messages: Iterable[pb.ReplicaAssignment]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(message.replicas) for message in messages)


async def alter_topic_config(
    commands: Commands, request: pb.AlterTopicConfigRequest, min_segment_bytes: int
) -> pb.AlterTopicConfigResponse:
    command = AlterTopicConfig(
        request.name, tuple((s.name, s.value) for s in request.set), tuple(request.reset), min_segment_bytes
    )
    committed = await (commands.check if request.validate_only else commands.submit)(command)
    return pb.AlterTopicConfigResponse(version=committed.version)


async def alter_partition_reassignments(
    commands: Commands, request: pb.AlterPartitionReassignmentsRequest
) -> pb.AlterPartitionReassignmentsResponse:
    targets = tuple((target.partition, tuple(target.replicas)) for target in request.reassignments)
    committed = await commands.submit(ReassignPartitions(request.topic_name, targets))
    return pb.AlterPartitionReassignmentsResponse(version=committed.version)


async def elect_leader(commands: Commands, request: pb.ElectLeaderRequest) -> pb.ElectLeaderResponse:
    where = (request.topic_name, request.partition)
    if request.unclean:
        committed = await commands.submit(ElectUncleanLeader(*where, request.leader, request.leader_broker_epoch))
    else:
        committed = await commands.submit(ElectPreferredLeader(*where))
    return pb.ElectLeaderResponse(version=committed.version)


async def unregister_broker(commands: Commands, request: pb.UnregisterBrokerRequest) -> pb.UnregisterBrokerResponse:
    committed = await commands.submit(UnregisterBroker(request.broker_id))
    return pb.UnregisterBrokerResponse(version=committed.version)
