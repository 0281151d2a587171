"""Forgets producers that have been idle for long enough, in the logs of one broker.

Which producers those are is said by the rules (`ProducerState.idle`); how long batches have been there, by the log
(`Log.held_below`). A long search takes no lock: appends go on, and a producer that has written meanwhile stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fencepost_node.log.log import Log
from fencepost_node.log.snapshot import let_others_run
from fencepost_node.producers.producer_state_machine import PRODUCERS

log = logging.getLogger(__name__)

LATE_MS = 60_000  # how long a repeat may be on its way, beyond the delivery timeout of its sender
FORGOTTEN_IN_A_TURN = 4_096  # producers, while appends wait: two or three milliseconds


class ProducerExpiry:
    """When producers are idle, on one broker. Times in milliseconds, by the running time of the process.

    `is_kept`: whether what is known of a producer id is kept though it is idle; called in threads.
    """

    def __init__(self, expiration_ms: int, max_delivery_timeout_ms: int, is_kept: Callable[[int], bool]) -> None:
        self._expiration_ms = expiration_ms
        self._repeatable_ms = (
            max_delivery_timeout_ms + LATE_MS
        )  # so long after its first append a batch may be repeated
        self._is_kept = is_kept

    def observe(self, partition_log: Log, running_ms: int) -> bool:
        """Observe where the log ends. Whether there may be producers to forget."""
        partition_log.observe_end(running_ms, (self._expiration_ms, self._repeatable_ms))
        return partition_log.states[PRODUCERS].any_idle(*self._idle_below(partition_log, running_ms))

    def forget_idle(self, partition_log: Log, running_ms: int, high_watermark: int) -> None:
        """[thread] Forget the producers of a log that are idle at `running_ms`, by what `observe` saw."""
        idle_below = self._idle_below(partition_log, running_ms)
        with partition_log.appends_stopped():
            seen = partition_log.states[PRODUCERS].copy()
        idle = seen.idle(*idle_below, high_watermark, self._is_kept, let_others_run)
        if not idle:
            return
        expired = 0
        for first in range(0, len(idle), FORGOTTEN_IN_A_TURN):
            if first:
                let_others_run()
            with partition_log.appends_stopped():
                expired += partition_log.states[PRODUCERS].forget(idle[first : first + FORGOTTEN_IN_A_TURN])
        left = len(partition_log.states[PRODUCERS])
        log.info("producers expired directory=%s count=%d left=%d", partition_log.directory, expired, left)

    def _idle_below(self, partition_log: Log, running_ms: int) -> tuple[int, int]:
        """Below which offsets batches are as old as the expiration time, and too old to be repeated."""
        return (
            partition_log.held_below(running_ms, self._expiration_ms),
            partition_log.held_below(running_ms, self._repeatable_ms),
        )
