"""Bad input to a live cluster of real processes: each has an error of its own that names the value, changes nothing,
and leaves the connection usable."""

from __future__ import annotations

import asyncio
import random
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from crc32c import crc32c

from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.record_batch import iter_batches, read_header
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    common_pb2,
    controller_pb2,
    controller_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
)
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.cluster_metadata import read_image
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, to_toml
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]

MAX_MESSAGE_BYTES = 10_000
MAX_REQUEST_BYTES = 64 * 1024
PRODUCER = 900  # of the first block of ids: allocated, and given to no one here
FUZZ_SEED = 20_240_601
FUZZ_REQUESTS = 400
FUZZ_DEADLINE_S = 30.0


@dataclass
class Victim:
    """A one-broker cluster with one topic, and a client's stubs."""

    cluster: AsyncLocalCluster
    channel: grpc.aio.Channel
    topic_id: str

    def __post_init__(self) -> None:
        self.broker: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(self.channel)
        self.admin: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(self.channel)
        self.sequence = 0

    async def produce(self, *batches: broker_pb2.ProduceBatch) -> list[broker_pb2.ProduceResult]:
        call = self.broker.Produce()
        await call.write(broker_pb2.ProduceRequest(batches=batches))
        await call.done_writing()
        return [result async for response in call for result in response.results]

    def batch(self, records: bytes, **fields: Any) -> broker_pb2.ProduceBatch:
        values: dict[str, Any] = {
            "correlation_id": 1,
            "topic_id": self.topic_id,
            "partition": 0,
            "leader_epoch": -1,
            "acks": -1,
            "timeout_ms": 10_000,
            "records": records,
        }
        return broker_pb2.ProduceBatch(**{**values, **fields})

    async def end_offset(self) -> int:
        answer = await self.broker.ListOffsets(
            broker_pb2.ListOffsetsRequest(topic_id=self.topic_id, leader_epoch=-1, timestamp_ms=-1)
        )
        assert answer.error.code == ErrorCode.NONE, answer.error
        return answer.offset

    async def state(self) -> broker_pb2.DescribeProducersResponse:
        return await self.broker.DescribeProducers(
            broker_pb2.DescribeProducersRequest(topic_id=self.topic_id, producer_id=-1)
        )

    async def leader_epoch(self) -> int:
        """Of the leadership that the broker has or soon gets."""
        described = await until(self.state, "it leads", holds=lambda described: described.error.code == ErrorCode.NONE)
        return described.leader_epoch

    async def good(self) -> None:
        """One more batch of the same producer goes in."""
        (result,) = await self.produce(self.batch(batch_of([b"good"], (PRODUCER, 0, self.sequence))))
        assert result.error.code == ErrorCode.NONE, result.error
        self.sequence += 1


def batch_of(values: Sequence[bytes], producer: tuple[int, int, int] = (-1, -1, -1)) -> bytes:
    builder = BatchBuilder(Compression.NONE, 1 << 24)
    for value in values:
        assert builder.append(1_000, None, value, [])
    return builder.build(*producer)


def patched(records: bytes, position: int, form: str, value: int, *, fix_crc: bool = True) -> bytes:
    """The batch with one field changed; a CRC that fits it, unless the CRC is what is wrong."""
    changed = bytearray(records)
    struct.pack_into(form, changed, position, value)
    if fix_crc:
        struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])))
    return bytes(changed)


@asynccontextmanager
async def victim(cluster: AsyncLocalCluster) -> AsyncIterator[Victim]:
    async with cluster, GrpcWire().connect(cluster.member(1).address) as channel:
        admin: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(channel)
        created = await admin.CreateTopic(
            controller_pb2.CreateTopicRequest(
                name="orders",
                partitions=1,
                replication_factor=1,
                config=common_pb2.TopicConfig(max_message_bytes=MAX_MESSAGE_BYTES),
            )
        )
        assert created.error.code == ErrorCode.NONE, created.error
        made = Victim(cluster, channel, created.topic_id)
        await made.leader_epoch()
        (first,) = await made.produce(made.batch(batch_of([b"first"])))
        assert first.error.code == ErrorCode.NONE, first.error
        yield made


def one_broker(cluster_factory: ClusterFactory) -> AsyncLocalCluster:
    return cluster_factory(brokers=1, broker_overrides={"max_request_bytes": MAX_REQUEST_BYTES})


