"""Replicas for tests without a broker around them: a real log on a simulated disk, a leader or a follower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fencepost_node.log.log import Log
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_node.replication.replica import Following, Replica, ReplicaCalls
from fencepost_node.replication.tail import TailBudget
from fencepost_node.state_machines import machines_of
from fencepost_proto.protocol.metadata import Partition, Topic
from tests.unit.logs import NOW_MS, Machine, settings

TOPIC = Topic("T", "orders")
BROKER_ID = 1


def _nothing(_: object) -> None: ...


def open_replica(
    leader: int,
    *,
    replicas: tuple[int, ...] = (1, 2),
    epoch: int = 0,
    failures_changed: Callable[[], None] | None = None,
    topic: Topic = TOPIC,
    **changes: Any,
) -> Replica:
    """Within a running loop: broker 1's replica of a partition that `leader` leads."""
    log = Log.open(Machine().mount(), "/data/orders-0", settings(**changes), NOW_MS, machines_of(topic.name))
    local = LocalBroker(BROKER_ID, TailBudget(1 << 20), broker_epoch=1)
    calls = ReplicaCalls(_nothing, _nothing, _nothing, _nothing, failures_changed or (lambda: None))
    replica = Replica(local, Partition("T", 0, replicas, replicas, -1, -1, 0), topic, log, calls)
    replica.apply(Partition("T", 0, replicas, replicas, leader, epoch, 1))
    return replica


def leading(replica: Replica) -> Leadership:
    assert isinstance(replica.role, Leadership)
    return replica.role


def following(replica: Replica) -> Following:
    assert isinstance(replica.role, Following)
    return replica.role
