"""The Groups service: each method is the function of the file that is named after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.grpc.commit_offsets import commit
from fencepost_node.grpc.delete_group import delete_group
from fencepost_node.grpc.describe_group import describe_group
from fencepost_node.grpc.fetch_offsets import fetch_offsets
from fencepost_node.grpc.find_coordinator import find_coordinator
from fencepost_node.grpc.group_heartbeat import group_heartbeat
from fencepost_node.grpc.list_groups import list_groups
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.v1 import groups_pb2, groups_pb2_grpc
from fencepost_proto.transport.answering import Answering, Context


@dataclass(slots=True)
class GroupService(groups_pb2_grpc.GroupsServicer):
    manager: ReplicaManager
    groups: GroupCoordinators
    answering: Answering
    real_peer: Callable[[str], str]  # the client behind the peer that a context names

    async def FindCoordinator(
        self, request: groups_pb2.FindCoordinatorRequest, context: Context
    ) -> groups_pb2.FindCoordinatorResponse:
        return await self.answering.unary(groups_pb2.FindCoordinatorResponse, find_coordinator(self.groups, request))

    async def ListGroups(
        self, request: groups_pb2.ListGroupsRequest, context: Context
    ) -> groups_pb2.ListGroupsResponse:
        return await self.answering.unary(groups_pb2.ListGroupsResponse, list_groups(self.groups, request))

    async def DescribeGroup(
        self, request: groups_pb2.DescribeGroupRequest, context: Context
    ) -> groups_pb2.DescribeGroupResponse:
        work = describe_group(self.groups, self.manager.image, request)
        return await self.answering.unary(groups_pb2.DescribeGroupResponse, work)

    async def DeleteGroup(
        self, request: groups_pb2.DeleteGroupRequest, context: Context
    ) -> groups_pb2.DeleteGroupResponse:
        return await self.answering.unary(groups_pb2.DeleteGroupResponse, delete_group(self.groups, request))

    async def GroupHeartbeat(
        self, request: groups_pb2.GroupHeartbeatRequest, context: Context
    ) -> groups_pb2.GroupHeartbeatResponse:
        work = group_heartbeat(self.groups, request, self.real_peer(context.peer()))
        return await self.answering.unary(groups_pb2.GroupHeartbeatResponse, work)

    async def CommitOffsets(
        self, request: groups_pb2.CommitOffsetsRequest, context: Context
    ) -> groups_pb2.CommitOffsetsResponse:
        work = commit(self.groups, self.manager.image, request)
        return await self.answering.unary(groups_pb2.CommitOffsetsResponse, work)

    async def FetchOffsets(
        self, request: groups_pb2.FetchOffsetsRequest, context: Context
    ) -> groups_pb2.FetchOffsetsResponse:
        work = fetch_offsets(self.groups, self.manager.image, request)
        return await self.answering.unary(groups_pb2.FetchOffsetsResponse, work)
