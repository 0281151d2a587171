"""Writing to a cluster's metadata in etcd without being a controller: for a recovery, or a migration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from fencepost_controller.store import StoreError
from fencepost_controller.store.etcd.calls import Created, EtcdRefused, EtcdUnreachable, Put
from fencepost_controller.store.etcd.layout import Leader
from fencepost_controller.store.etcd.leadership import Leadership, Lease
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.etcd.term import Term

LEASE_S = 3
PATIENCE_S = 10.0  # for the lease of a controller that was killed just before, and for etcd
RETRY_S = 0.25
ME = Leader(0, "", "an operator's command")


class SoleWriter:
    """The leadership, held by a command: no controller decides meanwhile."""

    def __init__(self, shared: SharedMetadata, reader: MetadataReader, term: Term) -> None:
        self.reader = reader  # its image is the store's
        self.term = term
        self._shared = shared

    async def raise_epochs(self, seen: int) -> None:
        """Have every later controller epoch be above `seen`. Raises StoreError."""
        keys = self._shared.keys
        standing = await self.reader.catch_up()
        base = max(standing.epoch_base, seen)
        mine = Created(keys.leader, self.term.revision)
        if not (await self._shared.etcd.transact([mine], [Put(keys.epoch_base, str(base).encode())])).succeeded:
            raise StoreError("a controller has become active meanwhile; nothing was written")


@asynccontextmanager
async def sole_writer(shared: SharedMetadata, random: Random) -> AsyncIterator[SoleWriter]:
    """Raises StoreError where a controller is active, or etcd cannot be reached."""
    reader = MetadataReader(shared.etcd, shared.keys)
    lease = Lease(shared.etcd, LEASE_S, lambda: None)
    keeping = asyncio.create_task(lease.run())
    try:
        try:
            async with asyncio.timeout(PATIENCE_S):
                term = await _take(Leadership(shared.etcd, shared.keys, reader, lease, random), reader)
        except TimeoutError:
            active = reader.leader
            raise StoreError(
                f"controller {active.controller_id} at {active.address} is active: stop every controller first"
                if active is not None
                else f"etcd did not answer within {PATIENCE_S:.0f} s"
            ) from None
        try:
            yield SoleWriter(shared, reader, term)
        except (EtcdRefused, EtcdUnreachable) as error:
            raise StoreError(str(error)) from error
        finally:
            await term.close()
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await lease.give_up()


async def _take(leadership: Leadership, reader: MetadataReader) -> Term:
    while True:
        try:
            term = await leadership.take_over(ME, None)
            if term is not None:
                return term
            await reader.catch_up()  # who is active, for the message
        except EtcdUnreachable:
            pass
        except EtcdRefused as error:
            raise StoreError(str(error)) from error
        await asyncio.sleep(RETRY_S)
