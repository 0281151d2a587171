"""What producers and members of groups with Kafka's clients do in a chaos run.

A producer sends as `producing` does, at its rate, through an idempotent producer of its client. A member reads, works a
moment, and commits what it has worked on, until it is stopped. Both record what `fencepost check` needs; these clients show
no sequence numbers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AsyncExitStack

from fencepost.history import History
from fencepost_proto.protocol.errors import UnknownServerError
from fencepost_testing.chaos.client_config import ClientConfig
from fencepost_testing.chaos.producing import due_records
from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.kafka_clients.factory import group_member, kafka_producer
from fencepost_testing.kafka_clients.producer import KafkaDelivery, KafkaProducer
from fencepost_testing.kafka_clients.reader import CommitFailed, KafkaReader

START_RETRY_S = 0.5
MAX_OPEN_RECORDS = 2_000  # that a producer sends before it waits for outcomes
_FULL_PAUSE_S = 0.03
_WORK_S = (0.0, 0.1)
_COMMIT_EVERY_S = 0.4  # on average

log = logging.getLogger("fencepost.chaos")


async def produce(config: ClientConfig, history: History, stop: asyncio.Event) -> int:
    """Returns the exit code. Raises what no producer should get."""
    async with AsyncExitStack() as stack:
        producer: KafkaProducer | None = None
        while producer is None and not stop.is_set():
            try:
                producer = await stack.enter_async_context(
                    kafka_producer(config.client, config.kafka_bootstrap, history)
                )
            except CommandFailed as error:
                log.info("not started yet process=%s error=%r", config.process, str(error))
                await asyncio.sleep(START_RETRY_S)
        if producer is not None:
            await _send_until(stop, config, producer)
    return 0


async def _send_until(stop: asyncio.Event, config: ClientConfig, producer: KafkaProducer) -> None:
    outcomes: set[asyncio.Future[None]] = set()  # that are not known yet
    async for key, value in due_records(config, stop):
        while len(outcomes) >= MAX_OPEN_RECORDS and not stop.is_set():
            await asyncio.wait(outcomes, timeout=_FULL_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            break
        outcome = asyncio.ensure_future(_outcome(await producer.send(config.topic, value, key=key)))
        outcomes.add(outcome)
        outcome.add_done_callback(outcomes.discard)
    await producer.flush()
    await asyncio.gather(*outcomes)


async def _outcome(delivery: KafkaDelivery) -> None:
    """What became of it is in the history."""
    try:
        await delivery
    except UnknownServerError as error:
        log.info("given up error=%r", error)


async def take_part(config: ClientConfig, history: History, stop: asyncio.Event) -> int:
    """As a member of a group. Returns the exit code. Raises what no member should get."""
    bootstrap = config.bootstrap if config.client == FENCEPOST else config.kafka_bootstrap
    while not stop.is_set():
        reader = group_member(config.client, bootstrap, config.topic, config.group, history, kip_848=config.kip_848)
        try:
            async with reader:
                await _read(reader, config, stop)
        except CommandFailed as error:
            log.info("begins again process=%s error=%r", config.process, str(error))
            await asyncio.sleep(START_RETRY_S)
    return 0


async def _read(reader: KafkaReader, config: ClientConfig, stop: asyncio.Event) -> None:
    rng, loop = random.Random(config.seed), asyncio.get_running_loop()
    commit_at = loop.time() + rng.expovariate(1 / _COMMIT_EVERY_S)
    while not stop.is_set():
        await reader.poll()
        await asyncio.sleep(rng.uniform(*_WORK_S))
        if loop.time() >= commit_at:
            await _commit(reader, config)
            commit_at = loop.time() + rng.expovariate(1 / _COMMIT_EVERY_S)
    await _commit(reader, config)


async def _commit(reader: KafkaReader, config: ClientConfig) -> None:
    try:
        await reader.commit()
    except CommitFailed as error:
        log.info("not committed process=%s certain=%s error=%r", config.process, error.certain, str(error))
