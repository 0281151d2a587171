"""The Kafka port of a whole broker in this process: requests in, answers out; the controller is scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencepost_node.broker import Broker
from fencepost_node.kafka import metadata
from fencepost_node.kafka.connection import KafkaConnection
from fencepost_node.log.disk import RealDisk
from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import encode_request
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest
from fencepost_proto.kafka.messages.fetch import FetchRequest
from fencepost_proto.kafka.messages.init_producer_id import InitProducerIdRequest
from fencepost_proto.kafka.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.kafka.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from fencepost_proto.kafka.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import NO_LEADER, BrokerRegistration, Partition, Topic, TopicConfig
from fencepost_proto.protocol.record_batch import iter_batches, read_header
from fencepost_proto.protocol.records import read_records
from fencepost_proto.protocol.topic_ids import to_wire
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.batches import batch as made
from tests.unit.batches import with_field
from tests.unit.fake_controller import FakeController, fake_controller
from tests.unit.kafka_client import KafkaClient, fetch_request, kafka_client, only, produce_request
from tests.unit.replicas import leading
from tests.unit.test_broker import BROKER_ID, EPOCH, Running, broker_of, config_of

ID = "0123456789abcdefghijkA"  # as controllers make them
WIRE_ID = to_wire(ID)
ORDERS = Topic(ID, "orders", TopicConfig(min_insync_replicas=1))
NONE = ErrorCode.NONE
MIB = 1024 * 1024


class Edge:
    """A broker with a Kafka port, and one client of it."""

    def __init__(self, controller: FakeController, running: Running, client: KafkaClient) -> None:
        self.controller = controller
        self.running = running
        self.client = client
        self.ask = client.ask

    @property
    def address(self) -> str:
        return self.running.broker.kafka_address

    @property
    def connections(self) -> list[KafkaConnection]:
        listener = self.running.broker._kafka
        assert listener is not None
        return list(listener._connections)

    async def leads(self, *, isr: tuple[int, ...] = (BROKER_ID,), topic: Topic = ORDERS, partitions: int = 1) -> None:
        await self.running.metadata(
            topic, *(Partition(topic.topic_id, index, isr, isr, BROKER_ID, 0, 0) for index in range(partitions))
        )
        replicas = self.running.broker.manager.replicas
        await until(
            lambda: all(
                (topic.topic_id, i) in replicas and replicas[topic.topic_id, i].is_leader for i in range(partitions)
            ),
            "the leadership",
        )

    async def becomes(self, leader: int, epoch: int, isr: tuple[int, ...] = (1, 2)) -> None:
        await self.running.metadata(Partition(ID, 0, (1, 2), isr, leader, epoch, epoch))

    async def produce(self, records: bytes, **options: Any) -> Any:
        return only(await self.ask(produce_request(records, **options), 12))


@asynchronous
async def test_a_broker_that_has_just_started_answers_when_it_knows_the_cluster(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        broker = Broker(config_of(tmp_path, controller.address, kafka_listen="127.0.0.1:0"), Host(), RealDisk())
        await broker.start()
        session = await controller.session(0)
        await session.registered(EPOCH)
        async with kafka_client(broker.kafka_address) as client:
            assert (await client.ask(ApiVersionsRequest(), 0)).error_code == NONE
            client.send(produce_request(made(1)), 9)
            client.send(fetch_request(0), 12)
            answer = asyncio.create_task(client.receive())
            await asyncio.wait([answer], timeout=0.05)
            assert not answer.done()
            entity = BrokerRegistration(
                BROKER_ID, broker.address, EPOCH, session.registration.incarnation, fenced=False
            )
            partition = Partition(ID, 0, (BROKER_ID,), (BROKER_ID,), BROKER_ID, 0, 0)
            await session.image(EPOCH, entity, ORDERS, partition)
            knows_the_topic = (NONE, ErrorCode.NOT_LEADER_OR_FOLLOWER)  # it may have to open the log first
            assert only(await answer).error_code in knows_the_topic
            assert only(await client.receive()).error_code in knows_the_topic
        await broker.stop(False)


@asynccontextmanager
async def edge(tmp_path: Path, **settings: Any) -> AsyncIterator[Edge]:
    async with fake_controller() as controller:
        controller.answers["AllocateProducerIds"] = controller_pb2.AllocateProducerIdsResponse(
            first_producer_id=1_000, count=1_000
        )
        settings = {"kafka_listen": "127.0.0.1:0", **settings}
        async with broker_of(controller, tmp_path, **settings) as running:
            broker = running.broker
            incarnation = running.session.registration.incarnation
            assert running.session.registration.kafka_address == broker.kafka_address
            await running.metadata(
                BrokerRegistration(
                    BROKER_ID, broker.address, EPOCH, incarnation, fenced=False, kafka_address=broker.kafka_address
                ),
                BrokerRegistration(2, "127.0.0.1:7", EPOCH, "other", fenced=False, kafka_address="10.0.0.2:9092"),
                BrokerRegistration(3, "127.0.0.1:8", EPOCH, "gone", fenced=True, kafka_address="10.0.0.3:9092"),
            )
            async with kafka_client(broker.kafka_address) as client:
                yield Edge(controller, running, client)


# ---- What is served ----


@asynchronous
async def test_api_versions_tells_what_is_served_in_every_version(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        for version in range(6):
            answer = await it.ask(ApiVersionsRequest(client_software_name="test"), version)
            assert answer.error_code == NONE
            ranges = {api.api_key: (api.min_version, api.max_version) for api in answer.api_keys}
            assert ranges[0] == (0, APIS[0].max_version)
            assert ranges[1] == (4, 17)
            assert {2, 3, 18, 22, 23} <= ranges.keys()
            assert not {17, 36, 71, 72} & ranges.keys()


@asynchronous
async def test_a_later_version_of_api_versions_is_answered_in_the_oldest_layout(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        request = b"\x00\x12\x00\x63\x00\x00\x00\x07\xff\xff" + b"\x00" * 6
        it.client.writer.write(len(request).to_bytes(4, "big") + request)
        size = int.from_bytes(await it.client.reader.readexactly(4), "big")
        answer = await it.client.reader.readexactly(size)
        assert answer == bytes.fromhex("00000007 0023 00000001 0012 0000 0005")


@asynchronous
async def test_a_client_that_means_another_cluster_or_node_is_told_to_look_again(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        mine = await it.ask(ApiVersionsRequest(node_id=BROKER_ID), 5)
        other = await it.ask(ApiVersionsRequest(node_id=BROKER_ID + 1), 5)
        assert (mine.error_code, other.error_code) == (NONE, ErrorCode.REBOOTSTRAP_REQUIRED)
        coordinator = await it.ask(ApiVersionsRequest(node_id=2**31 - 1 - BROKER_ID), 5)  # of the Java client
        assert coordinator.error_code == NONE


# ---- Metadata ----


@asynchronous
async def test_metadata_has_living_brokers_topics_and_their_leaders_in_every_version(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 3))
        host, port = it.address.split(":")
        await it.ask(MetadataRequest(topics=[]), 9)  # the first answer has the broker that is fenced, too
        for version in range(14):
            for topics in ([MetadataRequestTopic(name="orders")], None if version else []):
                answer = await it.ask(MetadataRequest(topics=topics), version)
                brokers = {broker.node_id: (broker.host, broker.port) for broker in answer.brokers}
                assert brokers == {1: (host, int(port)), 2: ("10.0.0.2", 9092)}
                assert answer.controller_id == (1 if version >= 1 else -1)
                (topic,) = answer.topics
                assert (topic.name, topic.error_code, topic.is_internal) == ("orders", NONE, False)
                assert topic.topic_id == (WIRE_ID if version >= 10 else bytes(16))
                (partition,) = topic.partitions
                assert (partition.leader_id, partition.replica_nodes, partition.isr_nodes) == (1, [1, 3], [1, 3])
                assert partition.offline_replicas == ([3] if version >= 5 else [])
        by_id = await it.ask(MetadataRequest(topics=[MetadataRequestTopic(topic_id=WIRE_ID, name=None)]), 12)
        assert by_id.topics[0].name == "orders"
        assert not (await it.ask(MetadataRequest(topics=[]), 9)).topics


@asynchronous
async def test_metadata_of_a_topic_without_a_leader_waits_a_moment_for_one(tmp_path: Path) -> None:
    """A client that asks again at once, as aiokafka's producer does, is answered a few times a second."""
    async with edge(tmp_path) as it:
        await it.leads(isr=(BROKER_ID, 2))
        await it.becomes(NO_LEADER, 1)
        request = MetadataRequest(topics=[MetadataRequestTopic(name="orders")])
        loop = asyncio.get_running_loop()
        began = loop.time()
        partition = (await it.ask(request, 12)).topics[0].partitions[0]
        assert loop.time() - began >= metadata.UNLED_WAIT_S
        assert (partition.error_code, partition.leader_id) == (ErrorCode.LEADER_NOT_AVAILABLE, NO_LEADER)
        asked = asyncio.create_task(it.ask(request, 12))
        await it.becomes(2, 2)
        partition = (await asked).topics[0].partitions[0]
        assert (partition.error_code, partition.leader_id) == (NONE, 2)