GOOD = batch_of([b"x", b"y"], (PRODUCER + 1, 0, 0))
# (what is sent, the error, what its message names)
BAD_BATCHES: dict[str, tuple[bytes, ErrorCode, str]] = {
    "crc": (patched(GOOD, 17, ">I", 0xDEADBEEF, fix_crc=False), ErrorCode.CORRUPT_MESSAGE, "0xdeadbeef"),
    "flipped bit": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), ErrorCode.CORRUPT_MESSAGE, "CRC"),
    "length too long": (patched(GOOD, 8, ">i", len(GOOD)), ErrorCode.CORRUPT_MESSAGE, f"length {len(GOOD)}"),
    "length too short": (patched(GOOD, 8, ">i", 48), ErrorCode.CORRUPT_MESSAGE, "length 48"),
    "length negative": (patched(GOOD, 8, ">i", -5), ErrorCode.CORRUPT_MESSAGE, "length -5"),
    "cut off": (GOOD[:40], ErrorCode.CORRUPT_MESSAGE, "40 bytes"),
    "empty": (b"", ErrorCode.CORRUPT_MESSAGE, "0 bytes"),
    "two batches": (GOOD + GOOD, ErrorCode.INVALID_RECORD, str(2 * len(GOOD))),
    "count too large": (patched(GOOD, 57, ">i", 3), ErrorCode.INVALID_RECORD, "record count 3"),
    "count zero": (patched(GOOD, 57, ">i", 0), ErrorCode.INVALID_RECORD, "record count 0"),
    "count negative": (patched(GOOD, 57, ">i", -1), ErrorCode.INVALID_RECORD, "record count -1"),
    "delta": (patched(GOOD, 23, ">i", 7), ErrorCode.INVALID_RECORD, "delta 7"),
    "magic 0": (patched(GOOD, 16, ">b", 0), ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT, "magic 0"),
    "magic 1": (patched(GOOD, 16, ">b", 1), ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT, "magic 1"),
    "magic 9": (patched(GOOD, 16, ">b", 9), ErrorCode.CORRUPT_MESSAGE, "magic 9"),
    "compression 7": (patched(GOOD, 21, ">h", 7), ErrorCode.INVALID_RECORD, "0x0007"),
    "transactional": (patched(GOOD, 21, ">h", 16), ErrorCode.INVALID_RECORD, "0x0010"),
    "sequence": (patched(GOOD, 53, ">i", -7), ErrorCode.INVALID_RECORD, "base sequence -7"),
    "producer id": (patched(GOOD, 43, ">q", -8), ErrorCode.INVALID_RECORD, "producer id -8"),
    "producer epoch": (patched(GOOD, 51, ">h", -3), ErrorCode.INVALID_RECORD, "producer epoch -3"),
    "sequence without id": (patched(GOOD, 43, ">q", -1), ErrorCode.INVALID_RECORD, "without a producer id"),
    "unknown producer": (patched(GOOD, 53, ">i", 5), ErrorCode.UNKNOWN_PRODUCER_ID, str(PRODUCER + 1)),
    "batch too large": (batch_of([bytes(MAX_MESSAGE_BYTES)]), ErrorCode.MESSAGE_TOO_LARGE, str(MAX_MESSAGE_BYTES)),
}


