"""Records that a consumer was not handed between two that it was.

Offsets alone do not show it: other logs have offsets without records. So a skip counts where anyone's read or
acknowledgement shows that a record stands there.
"""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings
from fencepost_testing.history_check.partition_log import PartitionLog
from fencepost_testing.history_check.sends import Sends, shown


def check_skips(log: PartitionLog, sends: Sends, names: Sequence[str], findings: AnomalyFindings) -> None:
    """poll-skip."""
    for skip in log.skips:
        skipped = list(log.known(skip.start_offset, skip.end_offset))
        if not skipped:
            continue
        offset, number = skipped[0]
        known = f"{len(skipped)} records stand, the first" if len(skipped) > 1 else "a record stands:"
        text = (
            f"{log.name}: {names[skip.process]} was handed nothing from offset {skip.start_offset} to "
            f"{skip.end_offset - 1}, where {known} {shown(sends.values[number])} at offset {offset}"
        )
        evidence = (skip.line, *sends.evidence(number))
        findings.add(Anomaly.POLL_SKIP, text, evidence, (offset,))
