"""The one tree of exceptions, and the error codes on the wire.

Codes and names are those of the Kafka protocol. Each exception knows two things that decide what a caller may do:

- ``retriable``: the same request may succeed later, unchanged.
- ``may_have_been_appended``: the request's records may be in the log nevertheless, or may yet get there. Where it is
  false on a failed produce, the refusal is definite. The class says what the answer to *one request* means; an error
  that a producer raises for a record says it for that record, all its retries included.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, NamedTuple

from fencepost_proto.protocol.v1 import common_pb2


class ErrorCode(IntEnum):
    """Numbers of the Kafka protocol."""

    UNKNOWN_SERVER_ERROR = -1
    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    LEADER_NOT_AVAILABLE = 5
    NOT_LEADER_OR_FOLLOWER = 6
    REQUEST_TIMED_OUT = 7
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    NETWORK_EXCEPTION = 13
    COORDINATOR_LOAD_IN_PROGRESS = 14
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    INVALID_TOPIC_EXCEPTION = 17
    RECORD_LIST_TOO_LARGE = 18
    NOT_ENOUGH_REPLICAS = 19
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20
    INVALID_REQUIRED_ACKS = 21
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    INVALID_COMMIT_OFFSET_SIZE = 28
    INVALID_TIMESTAMP = 32
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    INVALID_REPLICATION_FACTOR = 38
    INVALID_REPLICA_ASSIGNMENT = 39
    INVALID_CONFIG = 40
    NOT_CONTROLLER = 41
    INVALID_REQUEST = 42
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    DUPLICATE_SEQUENCE_NUMBER = 46
    INVALID_PRODUCER_EPOCH = 47
    INVALID_TXN_STATE = 48
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53
    KAFKA_STORAGE_ERROR = 56
    UNKNOWN_PRODUCER_ID = 59
    FETCH_SESSION_ID_NOT_FOUND = 70
    NON_EMPTY_GROUP = 68
    GROUP_ID_NOT_FOUND = 69
    FENCED_LEADER_EPOCH = 74
    UNKNOWN_LEADER_EPOCH = 75
    UNSUPPORTED_COMPRESSION_TYPE = 76
    STALE_BROKER_EPOCH = 77
    OFFSET_NOT_AVAILABLE = 78
    MEMBER_ID_REQUIRED = 79
    PREFERRED_LEADER_NOT_AVAILABLE = 80
    GROUP_MAX_SIZE_REACHED = 81
    FENCED_INSTANCE_ID = 82
    ELIGIBLE_LEADERS_NOT_AVAILABLE = 83
    ELECTION_NOT_NEEDED = 84
    NO_REASSIGNMENT_IN_PROGRESS = 85
    GROUP_SUBSCRIBED_TO_TOPIC = 86
    INVALID_RECORD = 87
    PRODUCER_FENCED = 90
    THROTTLING_QUOTA_EXCEEDED = 89
    UNKNOWN_TOPIC_ID = 100
    DUPLICATE_BROKER_REGISTRATION = 101
    BROKER_ID_NOT_REGISTERED = 102
    INCONSISTENT_CLUSTER_ID = 104
    INELIGIBLE_REPLICA = 107
    MISMATCHED_ENDPOINT_TYPE = 114
    UNSUPPORTED_ENDPOINT_TYPE = 115
    REBOOTSTRAP_REQUIRED = 129
    FENCED_MEMBER_EPOCH = 110
    UNRELEASED_INSTANCE_ID = 111
    UNSUPPORTED_ASSIGNOR = 112
    STALE_MEMBER_EPOCH = 113
    INVALID_REGULAR_EXPRESSION = 128
    INVALID_UPDATE_VERSION = 95


class CurrentLeader(NamedTuple):
    """Where a partition's leader is, as far as the one who says it knows."""

    leader_id: int  # -1: no leader
    leader_epoch: int
    address: str  # host:port; empty where there is no leader


