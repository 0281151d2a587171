"""A broker or controller process whose calls go through a fault switch.

`python -m fencepost_testing.faulty_process fencepost_node CONFIG.toml` is `python -m fencepost_node CONFIG.toml`, but calls
every peer at the port that FENCEPOST_FAULT_PORT names (`faulty_wire`). Likewise `fencepost_controller`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import fencepost_controller.__main__ as controller
import fencepost_node.__main__ as node
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.process import Program, main
from fencepost_testing.faulty_wire import host_with_faults

PROGRAMS: dict[str, Callable[[Callable[[], Host]], Program[Any]]] = {
    "fencepost_node": node.program,
    "fencepost_controller": controller.program,
}

if __name__ == "__main__":
    sys.exit(main(PROGRAMS[sys.argv.pop(1)](host_with_faults)))
