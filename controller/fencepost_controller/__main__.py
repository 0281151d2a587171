"""The controller process: `python -m fencepost_controller CONFIG.toml`. Its life and exit codes: `runtime.process`.

The data folder holds `metadata.sqlite`: everything. With `store = "etcd"` it holds nothing that matters.
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
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import EXIT_WENT_BACK, Program, main

STORE_FILE: Final = "metadata.sqlite"


EXAMPLE: Final = """  data_dir = "/var/lib/fencepost/controller"
  listen = "127.0.0.1:9090"    # default: any free port, written to DATA_DIR/process.json
  insecure_listen = false      # true: listen may be an address that other machines reach; nothing authenticates them

  store = "etcd"               # one of several controllers; default: "sqlite", for one alone
  controller_id = 1
  etcd_endpoints = "10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379\""""


def open_store(config: ControllerConfig, host: Host) -> SqliteStore | SharedMetadata:
    """The store that is configured. Called inside the running event loop. Raises StoreError."""
    if config.store == "sqlite":
        return SqliteStore(os.path.join(config.data_dir, STORE_FILE))
    from fencepost_controller.store.etcd.connecting import connect  # needs packages that SQLite does not

    return connect(config, host)


def program(
    make_host: Callable[[], Host] = Host, wrap_store: Callable[[Store], Store] = lambda store: store
) -> Program[ControllerConfig]:
    """The controller's program. `make_host`: makes the surroundings that it runs in. `wrap_store`: puts something around
    its store in SQLite."""

    def make(config: ControllerConfig) -> Controller:
        host = make_host()
        store = open_store(config, host)
        return Controller(config, host, store if isinstance(store, SharedMetadata) else wrap_store(store))

    return Program(
        package="fencepost_controller",
        kind="controller",
        description="Run the Fencepost controller.",
        example=EXAMPLE,
        config=ControllerConfig,
        id_of=None,
        make=make,
        cannot_start=(StoreError,),
        refusals=(StoreError,),
        exit_codes=((MetadataWentBack, EXIT_WENT_BACK),),
    )


if __name__ == "__main__":
    sys.exit(main(program()))
