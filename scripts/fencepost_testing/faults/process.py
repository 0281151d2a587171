"""A broker or controller process with the faults of its cluster.

`python -m fencepost_testing.faults.process fencepost_node DIR/broker-1/broker.toml` is `python -m fencepost_node …`, but its
wire, its byte streams and its disk obey the faults that are posted in DIR/faults. Likewise `fencepost_controller`. Nothing
else makes a process look there: one that was started without this module has no faults, and gets none.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import Program, main
from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.wire import host_with_faults


def program(package: str, faults: FaultsInside) -> Program[Any]:
    """The package's program, with faults. Only what that one needs is imported."""

    def make_host() -> Host:
        return host_with_faults(Host(), faults)

    known: Program[Any]
    if package == "fencepost_node":
        from fencepost_node.__main__ import program as node_program
        from fencepost_testing.faults.disk import FaultyDisk

        known = node_program(make_host, lambda disk: FaultyDisk(disk, faults))
    else:
        from fencepost_controller.__main__ import program as controller_program
        from fencepost_testing.faults.store import FaultyStore

        known = controller_program(make_host, lambda store: FaultyStore(store, faults))

    def make(config: Any) -> Any:
        component = known.make(config)
        if package == "fencepost_node":
            faults.topic_name = lambda topic_id: _topic_name(component, topic_id)
        faults.listen()
        return component

    return replace(known, make=make)


def _topic_name(broker: Any, topic_id: str) -> str:
    topic = broker.manager.image.topics.get(topic_id)
    return topic_id if topic is None else str(topic.name)


def _run(package: str, config_file: Path) -> int:
    folder = config_file.absolute().parent
    cluster = folder.parent
    faults = FaultsInside(Board(cluster / FOLDER), folder.name, cluster_file=cluster / "cluster.json")
    return main(program(package, faults))


if __name__ == "__main__":
    sys.exit(_run(sys.argv.pop(1), Path(sys.argv[-1])))
