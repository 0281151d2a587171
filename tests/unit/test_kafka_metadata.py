"""Metadata around the end of a broker: who is named, who is listed, and what an answer waits for."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from fencepost_node.kafka import metadata, metadata_answers
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.kafka_client import KafkaClient, kafka_client
from tests.unit.test_broker import EPOCH
from tests.unit.test_kafka_edge import Edge, edge

ABOUT_ORDERS = MetadataRequest(topics=[MetadataRequestTopic(name="orders")])
ABOUT_ALL = MetadataRequest(topics=None)
VERSION = 12
SOON_S = 5.0


async def broker_2(it: Edge, *, fenced: bool, epoch: int = EPOCH) -> None:
    await it.running.metadata(
        BrokerRegistration(2, "127.0.0.1:7", epoch, "other", fenced=fenced, kafka_address="10.0.0.2:9092")
    )


async def listed(client: KafkaClient | Edge, request: MetadataRequest = ABOUT_ORDERS) -> list[int]:
    return [broker.node_id for broker in (await client.ask(request, VERSION)).brokers]


async def asks(it: Edge, request: MetadataRequest) -> None:
    """Send it, and return once it waits for its answer."""
    it.client.send(request, VERSION)
    (connection,) = it.connections
    await until(lambda: not connection.is_answered, "the request to be taken")


def leader_in(answer: Any) -> tuple[int, int]:
    (partition,) = answer.topics[0].partitions
    return partition.error_code, partition.leader_id


@asynchronous
async def test_a_broker_that_was_fenced_goes_with_the_second_answer_of_each_connection(tmp_path: Path) -> None:
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        await broker_2(it, fenced=True)
        assert await listed(it) == [1, 2, 3]  # 3 is fenced from the beginning
        assert await listed(it) == [1]
        async with kafka_client(it.address) as other:
            assert await listed(other, ABOUT_ALL) == [1, 2, 3]
            assert await listed(other, ABOUT_ALL) == [1]
            await broker_2(it, fenced=False, epoch=EPOCH + 1)
            assert await listed(other) == [1, 2]
            await broker_2(it, fenced=True, epoch=EPOCH + 1)
            assert await listed(other, ABOUT_ALL) == [1, 2], "it is another process that was fenced"
            assert await listed(other) == [1]


@asynchronous
async def test_a_broker_that_was_fenced_long_ago_is_in_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_answers, "LISTED_S", 0.0)
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        await broker_2(it, fenced=True)
        assert await listed(it) == await listed(it, ABOUT_ALL) == [1]


@asynchronous
async def test_a_client_that_asks_after_a_while_is_answered_with_the_next_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "NEWS_WAIT_S", math.inf)
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        assert leader_in(await it.ask(ABOUT_ORDERS, VERSION)) == (ErrorCode.NONE, 1), "its first question"
        monkeypatch.setattr(metadata, "SETTLED_S", 0.0)
        async with asyncio.timeout(SOON_S):
            await asks(it, ABOUT_ORDERS)
            await broker_2(it, fenced=False, epoch=EPOCH + 1)  # no news of what is asked for
            await it.becomes(leader=2, epoch=1)
            assert leader_in(await it.client.receive()) == (ErrorCode.NONE, 2)
            await asks(it, ABOUT_ALL)
            await it.becomes(leader=1, epoch=2)
            assert leader_in(await it.client.receive()) == (ErrorCode.NONE, 1)


@asynchronous
async def test_without_news_it_is_answered_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "NEWS_WAIT_S", 0.01)
    monkeypatch.setattr(metadata, "SETTLED_S", 0.0)
    async with edge(tmp_path) as it:
        await it.leads(isr=(1, 2))
        assert leader_in(await it.ask(ABOUT_ORDERS, VERSION)) == (ErrorCode.NONE, 1)
        unknown = MetadataRequest(topics=[MetadataRequestTopic(name="nothing")])
        monkeypatch.setattr(metadata, "NEWS_WAIT_S", math.inf)  # of a topic that is not there no leader can change
        assert (await it.ask(unknown, VERSION)).topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


@asynchronous
async def test_a_leader_whose_stream_has_ended_is_waited_for_and_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    monkeypatch.setattr(metadata, "NEWS_WAIT_S", math.inf)
    monkeypatch.setattr(metadata, "SETTLED_S", 0.0)
    async with edge(tmp_path) as it:
        manager = it.running.broker.manager
        monkeypatch.setattr(manager, "lost_leaders", lambda _: lost)
        await it.leads(isr=(1, 2))
        await it.becomes(leader=2, epoch=1)
        async with asyncio.timeout(SOON_S):
            await asks(it, ABOUT_ORDERS)
            lost.append(2)
            manager.on_lost_leader()
            await it.becomes(leader=1, epoch=2)
            assert leader_in(await it.client.receive()) == (ErrorCode.NONE, 1)
            await it.becomes(leader=2, epoch=3)
            monkeypatch.setattr(metadata, "ELECTION_WAIT_S", 0.01)
            for request in (ABOUT_ORDERS, ABOUT_ALL):
                assert leader_in(await it.ask(request, VERSION)) == (ErrorCode.LEADER_NOT_AVAILABLE, -1)
            lost.clear()
            monkeypatch.setattr(metadata, "NEWS_WAIT_S", 0.01)
            for request in (ABOUT_ORDERS, ABOUT_ALL):
                assert leader_in(await it.ask(request, VERSION)) == (ErrorCode.NONE, 2)
