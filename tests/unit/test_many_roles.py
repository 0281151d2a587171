"""A broker that has many roles to take: who asks for one need not wait for the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from fencepost_node.replication import early_subscriptions
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration, Partition, PartitionKey, Topic
from fencepost_proto.protocol.v1 import replication_pb2, replication_pb2_grpc
from fencepost_proto.runtime.turns import Turns
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import fake_controller
from tests.unit.replicas import leading
from tests.unit.test_broker import BROKER_ID, EPOCH, ORDERS, TOPIC, Running, batch, broker_of, produce_batch

FOLLOWER = BrokerRegistration(2, "127.0.0.1:1", 1, "f", fenced=False)
PARTITIONS = 60

ReplicateCall = grpc.aio.StreamStreamCall[replication_pb2.ReplicateRequest, replication_pb2.ReplicateResponse]


def led(index: int, leader_epoch: int) -> Partition:
    return Partition(TOPIC, index, (BROKER_ID, 2), (BROKER_ID, 2), BROKER_ID, leader_epoch, leader_epoch)


async def following(running: Running) -> ReplicateCall:
    """A stream of broker 2."""
    call: ReplicateCall = replication_pb2_grpc.ReplicationStub(running.channel).Replicate()
    cluster_id = running.broker.manager.image.cluster_id
    await call.write(replication_pb2.ReplicateRequest(broker_id=2, broker_epoch=1, cluster_id=cluster_id))
    return call


async def subscribe(call: ReplicateCall, index: int, leader_epoch: int, number: int) -> None:
    wanted = replication_pb2.Subscribe(
        topic_id=TOPIC, partition=index, subscription=number, leader_epoch=leader_epoch, last_epoch=-1
    )
    await call.write(replication_pb2.ReplicateRequest(subscribe=[wanted]))


async def next_push(call: ReplicateCall) -> replication_pb2.PartitionPush:
    answer = await call.read()
    assert isinstance(answer, replication_pb2.ReplicateResponse)
    (push,) = answer.pushes
    return push


@asynchronous
async def test_a_role_that_is_asked_for_is_taken_before_its_turn(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, known=[FOLLOWER]) as running:
        await running.leads(PARTITIONS)
        manager = running.broker.manager
        changed = {entity.key: entity for entity in (led(index, 1) for index in range(PARTITIONS))}
        image = manager.image.with_changes(manager.image.version + 1, changed)
        keys = [(TOPIC, index) for index in range(PARTITIONS)]
        applying = asyncio.create_task(manager.apply_in_turns(image, EPOCH, keys, Turns()))
        await asyncio.sleep(0)  # one turn
        assert leading(manager.replicas[TOPIC, 0]).epoch == 1
        last = manager.replicas[TOPIC, PARTITIONS - 1]
        assert leading(last).epoch == 0  # the image is of another version than the role
        assert manager.leader(TOPIC, PARTITIONS - 1, 1).epoch == 1
        assert not applying.done()
        await applying
        assert {leading(replica).epoch for replica in manager.replicas.values()} == {1}


@asynchronous
async def test_partitions_whose_writes_may_wait_come_first_and_those_without_news_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, known=[FOLLOWER]) as running:
        same, elected, elsewhere = (TOPIC, 2), (TOPIC, 1), (TOPIC, 0)
        await running.metadata(
            ORDERS,
            Partition(TOPIC, 0, (BROKER_ID, 2), (BROKER_ID, 2), 2, 0, 0),
            Partition(TOPIC, 1, (BROKER_ID, 2), (BROKER_ID, 2), 2, 0, 0),
            Partition(TOPIC, 2, (BROKER_ID, 2), (BROKER_ID, 2), BROKER_ID, 0, 0),
        )
        manager = running.broker.manager
        await until(lambda: len(manager.replicas) == 3, "the logs")
        taken: list[PartitionKey] = []
        apply = Replica.apply

        def noted(replica: Replica, partition: Partition, topic: Topic) -> None:
            taken.append(replica.key)
            apply(replica, partition, topic)

        monkeypatch.setattr(Replica, "apply", noted)
        await running.metadata(
            Partition(TOPIC, 0, (BROKER_ID, 2), (2,), 2, 0, 1),
            Partition(TOPIC, 1, (BROKER_ID, 2), (BROKER_ID,), BROKER_ID, 1, 1),
            Partition(TOPIC, 2, (BROKER_ID, 2), (BROKER_ID,), BROKER_ID, 0, 1),
        )
        assert taken == [same, elected, elsewhere]


@asynchronous
async def test_a_follower_that_knows_of_a_leadership_before_its_leader_is_answered_when_the_leader_knows_too(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, known=[FOLLOWER]) as running:
        await running.leads(1, isr=(BROKER_ID, 2))
        early = running.broker.manager.early
        call = await following(running)
        await subscribe(call, 0, leader_epoch=1, number=5)
        await subscribe(call, 7, leader_epoch=0, number=6)  # a partition that there is not: refused at once
        refused = await next_push(call)
        assert (refused.subscription, refused.error.code) == (6, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        assert len(early) == 1
        await running.metadata(led(0, 1))
        answer = await next_push(call)
        assert (answer.subscription, answer.error.code, answer.partition) == (5, ErrorCode.NONE, 0)
        assert leading(running.broker.manager.replicas[TOPIC, 0]).subscribers == {2}
        assert len(early) == 0
        (result,) = await asyncio.wait_for(running.produce(produce_batch(batch([b"x"]), acks=1)), 5)
        assert result.base_offset == 0
        call.cancel()


@asynchronous
async def test_a_subscription_of_a_stream_that_has_ended_is_not_kept_and_one_in_vain_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path, known=[FOLLOWER]) as running:
        await running.leads(1, isr=(BROKER_ID, 2))
        early = running.broker.manager.early
        ending, staying = await following(running), await following(running)
        await subscribe(ending, 0, leader_epoch=3, number=1)
        await until(lambda: len(early) == 1, "the first to be kept")
        ending.cancel()
        await until(lambda: len(early) == 0, "the stream's end")
        monkeypatch.setattr(early_subscriptions, "HOLD_S", 0.05)
        await subscribe(staying, 0, leader_epoch=3, number=2)
        refused = await next_push(staying)
        assert (refused.subscription, refused.error.code) == (2, ErrorCode.UNKNOWN_LEADER_EPOCH)
        staying.cancel()
