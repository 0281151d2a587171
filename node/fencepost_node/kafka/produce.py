"""Produce (key 0), versions 3 to 13: one record batch for each of some partitions.

Supports: acks -1, 0 and 1; topics by name, from version 13 on by id. Each partition has exactly one batch of magic 2.
Batches are appended when the request is taken; the answer comes once all have theirs: with acks=-1 when they are below
the high watermark. With acks=0 there is no answer, and a refused batch ends the connection, as in Kafka: its client
then looks for the leaders again. A repeat is answered like its original, with the original's offset.

Errors of a partition, nothing appended: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, NOT_LEADER_OR_FOLLOWER (from
version 10 on with the leader and its address, KIP-951), INVALID_REQUIRED_ACKS, MESSAGE_TOO_LARGE, CORRUPT_MESSAGE,
INVALID_RECORD, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, UNSUPPORTED_COMPRESSION_TYPE (zstd below version 7),
NOT_ENOUGH_REPLICAS, KAFKA_STORAGE_ERROR, INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER, UNKNOWN_PRODUCER_ID,
DUPLICATE_SEQUENCE_NUMBER (older than what is remembered), INVALID_TXN_STATE (a transactional id),
INVALID_TOPIC_EXCEPTION (an internal topic). A retriable one holds up the producer's later batches on this connection
(`producers/refusals.py`). REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND: appended, and may yet be committed or
cut; so after a leadership that has ended meanwhile, since NOT_LEADER_OR_FOLLOWER means to librdkafka that nothing was
appended.

Differences from Kafka: too many new producers, and ids that this broker does not know of yet, are NOT_ENOUGH_REPLICAS, which
every client tries again without looking for another leader. INVALID_RECORD for a batch with the sequences of another one
whose bytes differ: taken for its repeat it would be acknowledged and not stored (kafkajs uses numbers twice).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.leader_hints import LeaderHints
from fencepost_node.replication.leadership import Appended
from fencepost_node.requests.append import append_batch
from fencepost_proto.kafka.messages.produce import (
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
    TopicProduceResponse,
)
from fencepost_proto.protocol.errors import (
    CoordinatorNotAvailable,
    ErrorCode,
    FencepostError,
    InvalidRecord,
    SequencesTaken,
    ThrottlingQuotaExceeded,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import MAX_TOPIC_NAME
from fencepost_proto.protocol.record_batch import COMPRESSION_MASK, HEADER_BYTES
from fencepost_proto.protocol.topic_ids import from_wire
from fencepost_proto.runtime.turns import Turns

MAX_PARTITIONS_AT_ONCE = 64  # of one request, appended in one step: a millisecond or two
WEIGHT_OF_A_BATCH = 4  # of a turn's steps
BY_ID_FROM = 13  # the first version that names topics by id
ZSTD_FROM = 7
_ZSTD = 4  # of the codecs
_ATTRIBUTES_LOW = 22  # of a batch: the low byte of its attributes

Done = Callable[[ProduceResponse], None]


class InvalidTransaction(FencepostError):
    """There are no transactions."""

    code = ErrorCode.INVALID_TXN_STATE


class UnsupportedCompression(FencepostError):
    code = ErrorCode.UNSUPPORTED_COMPRESSION_TYPE


def is_large(request: ProduceRequest) -> bool:
    """It is to be appended in turns."""
    return sum(len(topic.partition_data) for topic in request.topic_data) > MAX_PARTITIONS_AT_ONCE


def take(context: KafkaContext, request: ProduceRequest, version: int, done: Done) -> None:
    """Append what the request brings; `done` is given the response once it is known, perhaps before this returns."""
    taken = _Taken(context, request, version, done)
    for topic, data, place in taken.batches():
        taken.append(topic, data, place)
    taken.all_appended()


async def take_in_turns(context: KafkaContext, request: ProduceRequest, version: int, done: Done) -> None:
    """As `take`, for a request of many partitions. Returns when all are appended."""
    taken = _Taken(context, request, version, done)
    turns = Turns()
    for topic, data, place in taken.batches():
        taken.append(topic, data, place)
        await turns.step(WEIGHT_OF_A_BATCH)
    taken.all_appended()


def refusals_of(response: ProduceResponse) -> str:
    """The first partition that was refused, and why; empty: none was."""
    for topic in response.responses:
        for partition in topic.partition_responses:
            if partition.error_code:
                code = ErrorCode(partition.error_code).name
                return (
                    f"acks=0, {topic.name or topic.topic_id.hex()}-{partition.index}: {code} {partition.error_message}"
                )
    return ""


class _Taken:
    """One request, from the append of its first batch to its answer."""

    def __init__(self, context: KafkaContext, request: ProduceRequest, version: int, done: Done) -> None:
        self._context = context
        self._request = request
        self._version = version
        self._done = done
        self._image = context.manager.image
        self._hints = LeaderHints(self._image)
        self._open = 1  # batches whose outcome is not known, and one for those that are not appended yet
        self.response = ProduceResponse()

    def batches(self) -> Iterator[tuple[TopicProduceData, PartitionProduceData, PartitionProduceResponse]]:
        """Each batch, its topic, and the place of its answer in the response."""
        for topic in self._request.topic_data:
            answers = TopicProduceResponse(name=topic.name, topic_id=topic.topic_id)
            self.response.responses.append(answers)
            for data in topic.partition_data:
                answer = PartitionProduceResponse(index=data.index, base_offset=-1)
                answers.partition_responses.append(answer)
                yield topic, data, answer

    def append(self, topic: TopicProduceData, data: PartitionProduceData, answer: PartitionProduceResponse) -> None:
        by_id = self._version >= BY_ID_FROM
        topic_id = from_wire(topic.topic_id) if by_id else self._image.topic_ids.get(topic.name, "")
        self._open += 1

        def report(appended: Appended, log_start_offset: int, error: FencepostError | None) -> None:
            if error is None:
                answer.base_offset, answer.log_append_time_ms = appended.base_offset, appended.append_time_ms
            else:
                self._refuse(answer, error)
            answer.log_start_offset = log_start_offset
            self._one_less()

        try:
            self._check(data)
            append_batch(
                self._context.manager,
                self._context.refusals,
                topic_id,
                data.index,
                data.records or b"",
                place=(topic_id if by_id else topic.name[: MAX_TOPIC_NAME + 1], data.index),
                acks=self._request.acks,
                timeout_ms=self._request.timeout_ms,
                admit=self._context.admit,
                report=report,
            )
        except FencepostError as error:
            self._refuse(answer, error)
            answer.log_start_offset = self._log_start_offset(topic_id, data.index)
            self._one_less()

    def all_appended(self) -> None:
        self._one_less()

    def _one_less(self) -> None:
        self._open -= 1
        if not self._open:
            self.response.node_endpoints = self._hints.endpoints
            self._done(self.response)

    def _check(self, data: PartitionProduceData) -> None:
        """What `append_batch` does not. Raises FencepostError."""
        if self._request.transactional_id is not None:
            raise InvalidTransaction(
                f"transactional id {self._request.transactional_id[:100]!r}: there are no transactions"
            )
        records = data.records
        if records is None:
            raise InvalidRecord("no record batch")
        if self._version < ZSTD_FROM and len(records) > HEADER_BYTES:
            compression = records[_ATTRIBUTES_LOW] & COMPRESSION_MASK
            if compression == _ZSTD:
                raise UnsupportedCompression(f"zstd is for Produce version {ZSTD_FROM} or later, not {self._version}")

    def _refuse(self, answer: PartitionProduceResponse, error: FencepostError) -> None:
        if isinstance(error, UnknownTopicId) and self._version < BY_ID_FROM:
            error = UnknownTopicOrPartition(f"broker {self._context.broker.broker_id} does not know the topic")
        answer.error_code = _code_of(error)
        answer.error_message = error.message
        if error.current_leader is not None:
            answer.current_leader = self._hints.of(error)

    def _log_start_offset(self, topic_id: str, partition: int) -> int:
        """Java's producer tells by it why a broker does not know it: -1 where this broker does not lead."""
        try:
            return self._context.manager.leader(topic_id, partition, -1).log.log_start_offset
        except FencepostError:
            return -1


def _code_of(error: FencepostError) -> int:
    """For the same meaning: a code that every client of Produce knows."""
    if isinstance(error, CoordinatorNotAvailable | ThrottlingQuotaExceeded):
        return ErrorCode.NOT_ENOUGH_REPLICAS
    if isinstance(error, SequencesTaken):
        return ErrorCode.INVALID_RECORD
    return error.code
