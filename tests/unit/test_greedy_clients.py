"""Clients that ask for much and read nothing: what a broker keeps for them is bounded, and others are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

from fencepost_node import client_limits
from fencepost_node.grpc import describe_producers as describe_producers_module
from fencepost_node.replication.leadership import Leadership
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import fake_controller
from tests.unit.test_broker import TOPIC, Running, batch, broker_of, produce_batch

KIB = 1024
ANSWER_BYTES = 1024 * KIB


def fetch_request(offset: int = 0, **settings: int) -> broker_pb2.FetchRequest:
    partition = broker_pb2.FetchPartition(topic_id=TOPIC, leader_epoch=-1, fetch_offset=offset, max_bytes=2**31 - 1)
    return broker_pb2.FetchRequest(partitions=[partition], **settings)


async def answer_to(running: Running, request: broker_pb2.FetchRequest) -> broker_pb2.FetchResponse:
    call = running.stub.Fetch()
    await call.write(request)
    answer = await call.read()
    assert isinstance(answer, broker_pb2.FetchResponse)
    call.cancel()
    return answer


async def fill(running: Running, batches: int, size: int) -> None:
    await running.leads()
    for _ in range(batches):
        (result,) = await running.produce(produce_batch(batch([bytes(size)])))
        assert result.error.code == ErrorCode.NONE


@asynchronous
async def test_min_bytes_above_what_an_answer_may_hold_is_capped(tmp_path: Path) -> None:
    async with (
        fake_controller() as controller,
        broker_of(controller, tmp_path, max_fetch_bytes=64 * KIB) as running,
    ):
        await fill(running, 10, 10 * KIB)
        async with asyncio.timeout(10):
            answer = await answer_to(running, fetch_request(min_bytes=2**31 - 1, max_wait_ms=60_000))
        assert 50 * KIB < len(answer.partitions[0].records) <= 64 * KIB


@asynchronous
async def test_a_fetch_that_waits_reads_nothing_until_there_is_enough(tmp_path: Path) -> None:
    reads: list[int] = []
    read = Leadership.read_committed

    async def counted(leadership: Leadership, offset: int, max_bytes: int, **named: bool) -> bytes:
        reads.append(offset)
        return await read(leadership, offset, max_bytes, **named)

    async with fake_controller() as controller, broker_of(controller, tmp_path, tail_bytes=40_000) as running:
        await fill(running, 1, 100)
        with patch.object(Leadership, "read_committed", counted):
            asking = asyncio.create_task(answer_to(running, fetch_request(1, min_bytes=20_000, max_wait_ms=60_000)))
            await until(lambda: running.broker.manager.leader(TOPIC, 0, -1).has_readers, "the fetch waits")
            for _ in range(9):
                await running.produce(produce_batch(batch([bytes(2_000)])))
            assert not asking.done()
            assert reads == []
            await running.produce(produce_batch(batch([bytes(2_000)])))
            answer = await asyncio.wait_for(asking, 10)
            assert len(answer.partitions[0].records) > 20_000
            assert reads == [1]
            for _ in range(20):
                await running.produce(produce_batch(batch([bytes(2_000)])))
            # What is older than what is kept in memory is read once, and answered with what one read gives.
            answer = await answer_to(running, fetch_request(0, min_bytes=1_000_000, max_wait_ms=60_000))
            assert len(answer.partitions[0].records) > 60_000
            assert reads == [1, 0]


@asynchronous
async def test_streams_that_are_not_read_cost_a_share_and_other_connections_are_served(tmp_path: Path) -> None:
    """Each asks for 512 KiB again and again: more than what gRPC and the system take off the broker's hands."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]

    async with (
        fake_controller() as controller,
        broker_of(
            controller, tmp_path, max_fetch_bytes=512 * KIB, client_answer_bytes=ANSWER_BYTES, clean=False
        ) as running,
    ):
        await fill(running, 12, 50 * KIB)
        answers = running.broker.limits.answers
        channels = [grpc.aio.insecure_channel(running.broker.address, options=options) for _ in range(3)]
        calls: list[Any] = []
        for channel in channels:
            for _ in range(6):
                call: Any = broker_pb2_grpc.BrokerStub(channel).Fetch()
                for _ in range(40):
                    await call.write(fetch_request(min_bytes=1, max_wait_ms=60_000))
                calls.append(call)
        await until(lambda: len(answers.holders) == len(channels), "each connection holds something")
        for _ in range(5):  # while they hold it, others are served
            async with asyncio.timeout(10):
                answer = await answer_to(running, fetch_request(min_bytes=1, max_wait_ms=0))
            assert answer.partitions[0].records
        assert all(held <= ANSWER_BYTES // 4 + 51 * KIB for held in answers.holders.values())
        assert answers.used_bytes <= ANSWER_BYTES
        for call in calls:
            call.cancel()
        await until(lambda: answers.used_bytes == 0, "all of it is given back")
        for channel in channels:
            await channel.close()


def lean_channel(address: str) -> grpc.aio.Channel:
    return Host().wire.with_carrier("lean").connect(address)


def grpc_channel(address: str) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(address, options=options)


@pytest.mark.parametrize("connect", [lean_channel, grpc_channel])
@asynchronous
async def test_connections_that_are_not_read_hold_no_more_than_their_bound_together(
    tmp_path: Path, connect: Callable[[str], grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them holds a batch of 500 KiB, whatever the memory that is set: so the slowest go."""
    async with (
        fake_controller() as controller,
        broker_of(controller, tmp_path, client_answer_bytes=ANSWER_BYTES, clean=False) as running,
    ):
        await fill(running, 1, 500 * KIB)
        answers = running.broker.limits.answers
        channels = [connect(running.broker.address) for _ in range(24)]
        calls: list[Any] = []
        for channel in channels:
            for _ in range(4):
                call: Any = broker_pb2_grpc.BrokerStub(channel).Fetch()
                for _ in range(40):
                    await call.write(fetch_request(min_bytes=1, max_wait_ms=60_000))
                calls.append(call)
        most = 0

        async def one_has_ended() -> bool:
            nonlocal most
            most = max(most, answers.used_bytes)
            async with asyncio.timeout(10):
                answer = await answer_to(running, fetch_request(min_bytes=1, max_wait_ms=5_000))
            assert answer.partitions[0].records  # a client that reads is served
            return any(call.done() for call in calls)

        await until(one_has_ended, "the end of a connection that is not read")
        for _ in range(20):
            await one_has_ended()
        assert most < client_limits.OVERDRAFT * ANSWER_BYTES + 2 * 501 * KIB
        assert "answers are unread, and its own for the longest time" in caplog.text
        for call in calls:
            call.cancel()
        await until(lambda: answers.used_bytes == 0, "all of it is given back")
        for channel in channels:
            await channel.close()


@asynchronous
async def test_a_fetch_without_memory_to_hold_its_answer_has_no_records_and_no_error(tmp_path: Path) -> None:
    async with (
        fake_controller() as controller,
        broker_of(controller, tmp_path, client_answer_bytes=ANSWER_BYTES) as running,
    ):
        await fill(running, 2, 100 * KIB)
        answers = running.broker.limits.answers
        with patch.object(answers, "allowance", lambda peer, least: 0):
            answer = await answer_to(running, fetch_request(min_bytes=1, max_wait_ms=100))
        assert answer.partitions[0].error.code == ErrorCode.NONE
        assert answer.partitions[0].records == b""
        assert answer.partitions[0].high_watermark == 2


@asynchronous
async def test_one_stream_too_many_is_refused_retriably_and_the_others_go_on(tmp_path: Path) -> None:
    with patch.object(client_limits, "MAX_STREAMS_OF_A_CONNECTION", 2):
        async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
            await fill(running, 1, 10)
            streams = [running.stub.Fetch() for _ in range(2)]
            for _ in range(2):
                for call in streams:
                    await call.write(fetch_request(min_bytes=1))
                    assert isinstance(await call.read(), broker_pb2.FetchResponse)
                refused = running.stub.Fetch()
                assert await refused.code() is grpc.StatusCode.UNAVAILABLE
                assert "2 Fetch streams of one connection" in str(await refused.details())
            for call in streams:
                call.cancel()


@asynchronous
async def test_a_long_list_of_producers_is_the_same_as_a_short_one_and_is_made_once(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        for producer_id in range(7, 0, -1):
            for sequence in range(2):
                (result,) = await running.produce(produce_batch(batch([b"x"], (producer_id, 0, sequence))))
                assert result.error.code == ErrorCode.NONE
        request = broker_pb2.DescribeProducersRequest(topic_id=TOPIC, producer_id=-1)
        short = await running.stub.DescribeProducers(request)
        assert [info.producer_id for info in short.producers] == list(range(1, 8))
        described: list[int] = []
        describe = describe_producers_module.describe_entry

        def counted(producer_id: int, entry: Any) -> Any:
            described.append(producer_id)
            return describe(producer_id, entry)

        with (
            patch.object(describe_producers_module, "PRODUCERS_IN_A_TURN", 2),
            patch.object(describe_producers_module, "describe_entry", counted),
        ):
            final = broker_pb2.DescribeProducersRequest(topic_id=TOPIC, producer_id=-1, commit_timeout_ms=5_000)
            answers = await asyncio.gather(*(running.stub.DescribeProducers(final) for _ in range(5)))
            assert all(answer == short for answer in answers)
            described.clear()
            tasks = Tasks(lambda error: pytest.fail(str(error)))
            lists = describe_producers_module.ProducerLists(tasks, running.broker.limits.answers)
            leadership = running.broker.manager.leader(TOPIC, 0, -1)
            both = await asyncio.gather(lists.of(leadership), lists.of(leadership))  # nothing has changed in between
            assert both[0] == both[1]
            assert described == list(range(1, 8))
            await tasks.close()
        await until(lambda: running.broker.limits.answers.used_bytes == 0, "the answers are given back")
        with (
            patch.object(describe_producers_module, "PRODUCERS_IN_A_TURN", 2),
            patch.object(describe_producers_module, "MAX_LISTS", 0),
        ):
            refused = await running.stub.DescribeProducers(request)
        assert refused.error.code == ErrorCode.REQUEST_TIMED_OUT
