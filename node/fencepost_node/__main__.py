"""The broker process: `python -m fencepost_node CONFIG.toml`. Its life and its exit codes: `runtime.process`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace

from fencepost_node.broker import Broker
from fencepost_node.config import BrokerConfig
from fencepost_node.controller_session import REFUSALS
from fencepost_node.folders.data_folder import DataFolderError
from fencepost_node.log.disk import Disk, RealDisk
from fencepost_node.log.open_files import open_files_for, raise_file_limit
from fencepost_proto.runtime.config import ConfigError
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import Program, main


def _broker(config: BrokerConfig, host: Host, over_disk: Callable[[Disk], Disk]) -> Broker:
    raise_file_limit()
    try:
        disk = over_disk(RealDisk(open_files_for(config.max_open_files)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Broker(replace(config, data_dir=os.path.abspath(config.data_dir)), host, disk)


EXAMPLE = """  broker_id = 1
  data_dir = "/var/lib/fencepost/broker-1"
  controller = "127.0.0.1:9090"
  listen = "127.0.0.1:9091"    # default: any free port, written to DATA_DIR/process.json

beyond this machine (nothing authenticates who connects):
  listen = "0.0.0.0:9091"
  insecure_listen = true
  advertised_address = "broker-1.example:9091"    # what clients connect to; default: the address it listens on"""


def _as_it_is(disk: Disk) -> Disk:
    return disk


def program(
    make_host: Callable[[], Host] = Host, over_disk: Callable[[Disk], Disk] = _as_it_is
) -> Program[BrokerConfig]:
    """The broker's program. `make_host`: makes the surroundings that it runs in. `over_disk`: what its disk is behind."""
    return Program(
        package="fencepost_node",
        kind="broker",
        description="Run one Fencepost broker.",
        example=EXAMPLE,
        config=BrokerConfig,
        id_of=lambda config: config.broker_id,
        make=lambda config: _broker(config, make_host(), over_disk),
        cannot_start=(DataFolderError, ConfigError),
        refusals=REFUSALS,
    )


if __name__ == "__main__":
    sys.exit(main(program()))
