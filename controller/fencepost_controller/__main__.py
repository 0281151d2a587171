"""The controller process: `python -m fencepost_controller CONFIG.toml`. Its life and exit codes: `runtime.process`.

The data folder holds `metadata.sqlite`: everything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.decisions.lineage import MetadataWentBack
from fencepost_controller.store import Store, StoreError
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import EXIT_WENT_BACK, Program, main

STORE_FILE: Final = "metadata.sqlite"


EXAMPLE: Final = """  data_dir = "/var/lib/fencepost/controller"
  listen = "127.0.0.1:9090"    # default: any free port, written to DATA_DIR/process.json
  insecure_listen = false      # true: listen may be an address that other machines reach; nothing authenticates them"""


def program(
    make_host: Callable[[], Host] = Host, wrap_store: Callable[[Store], Store] = lambda store: store
) -> Program[ControllerConfig]:
    """The controller's program. `make_host`: makes the surroundings that it runs in. `wrap_store`: puts something around
    its store in SQLite."""
    return Program(
        package="fencepost_controller",
        kind="controller",
        description="Run the Fencepost controller.",
        example=EXAMPLE,
        config=ControllerConfig,
        id_of=None,
        make=lambda config: Controller(
            config, make_host(), wrap_store(SqliteStore(os.path.join(config.data_dir, STORE_FILE)))
        ),
        cannot_start=(StoreError,),
        exit_codes=((MetadataWentBack, EXIT_WENT_BACK),),
    )


if __name__ == "__main__":
    sys.exit(main(program()))