@asynchronous
async def test_each_bad_batch_has_its_error_and_changes_nothing(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        await broker.good()
        end, state = await broker.end_offset(), await broker.state()
        call = broker.broker.Produce()  # one stream for all: none of them may break it
        for name, (records, code, named) in BAD_BATCHES.items():
            await call.write(broker_pb2.ProduceRequest(batches=[broker.batch(records)]))
            response = await call.read()
            assert isinstance(response, broker_pb2.ProduceResponse), name
            (result,) = response.results
            assert (ErrorCode(result.error.code), result.base_offset) == (code, -1), (name, result.error.message)
            assert named in result.error.message, (name, result.error.message)
        assert await broker.end_offset() == end
        assert await broker.state() == state
        good = broker.batch(batch_of([b"good"], (PRODUCER, 0, broker.sequence)))
        await call.write(broker_pb2.ProduceRequest(batches=[good]))
        response = await call.read()
        assert isinstance(response, broker_pb2.ProduceResponse)
        assert (response.results[0].error.code, response.results[0].base_offset) == (ErrorCode.NONE, end)
        await call.done_writing()


@asynchronous
async def test_each_wrong_address_of_a_batch_has_its_error_and_changes_nothing(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        await broker.good()
        end, state = await broker.end_offset(), await broker.state()
        cases: list[tuple[dict[str, Any], ErrorCode, str]] = [
            ({"topic_id": "nowhere"}, ErrorCode.UNKNOWN_TOPIC_ID, "nowhere"),
            ({"topic_id": ""}, ErrorCode.UNKNOWN_TOPIC_ID, "''"),
            ({"partition": 77}, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "77"),
            ({"partition": -4}, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "-4"),
            ({"leader_epoch": 99}, ErrorCode.UNKNOWN_LEADER_EPOCH, "99"),
            ({"acks": 2}, ErrorCode.INVALID_REQUIRED_ACKS, "2"),
            ({"acks": -2}, ErrorCode.INVALID_REQUIRED_ACKS, "-2"),
        ]
        records = batch_of([b"lost"], (PRODUCER, 0, broker.sequence))
        for fields, code, named in cases:
            (result,) = await broker.produce(broker.batch(records, **fields))
            assert result.error.code == code, (fields, result.error)
            assert named in result.error.message, (fields, result.error)
        assert await broker.end_offset() == end
        assert await broker.state() == state
        await broker.good()


@asynchronous
async def test_a_stale_leader_epoch_is_refused_naming_it(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        await broker.cluster.restart(1)  # elects it again, under the next epoch
        await broker.cluster.wait_registered()
        epoch = await broker.leader_epoch()
        assert epoch > 0
        (result,) = await broker.produce(broker.batch(batch_of([b"x"]), leader_epoch=epoch - 1))
        assert result.error.code == ErrorCode.FENCED_LEADER_EPOCH
        assert f"leader epoch {epoch - 1}" in result.error.message
        assert (result.error.current_leader.leader_id, result.error.current_leader.leader_epoch) == (1, epoch)
        await broker.good()


@asynchronous
async def test_too_large_a_request_is_refused_whole_and_beyond_the_wires_bound_only_its_call_fails(
    cluster_factory: ClusterFactory,
) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        end = await broker.end_offset()
        part = batch_of([bytes(MAX_MESSAGE_BYTES // 2)])
        count = MAX_REQUEST_BYTES // len(part) + 1
        results = await broker.produce(*(broker.batch(part, correlation_id=n) for n in range(count)))
        assert sorted(result.correlation_id for result in results) == list(range(count))
        for result in results:
            assert result.error.code == ErrorCode.RECORD_LIST_TOO_LARGE
            assert str(MAX_REQUEST_BYTES) in result.error.message
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(broker.cluster.member(1).address, options=options) as unbounded:
            stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(unbounded)
            call = stub.Produce()
            await call.write(broker_pb2.ProduceRequest(batches=[broker.batch(bytes(17 << 20))]))
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            offsets = broker_pb2.ListOffsetsRequest(topic_id=broker.topic_id, leader_epoch=-1, timestamp_ms=-1)
            assert (await stub.ListOffsets(offsets)).offset == end
        await broker.good()


@asynchronous
async def test_a_fetch_outside_of_the_log_is_refused_naming_the_offset(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        call = broker.broker.Fetch()
        for offset in (-1, 1_000_000):
            wanted = broker_pb2.FetchPartition(
                topic_id=broker.topic_id, leader_epoch=-1, fetch_offset=offset, max_bytes=1_000
            )
            await call.write(broker_pb2.FetchRequest(partitions=[wanted], max_wait_ms=5_000, min_bytes=1))
            response = await call.read()
            assert isinstance(response, broker_pb2.FetchResponse)
            (fetched,) = response.partitions
            assert fetched.error.code == ErrorCode.OFFSET_OUT_OF_RANGE
            assert str(offset) in fetched.error.message
        wanted = broker_pb2.FetchPartition(topic_id=broker.topic_id, leader_epoch=-1, max_bytes=1_000)
        await call.write(broker_pb2.FetchRequest(partitions=[wanted], max_wait_ms=5_000, min_bytes=1))
        response = await call.read()
        assert isinstance(response, broker_pb2.FetchResponse)
        assert response.partitions[0].records
        await call.done_writing()


@asynchronous
async def test_a_follower_of_another_cluster_is_refused_naming_both(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        stub: replication_pb2_grpc.ReplicationAsyncStub = replication_pb2_grpc.ReplicationStub(broker.channel)
        call = stub.Replicate()
        await call.write(replication_pb2.ReplicateRequest(broker_id=9, broker_epoch=1, cluster_id="another"))
        with pytest.raises(grpc.aio.AioRpcError, match="another") as caught:
            await call.read()
        assert "INCONSISTENT_CLUSTER_ID" in str(caught.value.details())
        await broker.good()


async def ends_with(cluster: AsyncLocalCluster, config: Path) -> tuple[int, str]:
    """Exit code and last line of a broker that is expected not to stay."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fencepost_node", str(config)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode().splitlines()[-1]


@asynchronous
async def test_a_broker_id_in_use_is_refused_and_its_holder_goes_on(
    cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        config = tmp_path / "impostor.toml"
        controller = broker.cluster.member(CONTROLLER).address
        config.write_text(to_toml({"broker_id": 1, "data_dir": str(tmp_path / "impostor"), "controller": controller}))
        code, line = await ends_with(broker.cluster, config)
        assert code == 2, line
        assert "DUPLICATE_BROKER_REGISTRATION: broker id 1" in line
        assert broker.cluster.member(1).address in line
        await broker.good()


@asynchronous
async def test_a_data_folder_of_another_cluster_is_refused_naming_both_and_left_as_it_was(
    cluster_factory: ClusterFactory,
) -> None:
    async with victim(cluster_factory(name="first", brokers=1)) as first:
        await first.good()
        await first.cluster.stop(1)
        data_dir = first.cluster.member(1).directory
        before = {path.name: path.read_bytes() for path in data_dir.glob("orders-0/*") if path.is_file()}
        assert before
        async with cluster_factory(name="second", brokers=1) as second:
            config = data_dir / "moved.toml"
            controller = second.member(CONTROLLER).address
            config.write_text(to_toml({"broker_id": 5, "data_dir": str(data_dir), "controller": controller}))
            code, line = await ends_with(second, config)
            assert code == 2, line
            assert "belongs to broker 1; the configuration says broker_id = 5" in line
            image = await read_image(second.member(1).address, timeout_s=5)
            assert image is not None
            await second.stop(1)
            config.write_text(to_toml({"broker_id": 1, "data_dir": str(data_dir), "controller": controller}))
            code, line = await ends_with(second, config)
            assert code == 2, line
            assert "INCONSISTENT_CLUSTER_ID" in line
            meta = (data_dir / "meta.properties").read_text()
            cluster_id = meta.split("cluster.id=")[1].split("\n")[0]
            assert cluster_id in line
            assert image.cluster_id in line
        assert {path.name: path.read_bytes() for path in data_dir.glob("orders-0/*") if path.is_file()} == before
        await first.cluster.start(1)
        await first.cluster.wait_registered()
        await first.leader_epoch()
        await first.good()


@asynchronous
async def test_wrong_topics_are_refused_naming_what_is_wrong(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        cases: list[tuple[dict[str, Any], ErrorCode, str]] = [
            ({"name": "no/slash"}, ErrorCode.INVALID_TOPIC_EXCEPTION, "no/slash"),
            ({"name": ""}, ErrorCode.INVALID_TOPIC_EXCEPTION, "''"),
            ({"name": "orders"}, ErrorCode.TOPIC_ALREADY_EXISTS, "orders"),
            ({"name": "t", "partitions": -3}, ErrorCode.INVALID_PARTITIONS, "-3"),
            ({"name": "t", "replication_factor": 2}, ErrorCode.INVALID_REPLICATION_FACTOR, "2"),
        ]
        for fields, code, named in cases:
            request = controller_pb2.CreateTopicRequest(**{"partitions": 1, "replication_factor": 1, **fields})
            answer = await broker.admin.CreateTopic(request)
            assert answer.error.code == code, (fields, answer.error)
            assert named in answer.error.message
        metadata = await broker.broker.Metadata(broker_pb2.MetadataRequest())
        assert list(MetadataImage().apply(metadata.image).topic_ids) == ["orders"]


# ---- Fuzz ----


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The bytes with some flipped, cut out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        position = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0 if changed:
                changed[position % len(changed)] ^= 1 << chance.randrange(8)
            case 1:
                del changed[position : position + chance.randint(1, 30)]
            case 2:
                changed[position:position] = chance.randbytes(chance.randint(1, 30))
            case _:
                changed[position:position] = changed[max(0, position - 40) : position]
    return bytes(changed)


async def throw(channel: grpc.aio.Channel, method: str, data: bytes, *, stream: bool) -> None:
    """Send raw bytes as a request. Any answer and any gRPC error will do; silence will not."""
    async with asyncio.timeout(10):
        if stream:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(method)()
            await call.write(data)
            await call.done_writing()
            async with _any_answer():
                while await call.read() is not grpc.aio.EOF:
                    pass
        else:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            async with _any_answer():
                await unary(data)


@asynccontextmanager
async def _any_answer() -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise  # the broker, or the connection to it, is gone


@asynchronous
async def test_damaged_requests_leave_a_live_broker_up_and_its_log_clean(cluster_factory: ClusterFactory) -> None:
    async with victim(one_broker(cluster_factory)) as broker:
        await broker.good()
        pid = broker.cluster.pid(1)
        records = batch_of([b"abc", b"def"], (PRODUCER + 2, 0, 0))
        partition = broker_pb2.FetchPartition(topic_id=broker.topic_id, leader_epoch=-1, max_bytes=1_000)
        seeds: list[tuple[str, bytes, bool]] = [
            (
                "Broker/Produce",
                broker_pb2.ProduceRequest(batches=[broker.batch(records)]).SerializeToString(),
                True,
            ),
            ("Broker/Fetch", broker_pb2.FetchRequest(partitions=[partition]).SerializeToString(), True),
            (
                "Broker/ListOffsets",
                broker_pb2.ListOffsetsRequest(topic_id=broker.topic_id, timestamp_ms=5).SerializeToString(),
                False,
            ),
            ("Broker/Metadata", broker_pb2.MetadataRequest(topic_names=["orders"]).SerializeToString(), False),
            (
                "Broker/DescribeProducers",
                broker_pb2.DescribeProducersRequest(topic_id=broker.topic_id).SerializeToString(),
                False,
            ),
            (
                "Replication/Replicate",
                replication_pb2.ReplicateRequest(
                    broker_id=3,
                    broker_epoch=1,
                    cluster_id="c",
                    subscribe=[replication_pb2.Subscribe(topic_id=broker.topic_id, subscription=1)],
                    acks=[replication_pb2.Ack(topic_id=broker.topic_id, subscription=1, log_end_offset=9)],
                ).SerializeToString(),
                True,
            ),
        ]
        chance = random.Random(FUZZ_SEED)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FUZZ_DEADLINE_S
        sent = 0
        while sent < FUZZ_REQUESTS and loop.time() < deadline:
            method, request, stream = chance.choice(seeds)
            if method == "Broker/Produce" and chance.random() < 0.5:  # well-formed around a damaged batch
                inner = broker.batch(damaged(chance, records))
                data = broker_pb2.ProduceRequest(batches=[inner]).SerializeToString()
            else:
                data = damaged(chance, request)
            await throw(broker.channel, f"/fencepost.v1.{method}", data, stream=stream)
            sent += 1
        assert sent > FUZZ_REQUESTS // 10
        assert broker.cluster.running(1)
        assert broker.cluster.pid(1) == pid
        await broker.good()
        await check_log(broker)
        log = broker.cluster.log(1)
        assert "unforeseen" not in log, log
        assert "Traceback" not in log, log


async def check_log(broker: Victim) -> None:
    """Every batch on the disk is whole, follows the one before it, and is one that could have been sent."""
    offset = 0
    for segment in sorted((broker.cluster.member(1).directory / "orders-0").glob("*.log")):
        for _, header in iter_batches(segment.read_bytes()):
            assert header.base_offset == offset
            assert header.magic == 2
            offset = header.end_offset
    assert offset == await broker.end_offset()
    sequences = [
        read_header(segment.read_bytes(), position).base_sequence
        for segment in sorted((broker.cluster.member(1).directory / "orders-0").glob("*.log"))
        for position, header in iter_batches(segment.read_bytes())
        if header.producer_id == PRODUCER
    ]
    assert sequences == list(range(broker.sequence))
