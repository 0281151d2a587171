"""What a producing client of a chaos run does: send keyed records in small bursts through the library's recording producer.

A named producer first asks what its predecessor got into each partition, and writes the answers down: they are promises
that the final log is held to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

from fencepost import Producer, Resumed
from fencepost.history import History
from fencepost_proto.protocol.errors import FencepostError, ProducerFenced
from fencepost_testing.chaos.client_config import EXIT_FENCED, ClientConfig
from fencepost_testing.chaos.resumed import NOTHING, ResumeAnswer

START_RETRY_S = 0.2
_BURST_S = (0.005, 0.06)  # between two bursts
_UNKEYED_SHARE = 0.25
_MIN_VALUE_BYTES = 40

log = logging.getLogger("fencepost.chaos")


async def produce(config: ClientConfig, history: History, stop: asyncio.Event) -> int:
    """Returns the exit code. Raises what no producer should get."""
    producer = await _started(config, history, stop)
    if producer is None:
        return 0
    try:
        if not config.resumed_file or await _resume(config, producer, stop):
            await _send_until(stop, config, producer)
    except ProducerFenced as error:
        log.info("fenced process=%s error=%r", config.process, str(error))
        return EXIT_FENCED
    finally:
        await producer.close(float(producer.config.delivery_timeout_ms) / 1000)
    return 0


async def _started(config: ClientConfig, history: History, stop: asyncio.Event) -> Producer | None:
    host = config.host()
    while not stop.is_set():
        producer = Producer(config.bootstrap, history=history, host=host, **(config.settings or {}))
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


# ---- What the predecessor left ----


async def _resume(config: ClientConfig, producer: Producer, stop: asyncio.Event) -> bool:
    """Ask for every partition; write down the answers. False: it was stopped before that."""
    partition = 0
    while partition < config.partitions:
        if stop.is_set():
            return False
        asked_at_ns = round(asyncio.get_running_loop().time() * 1e9)
        try:
            resumed = await producer.resume(config.topic, partition)
        except FencepostError as error:
            if not error.retriable:
                raise
            log.info("not resumed yet process=%s error=%r", config.process, str(error))
            await asyncio.sleep(START_RETRY_S)
        else:
            told = _told(config.process, partition, resumed, producer, asked_at_ns)
            _append_line(Path(config.resumed_file), told.to_line())
            partition += 1
    return True


def _told(process: str, partition: int, resumed: Resumed | None, producer: Producer, asked_at_ns: int) -> ResumeAnswer:
    value = resumed.record.value if resumed is not None and resumed.record is not None else None
    offset = resumed.last_offset if resumed is not None else NOTHING
    text = value.decode() if value is not None else None
    return ResumeAnswer(process, partition, offset, text, producer.producer_id, producer.epoch, asked_at_ns)


# ---- Sending ----


async def _send_until(stop: asyncio.Event, config: ClientConfig, producer: Producer) -> None:
    """Raises ProducerFenced."""
    async for key, value in due_records(config, stop):
        try:
            await producer.send(config.topic, value, key=key)
        except ProducerFenced:
            raise
        except FencepostError as error:
            log.info("refused process=%s error=%r", config.process, str(error))


async def due_records(config: ClientConfig, stop: asyncio.Event) -> AsyncIterator[tuple[bytes | None, bytes]]:
    """Keys and values, in small bursts at the client's rate, until it is stopped."""
    rng, loop = random.Random(config.seed), asyncio.get_running_loop()
    sent, due, last = 0, 0.0, loop.time()
    while not stop.is_set():
        await asyncio.sleep(rng.uniform(*_BURST_S))
        now = loop.time()
        due = min(due + (now - last) * config.rate, config.rate)  # after a pause: at most a second's worth at once
        last = now
        while due >= 1 and not stop.is_set():
            due -= 1
            yield _record(config, sent, rng)
            sent += 1


def _record(config: ClientConfig, number: int, rng: random.Random) -> tuple[bytes | None, bytes]:
    """Key and value; no two values are the same."""
    keyed = config.keys and rng.random() >= _UNKEYED_SHARE
    key = b"%s-%d" % (config.process.split(".")[0].encode(), rng.randrange(config.keys)) if keyed else None
    value = b"%s:%d:" % (config.process.encode(), number)
    return key, value.ljust(max(len(value), rng.choice((_MIN_VALUE_BYTES, 100, 400))), b".")


def _append_line(path: Path, line: str) -> None:
    """Written at once, whole."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
