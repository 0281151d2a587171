"""Admin: changes of the metadata that operators ask for, relayed to the controller.

Supports: whatever the controller does; neither side of the relay looks inside. So a client needs only brokers' addresses.

Errors: the controller's own; NOT_CONTROLLER where it cannot be reached, REQUEST_TIMED_OUT where it does not answer. After
either the change may have been made nevertheless. Limits: a call waits at most 30 s, or until the caller's own deadline.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from fencepost_node.controller_link import ADMIN_TIMEOUT_S, ControllerLink
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from fencepost_proto.transport.answering import Answering, Context

R = TypeVar(
    "R",
    controller_pb2.CreateTopicResponse,
    controller_pb2.DeleteTopicResponse,
    controller_pb2.CreatePartitionsResponse,
    controller_pb2.AlterTopicConfigResponse,
    controller_pb2.AlterPartitionReassignmentsResponse,
    controller_pb2.ElectLeaderResponse,
    controller_pb2.UnregisterBrokerResponse,
    controller_pb2.ListProducerNamesResponse,
    controller_pb2.RemoveProducerNameResponse,
)


class AdminRelay(controller_pb2_grpc.AdminServicer):
    """Every method hands its request on as it is."""

    def __init__(self, link: ControllerLink, answering: Answering) -> None:
        self._link = link
        self._answering = answering

    async def CreateTopic(
        self, request: controller_pb2.CreateTopicRequest, context: Context
    ) -> controller_pb2.CreateTopicResponse:
        return await self._relay("CreateTopic", request, controller_pb2.CreateTopicResponse, context)

    async def DeleteTopic(
        self, request: controller_pb2.DeleteTopicRequest, context: Context
    ) -> controller_pb2.DeleteTopicResponse:
        return await self._relay("DeleteTopic", request, controller_pb2.DeleteTopicResponse, context)

    async def CreatePartitions(
        self, request: controller_pb2.CreatePartitionsRequest, context: Context
    ) -> controller_pb2.CreatePartitionsResponse:
        return await self._relay("CreatePartitions", request, controller_pb2.CreatePartitionsResponse, context)

    async def AlterTopicConfig(
        self, request: controller_pb2.AlterTopicConfigRequest, context: Context
    ) -> controller_pb2.AlterTopicConfigResponse:
        return await self._relay("AlterTopicConfig", request, controller_pb2.AlterTopicConfigResponse, context)

    async def AlterPartitionReassignments(
        self, request: controller_pb2.AlterPartitionReassignmentsRequest, context: Context
    ) -> controller_pb2.AlterPartitionReassignmentsResponse:
        response = controller_pb2.AlterPartitionReassignmentsResponse
        return await self._relay("AlterPartitionReassignments", request, response, context)

    async def ElectLeader(
        self, request: controller_pb2.ElectLeaderRequest, context: Context
    ) -> controller_pb2.ElectLeaderResponse:
        return await self._relay("ElectLeader", request, controller_pb2.ElectLeaderResponse, context)

    async def UnregisterBroker(
        self, request: controller_pb2.UnregisterBrokerRequest, context: Context
    ) -> controller_pb2.UnregisterBrokerResponse:
        return await self._relay("UnregisterBroker", request, controller_pb2.UnregisterBrokerResponse, context)

    async def ListProducerNames(
        self, request: controller_pb2.ListProducerNamesRequest, context: Context
    ) -> controller_pb2.ListProducerNamesResponse:
        response = controller_pb2.ListProducerNamesResponse
        return await self._relay("ListProducerNames", request, response, context)

    async def RemoveProducerName(
        self, request: controller_pb2.RemoveProducerNameRequest, context: Context
    ) -> controller_pb2.RemoveProducerNameResponse:
        response = controller_pb2.RemoveProducerNameResponse
        return await self._relay("RemoveProducerName", request, response, context)

    async def _relay(self, method_name: str, request: Message, response: type[R], context: Context) -> R:
        return await self._answering.unary(response, self._ask(method_name, request, response, context))

    async def _ask(self, method_name: str, request: Message, response: type[R], context: Context) -> R:
        left_s = context.time_remaining()
        timeout_s = ADMIN_TIMEOUT_S if left_s is None else min(left_s, ADMIN_TIMEOUT_S)
        answer = await self._link.admin(method_name, request, timeout_s)
        if not isinstance(answer, response):
            raise TypeError(f"the controller answered {method_name} with a {type(answer).__name__}")
        return answer
