"""A whole broker in this process, over real gRPC and a real disk; the controller is scripted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_node.broker import Broker
from fencepost_node.config import BrokerConfig
from fencepost_node.folders.data_folder import CLEAN_SHUTDOWN
from fencepost_node.grpc import describe_producers as describe_producers_module
from fencepost_node.log.disk import RealDisk
from fencepost_node.requests.list_offsets import EARLIEST
from fencepost_proto.protocol.errors import ErrorCode, InvariantBroken
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    Entity,
    MetadataImage,
    NamedProducer,
    Partition,
    Topic,
    TopicConfig,
)
from fencepost_proto.protocol.record_batch import iter_batches
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import FakeController, SessionStream, fake_controller

BROKER_ID = 1
EPOCH = 3  # the broker's, and the version of the first image
TOPIC = "topic-id-of-orders"
ORDERS = Topic(TOPIC, "orders", TopicConfig(min_insync_replicas=1))
CONTROLLER_AWAY = "127.0.0.1:1"


class Running:
    """A broker, its session as the controller sees it, and a client's stubs."""

    def __init__(self, broker: Broker, session: SessionStream, channel: grpc.aio.Channel) -> None:
        self.broker = broker
        self.session = session
        self.channel = channel
        self.stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
        self.admin: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(channel)
        self._version = EPOCH

    async def metadata(self, *entities: Entity) -> None:
        self._version += 1
        await self.session.metadata(self._version, *entities)
        await self.session.acknowledged(self._version)

    async def leads(self, partitions: int = 1, isr: Sequence[int] = (BROKER_ID,), epoch: int = 0) -> None:
        """Give the broker a topic whose partitions it leads."""
        await self.metadata(
            ORDERS,
            *(Partition(TOPIC, index, tuple(isr), tuple(isr), BROKER_ID, epoch, epoch) for index in range(partitions)),
        )
        replicas = self.broker.manager.replicas
        await until(
            lambda: all((TOPIC, i) in replicas and replicas[TOPIC, i].is_leader for i in range(partitions)),
            "the leadership",
        )

    async def produce(self, *batches: broker_pb2.ProduceBatch) -> list[broker_pb2.ProduceResult]:
        call = self.stub.Produce()
        await call.write(broker_pb2.ProduceRequest(batches=batches))
        await call.done_writing()
        results = [result async for response in call for result in response.results]
        return sorted(results, key=lambda result: result.correlation_id)


def config_of(data_dir: Path, controller: str, **settings: Any) -> BrokerConfig:
    values: dict[str, Any] = {"broker_id": BROKER_ID, "data_dir": str(data_dir), "controller": controller, **settings}
    return BrokerConfig(**values)


@asynccontextmanager
async def broker_of(
    controller: FakeController, data_dir: Path, *, clean: bool = True, known: Sequence[Entity] = (), **settings: Any
) -> AsyncIterator[Running]:
    broker = Broker(config_of(data_dir, controller.address, **settings), Host(), RealDisk())
    number = len(controller.sessions)
    try:
        await broker.start()
        session = await controller.session(number)
        await session.registered(EPOCH)
        entity = BrokerRegistration(BROKER_ID, broker.address, EPOCH, session.registration.incarnation, fenced=False)
        await session.image(EPOCH, entity, *known)
        await session.acknowledged(EPOCH)
        await broker.wait_ready()
        async with Host().wire.connect(broker.address) as channel:
            yield Running(broker, session, channel)
            if clean and not broker.stopped:
                await session.shutdown_allowed()
    finally:
        if not broker.stopped:
            await broker.stop(clean)


def batch(values: Sequence[bytes], producer: tuple[int, int, int] = (-1, -1, -1), timestamp_ms: int = 1_000) -> bytes:
    builder = BatchBuilder(Compression.NONE, 1 << 20)
    for number, value in enumerate(values):
        assert builder.append(timestamp_ms + number, None, value, [])
    return builder.build(*producer)


def produce_batch(records: bytes, *, correlation_id: int = 1, partition: int = 0, acks: int = -1) -> Any:
    return broker_pb2.ProduceBatch(
        correlation_id=correlation_id,
        topic_id=TOPIC,
        partition=partition,
        leader_epoch=-1,
        acks=acks,
        timeout_ms=5_000,
        records=records,
    )


