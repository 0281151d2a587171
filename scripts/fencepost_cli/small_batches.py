"""The rows of the benchmark in which batches are small: what one acknowledgement costs, and whom.

- *Closed loop*: so many producers, each of which waits for the acknowledgement of one record before it sends the next. All
  run in this process, each with connections of its own. They send for a second before the clock starts.
- *CPU of an acknowledgement*: processor time of all brokers in the closed loop with the most producers, divided by its
  acknowledgements; and the client's.
- *16 KB batches*: one producer as fast as `send` takes records, with batches as large as those of Kafka's producers.
- *Reading*: one consumer reads what the throughput run has written, from the beginning.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import psutil

from fencepost import Consumer, Producer
from fencepost_testing.failures import CommandFailed
from fencepost_testing.workload import percentile

CLOSED_LOOP_PRODUCERS = (1, 8, 64)
CLOSED_LOOP_S = 4.0
CLOSED_LOOP_WARM_UP_S = 1.0
SMALL_BATCH_BYTES = 16 * 1024
READ_AT_ONCE = 10_000
READ_TIMEOUT_S = 30.0
_CPUCLOCK_SCHED = 2  # of the kernel's numbers of clocks: a process's own


def value_of(size_bytes: int) -> bytes:
    return (bytes(range(97, 123)) * (size_bytes // 26 + 1))[:size_bytes]


@dataclass(frozen=True, slots=True)
class ClosedLoopResult:
    acks_per_s: float
    p50_ms: float
    p99_ms: float
    brokers_cpu_ms_per_ack: float  # all together
    client_cpu_ms_per_ack: float


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What all numbers of producers have in common. `broker_pids`: whose processor time counts."""

    bootstrap: str
    topic: str
    value: bytes
    broker_pids: Sequence[int]

    async def measure(self, producers: int, seconds: float) -> ClosedLoopResult:
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(Producer(self.bootstrap)) for _ in range(producers)]
            return await closed_loop([partial(self._send, producer) for producer in opened], seconds, self.broker_pids)

    async def _send(self, producer: Producer) -> None:
        await (await producer.send(self.topic, self.value))


Lane = Callable[[], Awaitable[None]]  # sends one record, and returns when it is acknowledged


async def closed_loop(lanes: Sequence[Lane], seconds: float, broker_pids: Sequence[int]) -> ClosedLoopResult:
    """Each lane has one record on its way at a time. A first record of each and CLOSED_LOOP_WARM_UP_S do not count."""
    own = [psutil.Process().pid]
    await _run_until(lanes, 0.0)  # connected, with ids
    await _run_until(lanes, time.monotonic() + CLOSED_LOOP_WARM_UP_S)
    brokers_s, own_s, started = cpu_s(broker_pids), cpu_s(own), time.monotonic()
    latencies_s = await _run_until(lanes, started + seconds)
    elapsed_s = time.monotonic() - started
    brokers_s, own_s = cpu_s(broker_pids) - brokers_s, cpu_s(own) - own_s
    acks = len(latencies_s)
    return ClosedLoopResult(
        acks / elapsed_s,
        percentile(latencies_s, 0.50) * 1000,
        percentile(latencies_s, 0.99) * 1000,
        brokers_s / acks * 1000,
        own_s / acks * 1000,
    )


async def _run_until(lanes: Sequence[Lane], end: float) -> list[float]:
    """Each sends one record at a time, and one at least, until that time (time.monotonic). Sorted latencies."""
    latencies_s: list[float] = []
    await asyncio.gather(*(_run_lane(lane, end, latencies_s) for lane in lanes))
    return sorted(latencies_s)


async def _run_lane(lane: Lane, end: float, latencies_s: list[float]) -> None:
    while True:
        sent_at = time.monotonic()
        await lane()
        now = time.monotonic()
        latencies_s.append(now - sent_at)
        if now >= end:
            return


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of these processes, so far. Linux has a clock of each (clock_getcpuclockid(3)), in nanoseconds;
    elsewhere it is counted in hundredths of a second."""
    if sys.platform == "linux":
        return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def read_all(bootstrap: str, topic: str) -> float:
    """Records a second of one consumer that reads the topic from its beginning to its end."""
    async with Consumer(bootstrap, topic) as consumer:
        wanted = sum((await consumer.end_offsets(consumer.assignment)).values())
        read, started = 0, time.monotonic()
        while read < wanted:
            records = await consumer.poll(READ_AT_ONCE, int(READ_TIMEOUT_S * 1000))
            if not records:
                raise CommandFailed(
                    f"{topic}: {read} of {wanted} records were read, then none for {READ_TIMEOUT_S:g} s"
                )
            read += len(records)
        return read / (time.monotonic() - started)
