"""What the files of groups share: who a client is, and the code of an error."""

from __future__ import annotations

from collections.abc import Iterable

from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.protocol.errors import ErrorCode, FencepostError


def client_host(context: KafkaContext) -> str:
    """As Kafka writes it, for who describes a group: "/127.0.0.1"."""
    return "/" + context.peer.removeprefix("kafka:").rpartition(":")[0]


def error_of(answer: object) -> ErrorCode:
    """The code of an answer that is not the one that was asked for."""
    return answer.code if isinstance(answer, FencepostError) else ErrorCode.UNKNOWN_SERVER_ERROR


def code_of(error: FencepostError | None) -> ErrorCode:
    return ErrorCode.NONE if error is None else error.code


def by_topic(partitions: Iterable[tuple[bytes, int]]) -> dict[bytes, list[int]]:
    """Indexes, by topic id."""
    found: dict[bytes, list[int]] = {}
    for topic_id, index in partitions:
        found.setdefault(topic_id, []).append(index)
    return found
