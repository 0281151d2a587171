"""Every API that the codec has: its key, its versions, its messages.

The ranges are the codec's. What a broker serves and what it advertises are its own decisions, inside these ranges.
"""

from __future__ import annotations

from typing import NamedTuple

from fencepost_proto.kafka.messages.alter_configs import AlterConfigsRequest, AlterConfigsResponse
from fencepost_proto.kafka.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    AlterPartitionReassignmentsResponse,
)
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from fencepost_proto.kafka.messages.consumer_group_describe import (
    ConsumerGroupDescribeRequest,
    ConsumerGroupDescribeResponse,
)
from fencepost_proto.kafka.messages.consumer_group_heartbeat import (
    ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse,
)
from fencepost_proto.kafka.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsResponse
from fencepost_proto.kafka.messages.create_topics import CreateTopicsRequest, CreateTopicsResponse
from fencepost_proto.kafka.messages.delete_groups import DeleteGroupsRequest, DeleteGroupsResponse
from fencepost_proto.kafka.messages.delete_records import DeleteRecordsRequest, DeleteRecordsResponse
from fencepost_proto.kafka.messages.delete_topics import DeleteTopicsRequest, DeleteTopicsResponse
from fencepost_proto.kafka.messages.describe_cluster import DescribeClusterRequest, DescribeClusterResponse
from fencepost_proto.kafka.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResponse
from fencepost_proto.kafka.messages.describe_groups import DescribeGroupsRequest, DescribeGroupsResponse
from fencepost_proto.kafka.messages.describe_log_dirs import DescribeLogDirsRequest, DescribeLogDirsResponse
from fencepost_proto.kafka.messages.describe_producers import DescribeProducersRequest, DescribeProducersResponse
from fencepost_proto.kafka.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse,
)
from fencepost_proto.kafka.messages.elect_leaders import ElectLeadersRequest, ElectLeadersResponse
from fencepost_proto.kafka.messages.fetch import FetchRequest, FetchResponse
from fencepost_proto.kafka.messages.find_coordinator import FindCoordinatorRequest, FindCoordinatorResponse
from fencepost_proto.kafka.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from fencepost_proto.kafka.messages.incremental_alter_configs import (
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from fencepost_proto.kafka.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from fencepost_proto.kafka.messages.join_group import JoinGroupRequest, JoinGroupResponse
from fencepost_proto.kafka.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse
from fencepost_proto.kafka.messages.list_groups import ListGroupsRequest, ListGroupsResponse
from fencepost_proto.kafka.messages.list_offsets import ListOffsetsRequest, ListOffsetsResponse
from fencepost_proto.kafka.messages.list_partition_reassignments import (
    ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse,
)
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataResponse
from fencepost_proto.kafka.messages.offset_commit import OffsetCommitRequest, OffsetCommitResponse
from fencepost_proto.kafka.messages.offset_delete import OffsetDeleteRequest, OffsetDeleteResponse
from fencepost_proto.kafka.messages.offset_fetch import OffsetFetchRequest, OffsetFetchResponse
from fencepost_proto.kafka.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
)
from fencepost_proto.kafka.messages.produce import ProduceRequest, ProduceResponse
from fencepost_proto.kafka.messages.sync_group import SyncGroupRequest, SyncGroupResponse


class Api(NamedTuple):
    """One API. Versions are inclusive; `first_flexible` is the first with compact lengths and tagged fields
    (KIP-482)."""

    key: int
    name: str
    min_version: int
    max_version: int
    first_flexible: int | None  # None: no version is
    request: type[object]
    response: type[object]

    def is_flexible_in(self, version: int) -> bool:
        return self.first_flexible is not None and version >= self.first_flexible


APIS: dict[int, Api] = {
    api.key: api
    for api in (
        Api(0, "Produce", 3, 13, 9, ProduceRequest, ProduceResponse),
        Api(1, "Fetch", 4, 17, 12, FetchRequest, FetchResponse),
        Api(2, "ListOffsets", 1, 9, 6, ListOffsetsRequest, ListOffsetsResponse),
        Api(3, "Metadata", 0, 13, 9, MetadataRequest, MetadataResponse),
        Api(8, "OffsetCommit", 2, 10, 8, OffsetCommitRequest, OffsetCommitResponse),
        Api(9, "OffsetFetch", 1, 10, 6, OffsetFetchRequest, OffsetFetchResponse),
        Api(10, "FindCoordinator", 0, 6, 3, FindCoordinatorRequest, FindCoordinatorResponse),
        Api(11, "JoinGroup", 0, 9, 6, JoinGroupRequest, JoinGroupResponse),
        Api(12, "Heartbeat", 0, 4, 4, HeartbeatRequest, HeartbeatResponse),
        Api(13, "LeaveGroup", 0, 5, 4, LeaveGroupRequest, LeaveGroupResponse),
        Api(14, "SyncGroup", 0, 5, 4, SyncGroupRequest, SyncGroupResponse),
        Api(15, "DescribeGroups", 0, 6, 5, DescribeGroupsRequest, DescribeGroupsResponse),
        Api(16, "ListGroups", 0, 5, 3, ListGroupsRequest, ListGroupsResponse),
        Api(18, "ApiVersions", 0, 5, 3, ApiVersionsRequest, ApiVersionsResponse),
        Api(19, "CreateTopics", 2, 7, 5, CreateTopicsRequest, CreateTopicsResponse),
        Api(20, "DeleteTopics", 1, 6, 4, DeleteTopicsRequest, DeleteTopicsResponse),
        Api(21, "DeleteRecords", 0, 2, 2, DeleteRecordsRequest, DeleteRecordsResponse),
        Api(22, "InitProducerId", 0, 5, 2, InitProducerIdRequest, InitProducerIdResponse),
        Api(23, "OffsetForLeaderEpoch", 2, 4, 4, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse),
        Api(32, "DescribeConfigs", 1, 4, 4, DescribeConfigsRequest, DescribeConfigsResponse),
        Api(33, "AlterConfigs", 0, 2, 2, AlterConfigsRequest, AlterConfigsResponse),
        Api(35, "DescribeLogDirs", 1, 5, 2, DescribeLogDirsRequest, DescribeLogDirsResponse),
        Api(37, "CreatePartitions", 0, 3, 2, CreatePartitionsRequest, CreatePartitionsResponse),
        Api(42, "DeleteGroups", 0, 2, 2, DeleteGroupsRequest, DeleteGroupsResponse),
        Api(43, "ElectLeaders", 0, 2, 2, ElectLeadersRequest, ElectLeadersResponse),
        Api(44, "IncrementalAlterConfigs", 0, 1, 1, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse),
        Api(
            45,
            "AlterPartitionReassignments",
            0,
            1,
            0,
            AlterPartitionReassignmentsRequest,
            AlterPartitionReassignmentsResponse,
        ),
        Api(
            46,
            "ListPartitionReassignments",
            0,
            0,
            0,
            ListPartitionReassignmentsRequest,
            ListPartitionReassignmentsResponse,
        ),
        Api(47, "OffsetDelete", 0, 0, None, OffsetDeleteRequest, OffsetDeleteResponse),
        Api(60, "DescribeCluster", 0, 2, 0, DescribeClusterRequest, DescribeClusterResponse),
        Api(61, "DescribeProducers", 0, 0, 0, DescribeProducersRequest, DescribeProducersResponse),
        Api(68, "ConsumerGroupHeartbeat", 0, 1, 0, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse),
        Api(69, "ConsumerGroupDescribe", 0, 1, 0, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse),
        Api(75, "DescribeTopicPartitions", 0, 0, 0, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse),
    )
}
