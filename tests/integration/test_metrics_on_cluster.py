"""Each process of a local cluster tells Prometheus of itself, and what a failover does shows in it."""

from __future__ import annotations

from typing import Any

from fencepost import AdminClient, Producer
from fencepost_proto.kafka.messages.find_coordinator import FindCoordinatorRequest
from fencepost_proto.kafka.messages.heartbeat import HeartbeatRequest
from fencepost_proto.kafka.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsTopic,
)
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_testing.kafka_request import ask_broker
from fencepost_testing.local_cluster import CONTROLLER
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from tests.unit.test_metrics import labels, scrape


def test_a_failover_shows_in_the_metrics(run: Any, cluster_factory: Any) -> None:
    async def scenario() -> None:
        async with cluster_factory(brokers=2) as cluster, AdminClient(cluster.bootstrap) as admin:
            told = [await scrape(cluster.member(node).metrics_address) for node in cluster.nodes]
            assert [samples["fencepost_build_info"].popitem()[1] for samples in told] == [1, 1, 1]
            await admin.create_topic("orders", partitions=1, replication_factor=2, min_insync_replicas=1)
            await wait_in_sync(admin, "orders")
            async with Producer(cluster.bootstrap) as producer:
                await (await producer.send("orders", b"a"))
                leader = (await admin.describe_topic("orders")).partitions[0].leader
                await cluster.kill(leader)
                await (await producer.send("orders", b"b"))

            async def elected() -> bool:
                samples = await scrape(cluster.member(CONTROLLER).metrics_address)
                return samples["fencepost_controller_elections_total"][()] == 1

            await until(elected, "the election shows in the controller's metrics")
            samples = await scrape(cluster.member(CONTROLLER).metrics_address)
            assert samples["fencepost_controller_under_replicated_partitions"] == {(): 1}
            assert samples["fencepost_controller_isr_shrinks_total"][()] >= 1
            assert samples["fencepost_controller_brokers"] == {(("state", "serving"),): 1, (("state", "fenced"),): 1}
            assert cluster.member(leader).metrics_address == ""
            other = await scrape(cluster.member(3 - leader).metrics_address)
            assert other["fencepost_led_partitions"] == {(): 1}
            assert other["fencepost_appended_batches_total"][()] >= 1
            assert other["fencepost_partition_high_watermark"] == {(("partition", "0"), ("topic", "orders")): 2}

    run(scenario())


def test_requests_count_by_what_carried_them_and_errors_by_api(run: Any, cluster_factory: Any) -> None:
    async def scenario() -> None:
        async with cluster_factory(brokers=1) as cluster:
            member = cluster.member(1)
            await cluster.create_topic("orders")
            async with Producer(cluster.bootstrap) as producer:
                await producer.send_and_wait("orders", b"a")
            missing = ListOffsetsTopic("no-such", [ListOffsetsPartition(0), ListOffsetsPartition(1)])
            await ask_broker(member.kafka_address, ListOffsetsRequest(topics=[missing]))
            await ask_broker(member.kafka_address, FindCoordinatorRequest(coordinator_keys=["billing"]))

            async def is_unknown() -> bool:
                """Not before the topic of groups has a leader, which has read it."""
                answer = await ask_broker(member.kafka_address, HeartbeatRequest("billing", 1, "no-such"))
                return bool(answer.error_code == ErrorCode.UNKNOWN_MEMBER_ID)

            await until(is_unknown, "the coordinator knows that there is no such member")
            samples = await scrape(member.metrics_address)

            counts = samples["fencepost_request_duration_seconds_count"]
            assert counts[labels(protocol="lean", api="Produce")] == 1
            assert labels(protocol="grpc", api="Produce") not in counts
            assert counts[labels(protocol="kafka", api="ListOffsets")] == 1
            refused = samples["fencepost_refused_requests_total"]
            assert refused[labels(protocol="kafka", api="ListOffsets", error="UNKNOWN_TOPIC_OR_PARTITION")] == 2
            assert refused[labels(protocol="kafka", api="Heartbeat", error="UNKNOWN_MEMBER_ID")] == 1
            assert samples["fencepost_group_request_duration_seconds_count"][labels(request="Heartbeat")] >= 1
            unknown = labels(request="Heartbeat", error="UNKNOWN_MEMBER_ID")
            assert samples["fencepost_refused_group_requests_total"][unknown] == 1

    run(scenario())
