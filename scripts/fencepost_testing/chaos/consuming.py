"""What a consuming client of a chaos run does: read along until it is stopped, then to the end."""

from __future__ import annotations

import asyncio
import logging
import random

from fencepost import Consumer, TopicPartition
from fencepost.history import History
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.chaos.client_config import ClientConfig

START_RETRY_S = 0.2
_POLL_RECORDS = 200
_POLL_MS = 100
_REWIND_EVERY_S = 3.0  # on average
_MAX_REWIND = 2_000  # records

log = logging.getLogger("fencepost.chaos")


async def consume(config: ClientConfig, history: History, stop: asyncio.Event) -> int:
    """Returns the exit code. Raises what no consumer should get."""
    rng = random.Random(config.seed)
    consumer = await _started(config, history, stop)
    if consumer is None:
        return 0
    try:
        await _read(consumer, stop, rng if config.rewinds else None)
    finally:
        await consumer.close()
    return 0


async def _started(config: ClientConfig, history: History, stop: asyncio.Event) -> Consumer | None:
    host = config.host()
    while not stop.is_set():
        consumer = Consumer(config.bootstrap, config.topic, history=history, host=host)
        try:
            await consumer.start()
        except FencepostError as error:
            await consumer.close()
            if not error.retriable:
                raise
            log.info("not started yet process=%s error=%r", config.process, str(error))
            await asyncio.sleep(START_RETRY_S)
        else:
            return consumer
    return None


async def _read(consumer: Consumer, stop: asyncio.Event, rng: random.Random | None) -> None:
    ends: dict[TopicPartition, int] | None = None
    loop = asyncio.get_running_loop()
    rewind_at = loop.time() + (rng.expovariate(1 / _REWIND_EVERY_S) if rng else float("inf"))
    while True:
        await consumer.poll(_POLL_RECORDS, _POLL_MS)
        if stop.is_set():
            if ends is None:
                ends = await consumer.end_offsets(consumer.assignment)
            if not [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
                return
        elif rng and loop.time() >= rewind_at:
            partition = rng.choice(consumer.assignment)
            back_to = max(0, await consumer.position(partition) - rng.randrange(_MAX_REWIND))
            consumer.seek(partition, back_to)
            rewind_at = loop.time() + rng.expovariate(1 / _REWIND_EVERY_S)
