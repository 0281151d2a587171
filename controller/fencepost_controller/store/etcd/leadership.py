"""Becoming the active controller: the lease, and the transactions that create and take over the leader key.

A controller keeps a lease from its start on, so that a take-over does not wait for one. Each leadership has a lease
of its own: when it ends, the lease is given up, and with it a leader key whose creation was never answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from random import Random

from fencepost_controller.store.etcd.calls import Created, Delete, Etcd, EtcdRefused, EtcdUnreachable, Get, Put
from fencepost_controller.store.etcd.layout import Keys, Leader
from fencepost_controller.store.etcd.reader import MetadataReader
from fencepost_controller.store.etcd.term import LogSize, Term
from fencepost_proto.runtime.backoff import Backoff

log = logging.getLogger(__name__)

RENEWALS = 3  # in a lease's time
PAUSES = Backoff(first_s=0.05, most_s=0.5)
REVOKE_TIMEOUT_S = 0.5
CREATE_TRIES = 5  # where no answer comes


class Lease:
    """The lease of this controller: granted, renewed and, when it is lost, granted again."""

    def __init__(self, etcd: Etcd, ttl_s: int, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the lease has expired, by etcd's word or by this process's clock."""
        self.lease_id = 0  # none
        self._etcd = etcd
        self._ttl_s = ttl_s
        self._on_lost = on_lost
        self._expires_at = 0.0  # at the earliest, by the loop's clock
        self._time = asyncio.get_running_loop().time
        self._granted = asyncio.Event()
        self._given_up = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """There is none, or its time is over by this process's clock."""
        return not self.lease_id or self._time() >= self._expires_at

    async def wait(self) -> None:
        """Return once there is a lease."""
        await self._granted.wait()

    async def run(self) -> None:
        """Keep a lease; a task for the process's life."""
        failures, trouble = 0, ""
        while True:
            sent_at, lease_id = self._time(), self.lease_id
            try:
                alive = await self._renew_or_grant()
            except (EtcdRefused, EtcdUnreachable) as error:
                failures += 1
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("no lease from etcd reason=%s", error)
                if self.lease_id and self.is_over:
                    self._lose("it could not be renewed in time")
                await self._sleep(PAUSES.pause_s(failures))
                continue
            if lease_id and self.lease_id != lease_id:
                continue  # it was given up meanwhile
            if not alive:
                self._lose("it has expired")
                continue
            failures, trouble = 0, ""
            self._expires_at = sent_at + self._ttl_s
            self._granted.set()
            await self._sleep(self._ttl_s / RENEWALS)

    async def _renew_or_grant(self) -> bool:
        if self.lease_id:
            if self.is_over:
                return False  # this process was paused: it is lost even if etcd has not noticed yet
            return await self._etcd.renew(self.lease_id)
        self._given_up.clear()
        self.lease_id = await self._etcd.grant(self._ttl_s)
        return True

    async def _sleep(self, pause_s: float) -> None:
        """Less where the lease is given up meanwhile, or is over."""
        if self.lease_id:
            pause_s = min(pause_s, max(0.0, self._expires_at - self._time()))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._given_up.wait()

    def _lose(self, reason: str) -> None:
        log.warning("the lease is lost lease=%016x reason=%s", self.lease_id, reason)
        self._forget()
        self._on_lost()

    def _forget(self) -> None:
        self.lease_id = 0
        self._granted.clear()

    async def give_up(self) -> None:
        """End the lease now, as far as etcd can be reached: what hangs on it is gone at once. Another one is
        granted. Nothing happens where there is none: it was lost, and the next one is on its way."""
        lease_id = self.lease_id
        if not lease_id:
            return
        self._forget()
        self._given_up.set()
        with suppress(EtcdRefused, EtcdUnreachable, TimeoutError):
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._etcd.revoke(lease_id)


class Leadership:
    """How this controller takes over."""

    def __init__(self, etcd: Etcd, keys: Keys, reader: MetadataReader, lease: Lease, random: Random) -> None:
        self._etcd = etcd
        self._keys = keys
        self._reader = reader
        self._lease = lease
        self._random = random

    async def take_over(self, me: Leader, dead: Leader | None) -> Term | None:
        """Become the active controller, in the place of `dead`; None: while no one is active. The reader has the
        store's newest image then.

        Returns None where another one was faster. Raises EtcdRefused, EtcdUnreachable, StoreError, MetadataWentBack.
        """
        await self._lease.wait()
        lease_id = self._lease.lease_id
        if dead is not None:
            gone = await self._etcd.transact([Created(self._keys.leader, dead.revision)], [Delete(self._keys.leader)])
            log.info(
                "deleted the dead controller's leadership controller=%d done=%s", dead.controller_id, gone.succeeded
            )
        revision = await self._create(me, lease_id)
        if revision is None:
            return None
        standing = await self._reader.catch_up()
        if standing.leader is None or standing.leader.revision != revision or self._lease.lease_id != lease_id:
            return None
        reader, lease = self._reader, self._lease
        return Term(
            self._etcd,
            self._keys,
            self._random,
            revision=revision,
            epoch=standing.epoch_base + revision,
            size=LogSize(reader.log_entries, reader.log_bytes, reader.snapshot_bytes),
            snapshot=reader.snapshot,
            is_over=lambda: lease.lease_id != lease_id or lease.is_over,
        )

    async def _create(self, me: Leader, lease_id: int) -> int | None:
        """The revision at which the leader key was created; None: another controller has created it."""
        key, value = self._keys.leader, me.encode()
        for attempt in range(CREATE_TRIES):
            try:
                answer = await self._etcd.transact([Created(key, 0)], [Put(key, value, lease_id), Get(key)], [Get(key)])
            except EtcdUnreachable:
                if attempt == CREATE_TRIES - 1:
                    raise
                continue
            found = answer.found[0][0] if answer.found[0] else None
            if found is None or found.lease_id != lease_id or found.value != value:
                return None
            return found.create_revision  # by this request, or by an earlier one whose answer was lost
        return None
