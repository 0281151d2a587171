"""The page's own producer: records at a steady rate, so that there is something to see, and how long each took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from fencepost import AdminClient, Delivery, Producer
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.topic_waits import wait_in_sync

TOPIC: Final = "live"
PARTITIONS: Final = 3
RATE: Final = 100  # records a second
BURST: Final = 5  # records at a time: one batch each
KEPT: Final = 500  # latencies, of the last bursts
MAX_WAITING: Final = 1_000  # records that are not acknowledged; then it sends no more


class Load:
    """Off until it is switched on."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.sent = 0
        self.acknowledged = 0
        self.failed = 0
        self.error = ""
        self._on_change = on_change
        self._latencies: deque[tuple[float, float]] = deque(maxlen=KEPT)  # (when, ms)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_on(self) -> bool:
        return self._task is not None and not self._task.done()

    def told(self) -> dict[str, Any]:
        p50, p99 = self._quantiles()
        return {
            "on": self.is_on,
            "topic": TOPIC,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "failed": self.failed,
            "error": self.error,
            "p50": p50,
            "p99": p99,
        }

    def start(self, bootstrap: str) -> None:
        if not self.is_on:
            self.error = ""
            self._task = asyncio.get_running_loop().create_task(self._run(bootstrap), name="load of the page")
            self._on_change()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._on_change()

    async def _run(self, bootstrap: str) -> None:
        try:
            async with AdminClient(bootstrap) as admin:
                brokers = len((await admin.describe_cluster()).brokers)
                await admin.create_topic(
                    TOPIC,
                    partitions=PARTITIONS,
                    replication_factor=min(3, brokers),
                    min_insync_replicas=min(2, brokers),
                    exist_ok=True,
                )
                await wait_in_sync(admin, TOPIC)
            async with Producer(bootstrap) as producer:
                await self._send(producer)
        except FencepostError as error:
            self.error = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the visitor reads it and the page goes on
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._on_change()

    async def _send(self, producer: Producer) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            while True:
                if self.sent - self.acknowledged - self.failed < MAX_WAITING:
                    partition, began = self.sent // BURST % PARTITIONS, time.monotonic()
                    burst = [
                        await producer.send(TOPIC, b"record %d" % (self.sent + number), partition=partition)
                        for number in range(BURST)
                    ]
                    self.sent += BURST
                    group.create_task(self._wait(burst, began))
                due = max(due + BURST / RATE, loop.time() - 1)
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _wait(self, burst: list[Delivery], began: float) -> None:
        """They are one batch, or two."""
        try:
            for delivery in burst:
                await delivery
        except FencepostError as error:
            self.failed += len(burst)
            self.error = str(error)
            return
        self.acknowledged += len(burst)
        now = time.monotonic()
        self._latencies.append((now, (now - began) * 1000))

    def _quantiles(self) -> tuple[float, float]:
        """p50 and p99 in ms of the last second; -1 where nothing was acknowledged in it."""
        since = time.monotonic() - 1
        last = sorted(ms for at, ms in self._latencies if at >= since)
        if not last:
            return -1.0, -1.0
        return round(last[len(last) // 2], 1), round(last[min(len(last) - 1, len(last) * 99 // 100)], 1)
