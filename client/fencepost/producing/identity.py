"""Gets the producer's id and epoch, and the next ones when they are needed.

*An anonymous producer* gets its id from any broker; where one has none, the next is asked. Each partition bumps its own
epoch. A partition that has used up its epochs gets an id of its own.

*A named producer* gets id and epoch from the controller, and no leader accepts an older epoch from then on. So when one
partition needs the next epoch, all of them need it:

1. All partitions stop stamping and drain: every batch that may be in the log is resolved. This takes as long as the slowest
   partition, at most the delivery timeout.
2. InitProducerId is sent with the present id and epoch.
3. All partitions go on from sequence 0.

The controller refuses where another instance has taken over: then this producer is fenced. A name that is not used expires;
`keep_name` reports to the controller often enough that this instance is alive.

With an id comes the longest time for which brokers are certain to recognise a repeat. No batch is retried for longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fencepost.cluster import ClusterClient
from fencepost.producing.accumulator import PartitionQueue
from fencepost.producing.config import ProducerConfig
from fencepost_proto.protocol.errors import (
    CoordinatorNotAvailable,
    FencepostError,
    InvalidProducerEpoch,
    ProducerFenced,
    raise_for,
)
from fencepost_proto.protocol.v1 import broker_pb2 as pb

log = logging.getLogger(__name__)

INIT_TIMEOUT_MS = 10_000  # of one InitProducerId: how long every in-sync member may take to apply the fence
ANONYMOUS_TIMEOUT_S = 4.0  # for one broker's answer to an anonymous producer
KEEP_ALIVES = 8  # sent in the expiration time of a name
NO_ID = -1
WARN_AFTER_S = 3.0  # without an id, before it is logged


class Identity:
    """The producer's id and epoch. `run` is one of the producer's tasks; it raises ProducerFenced where that is so.

    `queues`: of all partitions in use. `changed` is called for each that goes on under another identity.
    """

    def __init__(
        self,
        cluster: ClusterClient,
        config: ProducerConfig,
        queues: Callable[[], list[PartitionQueue]],
        changed: Callable[[PartitionQueue], None],
    ) -> None:
        self.producer_id = NO_ID
        self.epoch = -1
        self.retired_id = NO_ID  # the id that the name had before, if it has used up its epochs
        self.predecessor_expired = False  # brokers have forgotten what was written under this name before
        self.delivery_timeout_s = config.delivery_timeout_ms / 1000
        self._name_expiration_s = 0.0
        self._cluster = cluster
        self._config = config
        self._queues = queues
        self._changed = changed
        self._backoff = config.backoff
        self._needed = asyncio.Event()
        self._bumping = False
        self._last_error: FencepostError | None = None

    async def start(self) -> None:
        """Get the first id and epoch; for a named producer this fences every older instance. Raises after max_block_ms."""
        if not self._config.idempotent:
            return
        try:
            async with asyncio.timeout(self._config.max_block_ms / 1000):
                self.producer_id, self.epoch = await self._init(NO_ID, -1)
        except TimeoutError:
            raise CoordinatorNotAvailable(
                f"no producer id within {self._config.max_block_ms} ms; last error: {self._last_error}"
            ) from self._last_error
        log.info("producer id name=%s producer_id=%d epoch=%d", self._config.name or "-", self.producer_id, self.epoch)

    def opened(self, queue: PartitionQueue) -> None:
        """A partition is used for the first time."""
        if self._bumping:
            queue.sequencer.hold()

    def need(self) -> None:
        """Some partition needs another epoch or id, which `run` gets."""
        self._needed.set()

    async def keep_name(self) -> None:
        """Report to the controller regularly that the name is in use; a task of a named producer. Raises ProducerFenced."""
        while self._name_expiration_s:
            await asyncio.sleep(self._name_expiration_s / KEEP_ALIVES)
            held = (self.producer_id, self.epoch)
            request = self._request(*held, keep_alive=True)
            try:
                answer = await self._cluster.call_broker(
                    lambda broker: broker.InitProducerId, request, timeout_s=INIT_TIMEOUT_MS / 1000 + 1
                )
                raise_for(answer.error)
            except FencepostError as error:
                is_current = not self._bumping and held == (self.producer_id, self.epoch)
                if is_current and not error.retriable:
                    raise
                log.info("name not kept name=%s reason=%s", self._config.name, error)

    async def run(self) -> None:
        while True:
            await self._needed.wait()
            self._needed.clear()
            if self._config.name:
                await self._bump_all()
            else:
                await self._replace_used_up()

    async def _bump_all(self) -> None:
        queues = self._queues()
        if not any(queue.sequencer.bump_needed for queue in queues):
            return
        self._bumping = True
        for queue in queues:
            queue.sequencer.hold()
        if not all(queue.sequencer.awaiting_identity for queue in queues):
            return  # not drained: `need` comes again when another one is
        self.producer_id, self.epoch = await self._init(self.producer_id, self.epoch)
        log.info(
            "producer epoch bumped name=%s producer_id=%d epoch=%d", self._config.name, self.producer_id, self.epoch
        )
        self._bumping = False
        for queue in self._queues():
            queue.sequencer.grant(self.producer_id, self.epoch)
            self._changed(queue)

    async def _replace_used_up(self) -> None:
        for queue in self._queues():
            if queue.sequencer.awaiting_identity:
                producer_id, epoch = await self._init(NO_ID, -1)
                log.info("producer id replaced partition=%s producer_id=%d", queue.name, producer_id)
                queue.sequencer.grant(producer_id, epoch)
                self._changed(queue)

    async def _init(self, producer_id: int, epoch: int) -> tuple[int, int]:
        """Send InitProducerId until it is answered. Raises ProducerFenced, and other errors that are not retriable."""
        request = self._request(producer_id, epoch)
        timeout_s = INIT_TIMEOUT_MS / 1000 + 1 if self._config.name else ANONYMOUS_TIMEOUT_S
        failures, began, is_warned = 0, asyncio.get_running_loop().time(), False
        while True:
            addresses = self._cluster.addresses()
            try:
                answer = await self._cluster.call_broker(
                    lambda broker: broker.InitProducerId,
                    request,
                    address=addresses[failures % len(addresses)],
                    timeout_s=timeout_s,
                )
                raise_for(answer.error)
                self._apply_answer(answer)
                return answer.producer_id, answer.producer_epoch
            except InvalidProducerEpoch as error:
                raise ProducerFenced(error.message) from error
            except FencepostError as error:
                if not error.retriable:
                    raise
                failures += 1
                self._last_error = error
                if failures == 1:
                    log.info("producer id not had name=%s reason=%s", self._config.name or "-", error)
                if not is_warned and asyncio.get_running_loop().time() - began >= WARN_AFTER_S:
                    is_warned = True
                    log.warning("no producer id yet, still asking name=%s reason=%s", self._config.name or "-", error)
                if failures % len(addresses) == 0:  # every broker was asked
                    await asyncio.sleep(self._backoff.pause_s(failures // len(addresses)))

    def _request(self, producer_id: int, epoch: int, keep_alive: bool = False) -> pb.InitProducerIdRequest:
        return pb.InitProducerIdRequest(
            name=self._config.name,
            producer_id=producer_id,
            producer_epoch=epoch,
            timeout_ms=INIT_TIMEOUT_MS,
            keep_alive=keep_alive,
        )

    def _apply_answer(self, answer: pb.InitProducerIdResponse) -> None:
        self.predecessor_expired = answer.predecessor_expired
        self.retired_id = answer.retired_producer_id or NO_ID
        self._name_expiration_s = answer.name_expiration_ms / 1000
        wanted_s = self._config.delivery_timeout_ms / 1000
        most_s = answer.max_delivery_timeout_ms / 1000 or wanted_s
        if most_s < wanted_s and most_s != self.delivery_timeout_s:
            log.warning(
                "delivery timeout shortened from_ms=%d to_ms=%d: brokers recognise repeats for no longer "
                "(max_delivery_timeout_ms, producer_expiration_ms)",
                self._config.delivery_timeout_ms,
                answer.max_delivery_timeout_ms,
            )
        self.delivery_timeout_s = min(wanted_s, most_s)
