"""What a producing client of a chaos run does: send keyed records in small bursts, and record what becomes of each.

A named producer first asks what its predecessor got into each partition, and writes the answers down: they are promises
that the final log is held to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

from fencepost import Delivery, Producer, Resumed
from fencepost.history import History
from fencepost_cli.chaos.client import EXIT_FENCED, ClientConfig, append_line
from fencepost_cli.chaos.resumed import NOTHING, Told
from fencepost_proto.errors import FencepostError, ProducerFenced

MAX_PENDING = 5_000  # records without an outcome; beyond it nothing is sent
START_RETRY_S = 0.2
_BURST_S = (0.005, 0.06)  # between two bursts
_UNKEYED_SHARE = 0.25
_MIN_VALUE_BYTES = 40

log = logging.getLogger("fencepost.chaos")


async def produce(config: ClientConfig, history: History, stop: asyncio.Event) -> int:
    """Returns the exit code. Raises what no producer should get."""
    rng = random.Random(config.seed)
    producer = await _started(config, stop)
    if producer is None:
        return 0
    client = _ProducingClient(config, history, producer)
    try:
        if config.resumed_file and not await client.resume(stop):
            return 0
        await client.send_until(stop, rng)
    except ProducerFenced as error:
        log.info("fenced process=%s error=%r", config.process, str(error))
        client.fenced = True
    finally:
        await producer.close(float(producer.config.delivery_timeout_ms) / 1000)
        await client.settled()
    return EXIT_FENCED if client.fenced else 0


async def _started(config: ClientConfig, stop: asyncio.Event) -> Producer | None:
    while not stop.is_set():
        producer = Producer(config.bootstrap, **(config.settings or {}))
        try:
            await producer.start()
        except FencepostError as error:
            if not error.retriable:
                raise
            log.info("not started yet process=%s error=%r", config.process, str(error))
            await asyncio.sleep(START_RETRY_S)
        else:
            log.info("started process=%s id=%d epoch=%d", config.process, producer.producer_id, producer.epoch)
            return producer
    return None


class _ProducingClient:
    """Sends, and awaits each record's outcome in a task of its own."""

    def __init__(self, config: ClientConfig, history: History, producer: Producer) -> None:
        self._config = config
        self._history = history
        self._producer = producer
        self._sent = 0
        self._pending: set[asyncio.Task[None]] = set()
        self.fenced = False

    async def resume(self, stop: asyncio.Event) -> bool:
        """Ask for every partition; write down what is told. False: told to stop before that."""
        partition = 0
        while partition < self._config.partitions:
            if stop.is_set():
                return False
            try:
                resumed = await self._producer.resume(self._config.topic, partition)
            except FencepostError as error:
                if not error.retriable:
                    raise
                log.info("not resumed yet process=%s error=%r", self._config.process, str(error))
                await asyncio.sleep(START_RETRY_S)
            else:
                self._tell_resumed(partition, resumed)
                partition += 1
        return True

    def _tell_resumed(self, partition: int, resumed: Resumed | None) -> None:
        value = resumed.record.value if resumed is not None and resumed.record is not None else None
        told = Told(
            self._config.process,
            partition,
            resumed.last_offset if resumed is not None else NOTHING,
            value.decode() if value is not None else None,
        )
        append_line(Path(self._config.resumed_file), told.to_line())

    async def send_until(self, stop: asyncio.Event, rng: random.Random) -> None:
        loop, rate = asyncio.get_running_loop(), self._config.rate
        due = 0.0
        last = loop.time()
        while not stop.is_set() and not self.fenced:
            await asyncio.sleep(rng.uniform(*_BURST_S))
            now = loop.time()
            due = min(due + (now - last) * rate, rate)  # after a pause: at most a second's worth at once
            last = now
            while due >= 1 and len(self._pending) < MAX_PENDING and not stop.is_set():
                due -= 1
                await self._send(rng)

    async def _send(self, rng: random.Random) -> None:
        config, history = self._config, self._history
        keyed = config.keys and rng.random() >= _UNKEYED_SHARE
        key = b"%s-%d" % (config.process.split(".")[0].encode(), rng.randrange(config.keys)) if keyed else None
        value = b"%s:%d:" % (config.process.encode(), self._sent)
        value = value.ljust(max(len(value), rng.choice((_MIN_VALUE_BYTES, 100, 400))), b".")
        self._sent += 1
        operation = history.invoke_send(config.topic, None, key, value)
        try:
            delivery = await self._producer.send(config.topic, value, key=key)
        except FencepostError as error:
            history.complete_send(operation, config.topic, None, -1, error=error)
            if isinstance(error, ProducerFenced):
                raise
            log.info("refused process=%s error=%r", config.process, str(error))
            return
        task = asyncio.create_task(self._settle(operation, delivery))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _settle(self, operation: int, delivery: Delivery) -> None:
        topic, history = self._config.topic, self._history
        try:
            metadata = await delivery
        except FencepostError as error:
            history.complete_send(operation, topic, None, -1, error=error)
            self.fenced = self.fenced or isinstance(error, ProducerFenced)
        else:
            history.complete_send(operation, topic, metadata.partition, metadata.offset)

    async def settled(self) -> None:
        """Once the producer is closed every record has its outcome."""
        await asyncio.gather(*self._pending)
