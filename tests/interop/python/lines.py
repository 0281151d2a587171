"""What the programs of the interop suite share: their arguments, and the lines that they write for the runner.

A program is called with one of::

    produce BOOTSTRAP TOPIC RUN COUNT RATE   send records 0 … COUNT-1 at RATE a second, then wait for all outcomes
    consume BOOTSTRAP TOPIC GROUP            read until SIGTERM; GROUP "-": every partition from its start, without a group
    admin BOOTSTRAP TOPIC PARTITIONS         create, list and describe a topic

and writes lines of words to standard output: `ack ID PARTITION OFFSET SENT_MS`, `fail ID REASON`, `fatal REASON`, `done`;
`assigned PARTITION…`, `record PARTITION OFFSET KEY VALUE`; `topic NAME PARTITIONS`. Times are of the wall clock.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

KEYS = 50
VALUE_BYTES = 100
_TICK_S = 0.002


def key_of(record_id: int) -> bytes:
    return b"key-%d" % (record_id % KEYS)


def value_of(run: str, record_id: int) -> bytes:
    return f"{run}:{record_id}:{record_id // KEYS}:".encode().ljust(VALUE_BYTES, b".")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word).replace("\n", " ") for word in words) + "\n")
    sys.stdout.flush()


def say_record(partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
    say("record", partition, offset, (key or b"-").decode(), (value or b"-").decode())


def paced(count: int, rate: float, between: Callable[[], object] = lambda: None) -> Iterator[int]:
    """The ids of records, each when it is due; `between` is called while none is."""
    started = time.monotonic()
    for record_id in range(count):
        while started + record_id / rate > time.monotonic():
            between()
            time.sleep(_TICK_S)
        yield record_id


def until_terminated() -> threading.Event:
    """Set by SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    return ended


def until_terminated_async() -> asyncio.Event:
    """Set by SIGTERM, in the running event loop."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    return ended


def say_assigned(partitions: Iterable[int]) -> None:
    say("assigned", *sorted(partitions))
