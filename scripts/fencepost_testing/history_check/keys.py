"""Where the records of each key are: in one partition, where senders place records by their keys.

With it the order of a key's records follows from that of their sender (`log_order`): they stand in one partition, in the
order of sending.
"""

from __future__ import annotations

from fencepost.history_format import Value
from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings
from fencepost_testing.history_check.partition_log import PartitionLog
from fencepost_testing.history_check.sends import Sends, shown


class KeyPlaces:
    """misplaced-key."""

    def __init__(self, findings: AnomalyFindings) -> None:
        self._findings = findings
        self._keys: dict[int, Value] = {}  # of values whose partition is not known yet, by number
        self._homes: dict[tuple[str, Value], tuple[PartitionLog, int]] = {}  # (topic, key) -> partition, a value there

    def sent(self, number: int, key: Value) -> None:
        self._keys[number] = key

    def found(self, number: int, log: PartitionLog, sends: Sends) -> None:
        """A value is reported in this partition. (Where it is reported in another one later, it is a duplicate.)"""
        key = self._keys.pop(number, None)
        if key is None:
            return
        home, first = self._homes.setdefault((log.topic, key), (log, number))
        if home is not log:
            text = (
                f"key {shown(key)}: {shown(sends.values[number])} is in {log.name}, and {shown(sends.values[first])} in "
                f"{home.name}"
            )
            self._findings.add(Anomaly.MISPLACED_KEY, text, (*sends.evidence(first), *sends.evidence(number)))