class FencepostError(Exception):
    """Base of every error of this project."""

    code: ClassVar[ErrorCode] = ErrorCode.UNKNOWN_SERVER_ERROR
    retriable: ClassVar[bool] = False
    may_have_been_appended: bool = False

    def __init__(
        self,
        message: str,
        *,
        current_leader: CurrentLeader | None = None,
        may_have_been_appended: bool | None = None,  # None: as the class says
    ) -> None:
        super().__init__(message)
        self.message = message
        self.current_leader = current_leader
        if may_have_been_appended is not None:
            self.may_have_been_appended = may_have_been_appended

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class RetriableError(FencepostError):
    retriable = True


class UnknownServerError(FencepostError):
    """The other side failed in a way that it did not foresee."""

    code = ErrorCode.UNKNOWN_SERVER_ERROR
    may_have_been_appended = True


class InvariantBroken(Exception):
    """An invariant of this code does not hold. The process that finds one stops; nothing catches it to go on.

    One place turns it into something else: where what another process has sent contradicts one replica's log, that replica
    fails, with the reason, and the broker's others serve on.
    """


# ---- Where things are ----


class UnknownTopicOrPartition(RetriableError):
    code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


class UnknownTopicId(RetriableError):
    code = ErrorCode.UNKNOWN_TOPIC_ID


class NotLeaderOrFollower(RetriableError):
    """Carries the leader's id and address where they are known."""

    code = ErrorCode.NOT_LEADER_OR_FOLLOWER


class FencedLeaderEpoch(RetriableError):
    """The request's leader epoch is older than the answering broker's."""

    code = ErrorCode.FENCED_LEADER_EPOCH


class UnknownLeaderEpoch(RetriableError):
    """The request's leader epoch is newer than the answering broker's: it will learn of it."""

    code = ErrorCode.UNKNOWN_LEADER_EPOCH


class NetworkException(RetriableError):
    """The connection broke before the answer came."""

    code = ErrorCode.NETWORK_EXCEPTION
    may_have_been_appended = True


class RequestTimedOut(RetriableError):
    code = ErrorCode.REQUEST_TIMED_OUT
    may_have_been_appended = True


class NotController(RetriableError):
    """The controller cannot be reached, or is not ready."""

    code = ErrorCode.NOT_CONTROLLER


class CoordinatorNotAvailable(RetriableError):
    """A producer id cannot be had right now; of a group: its coordinator cannot store anything, or there is none yet."""

    code = ErrorCode.COORDINATOR_NOT_AVAILABLE


class StorageError(RetriableError):
    """The disk refused (full, I/O error). The broker gives up the replica; another one takes over."""

    code = ErrorCode.KAFKA_STORAGE_ERROR


# ---- Offsets ----


class OffsetOutOfRange(FencepostError):
    code = ErrorCode.OFFSET_OUT_OF_RANGE


class OffsetNotAvailable(RetriableError):
    """A new leader does not yet know its high watermark (KIP-207)."""

    code = ErrorCode.OFFSET_NOT_AVAILABLE


# ---- Batches ----


class CorruptMessage(RetriableError):
    """Bad CRC or length: what arrived is not what was sent."""

    code = ErrorCode.CORRUPT_MESSAGE


class InvalidRecord(FencepostError):
    """Well-formed bytes that say something impossible (wrong count, negative sequence, …)."""

    code = ErrorCode.INVALID_RECORD


class UnsupportedForMessageFormat(FencepostError):
    """Magic 0 or 1."""

    code = ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT


class InvalidTimestamp(FencepostError):
    """Further in the past or in the future than the topic allows."""

    code = ErrorCode.INVALID_TIMESTAMP


class MessageTooLarge(FencepostError):
    code = ErrorCode.MESSAGE_TOO_LARGE


class RecordListTooLarge(FencepostError):
    """The whole request is too large."""

    code = ErrorCode.RECORD_LIST_TOO_LARGE


class InvalidRequiredAcks(FencepostError):
    code = ErrorCode.INVALID_REQUIRED_ACKS


class NotEnoughReplicas(RetriableError):
    """Checked before the append: nothing was appended."""

    code = ErrorCode.NOT_ENOUGH_REPLICAS


