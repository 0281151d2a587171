"""The bounds of a topic for the timestamps of records that are produced to it, by the leader's clock."""

from __future__ import annotations

from fencepost_node.log.config import NO_LIMIT
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import TopicConfig
from fencepost_proto.protocol.record_batch import BatchHeader


def check_timestamps(header: BatchHeader, config: TopicConfig, now_ms: int, topic_name: str) -> None:
    """Raises InvalidTimestamp where the batch's first or newest record lies outside of the topic's bounds."""
    before_ms, after_ms = config.message_timestamp_before_max_ms, config.message_timestamp_after_max_ms
    for timestamp_ms in (header.base_timestamp, header.max_timestamp):
        if after_ms != NO_LIMIT and timestamp_ms > now_ms + after_ms:
            raise errors.InvalidTimestamp(
                f"timestamp {timestamp_ms} is {timestamp_ms - now_ms} ms in the future, by the leader's clock; "
                f"topic {topic_name} takes {after_ms} ms (message_timestamp_after_max_ms)"
            )
        if before_ms != NO_LIMIT and timestamp_ms < now_ms - before_ms:
            raise errors.InvalidTimestamp(
                f"timestamp {timestamp_ms} is {now_ms - timestamp_ms} ms in the past, by the leader's clock; "
                f"topic {topic_name} takes {before_ms} ms (message_timestamp_before_max_ms)"
            )
