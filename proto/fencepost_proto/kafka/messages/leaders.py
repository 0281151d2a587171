"""Where a partition's leader is, for a client that asked the wrong broker (KIP-951): part of Produce and Fetch
responses."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import int32, message, string


@message
class LeaderIdAndEpoch:
    """Beside NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH."""

    leader_id: int = int32(default=-1)
    leader_epoch: int = int32(default=-1)


@message
class NodeEndpoint:
    """The Kafka address of a broker that a LeaderIdAndEpoch of the same response names."""

    node_id: int = int32()
    host: str = string()
    port: int = int32()
    rack: str | None = string(nullable=0, default=None)
