"""The controller process: `python -m fencepost_controller CONFIG.toml`.

SIGTERM and SIGINT: a clean shutdown. Exit codes: 0 after a clean shutdown; 2 where the controller cannot run as it is
configured (the configuration, the port, the data folder), with one line on standard error that says why; 70 where it found
a fault in itself.

The data folder holds `metadata.sqlite` (everything), `.lock` (held while a controller runs on it) and `process.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
from typing import Final

import uvloop

from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.store import StoreError
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.config import ConfigError, load
from fencepost_proto.errors import StorageError
from fencepost_proto.host import Host

EXIT_CANNOT_RUN: Final = 2
EXIT_FAULT: Final = 70
STORE_FILE: Final = "metadata.sqlite"
LOCK_FILE: Final = ".lock"
PROCESS_FILE: Final = "process.json"
_CANNOT_START: Final = (StoreError, StorageError, OSError)

log = logging.getLogger("fencepost_controller")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fencepost_controller",
        description="Run the Fencepost controller. It logs to standard error; SIGTERM shuts it down cleanly.",
        epilog="""example of a configuration:
  data_dir = "/var/lib/fencepost/controller"
  listen = "127.0.0.1:9090"    # default: any free port, written to DATA_DIR/process.json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the controller's configuration, a flat TOML file")
    path = parser.parse_args().config
    try:
        config = load(ControllerConfig, path)
    except ConfigError as error:
        return _refuse(str(error))
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s %(levelname)s controller %(name)s %(message)s", stream=sys.stderr
    )
    try:
        os.makedirs(config.data_dir, exist_ok=True)
        lock = _lock(config.data_dir)
        store = SqliteStore(os.path.join(config.data_dir, STORE_FILE))
    except (OSError, StoreError) as error:
        return _refuse(str(error))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, store))
    finally:
        os.close(lock)


def _lock(data_dir: str) -> int:
    """Held by staying open. Raises OSError where another controller runs on this folder."""
    descriptor = os.open(os.path.join(data_dir, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(f"data folder {data_dir!r} is in use by another controller") from None
    return descriptor


async def _serve(config: ControllerConfig, store: SqliteStore) -> int:
    """Run the controller until a signal or a fault. The exit code."""
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    controller = Controller(config, Host(), store)
    running = loop.create_task(_run(controller))
    stopping = loop.create_task(asked_to_stop.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    started = controller.address != ""
    if not running.done():
        running.cancel()
        await asyncio.wait([running])
    await controller.stop()
    error = None if running.cancelled() else running.exception()
    if controller.failed:
        error = await _failure(controller)
    if error is None:
        return 0
    if not started and isinstance(error, _CANNOT_START):
        return _refuse(str(error))
    log.critical("stopped for a fault: %s", error, exc_info=error)
    return EXIT_FAULT


async def _run(controller: Controller) -> None:
    await controller.start()
    content = {"pid": os.getpid(), "address": controller.address, "kind": "controller", "id": 0}
    await asyncio.to_thread(_write_process_file, controller.config.data_dir, json.dumps(content))
    await controller.wait()


async def _failure(controller: Controller) -> BaseException | None:
    try:
        await controller.wait()
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends the process with EXIT_FAULT
        return error
    return None


def _write_process_file(data_dir: str, content: str) -> None:
    path = os.path.join(data_dir, PROCESS_FILE)
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(f"{path}.tmp", path)


def _refuse(reason: str) -> int:
    print(f"fencepost_controller: {reason}", file=sys.stderr)
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
