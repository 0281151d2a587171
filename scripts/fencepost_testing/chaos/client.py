"""Run as a program by `fleet.Fleet`, one process for each client: `python -m fencepost_testing.chaos.client CLIENT.json`.

It produces or consumes until SIGTERM, finishes what it has begun, and ends. Every line of its history is in the file before
the client goes on, so that a kill -9 leaves no record in the log of which the history does not know.

Exit codes: 0 finished; 1 an error that no client should get; 3 (EXIT_FENCED) another instance has taken the producer's name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

from fencepost.history import History
from fencepost_testing.chaos.client_config import ClientConfig
from fencepost_testing.chaos.consuming import consume
from fencepost_testing.chaos.foreign import produce as produce_foreign
from fencepost_testing.chaos.foreign import take_part
from fencepost_testing.chaos.producing import produce
from fencepost_testing.kafka_clients import FENCEPOST


@contextmanager
def unbuffered_history(path: Path, process: str) -> Iterator[History]:
    """A history whose every line is written at once, whole: a kill of this process loses none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        yield History(lambda line: os.write(descriptor, f"{line}\n".encode()), process=process)
    finally:
        os.close(descriptor)


def stop_on_sigterm() -> asyncio.Event:
    """Set by SIGTERM, also when the loop is closed: its own handler would end with it, and then SIGTERM would kill."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def asked(_number: int, _frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGTERM, asked)
    return stop


def run(client: Coroutine[None, None, int]) -> int:
    """The exit code. From its end on SIGTERM is ignored: the interpreter puts other handlers back to the default, which
    kills, while it takes itself down."""
    try:
        return asyncio.run(client)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def _run(config: ClientConfig) -> int:
    stop = stop_on_sigterm()
    with unbuffered_history(Path(config.history_file), config.process) as history:
        if config.kind == "member":
            return await take_part(config, history, stop)
        if config.client != FENCEPOST:
            return await produce_foreign(config, history, stop)
        return await (produce if config.kind == "producer" else consume)(config, history, stop)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for the run
    sys.exit(run(_run(ClientConfig.read(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
