"""What a process gets from the machine that it runs on: how to reach others and be reached, the wall clock, and chance.

Together with the broker's disk this is all that the simulation replaces. Time that passes is not here: it comes from
the running event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self, cast

from fencepost_proto.transport import streams
from fencepost_proto.transport.carriers.carrier_wire import Carrier, wire_of_environment
from fencepost_proto.transport.wire import Wire


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Host:
    """The surroundings of one process."""

    wire: Wire = field(default_factory=wire_of_environment)
    wall_clock_ms: Callable[[], int] = _wall_clock_ms  # for record timestamps and retention only
    random: random.Random = field(default_factory=random.Random)  # ids, jitter
    listen: streams.Listen = streams.listen  # for protocols that are not gRPC

    def with_carrier(self, carrier: str) -> Self:
        """As it is, but that calls travel by this one of CARRIERS."""
        return replace(self, wire=self.wire.with_carrier(cast(Carrier, carrier)))
