"""Every error that the library raises: the tree that the cluster shares, and what can only go wrong on this side.

`retriable` says that the same call may succeed later. `may_have_been_appended` says, of the very record or request that
failed, whether it may stand in the log all the same or may yet get there; where it is false, it is certainly not there
and never will be, so that sending the record again cannot double it.
"""

from __future__ import annotations

from fencepost_proto.protocol.errors import (
    CoordinatorNotAvailable,
    CorruptMessage,
    CurrentLeader,
    DuplicateSequenceNumber,
    ElectionNotNeeded,
    EligibleLeadersNotAvailable,
    ErrorCode,
    FencedLeaderEpoch,
    FencepostError,
    InconsistentClusterId,
    InvalidConfig,
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
    NoReassignmentInProgress,
    NotController,
    NotEnoughReplicas,
    NotEnoughReplicasAfterAppend,
    NotLeaderOrFollower,
    OffsetNotAvailable,
    OffsetOutOfRange,
    OutOfOrderSequenceNumber,
    PreferredLeaderNotAvailable,
    ProducerFenced,
    RecordListTooLarge,
    RequestTimedOut,
    RetriableError,
    StorageError,
    TopicAlreadyExists,
    UnknownLeaderEpoch,
    UnknownProducerId,
    UnknownServerError,
    UnknownTopicId,
    UnknownTopicOrPartition,
    UnsupportedForMessageFormat,
)


class PredecessorForgotten(UnknownProducerId):
    """What a name wrote before cannot be told: it was not used for so long that it had expired."""


class ProducerIdTaken(InvalidProducerEpoch):
    """Somebody else writes under this producer's id: a record of the other one stands where this one was to be."""


class DeliveryTimeout(RetriableError):
    """A record was not acknowledged within the delivery timeout; `__cause__` is the last error that was met."""

    code = ErrorCode.REQUEST_TIMED_OUT


class BufferFull(RetriableError):
    """The producer's buffer had no room for the record within max_block_ms: nothing was sent."""

    code = ErrorCode.REQUEST_TIMED_OUT


class ProducerClosed(FencepostError):
    """The producer is closed, or was closed before the record was acknowledged."""

    code = ErrorCode.INVALID_REQUEST


__all__ = [
    "BufferFull",
    "CoordinatorNotAvailable",
    "CorruptMessage",
    "CurrentLeader",
    "DeliveryTimeout",
    "DuplicateSequenceNumber",
    "ElectionNotNeeded",
    "EligibleLeadersNotAvailable",
    "ErrorCode",
    "FencedLeaderEpoch",
    "FencepostError",
    "InconsistentClusterId",
    "InvalidConfig",
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
    "NoReassignmentInProgress",
    "NotController",
    "NotEnoughReplicas",
    "NotEnoughReplicasAfterAppend",
    "NotLeaderOrFollower",
    "OffsetNotAvailable",
    "OffsetOutOfRange",
    "OutOfOrderSequenceNumber",
    "PreferredLeaderNotAvailable",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerIdTaken",
    "RecordListTooLarge",
    "RequestTimedOut",
    "RetriableError",
    "StorageError",
    "TopicAlreadyExists",
    "UnknownLeaderEpoch",
    "UnknownProducerId",
    "UnknownServerError",
    "UnknownTopicId",
    "UnknownTopicOrPartition",
    "UnsupportedForMessageFormat",
]
