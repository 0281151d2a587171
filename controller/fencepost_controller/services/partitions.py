"""AlterPartition: a broker proposes the in-sync sets of partitions that it leads. The rules are in `decisions/isr.py`.

The answer has one result for each, in their order. A success says that
the set is as proposed at `version`; more may have changed with it. After any error among the results that proposal has
changed nothing: FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, NOT_LEADER_OR_FOLLOWER, INVALID_UPDATE_VERSION (the partition
epoch has moved on; the session brings it), INELIGIBLE_REPLICA, INVALID_REQUEST, UNKNOWN_TOPIC_ID,
UNKNOWN_TOPIC_OR_PARTITION.

Errors of the whole request, with which nothing was changed: STALE_BROKER_EPOCH, BROKER_ID_NOT_REGISTERED, INVALID_REQUEST
(outside of `request_limits`), NOT_CONTROLLER, KAFKA_STORAGE_ERROR.

DeleteRecords: a leader deletes records from the beginning of partitions (`decisions/deleted_records.py`). The answer has one
result for each, in their order; a success says that they are deleted at `version`. The errors are those of AlterPartition,
and OFFSET_OUT_OF_RANGE.

StartReplicaOver: a broker asks before it gives up what a damaged replica holds. Errors: STALE_BROKER_EPOCH,
UNKNOWN_TOPIC_OR_PARTITION, INVALID_REQUEST, ELIGIBLE_LEADERS_NOT_AVAILABLE (no one else leads: it may be asked again).
"""

from __future__ import annotations

from collections.abc import Iterable

from fencepost_controller.commands import Commands
from fencepost_controller.decisions.deleted_records import DeleteRecords, Deletion
from fencepost_controller.decisions.isr import AlterPartition, AlterPartitions, StartReplicaOver
from fencepost_proto.protocol.errors import FencepostError, to_proto
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.protocol.v1 import controller_pb2 as pb


async def alter_partition(commands: Commands, request: pb.AlterPartitionRequest) -> pb.AlterPartitionResponse:
    committed = await commands.submit(
        AlterPartitions(
            request.broker_id,
            request.broker_epoch,
            tuple(_proposal(request, proposal) for proposal in request.proposals),
        )
    )
    return pb.AlterPartitionResponse(version=committed.version, results=_results(committed.answer))


def _results(answers: Iterable[FencepostError | None]) -> list[common_pb2.Error]:
    return [common_pb2.Error() if error is None else to_proto(error) for error in answers]


def _proposal(request: pb.AlterPartitionRequest, proposal: pb.IsrProposal) -> AlterPartition:
    return AlterPartition(
        broker_id=request.broker_id,
        broker_epoch=request.broker_epoch,
        partition=(proposal.topic_id, proposal.partition),
        leader_epoch=proposal.leader_epoch,
        partition_epoch=proposal.partition_epoch,
        new_isr=tuple((member.broker_id, member.broker_epoch) for member in proposal.new_isr),
    )


async def delete_records(commands: Commands, request: pb.DeletedRecordsRequest) -> pb.DeletedRecordsResponse:
    deletions = tuple(Deletion((d.topic_id, d.partition), d.leader_epoch, d.end_offset) for d in request.deletions)
    committed = await commands.submit(DeleteRecords(request.broker_id, request.broker_epoch, deletions))
    return pb.DeletedRecordsResponse(version=committed.version, results=_results(committed.answer))


async def start_replica_over(commands: Commands, request: pb.StartReplicaOverRequest) -> pb.StartReplicaOverResponse:
    key = (request.topic_id, request.partition)
    committed = await commands.submit(StartReplicaOver(request.broker_id, request.broker_epoch, key))
    return pb.StartReplicaOverResponse(version=committed.version)
