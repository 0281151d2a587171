"""How the links of a run can be cut here: really, in a network of namespaces, else by the faults of its cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from fencepost_testing.chaos.fault_cuts import FaultCuts
from fencepost_testing.chaos.faults import Link, Party
from fencepost_testing.chaos.network import Network, NetworkUnavailable
from fencepost_testing.processes import NetworkPlace


class CuttableNetwork(Protocol):
    """Where a run's processes are."""

    def place(self, party: Party) -> NetworkPlace | None:
        """None: where it would be without a network."""
        ...

    async def cut(self, links: Iterable[Link]) -> None:
        """What the first of each link sends to the second does not arrive from now on."""
        ...

    async def mend(self, links: Iterable[Link]) -> None:
        """Undo a `cut` of the same links; one that is cut by another cut too stays cut."""
        ...

    def close(self) -> None:
        """Everything that was made is removed. To be called once its processes are gone."""
        ...


async def make_network(parties: Sequence[Party]) -> tuple[Network | FaultCuts, str]:
    """And how it cuts, in words."""
    try:
        return await asyncio.to_thread(Network.make, parties), "network namespaces"
    except NetworkUnavailable as unavailable:
        return FaultCuts(), f"faults in the processes ({unavailable})"
