"""How many new producers a connection may bring, and how many ids it is given."""

from __future__ import annotations

import pytest

from fencepost_node.config import BrokerConfig
from fencepost_node.producers import new_producers, producer_state
from fencepost_node.producers.new_producers import BURST_S, IDS_TO_A_PRODUCER, MAX_WAIT_S, NewProducers
from fencepost_proto.protocol.errors import ThrottlingQuotaExceeded

PER_SECOND = 10
BURST = int(PER_SECOND * BURST_S)


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.limits = NewProducers(PER_SECOND, lambda: self.now)
        self._next = 0

    def admitted(self, peer: str = "a") -> bool:
        """Whether one more may come."""
        self._next += 1
        try:
            self.limits.admit(peer, self._next)
        except ThrottlingQuotaExceeded:
            return False
        return True


def test_a_connection_brings_a_burst_and_then_so_many_a_second() -> None:
    world = World()
    assert sum(world.admitted() for _ in range(2 * BURST)) == BURST
    world.now += 0.95 / PER_SECOND
    assert not world.admitted()
    world.now += 0.1 / PER_SECOND
    assert [world.admitted(), world.admitted()] == [True, False]
    world.now += 1
    assert sum(world.admitted() for _ in range(50)) == PER_SECOND
    world.now += 10 * BURST_S
    assert sum(world.admitted() for _ in range(2 * BURST)) == BURST, "a long rest gives no more than a burst"


def test_a_producer_of_many_partitions_counts_once_and_connections_are_counted_apart() -> None:
    world = World()
    while world.admitted():
        pass
    world.limits.admit("a", 1)  # this connection has brought it before
    assert world.admitted("b")
    with pytest.raises(ThrottlingQuotaExceeded, match=r"producer 9999 is one new producer too many: .* may bring 10 a"):
        world.limits.admit("a", 9_999)


def test_one_connection_cannot_fill_a_table_of_those_that_must_not_be_forgotten() -> None:
    config = BrokerConfig(broker_id=1, data_dir="/nowhere", controller="nowhere:1")
    brought = config.max_new_producers_per_second * (BURST_S + config.max_delivery_timeout_ms / 1000)
    assert brought < producer_state.MAX_PRODUCERS


def test_ids_wait_for_their_turn_and_are_refused_where_it_is_far() -> None:
    world = World()
    per_second = PER_SECOND * IDS_TO_A_PRODUCER
    assert [world.limits.take_id("a") for _ in range(BURST)] == [0.0] * BURST
    assert world.limits.take_id("a") == pytest.approx(1 / per_second)
    assert world.limits.take_id("b") == 0.0
    waits = [world.limits.take_id("a") for _ in range(int(MAX_WAIT_S * per_second) - 1)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(MAX_WAIT_S)
    with pytest.raises(
        ThrottlingQuotaExceeded, match=r"is given 200 producer ids a second, and 10.0 s of them are asked"
    ):
        world.limits.take_id("a")
    world.now += 1
    assert world.limits.take_id("a") == pytest.approx(MAX_WAIT_S + 1 / per_second - 1)


def test_what_is_kept_of_connections_is_bounded_and_those_at_rest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_producers, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(new_producers, "MAX_KNOWN_IDS", 5)
    world = World()
    while world.admitted("busy"):
        pass
    for number in range(20):
        assert world.admitted(f"peer-{number}")
        world.now += 0.5 / PER_SECOND
        assert len(world.limits._connections) <= 3
    assert sum(world.admitted("busy") for _ in range(50)) == 10, "it was not forgotten: what it took still counts"
    assert len(world.limits._connections["busy"].brought) == 5
