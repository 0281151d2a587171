"""After its start the controller decides nothing until it has heard from the brokers.

A store that was put back from a backup is found out by the first broker with a newer version that registers
(`decisions/lineage.py`). What the controller did before that, for a broker that was itself behind, could not be taken
back: ids given out, leaders elected. So registrations are checked as they come, and carried out, as is everything else
that is asked for, only once those brokers have come that are expected: the live ones in the metadata; all, where none is
live, since then the whole cluster was down. No one is waited for longer than a session timeout: it is dead then.

Where all brokers register at once, as they do while they run, this costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fencepost_proto.protocol.metadata import BrokerRegistration

MAX_WAIT_S = 10.0  # a broker gives up a registration after 30 s


def expected(brokers: Iterable[BrokerRegistration]) -> frozenset[int]:
    """The brokers from which a message must come before anything is decided."""
    everybody = list(brokers)
    live = frozenset(broker.id for broker in everybody if not broker.fenced)
    return live or frozenset(broker.id for broker in everybody)


class Opening:
    """Made in a running event loop; closed until `start` and what it waits for."""

    def __init__(self) -> None:
        self._missing: set[int] = set()
        self._open = asyncio.Event()

    def start(self, brokers: Iterable[BrokerRegistration], timeout_s: float) -> None:
        """The store is loaded."""
        self._missing = set(expected(brokers))
        asyncio.get_running_loop().call_later(min(timeout_s, MAX_WAIT_S), self._open.set)
        self._look()

    def heard(self, broker_id: int) -> None:
        """This broker wants to register, and knows nothing that the store does not have."""
        self._missing.discard(broker_id)
        self._look()

    @property
    def is_over(self) -> bool:
        """Things are decided as they come."""
        return self._open.is_set()

    async def wait(self) -> None:
        """Return once things may be decided."""
        await self._open.wait()

    def _look(self) -> None:
        if not self._missing:
            self._open.set()
