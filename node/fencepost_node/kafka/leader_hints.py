"""Who leads a partition, beside an error that says that this broker does not (KIP-951).

Without it a client asks for metadata before it tries again; with it a failover costs others' clients one round trip.
"""

from __future__ import annotations

from fencepost_proto.kafka.messages.leaders import LeaderIdAndEpoch, NodeEndpoint
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.transport.streams import split_address

_TOLD_WITH = (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.FENCED_LEADER_EPOCH)


class LeaderHints:
    """Of one response: leaders for its partitions, and each leader's address once."""

    def __init__(self, image: MetadataImage) -> None:
        self._image = image
        self._endpoints: dict[int, NodeEndpoint] = {}

    @property
    def endpoints(self) -> list[NodeEndpoint]:
        return list(self._endpoints.values())

    def of(self, error: FencepostError) -> LeaderIdAndEpoch:
        """What to say beside this error; nothing where no leader is known."""
        leader = error.current_leader
        if leader is None or error.code not in _TOLD_WITH:
            return LeaderIdAndEpoch()
        broker = self._image.brokers.get(leader.leader_id)
        if broker is None or not broker.kafka_address:
            return LeaderIdAndEpoch(leader_id=leader.leader_id, leader_epoch=leader.leader_epoch)
        if broker.id not in self._endpoints:
            host, port = split_address(broker.kafka_address)
            self._endpoints[broker.id] = NodeEndpoint(node_id=broker.id, host=host, port=port)
        return LeaderIdAndEpoch(leader_id=leader.leader_id, leader_epoch=leader.leader_epoch)
