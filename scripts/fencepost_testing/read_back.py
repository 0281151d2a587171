"""Reading a topic to its end, record by record, by one consumer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from fencepost import Consumer, ConsumerRecord, TopicPartition
from fencepost.history import History, Sink
from fencepost_testing.failures import CommandFailed

FINAL_READER = "final"  # the process, in histories
STILL_TIMEOUT_S = 60.0
_POLL_RECORDS = 2_000
_POLL_MS = 200

OnRecord = Callable[[ConsumerRecord], object]


class StandsStill(CommandFailed):
    """There is more to read, and nothing comes."""


async def read_to_end(consumer: Consumer, on_record: OnRecord, written: asyncio.Event | None = None) -> int:
    """Read all that is in the assigned partitions once `written` is set (now, where there is none); how many records.

    Raises StandsStill where records are missing and none comes for a while.
    """
    ends: dict[TopicPartition, int] | None = None
    records, moved_at = 0, time.monotonic()
    while True:
        if ends is None and (written is None or written.is_set()):
            ends = await consumer.end_offsets(consumer.assignment)
        left = {tp: end for tp, end in (ends or {}).items() if await consumer.position(tp) < end}
        if ends is not None and not left:
            return records
        polled = await consumer.poll(_POLL_RECORDS, _POLL_MS)
        for record in polled:
            on_record(record)
        records += len(polled)
        if polled or ends is None:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STILL_TIMEOUT_S:
            raise StandsStill(f"nothing to read for {STILL_TIMEOUT_S:g} s, below the ends {left}")


async def read_everything(
    bootstrap: str, topic: str, sink: str | os.PathLike[str] | Sink, on_record: OnRecord = lambda _: None
) -> int:
    """One consumer reads every partition whole, and records that in `sink`. Returns how many records.

    Call it when no send is under way any more. Raises StandsStill where records are missing and none comes.
    """
    history = History(sink, process=FINAL_READER)
    try:
        async with Consumer(bootstrap, topic, history=history) as consumer:
            finals = {tp: history.invoke_final(topic, tp.partition) for tp in consumer.assignment}
            starts = await consumer.beginning_offsets(consumer.assignment)
            ends = await consumer.end_offsets(consumer.assignment)
            records = await read_to_end(consumer, on_record)
            for tp, final in finals.items():
                history.complete_final(final, topic, tp.partition, starts[tp], ends[tp])
            return records
    finally:
        history.close()
