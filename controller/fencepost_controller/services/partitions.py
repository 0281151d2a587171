"""AlterPartition: a leader proposes the in-sync set of a partition it leads. The rules are in `decisions/isr.py`.

A success says that the set is as proposed at `version`; more may have changed with it. Errors: STALE_BROKER_EPOCH,
FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, NOT_LEADER_OR_FOLLOWER, INVALID_UPDATE_VERSION (the partition epoch has moved on;
the session brings it), INELIGIBLE_REPLICA, INVALID_REQUEST, UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION; after any of them
this request has changed nothing.
"""

from __future__ import annotations

from fencepost_controller.commands import Commands
from fencepost_controller.decisions.isr import AlterPartition
from fencepost_proto.v1 import controller_pb2 as pb


async def alter_partition(commands: Commands, request: pb.AlterPartitionRequest) -> pb.AlterPartitionResponse:
    committed = await commands.submit(
        AlterPartition(
            broker_id=request.broker_id,
            broker_epoch=request.broker_epoch,
            partition=(request.topic_id, request.partition),
            leader_epoch=request.leader_epoch,
            partition_epoch=request.partition_epoch,
            new_isr=tuple((member.broker_id, member.broker_epoch) for member in request.new_isr),
        )
    )
    return pb.AlterPartitionResponse(version=committed.version)
