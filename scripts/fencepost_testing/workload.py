"""A producing workload that keeps a ledger of every record: what `fencepost workload produce` and the demo run.

Two tasks share the work: one sends, at a rate or as fast as the producer takes records; the other awaits the
deliveries, oldest first, and enters their outcomes.

Times are those of time.monotonic(): uvloop's own clock counts whole milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fencepost import RecordMetadata
from fencepost.history_format import RecordStamp
from fencepost_proto.protocol.errors import FencepostError, ProducerFenced, UnknownTopicId, UnknownTopicOrPartition
from fencepost_testing.log_check.ledger import Ledger, make_value

MAX_PENDING = 200_000  # deliveries awaited; beyond it the sender waits
MAX_LATENCIES = 100_000  # of the newest acknowledgements, for percentiles
_SENDS_BETWEEN_YIELDS = 256
_TICK_S = 0.002  # at a rate: how late a record may be sent

_FATAL = (ProducerFenced, UnknownTopicId, UnknownTopicOrPartition)


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What to send."""

    topic: str
    record_size_bytes: int = 100
    keys: int = 100  # how many different ones; 0: records without a key
    rate: float = 0.0  # records a second; 0: flat out
    count: int = 0  # 0: no limit
    duration_s: float = 0.0  # 0: no limit
    seed: int = 0  # decides the order of keys


class SentRecord(Protocol):
    """A record on its way: `fencepost.Delivery`, or that of another client."""

    @property
    def stamp(self) -> RecordStamp | None: ...

    def __await__(self) -> Generator[Any, None, RecordMetadata]: ...


class RecordSender(Protocol):
    """What a workload calls: `fencepost.Producer`, or another client's (`kafka_clients`)."""

    async def send(self, topic: str, value: bytes, *, key: bytes | None = None) -> SentRecord: ...

    async def flush(self) -> None: ...


SenderT = TypeVar("SenderT", bound=RecordSender)


class Pending(NamedTuple):
    record_id: int
    sent_at: float
    delivery: SentRecord


class Acked(NamedTuple):
    """One acknowledgement, for those who watch."""

    record_id: int
    metadata: RecordMetadata
    sent_at: float
    acked_at: float


@dataclass(slots=True)
class Workload(Generic[SenderT]):
    """`run` it once; the figures may be read while it runs."""

    producer: SenderT
    spec: WorkloadSpec
    ledger: Ledger
    on_acked: Callable[[Acked], None] | None = None
    acked: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by error name
    last_error: FencepostError | None = None
    fatal: FencepostError | None = None  # ended the run
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))
    _pending: deque[Pending] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sent_all: bool = False
    _allowed: float = math.inf
    _allowed_more: asyncio.Event = field(default_factory=asyncio.Event)

    def allow(self, records: int) -> None:
        """Send at most so many, for now; without a call there is no such limit."""
        self._allowed = records
        self._allowed_more.set()

    async def wait_sent(self, records: int) -> None:
        """Return once so many have been sent, or nothing more will be."""
        while self.ledger.sent < records and not self._sent_all:  # noqa: ASYNC110 - a tick later is soon enough
            await asyncio.sleep(_TICK_S)

    async def run(self, stop: asyncio.Event) -> None:
        """Send until the count, the duration or `stop`, then until every record has its outcome."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle())
            try:
                await self._send_all(stop)
                with contextlib.suppress(ProducerFenced):  # every delivery says so itself
                    await self.producer.flush()
            finally:
                self._sent_all = True
                self._changed.set()

    # ---- Sending ----

    async def _send_all(self, stop: asyncio.Event) -> None:
        spec = self.spec
        rng = random.Random(spec.seed)
        counters: Counter[bytes] = Counter()
        keys = [b"key-%d" % number for number in range(spec.keys)]
        started = time.monotonic()
        while not stop.is_set() and self.fatal is None and self.ledger.sent < (spec.count or math.inf):
            if self.ledger.sent >= self._allowed:
                held_at = time.monotonic()
                self._allowed_more.clear()
                await self._allowed_more.wait()
                started += time.monotonic() - held_at
            if spec.duration_s and time.monotonic() - started >= spec.duration_s:
                return
            for _ in range(self._due(time.monotonic() - started)):
                key = rng.choice(keys) if keys else None
                await self._send(key, counters[key or b""])
                counters[key or b""] += 1
            await asyncio.sleep(self._pause(started, time.monotonic()))
            while len(self._pending) >= MAX_PENDING:
                self._changed.clear()
                await self._changed.wait()

    def _due(self, elapsed_s: float) -> int:
        """How many records to send now."""
        spec, sent = self.spec, self.ledger.sent
        due = int(elapsed_s * spec.rate) + 1 if spec.rate else sent + _SENDS_BETWEEN_YIELDS
        return min(due, sent + _SENDS_BETWEEN_YIELDS, spec.count or due, int(min(due, self._allowed))) - sent

    def _pause(self, started: float, now: float) -> float:
        """Until the next record is due; small pauses are gathered into ticks."""
        if not self.spec.rate:
            return 0.0
        until_due = started + self.ledger.sent / self.spec.rate - now
        return max(until_due, _TICK_S if self.spec.rate * _TICK_S > 1 else 0.0)

    async def _send(self, key: bytes | None, counter: int) -> None:
        record_id = self.ledger.send()
        value = make_value(self.ledger.run, record_id, counter, self.spec.record_size_bytes)
        sent_at = time.monotonic()
        try:
            delivery = await self.producer.send(self.spec.topic, value, key=key)
        except FencepostError as error:
            self._enter_failure(record_id, error)
            return
        self._pending.append(Pending(record_id, sent_at, delivery))
        self._changed.set()

    # ---- Outcomes ----

    async def _settle(self) -> None:
        pending = self._pending
        while True:
            while not pending:
                if self._sent_all:
                    return
                self._changed.clear()
                await self._changed.wait()
            record_id, sent_at, delivery = pending[0]
            try:
                metadata = await delivery
            except FencepostError as error:
                self._enter_failure(record_id, error)
            else:
                now = time.monotonic()
                self.ledger.ack(record_id, metadata.partition, metadata.offset, delivery.stamp)
                self.acked += 1
                self.latencies_s.append(now - sent_at)
                if self.on_acked is not None:
                    self.on_acked(Acked(record_id, metadata, sent_at, now))
            pending.popleft()
            if len(pending) == MAX_PENDING - 1:
                self._changed.set()

    def _enter_failure(self, record_id: int, error: FencepostError) -> None:
        self.ledger.fail(record_id, may_have_been_appended=error.may_have_been_appended)
        self.failed[error.code.name] += 1
        self.last_error = error
        if isinstance(error, _FATAL):
            self.fatal = error


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the sorted values do not exceed; NaN without values."""
    if not values:
        return float("nan")
    return values[max(0, math.ceil(share * len(values)) - 1)]
