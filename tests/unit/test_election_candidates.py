"""Which replica an unclean election takes."""

from __future__ import annotations

from fencepost.descriptions import BrokerReplicas, ReplicaDescription
from fencepost.unclean_election import candidates
from fencepost_proto.protocol.metadata import BrokerRegistration, Entity, MetadataImage, Partition, Topic

REPLICAS = (1, 2, 3)


def image(
    *, isr: tuple[int, ...] = (), last_known_isr: tuple[int, ...] = (), fenced: int = 0, leaving: int = 0
) -> MetadataImage:
    brokers = [BrokerRegistration(i, f"h:{i}", 10 + i, f"life of {i}", i == fenced, i == leaving) for i in REPLICAS]
    partition = Partition("orders-id", 0, REPLICAS, isr, -1, 4, 9, last_known_isr=last_known_isr)
    entities: list[Entity] = [Topic("orders-id", "orders"), partition, *brokers]
    return MetadataImage().with_changes(1, {entity.key: entity for entity in entities})


def holds(
    broker_id: int, last_epoch: int, end: int, failure: str = "", *, topic: str = "orders", high_watermark: int = 0
) -> BrokerReplicas:
    replica = ReplicaDescription(topic, 0, False, 4, 0, end, high_watermark, 0, 0, 0, failure, last_epoch)
    other = ReplicaDescription(topic, 1, False, 4, 0, end + 1_000, 0, 0, 0, 0, "", last_epoch + 9)
    return BrokerReplicas(broker_id, (other, replica))


def order(now: MetadataImage, *answers: BrokerReplicas) -> list[int]:
    partition = now.partitions["orders-id", 0]
    return [c.broker_id for c in candidates(now, partition, {answer.broker_id: answer for answer in answers})]


def test_the_epoch_of_the_last_batch_comes_before_the_length() -> None:
    assert order(image(), holds(1, 2, 900), holds(2, 3, 100), holds(3, 3, 101)) == [3, 2, 1]


def test_among_equals_one_that_was_in_sync_comes_first_and_then_the_order_of_assignment() -> None:
    equal = (holds(1, 2, 50), holds(2, 2, 50), holds(3, 2, 50))
    assert order(image(last_known_isr=(3,)), *equal) == [3, 1, 2]
    assert order(image(isr=(2,)), *equal) == [2, 1, 3]
    assert order(image(), *equal) == [1, 2, 3]


def test_who_was_last_in_sync_and_lost_its_tail_comes_behind_one_that_holds_more() -> None:
    assert order(image(last_known_isr=(1,)), holds(1, 2, 3), holds(2, 2, 10), holds(3, -1, 0)) == [2, 1, 3]


def test_who_cannot_be_elected_comes_last_and_says_why() -> None:
    now = image(fenced=1, leaving=2)
    found = candidates(now, now.partitions["orders-id", 0], {2: holds(2, 9, 999), 3: holds(3, 0, 1)})
    assert [(c.broker_id, c.broker_epoch, c.last_epoch, c.log_end_offset, c.failure) for c in found] == [
        (3, 13, 0, 1, ""),
        (2, 12, 9, 999, "shutting down"),
        (1, 11, -1, -1, "not live"),
    ]
    now = image()
    answers = {
        1: BrokerReplicas(1, (), failure="deadline exceeded"),
        2: holds(2, 9, 999, failure="no space left on device"),
        3: holds(3, 9, 999, topic="orders-id of before"),
    }
    found = candidates(now, now.partitions["orders-id", 0], answers)
    assert [(c.broker_id, c.log_end_offset, c.failure) for c in found] == [
        (2, 999, "no space left on device"),
        (1, -1, "does not answer: deadline exceeded"),
        (3, -1, "has no log of it"),
    ]


def test_what_is_kept_is_known_from_the_last_leaderships_epoch_or_the_high_watermark() -> None:
    now = image()  # leader epoch 4: its leader went, and led in epoch 3 at most
    answers = {1: holds(1, 3, 50, high_watermark=20), 2: holds(2, 2, 60, high_watermark=40), 3: holds(3, -1, 0)}
    found = candidates(now, now.partitions["orders-id", 0], answers)
    assert [(c.broker_id, c.kept_end_offset) for c in found] == [(1, 50), (2, 40), (3, 0)]
    found = candidates(image(fenced=1), now.partitions["orders-id", 0], {})
    assert [c.kept_end_offset for c in found] == [-1, -1, -1]
