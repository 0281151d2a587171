"""The broker process: `python -m fencepost_node CONFIG.toml`.

SIGTERM and SIGINT: a clean shutdown. Exit codes: 0 after a clean shutdown; 2 where the broker cannot run as it is
configured (the configuration, the port, the data folder, a refused registration), with one line on standard error that
says why; 70 where the broker found a fault in itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from typing import Final

import uvloop

from fencepost_node.broker import Broker
from fencepost_node.config import BrokerConfig
from fencepost_node.data_folder import DataFolderError
from fencepost_node.log.disk import RealDisk
from fencepost_node.session import REFUSALS
from fencepost_proto.config import ConfigError, load
from fencepost_proto.errors import StorageError
from fencepost_proto.host import Host

EXIT_CANNOT_RUN: Final = 2
EXIT_FAULT: Final = 70
_CANNOT_START: Final = (DataFolderError, StorageError, OSError)

log = logging.getLogger("fencepost_node")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fencepost_node",
        description="Run one Fencepost broker. It logs to standard error; SIGTERM shuts it down cleanly.",
        epilog="""example of a configuration:
  broker_id = 1
  data_dir = "/var/lib/fencepost/broker-1"
  controller = "127.0.0.1:9090"
  listen = "127.0.0.1:9091"    # default: any free port, written to DATA_DIR/process.json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the broker's configuration, a flat TOML file")
    path = parser.parse_args().config
    try:
        config = load(BrokerConfig, path)
    except ConfigError as error:
        return _refuse(str(error))
    logging.basicConfig(
        level=config.log_level,
        format=f"%(asctime)s %(levelname)s broker={config.broker_id} %(name)s %(message)s",
        stream=sys.stderr,
    )
    config = replace(config, data_dir=os.path.abspath(config.data_dir))
    _allow_open_files()
    gc.freeze()  # what the imports made stays for good: collections need not look at it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config))


def _allow_open_files() -> None:
    """As many as the system lets this process have: every segment takes three, every connection one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(config: BrokerConfig) -> int:
    """Run the broker until a signal or a fault. The exit code."""
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    broker = Broker(config, Host(), RealDisk())
    running = loop.create_task(_run(broker))
    stopping = loop.create_task(asked_to_stop.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    started = broker.address != ""
    if not running.done():
        running.cancel()
        await asyncio.wait([running])
    error = None if running.cancelled() else _cause(running.exception())
    if error is None:
        error = await _stop(broker, clean=started)
        if error is None:
            return 0
    elif isinstance(error, REFUSALS) or (not started and isinstance(error, _CANNOT_START)):
        await _stop(broker, clean=False)
        return _refuse(str(error))
    log.critical("stopping at once: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(EXIT_FAULT)  # nothing of this state is to be written any more


async def _stop(broker: Broker, clean: bool) -> BaseException | None:
    """What went wrong in it."""
    try:
        await broker.stop(clean)
        if broker.failed:
            await broker.wait()
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends the process with EXIT_FAULT
        return error
    return None


def _cause(error: BaseException | None) -> BaseException | None:
    """The first error in a group: logs are recovered side by side."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(broker: Broker) -> None:
    await broker.start()
    await broker.wait()


def _refuse(reason: str) -> int:
    print(f"fencepost_node: {reason}", file=sys.stderr)
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
