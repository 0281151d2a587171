"""How many new producers one connection may bring.

Every producer that a partition has not seen takes room in its table for as long as a repeat of it may come, and every id
that is given out is used up permanently. So both are bounded for each connection and second, with a burst for an application
that starts many producers at once:

- *New producers*: a batch of a producer id that its partition does not know, and that this connection has not brought
  before, is refused beyond the rate, retriably (THROTTLING_QUOTA_EXCEEDED). A producer of many partitions counts once.
- *Ids given out*: an InitProducerId beyond the rate waits for its turn, and is refused where that is too far away.

One connection alone cannot fill a table: what it brings in the time in which no producer may be forgotten is less than
the table holds (`producer_state.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fencepost_proto.protocol.errors import ThrottlingQuotaExceeded

BURST_S = 20.0  # so many seconds' worth at once, of a connection that was quiet
IDS_TO_A_PRODUCER = 20  # so many ids are given out for each new producer that is let in
MAX_WAIT_S = 10.0  # for an id
MAX_CONNECTIONS = 10_000  # whose rates are known at a time
ROUNDING_S = 1e-6  # of sums of many small times
MAX_KNOWN_IDS = 4_096  # of one connection: whom it has brought


@dataclass(slots=True)
class Rate:
    """So many a second, and `burst` at once after a rest."""

    per_second: float
    burst: float
    _free_at: float = 0.0  # when all of what was taken will have been paid for

    def wait_s(self, now: float) -> float:
        """How long until the next one is due; 0: it may go now."""
        wait_s = self._free_at - now - (self.burst - 1) / self.per_second
        return wait_s if wait_s > ROUNDING_S else 0.0

    def spend(self, now: float) -> None:
        self._free_at = max(self._free_at, now) + 1 / self.per_second

    def is_rested(self, now: float) -> bool:
        return self._free_at <= now


@dataclass(slots=True)
class _Connection:
    producers: Rate
    ids: Rate
    brought: dict[int, None] = field(default_factory=dict)  # producer ids, the newest last


class NewProducers:
    """Of one broker. A peer is a connection, as gRPC names it; `now`: the event loop's time."""

    def __init__(self, per_second: int, now: Callable[[], float]) -> None:
        self._per_second = per_second
        self._now = now
        self._connections: dict[str, _Connection] = {}

    def admit(self, peer: str, producer_id: int) -> None:
        """A partition is about to take the first batch of a producer. Raises ThrottlingQuotaExceeded."""
        connection, now = self._connection(peer), self._now()
        if producer_id in connection.brought:
            return
        if connection.producers.wait_s(now) > 0:
            raise ThrottlingQuotaExceeded(
                f"producer {producer_id} is one new producer too many: a connection may bring {self._per_second} a second "
                f"(max_new_producers_per_second)"
            )
        connection.producers.spend(now)
        connection.brought[producer_id] = None
        if len(connection.brought) > MAX_KNOWN_IDS:
            del connection.brought[next(iter(connection.brought))]

    def take_id(self, peer: str) -> float:
        """A producer asks for an id: how many seconds it is to wait. Raises ThrottlingQuotaExceeded."""
        rate, now = self._connection(peer).ids, self._now()
        wait_s = rate.wait_s(now)
        if wait_s > MAX_WAIT_S:
            raise ThrottlingQuotaExceeded(
                f"a connection is given {rate.per_second:g} producer ids a second, and {wait_s:.1f} s of them are asked for"
            )
        rate.spend(now)
        return wait_s

    def _connection(self, peer: str) -> _Connection:
        connection = self._connections.get(peer)
        if connection is None:
            self._make_room()
            connection = self._connections[peer] = _Connection(
                Rate(self._per_second, self._per_second * BURST_S),
                Rate(self._per_second * IDS_TO_A_PRODUCER, self._per_second * BURST_S),
            )
        return connection

    def _make_room(self) -> None:
        if len(self._connections) < MAX_CONNECTIONS:
            return
        now = self._now()
        rested = [p for p, c in self._connections.items() if c.producers.is_rested(now) and c.ids.is_rested(now)]
        for peer in rested or list(self._connections)[:1]:
            del self._connections[peer]
