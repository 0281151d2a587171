"""Faults on a local cluster: on requests of both protocols, on links, disks and processes.

    with cluster.faults.drop_answers(api="Produce", topic="orders", times=2) as lost:  # appended, never acknowledged
        …
    assert lost.fired == 2

- `faults`: what users call; `handle`: a fault that was set
- `rules`: a fault as a value; `board`: where all processes of a cluster find those that are set
- `process`: a broker or controller that obeys them, by `wire` (the seams), `served` (Fencepost's protocol),
  `kafka_stream` (Kafka's) and `inside` (what concerns one process)

A process has faults only if it was started by `faults.process`; production code knows nothing of all this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fencepost_testing.faults.faults import Faults
    from fencepost_testing.faults.handle import FaultHandle
    from fencepost_testing.faults.rules import FaultError

__all__ = ["FaultError", "FaultHandle", "Faults"]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: a process with faults needs none of this."""
    from importlib import import_module

    modules = {"Faults": "faults", "FaultHandle": "handle", "FaultError": "rules"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