@asynchronous
async def test_metadata_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        names = ["nothing", "no/name", "x" * 10_000]
        asked = [MetadataRequestTopic(name=name) for name in names]
        answer = await it.ask(MetadataRequest(topics=asked, allow_auto_topic_creation=True), 9)
        assert [topic.error_code for topic in answer.topics] == [
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            ErrorCode.INVALID_TOPIC_EXCEPTION,
            ErrorCode.INVALID_TOPIC_EXCEPTION,
        ]
        unknown = await it.ask(MetadataRequest(topics=[MetadataRequestTopic(topic_id=b"x" * 16, name=None)]), 12)
        assert unknown.topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
        await it.leads(isr=(1, 2))
        await it.becomes(leader=-1, epoch=1)
        (topic,) = (await it.ask(MetadataRequest(topics=None), 9)).topics
        assert (topic.partitions[0].error_code, topic.partitions[0].leader_id) == (ErrorCode.LEADER_NOT_AVAILABLE, -1)


# ---- Produce and Fetch ----


@asynchronous
async def test_what_is_produced_is_fetched_in_every_version(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        values = []
        for number, version in enumerate(range(3, 14)):
            value = b"v%d" % version
            request = produce_request(made(2, value=value), topic_id=WIRE_ID)
            answer = only(await it.ask(request, version))
            assert (answer.error_code, answer.base_offset) == (NONE, 2 * number)
            assert answer.log_start_offset == (0 if version >= 5 else -1)
            values += [value, value]
        for version in range(4, 18):
            answer = only(await it.ask(fetch_request(0, topic_id=WIRE_ID), version))
            assert (answer.error_code, answer.high_watermark, answer.last_stable_offset) == (NONE, 22, 22)
            assert [record.value for record in read_records(bytes(answer.records))] == values


@asynchronous
async def test_a_fetch_from_within_a_batch_gets_all_of_it_and_one_at_the_end_gets_no_bytes(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        await it.produce(made(5))
        within = only(await it.ask(fetch_request(3), 12))
        assert [header.base_offset for _, header in iter_batches(bytes(within.records))] == [0]
        at_end = only(await it.ask(fetch_request(5), 12))
        assert (at_end.error_code, at_end.records) == (NONE, b"")
        outside = only(await it.ask(fetch_request(6), 12))
        assert outside.error_code == ErrorCode.OFFSET_OUT_OF_RANGE


@asynchronous
async def test_a_new_leader_that_does_not_know_the_end_yet_does_not_call_the_readers_offset_the_end(
    tmp_path: Path,
) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        assert (await it.produce(made(5), acks=1)).error_code == NONE
        replica = it.running.broker.manager.replicas[ID, 0]
        await it.becomes(BROKER_ID, 1)
        await until(lambda: leading(replica).epoch == 1, "the second leadership")
        at_its_own, behind_it = [only(await it.ask(fetch_request(offset), 12)) for offset in (0, 3)]
        assert (at_its_own.error_code, at_its_own.high_watermark, at_its_own.last_stable_offset) == (NONE, -1, -1)
        assert (behind_it.error_code, behind_it.high_watermark, behind_it.records) == (NONE, 0, b"")
        leading(replica).follower_acked(2, 5)
        known = only(await it.ask(fetch_request(5), 12))
        assert (known.error_code, known.high_watermark, known.records) == (NONE, 5, b"")


@asynchronous
async def test_a_long_poll_ends_when_something_is_committed_and_every_partition_is_answered(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(partitions=2)
        it.client.send(fetch_request(0, 0, max_wait_ms=60_000), 12)
        async with kafka_client(it.address) as other:
            assert only(await other.ask(produce_request(made(1)), 9)).error_code == NONE
        (topic,) = (await it.client.receive()).responses
        assert [(place.partition_index, bool(place.records)) for place in topic.partitions] == [(0, True), (1, False)]


@asynchronous
async def test_a_commit_to_a_broker_that_coordinates_nothing_is_not_about_its_topics(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        for version in (2, 9, 10):
            topic = OffsetCommitRequestTopic(
                name="nope",
                topic_id=bytes(15) + b"x",
                partitions=[OffsetCommitRequestPartition(partition_index=0, committed_offset=1)],
            )
            answer = await it.ask(OffsetCommitRequest(group_id="g", topics=[topic]), version)
            assert [p.error_code for t in answer.topics for p in t.partitions] == [ErrorCode.NOT_COORDINATOR]


@asynchronous
async def test_there_are_no_fetch_sessions(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        first = await it.ask(fetch_request(0, session_id=0, session_epoch=0), 12)
        assert (first.error_code, first.session_id) == (NONE, 0)
        other = await it.ask(fetch_request(0, session_id=7, session_epoch=3), 12)
        assert other.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


@asynchronous
async def test_fetch_names_unknown_topics_older_epochs_and_where_the_leader_is(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        unknown = only(await it.ask(fetch_request(0, topic="nothing", max_wait_ms=60_000), 12))
        assert unknown.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert only(await it.ask(fetch_request(0, topic_id=b"x" * 16), 17)).error_code == ErrorCode.UNKNOWN_TOPIC_ID
        request = fetch_request(0)
        request.topics[0].partitions[0].current_leader_epoch = 1
        assert only(await it.ask(request, 12)).error_code == ErrorCode.UNKNOWN_LEADER_EPOCH
        it.client.send(fetch_request(0, topic_id=WIRE_ID, max_wait_ms=60_000), 17)
        await it.becomes(leader=2, epoch=1)
        moved = await it.client.receive()
        assert only(moved).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (only(moved).current_leader.leader_id, only(moved).current_leader.leader_epoch) == (2, 1)
        assert [(node.node_id, node.host, node.port) for node in moved.node_endpoints] == [(2, "10.0.0.2", 9092)]


@asynchronous
async def test_a_repeat_is_answered_like_its_original_and_other_bytes_under_its_numbers_are_refused(
    tmp_path: Path,
) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        stamped: dict[str, Any] = {"producer_id": 7, "epoch": 0, "sequence": 0}
        first = await it.produce(made(3, **stamped))
        again = await it.produce(made(3, **stamped))
        assert (first.base_offset, again.base_offset, again.error_code) == (0, 0, NONE)
        other = await it.produce(made(3, value=b"other", **stamped))
        assert other.error_code == ErrorCode.INVALID_RECORD
        assert "CRC" in other.error_message
        assert other.log_start_offset == 0


def with_attributes(records: bytes, attributes: int) -> bytes:
    return with_field(records, 21, ">h", attributes)


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (made(2)[:-1], ErrorCode.CORRUPT_MESSAGE),
        (made(2) + made(2), ErrorCode.INVALID_RECORD),
        (made(2)[:40], ErrorCode.CORRUPT_MESSAGE),
        (b"", ErrorCode.CORRUPT_MESSAGE),
        (None, ErrorCode.INVALID_RECORD),
        (made(1, producer_id=7, epoch=0, sequence=5), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (with_attributes(made(1), 0x10), ErrorCode.INVALID_RECORD),
        (with_attributes(made(1), 0x20), ErrorCode.INVALID_RECORD),
        (with_attributes(made(1), 0x08), ErrorCode.INVALID_RECORD),
        (with_field(made(2), 57, ">i", 3), ErrorCode.INVALID_RECORD),
        (made(1)[:16] + b"\x01" + made(1)[17:], ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT),
        (made(1, value=bytes(5 * 1024 * 1024)), ErrorCode.MESSAGE_TOO_LARGE),
    ],
)
@asynchronous
async def test_batches_that_are_none_change_nothing(tmp_path: Path, records: bytes | None, code: ErrorCode) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        refused = only(await it.ask(produce_request(records), 9))
        assert (refused.error_code, refused.base_offset) == (code, -1)
        assert refused.error_message
        assert (await it.produce(made(1))).base_offset == 0


@asynchronous
async def test_produce_refuses_what_it_does_not_take_partition_by_partition(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        answer = await it.ask(produce_request(made(1), made(1)), 9)
        codes = [partition.error_code for partition in answer.responses[0].partition_responses]
        assert codes == [NONE, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
        for request, version, code in (
            (produce_request(made(1), acks=2), 9, ErrorCode.INVALID_REQUIRED_ACKS),
            (produce_request(made(1), topic="nothing"), 9, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (produce_request(made(1), topic_id=b"x" * 16), 13, ErrorCode.UNKNOWN_TOPIC_ID),
            (produce_request(made(1), transactional_id="t"), 9, ErrorCode.INVALID_TXN_STATE),
            (produce_request(with_attributes(made(1), 4)), 6, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
        ):
            assert only(await it.ask(request, version)).error_code == code


@asynchronous
async def test_a_broker_that_does_not_lead_says_who_does_and_holds_up_what_follows(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2), topic=replace(ORDERS, config=TopicConfig(min_insync_replicas=1)))
        await it.becomes(leader=2, epoch=1)
        answer = await it.ask(produce_request(made(1, producer_id=7)), 12)
        assert only(answer).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (only(answer).current_leader.leader_id, only(answer).current_leader.leader_epoch) == (2, 1)
        assert [(node.node_id, node.host, node.port) for node in answer.node_endpoints] == [(2, "10.0.0.2", 9092)]
        await it.becomes(leader=1, epoch=2, isr=(1,))
        replica = it.running.broker.manager.replicas[ID, 0]
        await until(lambda: replica.is_leader, "the leadership")
        behind = await it.produce(made(1, producer_id=7, sequence=1))
        assert behind.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER  # and not OUT_OF_ORDER_SEQUENCE_NUMBER
        assert [(await it.produce(made(1, producer_id=7, sequence=s))).base_offset for s in (0, 1)] == [0, 1]


@asynchronous
async def test_a_batch_whose_leadership_ends_before_its_commit_is_of_unknown_outcome(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        it.client.send(produce_request(made(1, producer_id=7)), 12)
        replica = it.running.broker.manager.replicas[ID, 0]
        await until(lambda: replica.log.log_end_offset == 1, "the append")
        await it.becomes(leader=2, epoch=1)
        assert only(await it.client.receive()).error_code == ErrorCode.REQUEST_TIMED_OUT


@asynchronous
async def test_several_produce_requests_wait_at_once_and_are_answered_in_their_order(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        for number in range(3):
            it.client.send(produce_request(made(1, producer_id=7, sequence=number)), 9)
        it.client.send(produce_request(made(1), acks=1), 9)  # its outcome is known first
        replica = it.running.broker.manager.replicas[ID, 0]
        await until(lambda: replica.log.log_end_offset == 4, "the appends, none of which is committed")
        await it.running.metadata(Partition(ID, 0, (1, 2), (1,), 1, 0, 1))
        answers = [only(await it.client.receive()) for _ in range(4)]
        assert [answer.base_offset for answer in answers] == [0, 1, 2, 3]


@asynchronous
async def test_acks_0_has_no_answer_and_a_refusal_ends_the_connection(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        it.client.send(produce_request(made(1), acks=0), 9)
        it.client._asked.pop()
        replica = it.running.broker.manager.replicas[ID, 0]
        await until(lambda: replica.log.log_end_offset == 1, "the append")
        it.client.send(produce_request(made(1), topic="nothing", acks=0), 9)
        assert await it.client.closed() == b""


@asynchronous
async def test_a_request_for_many_partitions_is_taken_in_turns_and_before_what_follows(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(partitions=100)
        it.client.send(produce_request(*[made(1, producer_id=7)] * 100), 9)
        it.client.send(produce_request(made(1, producer_id=7, sequence=1)), 9)
        (topic,) = (await it.client.receive()).responses
        assert [answer.error_code for answer in topic.partition_responses] == [NONE] * 100
        assert only(await it.client.receive()).base_offset == 1


# ---- Offsets ----


def offsets_request(timestamp: int, *, topic: str = "orders", epoch: int = -1) -> ListOffsetsRequest:
    partition = ListOffsetsPartition(partition_index=0, current_leader_epoch=epoch, timestamp=timestamp)
    return ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=[partition])])


@asynchronous
async def test_offsets_by_time_are_those_of_records(tmp_path: Path) -> None:
    from tests.unit.test_broker import batch as timed

    async with edge(tmp_path) as it:
        await it.leads()
        await it.produce(timed([b"a", b"b", b"c"], timestamp_ms=1_000))
        await it.produce(timed([b"d", b"e"], timestamp_ms=500))
        for version in range(1, 10):
            for timestamp, expected in (
                (-1, (-1, 5)),
                (-2, (-1, 0)),
                (0, (1_000, 0)),
                (1_001, (1_001, 1)),
                (1_002, (1_002, 2)),
                (1_003, (-1, -1)),
                (-3, (1_002, 2)),
                (-4, (-1, 0)),
                (-5, (-1, -1)),
            ):
                (topic,) = (await it.ask(offsets_request(timestamp), version)).topics
                (answer,) = topic.partitions
                assert (answer.error_code, answer.timestamp, answer.offset) == (NONE, *expected), timestamp
                assert answer.leader_epoch in (0, -1)
        for request, code in (
            (offsets_request(-9), ErrorCode.INVALID_REQUEST),
            (offsets_request(-1, topic="nothing"), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (offsets_request(-1, epoch=7), ErrorCode.UNKNOWN_LEADER_EPOCH),
        ):
            assert (await it.ask(request, 5)).topics[0].partitions[0].error_code == code


@asynchronous
async def test_a_leader_epoch_ends_where_the_leaders_history_says(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        await it.produce(made(3))
        for epoch, expected in ((0, (0, 3)), (5, (0, 3))):
            asked = OffsetForLeaderPartition(partition=0, leader_epoch=epoch)
            for version in (2, 3, 4):
                request = OffsetForLeaderEpochRequest(topics=[OffsetForLeaderTopic(topic="orders", partitions=[asked])])
                (topic,) = (await it.ask(request, version)).topics
                assert (topic.partitions[0].leader_epoch, topic.partitions[0].end_offset) == expected


# ---- Producer ids ----


@asynchronous
async def test_every_producer_gets_an_id_of_its_own_and_transactional_ones_are_refused(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        ids = set()
        for version in range(6):
            answer = await it.ask(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1), version)
            assert (answer.error_code, answer.producer_epoch) == (NONE, 0)
            ids.add(answer.producer_id)
        assert len(ids) == 6
        refused = await it.ask(InitProducerIdRequest(transactional_id="t"), 4)
        assert refused.error_code == ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


# ---- Bad input ----


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("16030100c8010000c40303"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\x00\x00",
        b"\x7f\xff\xff\xff",
        bytes.fromhex("00000008 0099 0000 00000001".replace(" ", "")),  # no such API
        bytes.fromhex("0000000a 0000 0000 00000001 ffff".replace(" ", "")),  # a version of Produce that is gone
        bytes.fromhex("0000000a 0001 000c 00000001 7fff".replace(" ", "")),  # a client id that is longer than the frame
        bytes.fromhex("0000000e 0003 0001 00000001 ffff 7fffffff".replace(" ", "")),  # 2 billion topics
    ],
)
@asynchronous
async def test_what_is_no_request_ends_its_connection_with_one_line_and_no_other(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with edge(tmp_path) as it:
        async with kafka_client(it.address) as bad:
            bad.writer.write(data)
            assert await bad.closed() == b""
        lines = [record for record in caplog.records if "kafka connection closed" in record.message]
        assert len(lines) == 1
        assert (await it.ask(ApiVersionsRequest(), 0)).error_code == NONE


@asynchronous
async def test_one_connection_too_many_is_closed(tmp_path: Path) -> None:
    async with edge(tmp_path, kafka_max_connections=2) as it:
        assert (await it.ask(ApiVersionsRequest(), 0)).error_code == NONE
        async with kafka_client(it.address) as second:
            assert (await second.ask(ApiVersionsRequest(), 0)).error_code == NONE
            async with kafka_client(it.address) as third:
                assert await third.closed() == b""

        async def is_served() -> bool:
            async with kafka_client(it.address) as after:
                try:
                    return bool((await after.ask(ApiVersionsRequest(), 0)).error_code == NONE)
                except (asyncio.IncompleteReadError, ConnectionResetError):
                    return False

        await until(is_served, "the end of the second connection to be noticed")


@asynchronous
async def test_half_a_request_and_a_silent_client_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fencepost_node.kafka import listener

    monkeypatch.setattr(listener, "FRAME_WITHIN_S", 0.2)
    monkeypatch.setattr(listener, "SWEEP_INTERVAL_S", 0.05)
    async with edge(tmp_path, kafka_max_idle_ms=400) as it:
        async with kafka_client(it.address) as half:
            half.writer.write(b"\x00\x00\x01\x00abc")
            assert await half.closed() == b""
        async with kafka_client(it.address) as silent:
            assert (await silent.ask(ApiVersionsRequest(), 0)).error_code == NONE
            assert await silent.closed() == b""


@asynchronous
async def test_incomplete_requests_together_hold_no_more_than_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fencepost_node.kafka import listener

    monkeypatch.setattr(listener, "HELD_BYTES", 100_000)
    async with edge(tmp_path, kafka_max_request_bytes=60_000) as it, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(kafka_client(it.address)) for _ in range(3)]
        for client in clients:
            client.writer.write((50_000).to_bytes(4, "big") + bytes(40_000))
            await client.writer.drain()
        assert await clients[0].closed() == b""
        assert (await it.ask(ApiVersionsRequest(), 0)).error_code == NONE


@asynchronous
async def test_a_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads()
        await it.produce(made(1, value=bytes(1_000_000)))
        async with kafka_client(it.address) as deaf:
            writer = asyncio.create_task(_ask_for_ever(deaf))
            budget = it.running.broker.limits.answers
            await until(lambda: budget.used_bytes > 0, "an answer that is not read")
            for _ in range(20):
                assert budget.used_bytes <= 2_000_000
                assert (await it.ask(ApiVersionsRequest(), 0)).error_code == NONE
            writer.cancel()
            deaf.writer.transport.abort()  # what it has not sent yet would keep it open
        await until(lambda: budget.used_bytes == 0, "the end of the connection")


@asynchronous
async def test_clients_that_do_not_read_hold_no_more_than_their_bound_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them holds one batch, whatever the memory that is set: so the slowest go."""
    batch_bytes = 1_000_000
    async with edge(tmp_path, client_answer_bytes=MIB, clean=False) as it, AsyncExitStack() as stack:
        await it.leads()
        await it.produce(made(1, value=bytes(batch_bytes)))
        budget = it.running.broker.limits.answers
        deaf = [await stack.enter_async_context(kafka_client(it.address)) for _ in range(12)]
        for client in deaf:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # the system's buffers fill
            for _ in range(20):
                client.send(fetch_request(0), 12)
        most = 0

        async def is_closed() -> bool:
            nonlocal most
            most = max(most, budget.used_bytes)
            assert only(await it.ask(fetch_request(0), 12)).records  # a client that reads is served
            return len(it.connections) <= len(deaf)  # and the one that reads

        await until(is_closed, "the end of a client that does not read")
        for _ in range(20):
            await is_closed()
        assert most < 4 * MIB + 2 * batch_bytes
        assert "answers are unread, and its own for the longest time" in caplog.text
        for client in deaf:
            client.writer.transport.abort()
        await until(lambda: budget.used_bytes == 0, "the end of the connections")


async def _ask_for_ever(client: KafkaClient) -> None:
    while True:
        client.send(fetch_request(0), 12)
        await client.writer.drain()


@asynchronous
async def test_without_a_listen_address_there_is_no_port(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        assert running.broker.kafka_address == ""
        assert running.session.registration.kafka_address == ""


def test_the_header_of_a_batch_is_where_the_tests_think(tmp_path: Path) -> None:
    assert read_header(with_attributes(made(1), 0x20)).attributes == 0x20
    assert FetchRequest().isolation_level == 0


@asynchronous
async def test_tiny_requests_whose_answers_are_not_read_fill_nothing(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        request = encode_request(18, 0, 1, "tiny", ApiVersionsRequest())
        many = b"".join(bytes(chunk) for chunk in request) * 2_000
        async with kafka_client(it.address) as deaf:
            deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]  # the system's buffers fill
            sent = 0
            with contextlib.suppress(TimeoutError):
                for _ in range(500):  # a million requests
                    deaf.writer.write(many)
                    async with asyncio.timeout(1):
                        await deaf.writer.drain()
                    sent += 2_000
            assert sent < 500_000  # it is not read from any more
            (server_side,) = [c for c in it.connections if c.context.client_id == "tiny"]
            assert server_side.unwritten_bytes < 1_000_000
            assert (await it.ask(ApiVersionsRequest(), 0)).error_code == NONE
            deaf.writer.transport.abort()
