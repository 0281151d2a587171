"""The rows of the benchmark in which batches are small: what one acknowledgement costs, and who pays.

- *Closed loop*: so many producers, each of which waits for one acknowledgement of one record before it sends the next. All run in this
  process, on uvloop, each with connections of its own. Each producer sends a record before the clock starts.
- *CPU of an acknowledgement*: processor time of all brokers in the closed loop with the most producers, divided by its
  acknowledgements. The client's share is told beside it.
- *16 KB batches*: one producer as fast as `send` takes records, with batches of 16 KB as Kafka's producers make them by default.
- *Reading*: one consumer reads what the throughput run has written, from the beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil

from fencepost import Consumer, Producer
from fencepost_testing.failures import CommandFailed
from fencepost_testing.workload import percentile

CLOSED_LOOP_PRODUCERS = (1, 8, 64)
CLOSED_LOOP_S = 4.0
CLOSED_LOOP_WARM_UP_S = 1.0
SMALL_BATCH_BYTES = 16 * 1024
READ_AT_ONCE = 10_000
_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What came of one number of producers."""

    producers: int
    acks_per_s: float
    p50_ms: float
    p99_ms: float
    brokers_cpu_ms_per_ack: float
    client_cpu_ms_per_ack: float


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of these processes, so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def closed_loop(
    bootstrap: str, topic: str, value: bytes, producers: int, brokers: Sequence[int], seconds: float = CLOSED_LOOP_S
) -> ClosedLoop:
    """`brokers`: their process ids."""
    latencies_s: list[float] = []
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(Producer(bootstrap, linger_ms=0)) for _ in range(producers)]
        await asyncio.gather(*(_send_until(each, topic, value, 0.0, []) for each in opened))
        warm = time.monotonic() + CLOSED_LOOP_WARM_UP_S
        await asyncio.gather(*(_send_until(each, topic, value, warm, []) for each in opened))
        before, own_before, started = cpu_s(brokers), cpu_s([psutil.Process().pid]), time.monotonic()
        end = started + seconds
        await asyncio.gather(*(_send_until(each, topic, value, end, latencies_s) for each in opened))
        elapsed_s = time.monotonic() - started
        own_s, brokers_s = cpu_s([psutil.Process().pid]) - own_before, cpu_s(brokers) - before
    latencies_s.sort()
    acks = len(latencies_s)
    return ClosedLoop(
        producers,
        acks / elapsed_s,
        percentile(latencies_s, 0.5) * 1000,
        percentile(latencies_s, 0.99) * 1000,
        brokers_s / acks * 1000,
        own_s / acks * 1000,
    )


async def _send_until(producer: Producer, topic: str, value: bytes, end: float, latencies_s: list[float]) -> None:
    """One record at a time, one at least, until that time (time.monotonic)."""
    while True:
        sent_at = time.monotonic()
        await (await producer.send(topic, value))
        now = time.monotonic()
        latencies_s.append(now - sent_at)
        if now >= end:
            return


async def read_all(bootstrap: str, topic: str) -> float:
    """Records a second of one consumer that reads the topic from its beginning to its end."""
    async with Consumer(bootstrap, topic) as consumer:
        wanted = sum((await consumer.end_offsets(consumer.assignment)).values())
        read, started = 0, time.monotonic()
        while read < wanted:
            records = await consumer.poll(READ_AT_ONCE, timeout_ms=int(_READ_TIMEOUT_S * 1000))
            if not records:
                raise CommandFailed(f"{topic}: {read} of {wanted} records were read, then none for {_READ_TIMEOUT_S:g} s")
            read += len(records)
        return read / (time.monotonic() - started)
