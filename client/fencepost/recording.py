"""A producer whose sends are written into a history, for `fencepost check` to judge.

What it records is what its application is told: each record's invocation when it is handed over, and, when that is known,
its outcome with the stamp (producer id, epoch, sequence) by which brokers know it. A process that dies leaves sends
without an outcome; the checker takes them as unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Unpack

from fencepost.history import History
from fencepost.producer import CLOSE_TIMEOUT_S, Headers, Producer
from fencepost.producing.config import ProducerOptions
from fencepost.producing.delivery import Delivery
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.runtime.host import Host


class RecordingProducer(Producer):
    """A `Producer` in everything else. Values must be unique in their topic, or the checker cannot tell them apart.

    The history stays open: close it after the producer.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        history: History,
        host: Host | None = None,
        **config: Unpack[ProducerOptions],
    ) -> None:
        super().__init__(bootstrap, host=host, **config)
        self._history = history
        self._recordings: dict[asyncio.Task[None], None] = {}  # of records without an outcome

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> Delivery:
        operation = self._history.invoke_send(topic, partition, key, value)
        try:
            delivery = await super().send(
                topic, value, key=key, partition=partition, headers=headers, timestamp_ms=timestamp_ms
            )
        except FencepostError as error:
            self._history.complete_send(operation, topic, partition, -1, error=error)
            raise
        task = asyncio.get_running_loop().create_task(self._record(operation, topic, partition, delivery))
        self._recordings[task] = None
        task.add_done_callback(self._recordings.pop)
        return delivery

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """As `Producer.close`; every record's outcome is in the history after it."""
        await super().close(timeout_s)
        await asyncio.gather(*self._recordings)

    async def _record(self, operation: int, topic: str, partition: int | None, delivery: Delivery) -> None:
        try:
            metadata = await delivery
        except FencepostError as error:
            self._history.complete_send(operation, topic, partition, -1, error=error, producer=delivery.stamp)
        else:
            self._history.complete_send(operation, topic, metadata.partition, metadata.offset, producer=delivery.stamp)
