"""What the producers of other projects have in common here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Self

from fencepost import RecordMetadata
from fencepost.history import History
from fencepost_proto.protocol.errors import UnknownServerError

LINGER_MS: Final = 5
DELIVERY_TIMEOUT_S: Final = 120.0  # as Fencepost's own producer
NO_TIMESTAMP: Final = -1


class KafkaDelivery:
    """The record's outcome: await it for its place. Raises UnknownServerError with what the client said."""

    __slots__ = ("_outcome",)

    stamp = None  # these clients do not show the numbers under which brokers know a record

    def __init__(self, outcome: asyncio.Future[RecordMetadata]) -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        return self._outcome.__await__()


class KafkaProducer(ABC):
    """Idempotent, acks=all. Outcomes come on this event loop, whichever threads the client has."""

    def __init__(self, bootstrap: str, history: History | None) -> None:
        self._bootstrap = bootstrap
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._open: set[asyncio.Future[RecordMetadata]] = set()  # records without an outcome

    async def send(self, topic: str, value: bytes, *, key: bytes | None = None) -> KafkaDelivery:
        """Hand one record over; returns before it is acknowledged."""
        outcome: asyncio.Future[RecordMetadata] = self._loop.create_future()
        if self._history is not None:
            operation = self._history.invoke_send(topic, None, key, value)
            outcome.add_done_callback(lambda done: self._record(operation, topic, done))
        self._open.add(outcome)
        outcome.add_done_callback(self._open.discard)
        await self._hand_over(topic, key, value, outcome)
        return KafkaDelivery(outcome)

    async def flush(self) -> None:
        """Return once every record has its outcome, success or not."""
        if self._open:
            await asyncio.wait(self._open)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()
        for outcome in list(self._open):
            outcome.cancel()

    def _record(self, operation: int, topic: str, done: asyncio.Future[RecordMetadata]) -> None:
        if self._history is None or done.cancelled():
            return
        if error := done.exception():
            self._history.complete_send(operation, topic, None, -1, error=error)
        else:
            place = done.result()
            self._history.complete_send(operation, topic, place.partition, place.offset)

    # ---- For the clients' modules ----

    def acknowledge(self, outcome: asyncio.Future[RecordMetadata], topic: str, partition: int, offset: int) -> None:
        """Call it on the loop."""
        if not outcome.done():
            outcome.set_result(RecordMetadata(topic, partition, offset, NO_TIMESTAMP))

    def fail(self, outcome: asyncio.Future[RecordMetadata], reason: object) -> None:
        """Call it on the loop. Whether the record is in the log is not known: these errors do not say so."""
        if not outcome.done():
            outcome.set_exception(UnknownServerError(f"the client gave a record up: {reason!r}"))

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _hand_over(
        self, topic: str, key: bytes | None, value: bytes, outcome: asyncio.Future[RecordMetadata]
    ) -> None: ...

    @abstractmethod
    async def _stop(self) -> None:
        """Wait for what is under way, at most for the delivery timeout."""