class NotEnoughReplicasAfterAppend(RetriableError):
    code = ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND
    may_have_been_appended = True


class ThrottlingQuotaExceeded(RetriableError):
    """Too many new producers at a time: nothing was done; there is room again later."""

    code = ErrorCode.THROTTLING_QUOTA_EXCEEDED


# ---- Sequences ----


class OutOfOrderSequenceNumber(RetriableError):
    """A gap or an overlap. Retriable while an earlier batch of the same producer and partition is outstanding."""

    code = ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


class DuplicateSequenceNumber(FencepostError):
    """Older than the five remembered batches: it is in the log, its offset is no longer known."""

    code = ErrorCode.DUPLICATE_SEQUENCE_NUMBER
    may_have_been_appended = True


class SequencesTaken(DuplicateSequenceNumber):
    """The sequences of a batch that is in the log, under the same id and epoch, and other bytes: this batch is not in."""


class UnknownProducerId(FencepostError):
    """The partition has no state for this producer, and the batch is not its first."""

    code = ErrorCode.UNKNOWN_PRODUCER_ID


class InvalidProducerEpoch(FencepostError):
    """A newer epoch of this producer exists. For a named producer: another instance took over."""

    code = ErrorCode.INVALID_PRODUCER_EPOCH


class ProducerFenced(FencepostError):
    """A newer instance of this named producer has taken over."""

    code = ErrorCode.PRODUCER_FENCED


# ---- Groups ----


class CoordinatorLoadInProgress(RetriableError):
    """The coordinator of that group reads what its log has."""

    code = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS


class NotCoordinator(RetriableError):
    """Another broker coordinates that group; or none does, for a moment."""

    code = ErrorCode.NOT_COORDINATOR


class InvalidGroupId(FencepostError):
    code = ErrorCode.INVALID_GROUP_ID


class IllegalGeneration(FencepostError):
    """Of an earlier generation of the group: its assignment counts no more."""

    code = ErrorCode.ILLEGAL_GENERATION


class InconsistentGroupProtocol(FencepostError):
    """The group has another type of protocol, or none of these."""

    code = ErrorCode.INCONSISTENT_GROUP_PROTOCOL


class UnknownMemberId(FencepostError):
    """The group has no such member, or none any more."""

    code = ErrorCode.UNKNOWN_MEMBER_ID


class InvalidSessionTimeout(FencepostError):
    code = ErrorCode.INVALID_SESSION_TIMEOUT


class RebalanceInProgress(FencepostError):
    """The group is on its way to its next generation: join it."""

    code = ErrorCode.REBALANCE_IN_PROGRESS


class MemberIdRequired(FencepostError):
    """Join again, with the id that comes with this (KIP-394)."""

    code = ErrorCode.MEMBER_ID_REQUIRED


class GroupMaxSizeReached(FencepostError):
    """The group, or its coordinator, holds as much as it may."""

    code = ErrorCode.GROUP_MAX_SIZE_REACHED


class FencedInstanceId(FencepostError):
    """A static member's instance id has another process now (KIP-345)."""

    code = ErrorCode.FENCED_INSTANCE_ID


class OffsetMetadataTooLarge(FencepostError):
    code = ErrorCode.OFFSET_METADATA_TOO_LARGE


class InvalidCommitOffsetSize(FencepostError):
    """There is no room for that offset."""

    code = ErrorCode.INVALID_COMMIT_OFFSET_SIZE


class NonEmptyGroup(FencepostError):
    code = ErrorCode.NON_EMPTY_GROUP


class GroupIdNotFound(FencepostError):
    code = ErrorCode.GROUP_ID_NOT_FOUND


class GroupSubscribedToTopic(FencepostError):
    code = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC


class FencedMemberEpoch(FencepostError):
    """Of another epoch than the group has for that member (KIP-848): it is to give up its partitions and join again."""

    code = ErrorCode.FENCED_MEMBER_EPOCH


