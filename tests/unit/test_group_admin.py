"""Groups for those who operate them: the Groups service of a whole broker in this process, and the admin client on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fencepost import AdminClient, TopicPartition
from fencepost.errors import (
    FencepostError,
    GroupIdNotFound,
    InvalidRequest,
    NonEmptyGroup,
    UnknownMemberId,
    UnknownTopicOrPartition,
)
from fencepost.group_descriptions import Bounds, OffsetReset, ResetTo, plan_reset
from fencepost_node.coordination.subscriptions import assigned_partitions
from fencepost_proto.kafka.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from fencepost_proto.kafka.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from fencepost_proto.protocol.errors import raise_for
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC
from fencepost_proto.protocol.metadata import Topic, TopicConfig
from fencepost_proto.protocol.v1 import common_pb2, groups_pb2, groups_pb2_grpc
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.test_kafka_edge import ID, NONE, Edge, edge

OFFSETS = Topic("0123456789abcdefghijkQ", OFFSETS_TOPIC, TopicConfig(min_insync_replicas=1))
ORDERS_0, ORDERS_1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
ASSIGNED = b"\x00\x01\x00\x00\x00\x01\x00\x06orders\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"


@asynccontextmanager
async def operated(tmp_path: Path) -> AsyncIterator[tuple[Edge, AdminClient, groups_pb2_grpc.GroupsAsyncStub]]:
    """A broker that leads two partitions of "orders", of which the first has ten records, and the topic of groups.

    The first five records have the timestamp 1000, the others 2000.
    """
    async with edge(tmp_path, group_initial_rebalance_delay_ms=0) as it:
        await it.leads(partitions=2)
        await it.leads(topic=OFFSETS, partitions=4)
        for timestamp_ms in (1_000, 2_000):
            assert (await it.produce(batch(5, timestamp_ms=timestamp_ms))).error_code == NONE
        async with AdminClient(it.running.broker.address) as admin:
            yield it, admin, groups_pb2_grpc.GroupsStub(it.running.channel)


def heartbeat(
    member_epoch: int, owned: tuple[int, ...] | None = None, **fields: Any
) -> groups_pb2.GroupHeartbeatRequest:
    request = groups_pb2.GroupHeartbeatRequest(group_id="billing", member_id="m1", member_epoch=member_epoch, **fields)
    if owned is not None:
        request.owned.SetInParent()
        request.owned.partitions.extend(common_pb2.PartitionRef(topic_id=ID, partition=index) for index in owned)
    return request


@asynchronous
async def test_a_member_over_grpc_is_described_and_its_commit_is_the_groups_lag(tmp_path: Path) -> None:
    async with operated(tmp_path) as (_, admin, stub):
        subscribed = groups_pb2.GroupHeartbeatRequest.Topics(names=["orders"])
        joined = await stub.GroupHeartbeat(
            heartbeat(0, (), subscribed=subscribed, rebalance_timeout_ms=60_000, client_id="worker")
        )
        assert joined.error.code == NONE
        assert [(each.topic_id, each.partition) for each in joined.assignment.partitions] == [(ID, 0), (ID, 1)]
        assert (joined.member_epoch, joined.heartbeat_interval_ms, joined.session_timeout_ms) == (1, 5_000, 45_000)
        again = await stub.GroupHeartbeat(heartbeat(1, (0, 1)))
        assert not again.HasField("assignment")
        offset = groups_pb2.OffsetOfPartition(topic_id=ID, partition=0, offset=4, leader_epoch=0, metadata="so far")
        unknown = groups_pb2.OffsetOfPartition(topic_id=ID, partition=7, offset=4)
        commit = groups_pb2.CommitOffsetsRequest(group_id="billing", member_id="m1", member_epoch=1, offsets=[offset])
        assert (await stub.CommitOffsets(commit)).error.code == NONE
        commit.offsets.append(unknown)
        (refused,) = (await stub.CommitOffsets(commit)).refused
        assert (refused.partition, refused.error.code) == (7, 3)
        del commit.offsets[1:]
        commit.member_id = "m2"
        with pytest.raises(UnknownMemberId):
            raise_for((await stub.CommitOffsets(commit)).error)

        (listed,) = await admin.list_groups()
        assert (listed.group_id, listed.type, listed.state) == ("billing", "consumer", "Stable")
        group = await admin.describe_group("billing")
        assert (group.state, group.epoch, group.coordinator, group.assignor) == ("Stable", 1, 1, "uniform")
        assert [(m.member_id, m.client_id, m.assigned) for m in group.members] == [
            ("m1", "worker", (ORDERS_0, ORDERS_1))
        ]
        found = await admin.describe_group_partitions(group)
        assert [(p.partition, p.committed, p.log_start, p.log_end, p.lag, p.member_id) for p in found] == [
            (0, 4, 0, 10, 6, "m1"),
            (1, -1, 0, 0, 0, "m1"),
        ]
        offsets = await admin.list_group_offsets("billing")
        assert (offsets[ORDERS_0].offset, offsets[ORDERS_0].leader_epoch, offsets[ORDERS_0].metadata) == (
            4,
            0,
            "so far",
        )

        for refusal in (
            admin.delete_group("billing"),
            admin.plan_group_reset("billing", ResetTo("earliest")),
            admin.alter_group_offsets("billing", {ORDERS_0: 0}),
        ):
            with pytest.raises(NonEmptyGroup, match="billing"):
                await refusal
        assert (await stub.GroupHeartbeat(heartbeat(-1))).error.code == NONE
        await admin.delete_group("billing")
        assert await admin.list_groups() == []


@asynchronous
async def test_a_classic_group_of_kafkas_clients_is_described_with_its_partitions(tmp_path: Path) -> None:
    async with operated(tmp_path) as (it, admin, _):
        protocols = [JoinGroupRequestProtocol("range", b"subscription")]
        join = JoinGroupRequest("classic", 10_000, 10_000, member_id="", protocol_type="consumer", protocols=protocols)
        join.member_id = (await it.ask(join, 7)).member_id
        joined = await it.ask(join, 7)
        assert joined.error_code == NONE
        given = [SyncGroupRequestAssignment(joined.member_id, ASSIGNED)]
        await it.ask(SyncGroupRequest("classic", joined.generation_id, joined.member_id, assignments=given), 3)
        group = await admin.describe_group("classic")
        assert (group.type, group.state, group.assignor, len(group.members)) == ("classic", "Stable", "range", 1)
        assert group.members[0].assigned == (ORDERS_0, ORDERS_1)


@asynchronous
async def test_offsets_of_a_group_without_members_are_reset(tmp_path: Path) -> None:
    async with operated(tmp_path) as (_, admin, _stub):
        with pytest.raises(GroupIdNotFound, match="no group 'nightly'"):
            await admin.plan_group_reset("nightly", ResetTo("earliest"), [ORDERS_0])
        plan = await admin.plan_group_reset("nightly", ResetTo("offset", 7), [ORDERS_0], create=True)
        assert plan == [OffsetReset("orders", 0, -1, 7)]
        assert await admin.list_group_offsets("nightly") == {}
        await admin.alter_group_offsets("nightly", {ORDERS_0: 7})
        assert await admin.plan_group_reset("nightly", ResetTo("shift", -9)) == [
            OffsetReset("orders", 0, 7, 0, "-2 is below the start of the log")
        ]
        assert [each.after for each in await admin.plan_group_reset("nightly", ResetTo("latest"))] == [10]
        assert [each.after for each in await admin.plan_group_reset("nightly", ResetTo("time", 1_500))] == [5]
        with pytest.raises(UnknownTopicOrPartition, match="has no partition 9: it has 2"):
            await admin.plan_group_reset("nightly", ResetTo("latest"), [("orders", 9)])
        with pytest.raises(UnknownTopicOrPartition, match="'nope'"):
            await admin.alter_group_offsets("nightly", {TopicPartition("nope", 0): 1})
        for unknown in (admin.describe_group("other"), admin.delete_group("other")):
            with pytest.raises(GroupIdNotFound, match="other"):
                await unknown


@asynchronous
async def test_in_a_cluster_without_groups_there_is_none(tmp_path: Path) -> None:
    async with edge(tmp_path) as it, AdminClient(it.running.broker.address) as admin:
        assert await admin.list_groups() == []
        assert await admin.list_group_offsets("billing") == {}
        for unknown in (admin.describe_group("billing"), admin.delete_group("billing")):
            with pytest.raises(GroupIdNotFound):
                await unknown


# ---- Plans ----


@pytest.mark.parametrize(
    ("to", "committed", "after", "note"),
    [
        (ResetTo("earliest"), 30, 10, ""),
        (ResetTo("latest"), -1, 50, ""),
        (ResetTo("offset", 20), -1, 20, ""),
        (ResetTo("offset", 5), -1, 10, "5 is below the start of the log"),
        (ResetTo("offset", 51), -1, 50, "51 is beyond the end of the log"),
        (ResetTo("shift", 5), 30, 35, ""),
        (ResetTo("shift", -5), 30, 25, ""),
        (ResetTo("time", 1), 30, 33, ""),
    ],
)
def test_a_reset_ends_within_the_log(to: ResetTo, committed: int, after: int, note: str) -> None:
    plan = plan_reset(ORDERS_0, to, committed, Bounds(10, 50, 33))
    assert (plan.before, plan.after, plan.note) == (committed, after, note)


def test_what_has_no_offset_cannot_be_shifted_and_a_time_after_all_is_the_end() -> None:
    with pytest.raises(InvalidRequest, match="orders-0"):
        plan_reset(ORDERS_0, ResetTo("shift", 1), -1, Bounds(0, 9))
    assert plan_reset(ORDERS_0, ResetTo("time", 1), 3, Bounds(0, 9)).after == 9


@pytest.mark.parametrize("cut", range(len(ASSIGNED) - 4))
def test_bytes_that_are_no_assignment_name_no_partition(cut: int) -> None:
    assert assigned_partitions(ASSIGNED[:cut]) is None


def test_an_assignment_names_its_partitions() -> None:
    assert assigned_partitions(ASSIGNED) == [("orders", 0), ("orders", 1)]
    assert assigned_partitions(b"\x00\x00\x7f\xff\xff\xff") is None
    assert issubclass(GroupIdNotFound, FencepostError)
