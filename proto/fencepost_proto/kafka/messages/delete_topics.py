"""DeleteTopics (key 20): topics by name or, from version 6, by id (KIP-516).

Up to version 5 the request has `topic_names`, from 6 `topics`, of which each has a name or an id.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import STRING, array, int16, int32, message, string, uuid


@message
class DeleteTopicState:
    name: str | None = string(nullable=0, default=None)
    topic_id: bytes = uuid()


@message
class DeleteTopicsRequest:
    topics: list[DeleteTopicState] = array(DeleteTopicState, since=6)
    topic_names: list[str] = array(STRING, until=5)
    timeout_ms: int = int32()


@message
class DeletableTopicResult:
    name: str | None = string(nullable=6)
    topic_id: bytes = uuid(since=6)
    error_code: int = int16()
    error_message: str | None = string(since=5, nullable=5, default=None)


@message
class DeleteTopicsResponse:
    throttle_time_ms: int = int32()
    responses: list[DeletableTopicResult] = array(DeletableTopicResult)
