"""Which state machines the logs of partitions fold."""

from __future__ import annotations

from fencepost_node.producers.producer_state_machine import PRODUCERS

STATE_MACHINES = (PRODUCERS,)
