"""The admin client against brokers in this process that relay, refuse, lose answers and die."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from fencepost import cluster as cluster_module
from fencepost import controller_requests, metadata_watch
from fencepost.admin import AdminClient
from fencepost.descriptions import BatchDescription, PartitionDescription, ProducerDescription, Reassignment
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    TOPIC_SETTINGS,
    Partition,
    Topic,
    TopicConfig,
    config_from_proto,
    default_setting,
    parse_setting,
)
from fencepost_proto.protocol.v1 import controller_pb2
from tests.asynchronous import asynchronous
from tests.unit.fake_broker_read import FakeBroker, FakeCluster, batch_of, fake_cluster, run


class Controller:
    """Carries out what the brokers of a fake cluster relay, or loses answers as the test says."""

    def __init__(self, fake: FakeCluster) -> None:
        self.fake = fake
        self.lose = 0  # so many answers, after the change
        self.refuse: list[errors.FencepostError] = []  # before the change, each once
        self.asked: list[tuple[int, str, Any]] = []
        fake.admin = self.answer

    async def answer(self, broker: FakeBroker, method: str, request: Any, context: Any) -> Any:
        self.asked.append((broker.id, method, request))
        response = getattr(controller_pb2, f"{method}Response")
        try:
            if self.refuse:
                raise self.refuse.pop()
            getattr(self, method)(request)
        except errors.FencepostError as error:
            return response(error=errors.to_proto(error))
        if self.lose:
            self.lose -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return response(version=self.fake.image.version)

    def CreateTopic(self, request: controller_pb2.CreateTopicRequest) -> None:
        if request.name in self.fake.image.topic_ids:
            raise errors.TopicAlreadyExists(f"topic {request.name!r} exists")
        placed = [tuple(a.replicas) for a in request.assignments] or [(1, 2, 3)] * request.partitions
        topic_id = f"id-{request.name}-{self.fake.image.version}"
        self.fake.change(
            Topic(topic_id, request.name, config_from_proto(request.config)),
            *(Partition(topic_id, n, replicas, replicas, replicas[0], 0, 0) for n, replicas in enumerate(placed)),
        )

    def DeleteTopic(self, request: controller_pb2.DeleteTopicRequest) -> None:
        topic_id = self.fake.image.topic_ids.get(request.name)
        if topic_id is None:
            raise errors.UnknownTopicOrPartition(f"topic {request.name!r} does not exist")
        partitions = [p.key for p in self.fake.image.partitions_of(topic_id)]
        self.fake.change(deleted=(f"topics/{topic_id}", *partitions))

    def CreatePartitions(self, request: controller_pb2.CreatePartitionsRequest) -> None:
        topic_id = self.fake.image.topic_ids[request.name]
        there = self.fake.image.partitions_of(topic_id)
        if request.partitions <= len(there):
            raise errors.InvalidPartitions(f"{request.partitions} are not more")
        placed = [tuple(a.replicas) for a in request.assignments] or [(1, 2, 3)] * (request.partitions - len(there))
        if not request.validate_only:
            self.fake.change(
                *(Partition(topic_id, n, ids, ids, ids[0], 0, 0) for n, ids in enumerate(placed, len(there)))
            )

    def AlterTopicConfig(self, request: controller_pb2.AlterTopicConfigRequest) -> None:
        topic = self.fake.image.topics[self.fake.image.topic_ids[request.name]]
        changes: dict[str, Any] = {one.name: parse_setting(one.name, one.value) for one in request.set}
        changes |= {name: default_setting(name) for name in request.reset}
        if not request.validate_only:
            self.fake.change(replace(topic, config=replace(topic.config, **changes)))

    def AlterPartitionReassignments(self, request: controller_pb2.AlterPartitionReassignmentsRequest) -> None:
        topic_id = self.fake.image.topic_ids[request.topic_name]
        for wanted in request.reassignments:
            partition = self.fake.image.partitions[topic_id, wanted.partition]
            if not wanted.replicas and not partition.adding:
                raise errors.NoReassignmentInProgress(f"{request.topic_name}-{wanted.partition}")
            adding = tuple(b for b in wanted.replicas if b not in partition.replicas)
            removing = tuple(b for b in partition.replicas if b not in wanted.replicas) if wanted.replicas else ()
            self.fake.change(replace(partition, adding=adding, removing=removing))

    def ElectLeader(self, request: controller_pb2.ElectLeaderRequest) -> None:
        key = (self.fake.image.topic_ids[request.topic_name], request.partition)
        leader = request.leader if request.unclean else self.fake.image.partitions[key].replicas[0]
        if self.fake.image.partitions[key].leader == leader:
            raise errors.ElectionNotNeeded(f"broker {leader} leads")
        self.fake.elect(key, leader)


def scenario(test: Callable[[FakeCluster, Controller, AdminClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with fake_cluster() as fake:
            controller = Controller(fake)
            async with AdminClient(fake.bootstrap) as admin:
                await test(fake, controller, admin)

    run(whole())


def test_a_topic_is_created_with_what_was_said_and_defaults_for_the_rest_and_is_seen_at_once() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        made = await admin.create_topic("orders", partitions=2, replication_factor=3, min_insync_replicas=2)
        assert made.config == TopicConfig(min_insync_replicas=2)
        assert [p.partition for p in made.partitions] == [0, 1]
        assert await admin.list_topics() == ["orders"]
        assert await admin.describe_topic("orders") == made
        ((_, _, request),) = controller.asked
        assert (request.partitions, request.replication_factor) == (2, 3)
        with pytest.raises(errors.TopicAlreadyExists, match="orders"):
            await admin.create_topic("orders")
        with pytest.raises(errors.InvalidConfig, match="segment_bytes=0"):
            await admin.create_topic("other", segment_bytes=0)

    scenario(test)


def test_a_topic_gets_more_partitions_and_other_settings_and_nothing_where_that_is_only_checked() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        await admin.create_topic("orders", partitions=2, replication_factor=3, retention_bytes=9)
        checked = await admin.create_partitions("orders", 4, validate_only=True)
        assert len(checked.partitions) == 2
        controller.lose = 1
        grown = await admin.create_partitions("orders", 4, assignments=[(2, 3), (3, 1)])
        assert [p.replicas for p in grown.partitions[2:]] == [(2, 3), (3, 1)]
        with pytest.raises(errors.InvalidPartitions, match="4 are not more"):
            await admin.create_partitions("orders", 4)
        assert await admin.alter_topic("orders", retention_ms=5, validate_only=True) == TopicConfig(retention_bytes=9)
        altered = await admin.alter_topic("orders", retention_ms=5, flush_always=True, reset=["retention_bytes"])
        assert altered == TopicConfig(retention_ms=5, flush_always=True)
        with pytest.raises(errors.InvalidConfig, match="'colour' is not known"):
            await admin.alter_topic("orders", colour="red")
        with pytest.raises(errors.UnknownTopicOrPartition, match="nothing"):
            await admin.create_partitions("nothing", 4)

    scenario(test)


def test_records_are_deleted_up_to_an_offset_or_all_of_them_and_the_new_starts_are_told() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        fake.add_topic("orders", 2)
        for log in fake.logs.values():
            for _ in range(4):
                log.append(batch_of([b"x"]))
        assert await admin.delete_records("orders", {0: 3, 1: None}) == {0: 3, 1: 4}
        assert await admin.delete_records("orders", {0: 2}) == {0: 3}
        with pytest.raises(errors.OffsetOutOfRange, match="offset 5: the high watermark is 4"):
            await admin.delete_records("orders", {0: 5})
        with pytest.raises(errors.InvalidRequest, match="offset -7 of orders-0 is negative"):
            await admin.delete_records("orders", {0: -7})
        with pytest.raises(errors.UnknownTopicOrPartition, match="no partition 2"):
            await admin.delete_records("orders", {2: 1})

    scenario(test)


def test_settings_of_topics_and_brokers_are_described_with_their_defaults() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        await admin.create_topic("orders", replication_factor=3, retention_ms=5)
        topic = {setting.name: setting for setting in await admin.describe_topic_config("orders")}
        assert (topic["retention_ms"].value, topic["retention_ms"].default) == ("5", "604800000")
        assert [name for name, setting in topic.items() if not setting.is_default] == ["retention_ms"]
        assert list(topic) == sorted(TOPIC_SETTINGS)
        broker = {setting.name: setting for setting in await admin.describe_broker_config(2)}
        assert (broker["broker_id"].value, broker["broker_id"].default) == ("2", None)
        assert (broker["insecure_listen"].value, broker["insecure_listen"].is_default) == ("false", True)
        assert "Folder with the logs" in broker["data_dir"].doc
        with pytest.raises(errors.BrokerIdNotRegistered, match="broker 9"):
            await admin.describe_broker_config(9)

    scenario(test)


def test_manual_assignments_stand_instead_of_the_counts() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        made = await admin.create_topic("orders", assignments=[(2, 3), (3, 1)], flush_always=True)
        assert [p.replicas for p in made.partitions] == [(2, 3), (3, 1)]
        assert made.config.flush_always
        ((_, _, request),) = controller.asked
        assert (request.partitions, request.replication_factor) == (0, 0)

    scenario(test)


def test_creation_returns_only_once_every_partition_has_a_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        create = controller.CreateTopic

        def offline(request: controller_pb2.CreateTopicRequest) -> None:
            create(request)
            fake.elect((fake.image.topic_ids["orders"], 1), -1)

        monkeypatch.setattr(controller, "CreateTopic", offline)
        with pytest.raises(errors.RequestTimedOut, match="not every partition has a leader"):
            await admin.create_topic("orders", partitions=2, replication_factor=3)

    monkeypatch.setattr(controller_requests, "VISIBLE_TIMEOUT_S", 0.2)
    scenario(test)


def test_a_change_whose_answer_is_lost_is_repeated_elsewhere_and_succeeds_once() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        controller.lose = 1
        made = await admin.create_topic("orders", partitions=2, replication_factor=3)
        assert [method for _, method, _ in controller.asked] == ["CreateTopic"] * 2
        assert controller.asked[0][0] != controller.asked[1][0]
        fake.elect((made.topic_id, 0), 2)
        controller.lose = 1
        await admin.elect_leader("orders", 0)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 1
        controller.lose = 1
        await admin.delete_topic("orders")
        assert await admin.list_topics() == []

    scenario(test)


def test_a_topic_of_that_name_that_somebody_else_made_is_not_taken_for_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        controller.refuse = [errors.NotController("not there")]  # a lost answer, then a topic of another shape
        fake.add_topic("orders", 5)
        with pytest.raises(errors.TopicAlreadyExists):
            await admin.create_topic("orders", partitions=2)

    monkeypatch.setattr(controller_requests, "VISIBLE_TIMEOUT_S", 0.2)
    scenario(test)


def test_a_change_waits_for_a_controller_that_is_not_there_and_gives_up_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        controller.refuse = [errors.NotController("not there")] * 4
        await admin.create_topic("orders", partitions=1, replication_factor=3)
        assert len(controller.asked) == 5
        controller.refuse = [errors.NotController("not there")] * 1000
        monkeypatch.setattr(controller_requests, "TIMEOUT_S", 0.3)
        with pytest.raises(errors.NotController, match="not there"):
            await admin.delete_topic("orders")

    scenario(test)


def test_a_definite_refusal_is_raised_as_it_is() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        controller.refuse = [errors.InvalidReplicationFactor("replication factor 7: 3 brokers live")]
        with pytest.raises(errors.InvalidReplicationFactor, match="7"):
            await admin.create_topic("orders", replication_factor=7)
        with pytest.raises(errors.UnknownTopicOrPartition, match="orders"):
            await admin.delete_topic("orders")
        assert len(controller.asked) == 2

    scenario(test)


def test_the_cluster_and_its_topics_are_described_as_the_metadata_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        await admin.create_topic("b", partitions=1, replication_factor=3)
        await admin.create_topic("a", partitions=1, replication_factor=3)
        assert list(await admin.describe_topics()) == ["a", "b"]
        assert (await admin.describe_topics("b"))["b"].partitions == (
            PartitionDescription(0, 1, 0, (1, 2, 3), (1, 2, 3), (), (), ()),
        )
        cluster = await admin.describe_cluster()
        assert (cluster.cluster_id, cluster.metadata_version) == ("cluster-a", fake.image.version)
        assert [(b.id, b.address, b.fenced) for b in cluster.brokers] == [
            (broker_id, fake.brokers[broker_id].address, False) for broker_id in (1, 2, 3)
        ]
        with pytest.raises(errors.UnknownTopicOrPartition, match="none"):
            await admin.describe_topic("none")

    monkeypatch.setattr(cluster_module, "TOPIC_WAIT_S", 0.1)
    scenario(test)


def test_producer_state_comes_from_the_present_leader() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        topic_id = fake.add_topic("orders")
        fake.logs[topic_id, 0].append(batch_of([b"x", b"y"]))
        for leader in (2, 3):
            fake.elect((topic_id, 0), leader)
            state = await admin.describe_producers("orders", 0)
            assert (state.topic, state.partition, state.log_end_offset, state.high_watermark) == ("orders", 0, 2, 2)
            assert state.producers == (ProducerDescription(9, 2, (BatchDescription(3, 7, 40, 1234),)),)
        with pytest.raises(errors.UnknownTopicOrPartition, match="no partition 1"):
            await admin.describe_producers("orders", 1)

    scenario(test)


def test_replicas_come_from_every_live_broker_and_one_that_does_not_answer_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        topic_id = fake.add_topic("orders", 2)
        fake.logs[topic_id, 1].append(batch_of([b"x", b"y"]))
        await admin.describe_topic("orders")
        found = await admin.describe_replicas()
        assert sorted(found) == [1, 2, 3]
        assert [(r.topic, r.partition, r.is_leader, r.log_end_offset) for r in found[2].replicas] == [
            ("orders", 0, False, 0),
            ("orders", 1, True, 2),
        ]
        assert (found[2].recovery_seconds, found[2].failure) == (0.5, "")
        await fake.brokers[3].kill()
        found = await admin.describe_replicas()
        assert found[3].replicas == ()
        assert fake.brokers[3].address in found[3].failure
        fake.fence(3)
        await admin._controller.see(lambda image: image.version == fake.image.version, "the fence")
        assert sorted(await admin.describe_replicas()) == [1, 2]

    monkeypatch.setattr(metadata_watch, "RETRY", replace(metadata_watch.RETRY, first_s=0.02))
    scenario(test)


def test_reassignments_are_begun_listed_and_cancelled() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        await admin.create_topic("orders", assignments=[(1, 2), (2, 3)])
        await admin.reassign_partitions("orders", {0: (2, 3)})
        assert await admin.list_reassignments() == [Reassignment("orders", 0, (1, 2), (3,), (1,))]
        await admin.cancel_reassignment("orders", 0)
        assert await admin.list_reassignments() == []
        with pytest.raises(errors.NoReassignmentInProgress):
            await admin.cancel_reassignment("orders", 0)
        with pytest.raises(errors.InvalidConfig, match="orders-1"):
            await admin.reassign_partitions("orders", {1: ()})

    scenario(test)


def test_after_a_lost_answer_an_unclean_election_is_done_only_where_that_broker_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_requests, "VISIBLE_TIMEOUT_S", 0.1)

    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        topic_id = (await admin.create_topic("orders", partitions=1, replication_factor=3)).topic_id
        fake.elect((topic_id, 0), -1)
        controller.lose = 1
        await admin.elect_leader("orders", 0, unclean=True, leader=3)
        fake.elect((topic_id, 0), 2)  # a replica with everything is back, while the request is under way
        controller.refuse = [errors.ElectionNotNeeded("broker 2 leads"), errors.NotController("not there")]
        with pytest.raises(errors.ElectionNotNeeded, match="broker 2 leads"):
            await admin.elect_leader("orders", 0, unclean=True, leader=3)

    scenario(test)


def test_elections_are_for_the_preferred_leader_or_unclean_for_a_named_one() -> None:
    async def test(fake: FakeCluster, controller: Controller, admin: AdminClient) -> None:
        topic_id = (await admin.create_topic("orders", partitions=1, replication_factor=3)).topic_id
        with pytest.raises(errors.ElectionNotNeeded):
            await admin.elect_leader("orders", 0)
        fake.elect((topic_id, 0), -1)
        await admin.elect_leader("orders", 0, unclean=True, leader=3)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 3
        await admin.elect_leader("orders", 0)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 1

    scenario(test)


@asynchronous
async def test_an_admin_client_that_is_not_open_answers_nothing_and_changes_nothing() -> None:
    async with fake_cluster() as fake:
        controller = Controller(fake)
        client = AdminClient(fake.bootstrap)
        with pytest.raises(errors.InvalidRequest, match="not open"):
            await client.list_topics()
        await client.start()
        assert await client.list_topics() == []
        await client.close()
        for question in (client.list_topics, client.describe_cluster, client.list_reassignments):
            with pytest.raises(errors.InvalidRequest, match="not open"):
                await question()
        with pytest.raises(errors.InvalidRequest, match="not open"):
            await client.create_topic("late")
        assert controller.asked == []
