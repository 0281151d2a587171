"""Replicas for tests without a broker around them: a real log on a simulated disk, a leader or a follower."""

from __future__ import annotations

from typing import Any

from logs import NOW_MS, Machine, settings

from fencepost_node.log.log import Log
from fencepost_node.replication.replica import Following, Replica
from fencepost_proto.protocol.metadata import MetadataImage, Partition, Topic

TOPIC = Topic("T", "orders")
BROKER_ID = 1


class Owner:
    """As much of a manager as a replica asks for."""

    broker_id = BROKER_ID
    broker_epoch = 1
    tail_bytes = 1 << 20

    def __init__(self) -> None:
        self.image = MetadataImage()
        self.failures = 0

    def propose_isr(self, _: Any) -> None: ...

    def sync_soon(self, _: Any) -> None: ...

    def role_changed(self, _: Any) -> None: ...

    def replica_failed(self) -> None:
        self.failures += 1


def open_replica(leader: int, *, replicas: tuple[int, ...] = (1, 2), epoch: int = 0, **changes: Any) -> Replica:
    """Within a running loop: broker 1's replica of a partition that `leader` leads."""
    log = Log.open(Machine().mount(), "/data/orders-0", settings(**changes), NOW_MS)
    replica = Replica(Owner(), Partition("T", 0, replicas, replicas, -1, -1, 0), TOPIC, log)
    replica.apply(Partition("T", 0, replicas, replicas, leader, epoch, 1))
    return replica


def following(replica: Replica) -> Following:
    assert isinstance(replica.role, Following)
    return replica.role