class UnreleasedInstanceId(FencepostError):
    """The instance id is in use by another member (KIP-848)."""

    code = ErrorCode.UNRELEASED_INSTANCE_ID


class UnsupportedAssignor(FencepostError):
    code = ErrorCode.UNSUPPORTED_ASSIGNOR


class StaleMemberEpoch(FencepostError):
    """Of an earlier epoch of that member (KIP-848): it is to send a heartbeat first."""

    code = ErrorCode.STALE_MEMBER_EPOCH


# ---- Topics and admin ----


class InvalidTopic(FencepostError):
    code = ErrorCode.INVALID_TOPIC_EXCEPTION


class TopicAlreadyExists(FencepostError):
    code = ErrorCode.TOPIC_ALREADY_EXISTS


class InvalidPartitions(FencepostError):
    code = ErrorCode.INVALID_PARTITIONS


class InvalidReplicationFactor(FencepostError):
    code = ErrorCode.INVALID_REPLICATION_FACTOR


class InvalidReplicaAssignment(FencepostError):
    code = ErrorCode.INVALID_REPLICA_ASSIGNMENT


class InvalidConfig(FencepostError):
    code = ErrorCode.INVALID_CONFIG


class InvalidRequest(FencepostError):
    code = ErrorCode.INVALID_REQUEST


class NoReassignmentInProgress(FencepostError):
    code = ErrorCode.NO_REASSIGNMENT_IN_PROGRESS


class PreferredLeaderNotAvailable(RetriableError):
    code = ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE


class EligibleLeadersNotAvailable(RetriableError):
    code = ErrorCode.ELIGIBLE_LEADERS_NOT_AVAILABLE


class ElectionNotNeeded(FencepostError):
    code = ErrorCode.ELECTION_NOT_NEEDED


# ---- Between brokers and the controller ----


class StaleBrokerEpoch(FencepostError):
    code = ErrorCode.STALE_BROKER_EPOCH


class DuplicateBrokerRegistration(FencepostError):
    code = ErrorCode.DUPLICATE_BROKER_REGISTRATION


class BrokerIdNotRegistered(FencepostError):
    code = ErrorCode.BROKER_ID_NOT_REGISTERED


class InconsistentClusterId(FencepostError):
    code = ErrorCode.INCONSISTENT_CLUSTER_ID


class InvalidUpdateVersion(RetriableError):
    """A compare-and-set on a partition epoch lost."""

    code = ErrorCode.INVALID_UPDATE_VERSION


class IneligibleReplica(FencepostError):
    """A proposed in-sync member is fenced, shutting down, or a newer incarnation than the one that caught up."""

    code = ErrorCode.INELIGIBLE_REPLICA


def _tree(cls: type[FencepostError]) -> list[type[FencepostError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _tree(child)]


_BY_CODE: dict[int, type[FencepostError]] = {
    int(cls.code): cls for cls in _tree(FencepostError) if "code" in cls.__dict__ and cls is not FencepostError
}


def to_proto(error: FencepostError) -> common_pb2.Error:
    """What stands on the wire for this error."""
    answer = common_pb2.Error(code=error.code, message=error.message)
    if error.current_leader is not None:
        answer.current_leader.leader_id = error.current_leader.leader_id
        answer.current_leader.leader_epoch = error.current_leader.leader_epoch
        answer.current_leader.address = error.current_leader.address
    return answer


def from_proto(error: common_pb2.Error) -> FencepostError:
    """The exception for an error with a code other than 0; a code unknown here becomes UnknownServerError."""
    hint = error.current_leader
    leader = (
        CurrentLeader(hint.leader_id, hint.leader_epoch, hint.address) if error.HasField("current_leader") else None
    )
    cls = _BY_CODE.get(error.code)
    if cls is None:
        return UnknownServerError(f"code {error.code}: {error.message}", current_leader=leader)
    return cls(error.message, current_leader=leader)


def raise_for(error: common_pb2.Error) -> None:
    """Raise what the answer's error field says; return where it says none."""
    if error.code != ErrorCode.NONE:
        raise from_proto(error)
