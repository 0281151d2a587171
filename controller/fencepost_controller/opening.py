"""After its start the controller decides nothing until it has heard from the brokers.

A store that was put back from a backup is found out by the first broker with a newer version that registers
(`decisions/lineage.py`). What the controller did before that, for a broker that was itself behind, could not be taken
back: ids given out, leaders elected. So registrations are checked as they come, and carried out, as is everything else
that is asked for, only once those brokers have come that are expected: the live ones in the metadata; all, where none is
live, since then the whole cluster was down. No one is waited for longer than a session timeout: it is dead then.

Where all brokers register at once, as they do while they run, this costs nothing.

**In which order.** A broker that was live and has not come counts as live, for the metadata says so. So what has waited is
decided in this order:

1. registrations that tell of a loss (an older folder, the end of a machine): they leave in-sync sets while all the others
   are still in them;
2. the deaths of those that did not come in time;
3. everything else.

Otherwise, of two in sync, the one that has died would leave the set first, and the one that has lost records would then be
its last member: an operator would have to decide, though the first has everything. Or the one that is back would leave the
set to one that is dead. A registration of 1 may have to wait for a probe that no one answers; the rest does not wait for
that longer than `LOSSES_WITHIN_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from fencepost_proto.protocol.metadata import BrokerRegistration

MAX_WAIT_S = 10.0  # a broker gives up a registration after 30 s
LOSSES_WITHIN_S = 1.0


def expected(brokers: Iterable[BrokerRegistration]) -> frozenset[int]:
    """The brokers from which a message must come before anything is decided."""
    everybody = list(brokers)
    live = frozenset(broker.id for broker in everybody if not broker.fenced)
    return live or frozenset(broker.id for broker in everybody)


class Opening:
    """Made in a running event loop; closed until `start` and what it waits for."""

    def __init__(self) -> None:
        self._missing: set[int] = set()
        self._losses = 0  # registrations that tell of one and are not decided
        self._heard = asyncio.Event()  # enough is known to begin
        self._no_losses = asyncio.Event()
        self._open = asyncio.Event()

    def start(self, brokers: Iterable[BrokerRegistration], timeout_s: float) -> None:
        """The store is loaded."""
        self._missing = set(expected(brokers))
        asyncio.get_running_loop().call_later(min(timeout_s, MAX_WAIT_S), self._heard.set)
        self._look()

    async def run(self, declare_dead: Callable[[frozenset[int]], Awaitable[None]]) -> None:
        """Open when it is time. `declare_dead`: brokers that have not come, those of them that have had their time."""
        await self._heard.wait()
        if self._losses:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOSSES_WITHIN_S):
                    await self._no_losses.wait()
        if self._missing and not self.is_over:
            await declare_dead(frozenset(self._missing))
        self._open.set()

    def heard(self, broker_id: int) -> None:
        """This broker wants to register, and knows nothing that the store does not have."""
        self._missing.discard(broker_id)
        self._look()

    @contextmanager
    def loss(self) -> Iterator[None]:
        """Around a registration that waits here and tells of a loss, until it is decided; before it is `heard`."""
        self._losses += 1
        self._no_losses.clear()
        try:
            yield
        finally:
            self._losses -= 1
            if not self._losses:
                self._no_losses.set()

    def give_up(self) -> None:
        """This controller decides nothing any more: those who wait are to find that out."""
        self._heard.set()
        self._open.set()

    @property
    def is_over(self) -> bool:
        """Things are decided as they come."""
        return self._open.is_set()

    async def wait(self) -> None:
        """Return once things may be decided."""
        await self._open.wait()

    async def wait_for_losses(self) -> None:
        """Return once registrations that tell of a loss may be decided."""
        await self._heard.wait()

    def _look(self) -> None:
        if not self._missing:
            self._heard.set()
            if not self._losses:
                self._open.set()