def offsets_request(timestamp_ms: int, *, topic_id: str = TOPIC, partition: int = 0, epoch: int = -1) -> Any:
    return broker_pb2.ListOffsetsRequest(
        topic_id=topic_id, partition=partition, leader_epoch=epoch, timestamp_ms=timestamp_ms
    )


# ---- Start and end ----


@asynchronous
async def test_a_started_broker_says_that_it_is_healthy(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        for name in ("", "fencepost.v1.Broker", "fencepost.v1.Replication", "fencepost.v1.Admin"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@asynchronous
async def test_a_clean_stop_leaves_the_marker_and_a_goodbye_and_the_next_start_finds_everything(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        async with broker_of(controller, tmp_path) as running:
            await running.leads()
            (result,) = await running.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
            assert result.error.code == ErrorCode.NONE
            assert not (tmp_path / CLEAN_SHUTDOWN).exists()
        assert running.session.said_goodbye
        assert (tmp_path / CLEAN_SHUTDOWN).exists()
        offline = Partition(TOPIC, 0, (BROKER_ID,), (BROKER_ID,), -1, 1, 1)
        async with broker_of(controller, tmp_path, known=[ORDERS, offline]) as again:
            assert not again.session.registration.may_have_lost_tail
            await again.leads(epoch=2)
            latest = await again.stub.ListOffsets(offsets_request(-1))
            assert (latest.error.code, latest.offset) == (ErrorCode.NONE, 2)
            (repeat,) = await again.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
            assert (repeat.duplicate, repeat.base_offset) == (True, 0)


@asynchronous
async def test_a_stop_that_is_not_clean_leaves_no_marker(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        async with broker_of(controller, tmp_path, clean=False) as running:
            await running.leads()
        assert not running.session.said_goodbye
        assert not (tmp_path / CLEAN_SHUTDOWN).exists()


@asynchronous
async def test_an_occupied_port_is_refused_naming_it(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path / "a") as running:
        second = Broker(
            config_of(tmp_path / "b", controller.address, listen=running.broker.address), Host(), RealDisk()
        )
        with pytest.raises(OSError, match=running.broker.address):
            await second.start()
        await second.stop(clean=True)
        assert not (tmp_path / "b" / CLEAN_SHUTDOWN).exists()


@asynchronous
async def test_a_broken_invariant_in_a_request_ends_the_broker_and_an_accident_only_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, clean=False) as running:
        trouble: list[Exception] = [KeyError("an accident"), InvariantBroken("offsets went back")]

        async def fail(*_: object) -> None:
            raise trouble.pop(0)

        monkeypatch.setattr("fencepost_node.grpc.broker_service.list_offsets", fail)
        answer = await running.stub.ListOffsets(offsets_request(-1))
        assert answer.error.code == ErrorCode.UNKNOWN_SERVER_ERROR
        assert "an accident" in answer.error.message
        assert not running.broker.failure.happened
        answer = await running.stub.ListOffsets(offsets_request(-1))
        assert answer.error.code == ErrorCode.UNKNOWN_SERVER_ERROR
        with pytest.raises(InvariantBroken, match="offsets went back"):
            await running.broker.failure.wait()


@asynchronous
async def test_a_broken_invariant_ends_the_process_with_exit_code_70_and_no_clean_marker(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        config = tmp_path / "broker.toml"
        data_dir = tmp_path / "data"
        config.write_text(f'broker_id = 1\ndata_dir = "{data_dir}"\ncontroller = "{controller.address}"\n')
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fencepost_node", str(config)), stderr=asyncio.subprocess.PIPE
        )
        try:
            session = await controller.session(0)
            await session.registered(EPOCH)
            await session.image(EPOCH)
            await session.metadata(EPOCH - 1)
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 70
        assert f"metadata version {EPOCH - 1} came after {EPOCH}" in said.decode()
        assert not (data_dir / CLEAN_SHUTDOWN).exists()


@asynchronous
async def test_a_log_that_the_disk_refuses_to_open_is_reported_and_not_tried_again_before_the_next_start(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        in_its_place = tmp_path / "orders-0"
        in_its_place.write_text("no folder")
        alone = (BROKER_ID,)
        await running.metadata(ORDERS, Partition(TOPIC, 0, alone, alone, BROKER_ID, 0, 0))
        await until(lambda: running.broker.manager.failed_replicas == [(TOPIC, 0)], "the failed replica")
        await until(
            lambda: [ref.topic_id for ref in running.session.heartbeats[-1].failed_replicas] == [TOPIC],
            "its report",
        )
        in_its_place.unlink()
        await running.metadata(Partition(TOPIC, 1, alone, alone, BROKER_ID, 0, 0))
        await until(lambda: list(running.broker.manager.replicas), "the next partition")
        assert list(running.broker.manager.replicas) == [(TOPIC, 1)]
        assert running.broker.manager.failed_replicas == [(TOPIC, 0)]


# ---- Metadata ----


@asynchronous
async def test_metadata_names_topics_and_what_is_not_there_and_hides_producers(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads(2)
        await running.metadata(NamedProducer("loader", 5, 1), Topic("other", "returns"))
        answer = await running.stub.Metadata(broker_pb2.MetadataRequest(topic_names=["orders", "nothing"]))
        image = MetadataImage().apply(answer.image)
        assert list(image.topic_ids) == ["orders"]
        assert list(image.partitions) == [(TOPIC, 0), (TOPIC, 1)]
        assert image.brokers[BROKER_ID].address == running.broker.address
        assert not image.producers
        assert list(answer.unknown_topics) == ["nothing"]
        assert answer.answering_broker_id == BROKER_ID
        everything = await running.stub.Metadata(broker_pb2.MetadataRequest())
        assert sorted(MetadataImage().apply(everything.image).topic_ids) == ["orders", "returns"]


@asynchronous
async def test_no_client_sees_the_incarnation_of_a_broker(tmp_path: Path) -> None:
    """Whoever knows it can register in the broker's place."""

    seen: list[Any] = []

    async def follow(stub: broker_pb2_grpc.BrokerAsyncStub) -> None:
        call: Any = stub.WatchMetadata(broker_pb2.WatchMetadataRequest())
        async for delta in call:
            seen.append(delta)

    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        incarnation = running.session.registration.incarnation
        assert incarnation
        watching = asyncio.create_task(follow(running.stub))
        await until(lambda: bool(seen), "the image")
        await running.metadata(BrokerRegistration(BROKER_ID, "127.0.0.1:9", EPOCH, incarnation, fenced=False))
        await running.metadata(BrokerRegistration(2, "127.0.0.1:7", EPOCH + 1, "of another", fenced=False))
        await until(lambda: bool(seen) and seen[-1].version == EPOCH + 2, "the changes")
        for names in ((), ("orders",)):
            seen.append(await running.stub.Metadata(broker_pb2.MetadataRequest(topic_names=names)))
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        request = health_pb2.HealthListRequest()  # type: ignore[attr-defined]  # newer than its stubs
        with pytest.raises(grpc.aio.AioRpcError):  # it would list the service that is named after the incarnation
            await health.List(request)
        watching.cancel()
        assert "127.0.0.1:9" in str(seen)
        assert incarnation not in str(seen)
        assert "of another" not in str(seen)


@asynchronous
async def test_clients_get_the_advertised_address(tmp_path: Path) -> None:
    for advertised in ("broker-1.example:0", "broker-1.example:4711"):
        async with fake_controller() as controller:
            data_dir = tmp_path / advertised
            anywhere: dict[str, Any] = {"listen": "0.0.0.0:0", "insecure_listen": True}
            async with broker_of(controller, data_dir, advertised_address=advertised, **anywhere) as running:
                host, _, port = running.session.registration.address.rpartition(":")
                real_port = running.broker.address.rpartition(":")[2]
                assert (host, port) == ("broker-1.example", real_port if advertised.endswith(":0") else "4711")


@asynchronous
async def test_a_watch_brings_the_image_then_changes_and_ends_with_the_broker(tmp_path: Path) -> None:
    known: list[MetadataImage] = [MetadataImage()]

    async def follow(stub: broker_pb2_grpc.BrokerAsyncStub) -> None:
        call: Any = stub.WatchMetadata(broker_pb2.WatchMetadataRequest())
        async for delta in call:
            assert delta.image == (known == [MetadataImage()])
            known.append(known[-1].apply(delta))

    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        watching = asyncio.create_task(follow(running.stub))
        await until(lambda: known[-1].version == EPOCH, "the image")
        await running.leads()
        await until(lambda: (TOPIC, 0) in known[-1].partitions, "the change")
        assert known[-1].version == EPOCH + 1
        stopping = asyncio.create_task(running.session.shutdown_allowed())
        await running.broker.stop(clean=True)
        await stopping
        await watching


@asynchronous
async def test_without_metadata_a_client_is_sent_elsewhere(tmp_path: Path) -> None:
    broker = Broker(config_of(tmp_path, CONTROLLER_AWAY), Host(), RealDisk())
    await broker.start()
    async with Host().wire.connect(broker.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="no metadata yet") as caught:
            await broker_pb2_grpc.BrokerStub(channel).Metadata(broker_pb2.MetadataRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await broker.stop(clean=False)


# ---- ListOffsets ----


@asynchronous
async def test_offsets_by_end_begin_and_time(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        for index, timestamp_ms in enumerate((1_000, 2_000, 3_000)):
            records = batch([b"x", b"y"], (4, 0, 2 * index), timestamp_ms)
            (result,) = await running.produce(produce_batch(records))
            assert result.base_offset == 2 * index
        for timestamp_ms, offset, found_ms in (
            (-1, 6, -1),
            (-2, 0, -1),
            (0, 0, 1_000),
            (1_001, 1, 1_001),
            (1_002, 2, 2_000),
            (3_001, 5, 3_001),
            (3_002, -1, -1),
        ):
            answer = await running.stub.ListOffsets(offsets_request(timestamp_ms))
            assert (answer.error.code, answer.offset, answer.timestamp_ms) == (0, offset, found_ms), timestamp_ms


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        (offsets_request(-4), ErrorCode.INVALID_REQUEST, "-4"),
        (offsets_request(-1, topic_id="nope"), ErrorCode.UNKNOWN_TOPIC_ID, "nope"),
        (offsets_request(-1, partition=9), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "9"),
        (offsets_request(-1, epoch=4), ErrorCode.FENCED_LEADER_EPOCH, "4"),
        (offsets_request(-1, epoch=6), ErrorCode.UNKNOWN_LEADER_EPOCH, "6"),
        (offsets_request(-1, partition=1), ErrorCode.NOT_LEADER_OR_FOLLOWER, "lead"),
    ],
)
@asynchronous
async def test_a_wrong_question_about_offsets_has_an_error_that_names_the_value(
    tmp_path: Path, request_: broker_pb2.ListOffsetsRequest, code: ErrorCode, named: str
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads(epoch=5)
        other = BrokerRegistration(2, "10.0.0.2:9092", 2, "i2", fenced=False)
        await running.metadata(other, Partition(TOPIC, 1, (2, 1), (2, 1), 2, 8, 8))
        answer = await running.stub.ListOffsets(request_)
        assert answer.error.code == code
        assert named in answer.error.message
        if code == ErrorCode.NOT_LEADER_OR_FOLLOWER:
            hint = answer.error.current_leader
            assert (hint.leader_id, hint.leader_epoch, hint.address) == (2, 8, "10.0.0.2:9092")
        again = await running.stub.ListOffsets(offsets_request(-1))
        assert again.error.code == ErrorCode.NONE


@asynchronous
async def test_a_new_leader_does_not_tell_an_end_that_may_go_back(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        (result,) = await running.produce(produce_batch(batch([b"a"])))
        assert result.error.code == ErrorCode.NONE
        both = (BROKER_ID, 2)
        other = BrokerRegistration(2, CONTROLLER_AWAY, 2, "i2", fenced=False)
        controller.answers["AlterPartition"] = grpc.StatusCode.UNAVAILABLE
        await running.metadata(other, Partition(TOPIC, 0, both, both, 2, 1, 1))
        await running.metadata(Partition(TOPIC, 0, both, both, BROKER_ID, 2, 2))
        replica = running.broker.manager.replicas[TOPIC, 0]
        await until(lambda: replica.is_leader, "the second leadership")
        if replica.high_watermark < 1:
            for timestamp_ms in (-1, 0):
                answer = await running.stub.ListOffsets(offsets_request(timestamp_ms))
                assert answer.error.code == ErrorCode.OFFSET_NOT_AVAILABLE
        earliest = await running.stub.ListOffsets(offsets_request(EARLIEST))
        assert (earliest.error.code, earliest.offset) == (ErrorCode.NONE, 0)


# ---- Producers ----


@asynchronous
async def test_anonymous_ids_come_from_the_block_and_named_ones_from_the_controller(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        controller.answers["AllocateProducerIds"] = controller_pb2.AllocateProducerIdsResponse(
            first_producer_id=3_000, count=1_000
        )
        controller.answers["InitProducerId"] = broker_pb2.InitProducerIdResponse(producer_id=77, producer_epoch=4)
        first = await running.stub.InitProducerId(broker_pb2.InitProducerIdRequest())
        second = await running.stub.InitProducerId(broker_pb2.InitProducerIdRequest())
        assert (first.producer_id, second.producer_id, second.producer_epoch) == (3_000, 3_001, 0)
        asked = controller.calls[0]
        assert (asked.broker_id, asked.broker_epoch) == (BROKER_ID, EPOCH)
        named = broker_pb2.InitProducerIdRequest(name="loader", producer_id=-1, producer_epoch=-1, timeout_ms=500)
        answer = await running.stub.InitProducerId(named)
        assert (answer.producer_id, answer.producer_epoch) == (77, 4)
        assert controller.calls[-1] == named


@asynchronous
async def test_without_a_controller_ids_are_refused_and_the_connection_stays(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        controller.answers["AllocateProducerIds"] = grpc.StatusCode.UNAVAILABLE
        controller.answers["InitProducerId"] = grpc.StatusCode.UNAVAILABLE
        for request in (
            broker_pb2.InitProducerIdRequest(),
            broker_pb2.InitProducerIdRequest(name="loader", producer_id=-1, producer_epoch=-1, timeout_ms=500),
        ):
            answer = await running.stub.InitProducerId(request)
            assert answer.error.code == ErrorCode.COORDINATOR_NOT_AVAILABLE
            assert controller.address in answer.error.message


def describe(producer_id: int = -1, commit_timeout_ms: int = 0) -> broker_pb2.DescribeProducersRequest:
    return broker_pb2.DescribeProducersRequest(
        topic_id=TOPIC, partition=0, producer_id=producer_id, commit_timeout_ms=commit_timeout_ms
    )


@asynchronous
async def test_described_producers_have_their_last_five_batches(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        for index in range(7):
            await running.produce(produce_batch(batch([b"x", b"y"], (4, 1, 2 * index))))
        await running.produce(produce_batch(batch([b"z"], (8, 0, 0))))
        answer = await running.stub.DescribeProducers(describe(commit_timeout_ms=1_000))
        assert answer.error.code == ErrorCode.NONE
        assert (answer.log_end_offset, answer.high_watermark, answer.leader_epoch) == (15, 15, 0)
        told = {producer.producer_id: producer for producer in answer.producers}
        assert sorted(told) == [4, 8]
        assert told[4].producer_epoch == 1
        assert [(b.first_sequence, b.last_sequence, b.base_offset) for b in told[4].batches] == [
            (2 * i, 2 * i + 1, 2 * i) for i in range(2, 7)
        ]
        one = await running.stub.DescribeProducers(describe(8))
        assert [producer.producer_id for producer in one.producers] == [8]
        with patch.object(describe_producers_module, "MAX_PRODUCERS", 1):
            many = await running.stub.DescribeProducers(describe())
            assert many.error.code == ErrorCode.INVALID_REQUEST
            assert "2 producers" in many.error.message
            assert len((await running.stub.DescribeProducers(describe(8))).producers) == 1
        none = await running.stub.DescribeProducers(describe(5))
        assert (none.error.code, len(none.producers)) == (ErrorCode.NONE, 0)
        for wrong, named in ((describe(-2), "-2"), (describe(commit_timeout_ms=-1), "-1")):
            refused = await running.stub.DescribeProducers(wrong)
            assert refused.error.code == ErrorCode.INVALID_REQUEST
            assert named in refused.error.message


@asynchronous
async def test_a_final_description_waits_until_its_content_is_committed(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, clean=False) as running:
        controller.answers["AlterPartition"] = grpc.StatusCode.UNAVAILABLE
        both = (BROKER_ID, 2)
        await running.metadata(BrokerRegistration(2, CONTROLLER_AWAY, 2, "i2", fenced=False))
        await running.leads(isr=both)
        (result,) = await running.produce(produce_batch(batch([b"x"], (4, 1, 0)), acks=1))
        assert result.error.code == ErrorCode.NONE
        as_it_is = await running.stub.DescribeProducers(describe())
        assert (as_it_is.log_end_offset, as_it_is.high_watermark) == (1, 0)
        early = await running.stub.DescribeProducers(describe(commit_timeout_ms=50))
        assert early.error.code == ErrorCode.REQUEST_TIMED_OUT
        waiting = asyncio.ensure_future(running.stub.DescribeProducers(describe(commit_timeout_ms=10_000)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await running.metadata(Partition(TOPIC, 0, both, (BROKER_ID,), BROKER_ID, 0, 1))  # broker 2 is dead
        final = await waiting
        assert (final.error.code, final.log_end_offset, final.high_watermark) == (ErrorCode.NONE, 1, 1)


@asynchronous
async def test_a_final_description_is_not_given_by_a_leader_that_lost_the_partition_meanwhile(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, clean=False) as running:
        controller.answers["AlterPartition"] = grpc.StatusCode.UNAVAILABLE
        both = (BROKER_ID, 2)
        await running.metadata(BrokerRegistration(2, CONTROLLER_AWAY, 2, "i2", fenced=False))
        await running.leads(isr=both)
        await running.produce(produce_batch(batch([b"x"], (4, 1, 0)), acks=1))
        waiting = asyncio.ensure_future(running.stub.DescribeProducers(describe(commit_timeout_ms=10_000)))
        await asyncio.sleep(0.05)
        await running.metadata(Partition(TOPIC, 0, both, both, 2, 1, 1))
        answer = await waiting
        assert answer.error.code in (ErrorCode.REQUEST_TIMED_OUT, ErrorCode.NOT_LEADER_OR_FOLLOWER)
        assert not answer.producers


# ---- The rest ----


@asynchronous
async def test_every_replica_is_listed_with_what_it_has(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads(2)
        records = batch([b"x", b"y"], (4, 1, 0))
        await running.produce(produce_batch(records), produce_batch(records, correlation_id=2))
        answer = await running.stub.DescribeLogDirs(broker_pb2.DescribeLogDirsRequest())
        assert answer.broker_id == BROKER_ID
        assert answer.metadata_version == running.broker.manager.image.version
        first, second = answer.replicas
        assert (first.partition, first.is_leader, first.log_end_offset, first.high_watermark) == (0, True, 2, 2)
        assert (first.appended_batches, first.deduplicated_batches, first.failure) == (1, 1, "")
        assert first.size_bytes == len(records)
        assert (second.partition, second.log_end_offset, second.size_bytes) == (1, 0, 0)


@asynchronous
async def test_fetched_batches_are_what_was_produced(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        await running.produce(produce_batch(batch([b"x", b"y"], (4, 1, 0))))
        call = running.stub.Fetch()
        partition = broker_pb2.FetchPartition(topic_id=TOPIC, leader_epoch=-1, max_bytes=1 << 20)
        await call.write(broker_pb2.FetchRequest(partitions=[partition], max_wait_ms=5_000, min_bytes=1))
        answer = await call.read()
        await call.done_writing()
        assert isinstance(answer, broker_pb2.FetchResponse)
        (fetched,) = answer.partitions
        ((_, header),) = iter_batches(fetched.records)
        assert (header.base_offset, header.producer_id, header.record_count) == (0, 4, 2)


@asynchronous
async def test_admin_calls_are_relayed_and_say_when_the_controller_is_away(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        controller.answers["CreateTopic"] = controller_pb2.CreateTopicResponse(topic_id="t", version=9)
        request = controller_pb2.CreateTopicRequest(name="orders", partitions=3, replication_factor=1)
        assert await running.admin.CreateTopic(request) == controller.answers["CreateTopic"]
        assert controller.calls == [request]
        for name in ("DeleteTopic", "AlterPartitionReassignments", "ElectLeader"):
            controller.answers[name] = grpc.StatusCode.UNAVAILABLE
        refused: list[Any] = [
            await running.admin.DeleteTopic(controller_pb2.DeleteTopicRequest(name="orders")),
            await running.admin.AlterPartitionReassignments(controller_pb2.AlterPartitionReassignmentsRequest()),
            await running.admin.ElectLeader(controller_pb2.ElectLeaderRequest()),
        ]
        for answer in refused:
            assert answer.error.code == ErrorCode.NOT_CONTROLLER
            assert controller.address in answer.error.message
