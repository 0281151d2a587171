"""Operators' APIs of the Kafka port: what is asked of the controller, and how its answers come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from fencepost_node.kafka import describe_topic_partitions
from fencepost_node.kafka.authorized_operations import ON_THE_CLUSTER, ON_TOPICS
from fencepost_node.requests import delete_records as deletions
from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.messages import alter_configs, alter_partition_reassignments, create_topics, delete_records
from fencepost_proto.kafka.messages import create_partitions as partitions
from fencepost_proto.kafka.messages import describe_configs as configs
from fencepost_proto.kafka.messages import describe_topic_partitions as pages
from fencepost_proto.kafka.messages import incremental_alter_configs as incremental
from fencepost_proto.kafka.messages import list_partition_reassignments as reassignments
from fencepost_proto.kafka.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from fencepost_proto.kafka.messages.describe_cluster import DescribeClusterRequest
from fencepost_proto.kafka.messages.describe_log_dirs import DescribableLogDirTopic, DescribeLogDirsRequest
from fencepost_proto.kafka.messages.describe_producers import DescribeProducersRequest, TopicRequest
from fencepost_proto.kafka.messages.elect_leaders import ElectLeadersRequest, TopicPartitions
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import Partition, Topic, TopicConfig
from fencepost_proto.protocol.v1 import common_pb2, controller_pb2
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.fake_controller import error_of
from tests.unit.test_broker import BROKER_ID
from tests.unit.test_kafka_edge import ID, ORDERS, WIRE_ID, Edge, edge

NONE = ErrorCode.NONE
TOPIC, BROKER = 2, 4


def answers(it: Edge, method: str, **fields: Any) -> None:
    it.controller.answers[method] = getattr(controller_pb2, f"{method}Response")(**fields)


def refuses(it: Edge, method: str, code: ErrorCode, message: str) -> None:
    answers(it, method, error=error_of(code, message))


def asked(it: Edge, kind: str) -> list[Any]:
    return [call for call in it.controller.calls if type(call).__name__ == f"{kind}Request"]


def creatable(name: str, count: int = -1, factor: int = -1, **config: str | None) -> create_topics.CreatableTopic:
    settings = [
        create_topics.CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in config.items()
    ]
    return create_topics.CreatableTopic(name=name, num_partitions=count, replication_factor=factor, configs=settings)


@asynchronous
async def test_a_topic_is_created_with_what_is_said_and_the_brokers_defaults_for_the_rest(tmp_path: Path) -> None:
    async with edge(tmp_path, default_partitions=7) as it:
        answers(it, "CreateTopic", topic_id=ID, version=1)
        for version in range(2, APIS[19].max_version + 1):
            request = create_topics.CreateTopicsRequest(topics=[creatable("a", 3, 2, retention_ms="5"), creatable("b")])
            response = await it.ask(request, version)
            assert [(topic.name, topic.error_code) for topic in response.topics] == [("a", NONE), ("b", NONE)]
            first, second = asked(it, "CreateTopic")[-2:]
            assert (first.partitions, first.replication_factor, first.config.retention_ms) == (3, 2, 5)
            assert (second.partitions, second.replication_factor) == (7, 2), "two brokers are live"
            if version >= 5:
                assert [(t.num_partitions, t.replication_factor) for t in response.topics] == [(3, 2), (7, 2)]
                assert {c.name: c.value for c in response.topics[0].configs}["retention.ms"] == "5"
            if version >= 7:
                assert response.topics[0].topic_id == WIRE_ID


@asynchronous
async def test_topics_that_cannot_be_are_refused_one_by_one_without_asking_the_controller(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        both = creatable("both", 3)
        gap = creatable("gap")
        for topic, index in ((both, 0), (gap, 1)):
            topic.assignments.append(create_topics.CreatableReplicaAssignment(partition_index=index, broker_ids=[1]))
        topics = [
            creatable("twice"),
            creatable("twice"),
            both,
            gap,
            creatable("compact", cleanup_policy="compact"),
            creatable("unknown", colour="red"),
            creatable("null", retention_ms=None),
            creatable("__consumer_offsets", 4),
        ]
        response = await it.ask(create_topics.CreateTopicsRequest(topics=topics))
        assert {topic.name: topic.error_code for topic in response.topics} == {
            "twice": ErrorCode.INVALID_REQUEST,
            "both": ErrorCode.INVALID_REQUEST,
            "gap": ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            "compact": ErrorCode.INVALID_CONFIG,
            "unknown": ErrorCode.INVALID_CONFIG,
            "null": ErrorCode.INVALID_CONFIG,
            "__consumer_offsets": ErrorCode.INVALID_TOPIC_EXCEPTION,
        }
        assert not asked(it, "CreateTopic")


@asynchronous
async def test_the_controllers_refusals_and_its_absence_are_told_as_they_are(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        refuses(it, "CreateTopic", ErrorCode.TOPIC_ALREADY_EXISTS, "topic 'a' exists")
        request = create_topics.CreateTopicsRequest(topics=[creatable("a", 1, 1)], validate_only=True)
        (topic,) = (await it.ask(request)).topics
        assert (topic.error_code, topic.error_message) == (ErrorCode.TOPIC_ALREADY_EXISTS, "topic 'a' exists")
        assert asked(it, "CreateTopic")[-1].validate_only
        it.controller.answers["CreateTopic"] = grpc.StatusCode.UNAVAILABLE
        (topic,) = (await it.ask(request)).topics
        assert topic.error_code == ErrorCode.NOT_CONTROLLER


@asynchronous
async def test_topics_are_deleted_by_name_or_by_id(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        answers(it, "DeleteTopic", version=1)
        response = await it.ask(DeleteTopicsRequest(topic_names=["orders"]), 5)
        assert [(r.name, r.error_code) for r in response.responses] == [("orders", NONE)]
        states = [
            DeleteTopicState(topic_id=WIRE_ID),
            DeleteTopicState(name="orders"),
            DeleteTopicState(name="orders"),
            DeleteTopicState(topic_id=b"x" * 16),
            DeleteTopicState(),
            DeleteTopicState(name="__consumer_offsets"),
        ]
        response = await it.ask(DeleteTopicsRequest(topics=states), 6)
        assert [(r.name, r.error_code) for r in response.responses] == [
            ("orders", NONE),
            ("orders", NONE),
            ("orders", ErrorCode.INVALID_REQUEST),
            (None, ErrorCode.UNKNOWN_TOPIC_ID),
            (None, ErrorCode.INVALID_REQUEST),
            ("__consumer_offsets", ErrorCode.INVALID_TOPIC_EXCEPTION),
        ]
        assert [(call.name, call.topic_id) for call in asked(it, "DeleteTopic")] == [
            ("orders", ""),
            ("orders", ID),
            ("orders", ""),
        ]


@asynchronous
async def test_partitions_are_created_as_asked(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        answers(it, "CreatePartitions", version=1)
        assigned = [partitions.CreatePartitionsAssignment(broker_ids=[2, 1])]
        topics = [
            partitions.CreatePartitionsTopic(name="a", count=4, assignments=assigned),
            partitions.CreatePartitionsTopic(name="b", count=5, assignments=None),
            partitions.CreatePartitionsTopic(name="c", count=5, assignments=[]),
        ]
        for version in range(4):
            response = await it.ask(partitions.CreatePartitionsRequest(topics=topics, validate_only=True), version)
            assert [r.error_code for r in response.results] == [NONE, NONE, ErrorCode.INVALID_REPLICA_ASSIGNMENT]
        first, second = asked(it, "CreatePartitions")[-2:]
        assert (first.partitions, [list(a.replicas) for a in first.assignments], first.validate_only) == (
            4,
            [[2, 1]],
            True,
        )
        assert (second.partitions, list(second.assignments)) == (5, [])


@asynchronous
async def test_records_are_deleted_by_the_leader_and_the_new_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "MIN_TIMEOUT_MS", 500)
    async with edge(tmp_path) as it:
        await it.leads(partitions=2)
        for _ in range(4):
            await it.produce(batch(5))
        it.controller.answers["DeleteRecords"] = controller_pb2.DeletedRecordsResponse(
            version=9, results=[common_pb2.Error()]
        )
        await it.running.metadata(Partition(ID, 0, (BROKER_ID,), (BROKER_ID,), BROKER_ID, 0, 1, deleted_end_offset=7))

        def request(*offsets: tuple[str, int, int]) -> delete_records.DeleteRecordsRequest:
            topics = [
                delete_records.DeleteRecordsTopic(
                    name=name, partitions=[delete_records.DeleteRecordsPartition(partition_index=index, offset=offset)]
                )
                for name, index, offset in offsets
            ]
            return delete_records.DeleteRecordsRequest(topics=topics, timeout_ms=100)

        response = await it.ask(
            request(("orders", 0, 6), ("orders", 0, 21), ("orders", 5, 1), ("nope", 0, 1), ("__consumer_offsets", 0, 1))
        )
        results = [(p.low_watermark, p.error_code) for topic in response.topics for p in topic.partitions]
        assert results == [
            (7, NONE),  # there already
            (-1, ErrorCode.OFFSET_OUT_OF_RANGE),
            (-1, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (-1, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (-1, ErrorCode.INVALID_TOPIC_EXCEPTION),
        ]
        assert not asked(it, "DeletedRecords")
        response = await it.ask(request(("orders", 0, -1)))  # committed, and not seen here in time
        assert response.topics[0].partitions[0].error_code == ErrorCode.REQUEST_TIMED_OUT
        (call,) = asked(it, "DeletedRecords")
        assert [(d.topic_id, d.partition, d.leader_epoch, d.end_offset) for d in call.deletions] == [(ID, 0, 0, 20)]


@asynchronous
async def test_configs_of_topics_and_of_this_broker_are_described(tmp_path: Path) -> None:
    async with edge(tmp_path, max_fetch_bytes=1 << 20) as it:
        await it.leads(topic=Topic(ID, "orders", TopicConfig(retention_ms=5)))

        async def ask(kind: int, name: str, keys: list[str] | None = None, version: int = 4) -> Any:
            resource = configs.DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=keys)
            request = configs.DescribeConfigsRequest(
                resources=[resource], include_synonyms=True, include_documentation=version >= 3
            )
            (result,) = (await it.ask(request, version)).results
            return result

        for version in range(1, 5):
            (one,) = (await ask(TOPIC, "orders", ["retention.ms", "nonsense"], version)).configs
            assert (one.name, one.value, one.config_source, one.read_only) == ("retention.ms", "5", 1, False)
            assert [(s.value, s.source) for s in one.synonyms] == [("5", 1), ("604800000", 5)]
            assert (version < 3) or (one.config_type == 5 and one.documentation)
        every = {one.name: one for one in (await ask(TOPIC, "orders")).configs}
        assert every["cleanup.policy"].read_only
        broker = {one.name: one for one in (await ask(BROKER, str(BROKER_ID))).configs}
        assert (broker["max_fetch_bytes"].value, broker["max_fetch_bytes"].config_source) == ("1048576", 4)
        assert (broker["tail_bytes"].config_source, broker["tail_bytes"].read_only) == (5, True)
        assert (await ask(BROKER, "")).configs == []
        group = await ask(32, "any")
        assert [(one.name, one.value, one.read_only) for one in group.configs] == [
            ("consumer.heartbeat.interval.ms", "5000", True),
            ("consumer.session.timeout.ms", "45000", True),
        ]
        refused = [await ask(TOPIC, "nope"), await ask(TOPIC, "a/b"), await ask(BROKER, "99"), await ask(16, "x")]
        refused.append(await ask(32, ""))
        assert [one.error_code for one in refused] == [
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            ErrorCode.INVALID_TOPIC_EXCEPTION,
            ErrorCode.INVALID_REQUEST,
            ErrorCode.INVALID_REQUEST,
            ErrorCode.INVALID_REQUEST,
        ]


def alter(name: str, *changes: tuple[str, int, str | None], kind: int = TOPIC) -> incremental.AlterConfigsResource:
    settings = [incremental.AlterableConfig(name=n, config_operation=op, value=value) for n, op, value in changes]
    return incremental.AlterConfigsResource(resource_type=kind, resource_name=name, configs=settings)


@asynchronous
async def test_single_settings_are_changed_together_or_not_at_all(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        answers(it, "AlterTopicConfig", version=1)
        change = alter(
            "orders", ("retention.ms", 0, "5"), ("flush.messages", 0, "1"), ("segment.bytes", 1, None),
            ("cleanup.policy", 2, "delete"),
        )  # fmt: skip
        for version in (0, 1):
            request = incremental.IncrementalAlterConfigsRequest(resources=[change], validate_only=bool(version))
            (result,) = (await it.ask(request, version)).responses
            assert (result.error_code, result.resource_type, result.resource_name) == (NONE, TOPIC, "orders")
            call = asked(it, "AlterTopicConfig")[-1]
            assert [(s.name, s.value) for s in call.set] == [("retention_ms", "5"), ("flush_always", "true")]
            assert (list(call.reset), call.validate_only) == (["segment_bytes"], bool(version))
        count = len(asked(it, "AlterTopicConfig"))
        resources = [
            alter("orders", ("retention.ms", 0, "5"), ("cleanup.policy", 0, "compact")),
            alter("nope", ("retention.ms", 0, "5")),
            alter("1", ("log.retention.ms", 0, "5"), kind=BROKER),
            alter("x", kind=16),
            alter("__consumer_offsets", ("retention.ms", 0, "5")),
        ]
        response = await it.ask(incremental.IncrementalAlterConfigsRequest(resources=resources))
        assert [r.error_code for r in response.responses] == [
            ErrorCode.INVALID_CONFIG,
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            ErrorCode.INVALID_REQUEST,
            ErrorCode.INVALID_REQUEST,
            ErrorCode.INVALID_TOPIC_EXCEPTION,
        ]
        bad = [
            (("retention.ms", 2, "5"),),
            (("retention.ms", 9, "5"),),
            (("cleanup.policy", 3, "delete"),),
            (("retention.ms", 0, "5"), ("retention.ms", 1, None)),
        ]
        for changes in bad:
            request = incremental.IncrementalAlterConfigsRequest(resources=[alter("orders", *changes)])
            (result,) = (await it.ask(request)).responses
            assert result.error_code in (ErrorCode.INVALID_CONFIG, ErrorCode.INVALID_REQUEST)
        twice = incremental.IncrementalAlterConfigsRequest(resources=[change, change])
        assert [r.error_code for r in (await it.ask(twice)).responses] == [ErrorCode.INVALID_REQUEST] * 2
        assert len(asked(it, "AlterTopicConfig")) == count
        nothing = [
            alter("orders", ("cleanup.policy", 0, "delete"), ("leader.replication.throttled.replicas", 1, None)),
            alter("1", ("leader.replication.throttled.rate", 1, None), kind=BROKER),
        ]
        response = await it.ask(incremental.IncrementalAlterConfigsRequest(resources=nothing))
        assert [r.error_code for r in response.responses] == [NONE, NONE]
        assert len(asked(it, "AlterTopicConfig")) == count


@asynchronous
async def test_the_older_api_resets_what_it_does_not_name(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        answers(it, "AlterTopicConfig", version=1)
        settings = [
            alter_configs.AlterableConfig(name="retention.ms", value="5"),
            alter_configs.AlterableConfig(name="cleanup.policy", value="delete"),
        ]
        resource = alter_configs.AlterConfigsResource(resource_type=TOPIC, resource_name="orders", configs=settings)
        for version in range(3):
            response = await it.ask(alter_configs.AlterConfigsRequest(resources=[resource]), version)
            assert [r.error_code for r in response.responses] == [NONE]
        call = asked(it, "AlterTopicConfig")[-1]
        assert [(s.name, s.value) for s in call.set] == [("retention_ms", "5")]
        assert len(call.reset) == 8
        assert "retention_ms" not in call.reset


@asynchronous
async def test_the_cluster_is_described_with_its_living_brokers_or_all(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        for version in range(3):
            answer = await it.ask(DescribeClusterRequest(), version)
            assert [(b.broker_id, b.port) for b in answer.brokers][1:] == [(2, 9092)]
            assert answer.controller_id == BROKER_ID
            assert answer.cluster_id
        everyone = await it.ask(DescribeClusterRequest(include_fenced_brokers=True), 2)
        assert [(b.broker_id, b.is_fenced) for b in everyone.brokers] == [(1, False), (2, False), (3, True)]
        for endpoint_type, code in ((2, ErrorCode.MISMATCHED_ENDPOINT_TYPE), (7, ErrorCode.UNSUPPORTED_ENDPOINT_TYPE)):
            assert (await it.ask(DescribeClusterRequest(endpoint_type=endpoint_type), 2)).error_code == code


@asynchronous
async def test_what_a_client_may_do_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        unknown = -(2**31)
        for version in range(8, 11):
            for asked_topics in (None, [MetadataRequestTopic(name="orders"), MetadataRequestTopic(name="nope")]):
                silent = await it.ask(MetadataRequest(topics=asked_topics), version)
                told = await it.ask(
                    MetadataRequest(
                        topics=asked_topics,
                        include_cluster_authorized_operations=True,
                        include_topic_authorized_operations=True,
                    ),
                    version,
                )
                assert silent.cluster_authorized_operations == unknown
                assert told.cluster_authorized_operations == ON_THE_CLUSTER
                assert {topic.topic_authorized_operations for topic in silent.topics} == {unknown}
                operations = {topic.name: topic.topic_authorized_operations for topic in told.topics}
                assert operations == {"orders": ON_TOPICS} | ({} if asked_topics is None else {"nope": unknown})
        answer = await it.ask(DescribeClusterRequest(include_cluster_authorized_operations=True), 2)
        assert answer.cluster_authorized_operations == ON_THE_CLUSTER
        page = await it.ask(pages.DescribeTopicPartitionsRequest())
        assert [topic.topic_authorized_operations for topic in page.topics] == [ON_TOPICS]
        assert (ON_TOPICS.bit_count(), ON_THE_CLUSTER.bit_count()) == (8, 7)


@asynchronous
async def test_topics_are_described_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe_topic_partitions, "MAX_PARTITIONS", 3)
    async with edge(tmp_path) as it:
        await it.leads(partitions=5)
        await it.leads(topic=Topic("B" * 22, "b"), partitions=1)
        found: list[tuple[str, int]] = []
        cursor: pages.Cursor | None = None
        for _ in range(4):
            answer = await it.ask(pages.DescribeTopicPartitionsRequest(cursor=cursor))
            found += [(topic.name, p.partition_index) for topic in answer.topics for p in topic.partitions]
            cursor = answer.next_cursor
            if cursor is None:
                break
            assert all(p.eligible_leader_replicas == [] for topic in answer.topics for p in topic.partitions)
        assert found == [("b", 0), *(("orders", index) for index in range(5))]
        named = [pages.TopicRequest(name=name) for name in ("nope", "a/b", "b")]
        answer = await it.ask(pages.DescribeTopicPartitionsRequest(topics=named))
        assert [(topic.name, topic.error_code) for topic in answer.topics] == [
            ("a/b", ErrorCode.INVALID_TOPIC_EXCEPTION),
            ("b", NONE),
            ("nope", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        ]


@asynchronous
async def test_logs_and_producers_of_this_broker_are_described(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(partitions=2)
        stored = batch(5, producer_id=7)
        assert (await it.produce(stored)).error_code == NONE
        for version in range(1, 6):
            for topics, indexes in ((None, [0, 1]), ([DescribableLogDirTopic(topic="orders", partitions=[0, 9])], [0])):
                (folder,) = (await it.ask(DescribeLogDirsRequest(topics=topics), version)).results
                assert folder.log_dir == str(tmp_path / "data") or folder.log_dir.startswith(str(tmp_path))
                (topic,) = folder.topics
                assert [p.partition_index for p in topic.partitions] == indexes
                assert topic.partitions[0].partition_size == len(stored)
        request = DescribeProducersRequest(
            topics=[
                TopicRequest(name="orders", partition_indexes=[0, 7]),
                TopicRequest(name="no", partition_indexes=[0]),
            ]
        )
        orders, unknown = (await it.ask(request)).topics
        assert [p.error_code for p in orders.partitions] == [NONE, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
        (producer,) = orders.partitions[0].active_producers
        assert (producer.producer_id, producer.producer_epoch, producer.last_sequence) == (7, 0, 4)
        assert unknown.partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


@asynchronous
async def test_preferred_leaders_are_elected_and_unclean_elections_are_left_to_the_command_line(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.running.metadata(
            ORDERS,
            Partition(ID, 0, (2, BROKER_ID), (2, BROKER_ID), BROKER_ID, 1, 1),
            Partition(ID, 1, (2,), (2,), 2, 1, 1),
            Partition(ID, 2, (2,), (), -1, 1, 1, last_known_isr=(2,)),
        )
        answers(it, "ElectLeader", version=1)
        everything = await it.ask(ElectLeadersRequest(topic_partitions=None))
        elected = [(r.topic, [p.partition_id for p in r.partition_result]) for r in everything.replica_election_results]
        assert elected == [("orders", [0, 2])]
        refuses(it, "ElectLeader", ErrorCode.ELECTION_NOT_NEEDED, "broker 2 leads already")
        named = [TopicPartitions(topic="orders", partitions=[1])]
        for version in range(3):
            answer = await it.ask(ElectLeadersRequest(topic_partitions=named), version)
            (partition,) = answer.replica_election_results[0].partition_result
            assert partition.error_code == ErrorCode.ELECTION_NOT_NEEDED
        unclean = [TopicPartitions(topic="orders", partitions=[1, 2, 9])]
        answer = await it.ask(ElectLeadersRequest(election_type=1, topic_partitions=unclean))
        assert [p.error_code for p in answer.replica_election_results[0].partition_result] == [
            ErrorCode.ELECTION_NOT_NEEDED,
            ErrorCode.ELIGIBLE_LEADERS_NOT_AVAILABLE,
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ]
        assert (await it.ask(ElectLeadersRequest(election_type=5, topic_partitions=named))).error_code == (
            ErrorCode.INVALID_REQUEST
        )


@asynchronous
async def test_reassignments_are_asked_for_one_by_one_and_listed(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        moving = Partition(ID, 1, (3, 2), (2,), 2, 1, 1, adding=(3,), removing=(2,))
        await it.running.metadata(ORDERS, Partition(ID, 0, (2,), (2,), 2, 1, 1), moving)
        answers(it, "AlterPartitionReassignments", version=1)

        def request(*moves: tuple[int, list[int] | None], **options: Any) -> Any:
            wanted = [
                alter_partition_reassignments.ReassignablePartition(partition_index=index, replicas=replicas)
                for index, replicas in moves
            ]
            topic = alter_partition_reassignments.ReassignableTopic(name="orders", partitions=wanted)
            return alter_partition_reassignments.AlterPartitionReassignmentsRequest(topics=[topic], **options)

        answer = await it.ask(request((0, [1, 2]), (1, None), (0, []), (7, [1])), 1)
        assert [p.error_code for p in answer.responses[0].partitions] == [
            NONE,
            NONE,
            ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ]
        moves = [
            (r.partition, list(r.replicas)) for c in asked(it, "AlterPartitionReassignments") for r in c.reassignments
        ]
        assert moves == [(0, [1, 2]), (1, [])]
        answer = await it.ask(request((0, [1, 2]), (0, [1]), allow_replication_factor_change=False), 1)
        assert [p.error_code for p in answer.responses[0].partitions] == [ErrorCode.INVALID_REPLICATION_FACTOR, NONE]
        for topics in (
            None,
            [reassignments.ListPartitionReassignmentsTopics(name="orders", partition_indexes=[0, 1])],
        ):
            listed = await it.ask(reassignments.ListPartitionReassignmentsRequest(topics=topics))
            ((topic, (found,)),) = [(t.name, t.partitions) for t in listed.topics]
            assert topic == "orders"
            assert (found.partition_index, found.replicas, found.adding_replicas, found.removing_replicas) == (
                1,
                [3, 2],
                [3],
                [2],
            )
