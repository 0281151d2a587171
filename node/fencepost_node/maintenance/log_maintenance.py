"""Background work on logs: fsync, snapshots, retention. A disk error fails the replica; the controller re-elects.

- Idle producers are forgotten with each round of retention.
- A failed replica is brought back by `repairs`.
- A snapshot that finds no room on the disk fails nothing: it stays due, and is tried again with pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial

from fencepost_node.log.disk import Disk
from fencepost_node.log.log import OutOfRoom
from fencepost_node.producers.expiry import ProducerExpiry
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.running_time import RunningTime
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

NO_ROOM_PAUSE_S = 2.0  # after upkeep has found no room for a log
MAINTENANCE_INTERVAL_S = 0.1  # how often logs are asked whether snapshots are due
MAX_ROUND_TIMES = 4  # a round of retention that took longer than so many intervals counts as no longer: a pause


class LogMaintenance:
    """Of the logs of these replicas, whichever they are at the time. `tasks` owns what it starts."""

    def __init__(
        self,
        host: Host,
        disk: Disk,
        replicas: Mapping[PartitionKey, Replica],
        tasks: Tasks,
        retention_check_interval_ms: int,
        *,
        expiry: ProducerExpiry,
    ) -> None:
        self._host = host
        self._disk = disk
        self._replicas = replicas
        self._tasks = tasks
        self._retention_check_interval_s = retention_check_interval_ms / 1000
        self._expiry = expiry
        self._running = RunningTime(MAX_ROUND_TIMES * self._retention_check_interval_s)
        self._syncing: set[PartitionKey] = set()
        self._no_room_until: dict[PartitionKey, float] = {}  # where upkeep found none
        self._due: dict[PartitionKey, None] = {}  # logs whose snapshots may be due; no other log's are

    def start(self) -> None:
        self._tasks.spawn(self._maintain(), "maintenance")
        self._tasks.spawn(self._retain(), "retention")

    def sync_soon(self, replica: Replica) -> None:
        """Group commit: one sync for all that was appended before it began, then the next."""
        if replica.key not in self._syncing:
            self._syncing.add(replica.key)
            self._tasks.spawn(self._sync(replica), f"sync-{replica.key}")

    def maintain_soon(self, replica: Replica) -> None:
        """Its log has a snapshot due."""
        self._due[replica.key] = None

    async def _sync(self, replica: Replica) -> None:
        try:
            while (
                isinstance(role := replica.role, Leadership)
                and role.state.durable_end_offset < replica.log.log_end_offset
            ):
                try:
                    end_offset = await replica.on_disk(replica.log.sync)
                except OutOfRoom:  # where the replica goes on leading, its batches wait for room
                    await asyncio.sleep(NO_ROOM_PAUSE_S)
                    continue
                except errors.StorageError:
                    return
                replica.room_again()
                if replica.role is role:
                    role.durable(end_offset)
        finally:
            self._syncing.discard(replica.key)

    async def _maintain(self) -> None:
        """Snapshots and syncs that the logs have due, and syncs of those whose unsynced files crowd the others out."""
        while True:
            await asyncio.sleep(MAINTENANCE_INTERVAL_S)
            crowding = frozenset(self._disk.crowding_folders())
            for key in list(self._replicas if crowding else self._due):
                replica = self._replicas.get(key)
                if replica is None or not replica.log.maintenance_due:
                    self._due.pop(key, None)
                if replica is None or replica.failure:
                    continue
                if replica.log.maintenance_due:
                    await self._on_log(replica, replica.log.maintain)
                elif replica.log.directory in crowding:
                    await self._on_log(replica, replica.log.sync)

    async def _retain(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._running.advance(loop.time())
            await asyncio.sleep(self._retention_check_interval_s)
            for replica in list(self._replicas.values()):
                now_ms, high_watermark = self._host.wall_clock_ms(), replica.high_watermark
                await self._on_log(replica, partial(replica.log.apply_retention, now_ms, high_watermark))
                running_ms = self._running.advance(loop.time())
                if self._expiry.observe(replica.log, running_ms):
                    forget = partial(self._expiry.forget_idle, replica.log, running_ms, high_watermark)
                    await self._on_log(replica, forget)

    async def _on_log(self, replica: Replica, work: Callable[[], object]) -> None:
        if replica.failure or self._replicas.get(replica.key) is not replica:
            return
        now = asyncio.get_running_loop().time()
        if self._no_room_until.get(replica.key, now) > now:
            return

        def tolerant() -> OutOfRoom | None:
            try:
                work()
            except OutOfRoom as error:
                return error
            return None

        with contextlib.suppress(errors.StorageError):
            if (no_room := await replica.on_disk(tolerant)) is None:
                self._no_room_until.pop(replica.key, None)
                return
            if replica.key not in self._no_room_until:
                log.warning("no room for upkeep topic=%s partition=%d reason=%s",
                            replica.topic.name, replica.key[1], no_room)  # fmt: skip
            self._no_room_until[replica.key] = now + NO_ROOM_PAUSE_S
