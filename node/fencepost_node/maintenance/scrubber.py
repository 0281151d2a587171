"""Reads every stored byte of a broker's logs from time to time, to find damage before someone needs what is damaged.

A pass goes through the logs one after another, in small pieces, no faster than `scrub_bytes_per_second`. What it finds is
treated as if a reader had met it (`Replica.disk_refuses`). A pass begins `scrub_interval_ms` after the last one has ended,
also across restarts: its end is noted in the file `last-scrub` of the data folder, in the broker's wall clock.

Sealed segments are read from the disk, not from the page cache, where the system takes the hint. Damage that both the disk
and the memory hide is not seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fencepost_node.config import BrokerConfig
from fencepost_node.log.disk import Disk
from fencepost_node.log.log import Log, OutOfRoom
from fencepost_node.log.segment import LogPlace
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

LAST_SCRUB = "last-scrub"
PIECE_BYTES = 256 * 1024  # read at a time
LONGEST_SLEEP_S = 3_600.0  # the wall clock is looked at again after that


class Scrubber:
    """Of the logs of these replicas, whichever they are at the time. `tasks` owns what it starts."""

    def __init__(
        self, host: Host, disk: Disk, config: BrokerConfig, replicas: Mapping[PartitionKey, Replica], tasks: Tasks
    ) -> None:
        self.passes = 0  # that have ended in this process, and are noted
        self._host = host
        self._disk = disk
        self._path = f"{config.data_dir}/{LAST_SCRUB}"
        self._interval_ms = config.scrub_interval_ms
        self._bytes_per_s = config.scrub_bytes_per_second
        self._replicas = replicas
        self._tasks = tasks
        self._asked = asyncio.Event()

    def start(self) -> None:
        self._tasks.spawn(self._run(), "scrubber")

    def scrub_now(self) -> None:
        """Begin a pass, once the one under way has ended."""
        self._asked.set()

    async def _run(self) -> None:
        last_ms = await asyncio.to_thread(self._last_pass_ms)
        while True:
            await self._wait_until(last_ms + self._interval_ms)
            self._asked.clear()
            await self._pass()
            last_ms = self._host.wall_clock_ms()
            await asyncio.to_thread(self._note, last_ms)
            self.passes += 1

    async def _wait_until(self, due_ms: int) -> None:
        """Until then by the wall clock (never, where scrubbing is off), or until a pass is asked for."""
        while not self._asked.is_set():
            left_s = (due_ms - self._host.wall_clock_ms()) / 1000 if self._interval_ms else LONGEST_SLEEP_S
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(min(left_s, self._interval_ms / 1000 or LONGEST_SLEEP_S, LONGEST_SLEEP_S)):
                    await self._asked.wait()
            except TimeoutError:
                continue

    def _last_pass_ms(self) -> int:
        """[thread] When the last pass ended; now, where that is not known, is in the future, or cannot be read."""
        now_ms = self._host.wall_clock_ms()
        try:
            return min(int(self._disk.read_bytes(self._path)), now_ms)
        except (OSError, ValueError):
            self._note(now_ms)
            return now_ms

    def _note(self, now_ms: int) -> None:
        """[thread]"""
        try:
            self._disk.write_atomically(self._path, f"{now_ms}\n".encode())
        except OSError as error:
            log.warning("the end of a scrub cannot be noted path=%s error=%s", self._path, error)

    # ---- One pass ----

    async def _pass(self) -> None:
        began, logs, read = asyncio.get_running_loop().time(), 0, 0
        for key in list(self._replicas):
            replica = self._replicas.get(key)
            if replica is not None and not replica.failure:
                logs += 1
                read += await self._scrub(replica, replica.log)
        log.info("scrubbed logs=%d bytes=%d seconds=%.0f", logs, read, asyncio.get_running_loop().time() - began)

    async def _scrub(self, replica: Replica, scrubbed: Log) -> int:
        """The bytes that were read."""
        place: LogPlace | None = None
        read = 0
        try:
            await asyncio.to_thread(scrubbed.check_snapshots)
            while not replica.failure and replica.log is scrubbed:
                place, length = await asyncio.to_thread(scrubbed.scan, place, PIECE_BYTES)
                read += length
                if place is None:
                    break
                await asyncio.sleep(length / self._bytes_per_s)
        except OutOfRoom as error:
            log.warning("not scrubbed directory=%s error=%s", scrubbed.directory, error)
        except errors.StorageError as error:
            if replica.log is scrubbed:
                replica.disk_refuses(error)
        return read
