"""Every error that the library raises: those of the cluster, and those that arise only in a client.

`retriable`: the same call may succeed later. `may_have_been_appended`: the record or request that failed may be in the log
nevertheless, or may still get there. Where it is false, the record is not in the log and never will be, so that sending it
again cannot duplicate it.
"""

from __future__ import annotations

from fencepost_proto.protocol.errors import (
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    CorruptMessage,
    CurrentLeader,
    DuplicateSequenceNumber,
    ElectionNotNeeded,
    EligibleLeadersNotAvailable,
    ErrorCode,
    FencedInstanceId,
    FencedLeaderEpoch,
    FencedMemberEpoch,
    FencepostError,
    GroupIdNotFound,
    GroupMaxSizeReached,
    InconsistentClusterId,
    InvalidCommitOffsetSize,
    InvalidConfig,
    InvalidGroupId,
    InvalidPartitions,
    InvalidProducerEpoch,
    InvalidRecord,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    InvalidRequest,
    InvalidRequiredAcks,
    InvalidTimestamp,
    InvalidTopic,
    InvariantBroken,
    MessageTooLarge,
    NetworkException,
    NonEmptyGroup,
    NoReassignmentInProgress,
    NotController,
    NotCoordinator,
    NotEnoughReplicas,
    NotEnoughReplicasAfterAppend,
    NotLeaderOrFollower,
    OffsetMetadataTooLarge,
    OffsetNotAvailable,
    OffsetOutOfRange,
    OutOfOrderSequenceNumber,
    PreferredLeaderNotAvailable,
    ProducerFenced,
    RecordListTooLarge,
    RequestTimedOut,
    RetriableError,
    StaleMemberEpoch,
    StorageError,
    TopicAlreadyExists,
    UnknownLeaderEpoch,
    UnknownMemberId,
    UnknownProducerId,
    UnknownServerError,
    UnknownTopicId,
    UnknownTopicOrPartition,
    UnreleasedInstanceId,
    UnsupportedForMessageFormat,
)


class PredecessorForgotten(UnknownProducerId):
    """It is unknown what was written under this name before: the name was not used for so long that it had expired."""


class ProducerIdTaken(InvalidProducerEpoch):
    """Another producer writes under this producer's id: its record stands where this one should be."""


class DeliveryTimeout(RetriableError):
    """A record was not acknowledged within the delivery timeout; `__cause__` is the last error that was met."""

    code = ErrorCode.REQUEST_TIMED_OUT


class BufferFull(RetriableError):
    """The producer's buffer had no room for the record within max_block_ms: nothing was sent."""

    code = ErrorCode.REQUEST_TIMED_OUT


class NoBrokerAnswered(NetworkException):
    """None of the brokers that a client was told of has sent its metadata: it cannot start."""


class PartitionLost(FencepostError):
    """The group has given a partition to another member, or may have: nothing was committed for it by this call."""

    code = ErrorCode.STALE_MEMBER_EPOCH


class ProducerClosed(FencepostError):
    """The producer is closed, or was closed before the record was acknowledged."""

    code = ErrorCode.INVALID_REQUEST


__all__ = [
    "BufferFull",
    "CoordinatorLoadInProgress",
    "CoordinatorNotAvailable",
    "CorruptMessage",
    "CurrentLeader",
    "DeliveryTimeout",
    "DuplicateSequenceNumber",
    "ElectionNotNeeded",
    "EligibleLeadersNotAvailable",
    "ErrorCode",
    "FencedInstanceId",
    "FencedLeaderEpoch",
    "FencedMemberEpoch",
    "FencepostError",
    "GroupIdNotFound",
    "GroupMaxSizeReached",
    "InconsistentClusterId",
    "InvalidCommitOffsetSize",
    "InvalidConfig",
    "InvalidGroupId",
    "InvalidPartitions",
    "InvalidProducerEpoch",
    "InvalidRecord",
    "InvalidReplicaAssignment",
    "InvalidReplicationFactor",
    "InvalidRequest",
    "InvalidRequiredAcks",
    "InvalidTimestamp",
    "InvalidTopic",
    "InvariantBroken",
    "MessageTooLarge",
    "NetworkException",
    "NoBrokerAnswered",
    "NoReassignmentInProgress",
    "NonEmptyGroup",
    "NotController",
    "NotCoordinator",
    "NotEnoughReplicas",
    "NotEnoughReplicasAfterAppend",
    "NotLeaderOrFollower",
    "OffsetMetadataTooLarge",
    "OffsetNotAvailable",
    "OffsetOutOfRange",
    "OutOfOrderSequenceNumber",
    "PartitionLost",
    "PreferredLeaderNotAvailable",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerIdTaken",
    "RecordListTooLarge",
    "RequestTimedOut",
    "RetriableError",
    "StaleMemberEpoch",
    "StorageError",
    "TopicAlreadyExists",
    "UnknownLeaderEpoch",
    "UnknownMemberId",
    "UnknownProducerId",
    "UnknownServerError",
    "UnknownTopicId",
    "UnknownTopicOrPartition",
    "UnreleasedInstanceId",
    "UnsupportedForMessageFormat",
]
