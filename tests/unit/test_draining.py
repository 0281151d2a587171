"""Where the replicas of a broker go that is to be removed."""

from __future__ import annotations

import pytest

from fencepost.draining import plan_draining
from fencepost_proto.protocol.errors import InvalidReplicaAssignment
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, Partition, Topic


def image(assignments: dict[str, list[tuple[int, ...]]], brokers: int, fenced: tuple[int, ...] = ()) -> MetadataImage:
    partitions = [
        Partition(f"{name}-id", index, replicas, replicas, replicas[0], 0, 1)
        for name, rows in assignments.items()
        for index, replicas in enumerate(rows)
    ]
    return MetadataImage(
        brokers={b: BrokerRegistration(b, f"h:{b}", b, f"i{b}", b in fenced) for b in range(1, brokers + 1)},
        topics={f"{name}-id": Topic(f"{name}-id", name) for name in assignments},
        partitions={p.id: p for p in partitions},
    )


def test_each_replica_goes_to_the_live_broker_with_the_fewest_and_keeps_its_place_in_the_order() -> None:
    found = image({"a": [(3, 1), (1, 3), (1, 2)], "b": [(3, 2)]}, brokers=5, fenced=(5,))
    assert plan_draining(found, 3) == {"a": {0: (4, 1), 1: (1, 4)}, "b": {0: (4, 2)}}


def test_the_load_is_shared() -> None:
    found = image({"a": [(1,), (1,), (1,), (1,)]}, brokers=3)
    assert plan_draining(found, 1) == {"a": {0: (2,), 1: (3,), 2: (2,), 3: (3,)}}


def test_what_is_on_its_way_off_already_is_left_alone() -> None:
    moving = Partition("a-id", 0, (2, 1), (1,), 1, 0, 1, adding=(2,), removing=(1,))
    found = MetadataImage(
        brokers={b: BrokerRegistration(b, f"h:{b}", b, f"i{b}", False) for b in (1, 2, 3)},
        topics={"a-id": Topic("a-id", "a")},
        partitions={moving.id: moving},
    )
    assert plan_draining(found, 1) == {}
    assert plan_draining(found, 2) == {"a": {0: (1,)}}  # back again


def test_too_few_other_brokers_are_named() -> None:
    found = image({"a": [(1, 2, 3)]}, brokers=4, fenced=(4,))
    with pytest.raises(
        InvalidReplicaAssignment, match=r"a-0 has replicas on brokers \[1, 2, 3\], and there is no other"
    ):
        plan_draining(found, 3)
