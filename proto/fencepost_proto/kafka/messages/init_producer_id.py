"""InitProducerId (key 22): a producer's id and epoch.

Without a transactional id the answer is a new id (an idempotent producer's). From version 3 the current id and epoch
may be stated (KIP-360); version 4 adds PRODUCER_FENCED, version 5 nothing but its number.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import int16, int32, int64, message, string


@message
class InitProducerIdRequest:
    transactional_id: str | None = string(nullable=0)
    transaction_timeout_ms: int = int32()
    producer_id: int = int64(since=3, default=-1)
    producer_epoch: int = int16(since=3, default=-1)


@message
class InitProducerIdResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16()
    producer_id: int = int64(default=-1)
    producer_epoch: int = int16()
