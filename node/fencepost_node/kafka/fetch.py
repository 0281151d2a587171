"""Fetch (key 1), versions 4 to 17: a long poll of some partitions.

Supports: topics by name, from version 13 on by id. The answer comes as soon as the partitions have `min_bytes` below their
high watermarks, or one of them has an error, or `max_wait_ms` are over. It holds whole batches, as stored: the first
may begin below the offset asked for. Leader epochs are checked (KIP-320, from version 9): -1 is none; with
`last_fetched_epoch` the answer tells where the log has parted from what was read.

There are no fetch sessions: the session id is always 0, so clients ask for all that they want each time, and every partition
is answered, also where there is nothing new. The last stable offset is the high watermark: there are no transactions.

Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH (with the
leader and, from version 16 on, its address: KIP-951), UNKNOWN_LEADER_EPOCH, OFFSET_OUT_OF_RANGE, KAFKA_STORAGE_ERROR. Of the
request: FETCH_SESSION_ID_NOT_FOUND for a session that another broker or an earlier process has given.

Limits: `max_fetch_bytes` of one answer, and what `client_limits.AnswerBudget` gives the connection.

A new leader may not yet know a high watermark as high as its predecessor's (KIP-207). Until then it answers its own, which
may be lower than what the client saw before, as in Kafka; but UNKNOWN where that is the reader's offset: librdkafka takes a
high watermark at its offset for the end of the partition, and a program that reads to the end would miss what is behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.leader_hints import LeaderHints
from fencepost_node.replication.leadership import Diverged
from fencepost_node.requests.read import Poll, Position, Records, answer_poll
from fencepost_proto.kafka.messages.fetch import (
    EpochEndOffset,
    FetchableTopicResponse,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    PartitionData,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.topic_ids import from_wire

BY_ID_FROM = 13  # the first version that names topics by id
READ_COMMITTED = 1
NO_SESSION = 0
NEW_SESSION_EPOCHS = (0, -1)  # of requests that ask for no session, or for a new one
NO_EPOCH = -1
UNKNOWN = -1  # high watermark

Write = Callable[[FetchResponse], Awaitable[None]]  # returns when the response is on its way, or nobody waits for it


async def serve(context: KafkaContext, request: FetchRequest, version: int, write: Write) -> None:
    """Call `write` once."""
    if request.session_id != NO_SESSION and request.session_epoch not in NEW_SESSION_EPOCHS:
        await write(FetchResponse(error_code=ErrorCode.FETCH_SESSION_ID_NOT_FOUND))
        return
    asked = _Asked(context, request, version)
    poll = Poll(
        context.manager,
        asked.positions,
        min_bytes=request.min_bytes,
        max_bytes=request.max_bytes,
        max_wait_ms=0 if asked.has_unknown else request.max_wait_ms,
    )

    async def write_response() -> None:
        await write(await asked.response(poll))

    await answer_poll(poll, context.limits.answers, context.peer, write_response)


class _Asked:
    """The partitions of one request, and the places of their answers in the response."""

    def __init__(self, context: KafkaContext, request: FetchRequest, version: int) -> None:
        self.positions: list[Position] = []
        self.has_unknown = False
        self._image = context.manager.image
        self._reads_committed = request.isolation_level == READ_COMMITTED
        self._topics: list[FetchableTopicResponse] = []
        self._places: list[PartitionData] = []  # in the order of `positions`
        for topic in request.topics:
            by_id = version >= BY_ID_FROM
            topic_id = from_wire(topic.topic_id) if by_id else self._image.topic_ids.get(topic.topic, "")
            known = topic_id in self._image.topics
            answers = FetchableTopicResponse(topic=topic.topic, topic_id=topic.topic_id)
            self._topics.append(answers)
            for partition in topic.partitions:
                place = PartitionData(partition_index=partition.partition)
                answers.partitions.append(place)
                if known:
                    self.positions.append(_position(topic_id, partition))
                    self._places.append(place)
                else:
                    self.has_unknown = True
                    unknown = ErrorCode.UNKNOWN_TOPIC_ID if by_id else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                    _refuse(place, unknown)

    async def response(self, poll: Poll) -> FetchResponse:
        hints = LeaderHints(self._image)
        places = iter(self._places)

        def fill(position: Position, answer: Records | FencepostError) -> None:
            place = next(places)
            if isinstance(answer, Diverged):
                parted = answer.parted
                _refuse(place, ErrorCode.NONE)
                place.diverging_epoch = EpochEndOffset(epoch=parted.epoch, end_offset=parted.end_offset)
            elif isinstance(answer, FencepostError):
                _refuse(place, answer.code)
                if answer.current_leader is not None:
                    place.current_leader = hints.of(answer)
            else:
                self._fill(place, position, answer)

        await poll.answers(fill)
        return FetchResponse(responses=self._topics, node_endpoints=hints.endpoints)

    def _fill(self, place: PartitionData, position: Position, answer: Records) -> None:
        high_watermark = answer.high_watermark
        if answer.is_below_epoch_start and high_watermark == position.offset:
            high_watermark = UNKNOWN
        place.high_watermark = place.last_stable_offset = high_watermark
        place.log_start_offset = answer.log_start_offset
        place.records = answer.records
        place.aborted_transactions = [] if self._reads_committed else None


def _position(topic_id: str, asked: FetchPartition) -> Position:
    return Position(
        topic_id=topic_id,
        partition=asked.partition,
        leader_epoch=asked.current_leader_epoch,
        offset=asked.fetch_offset,
        last_epoch=asked.last_fetched_epoch if asked.last_fetched_epoch != NO_EPOCH else None,
        max_bytes=max(1, asked.partition_max_bytes),
        mismatch=False,
    )


def _refuse(place: PartitionData, code: ErrorCode) -> None:
    place.error_code = code
    place.high_watermark = place.last_stable_offset = place.log_start_offset = -1
    place.aborted_transactions = None
    place.records = b""
