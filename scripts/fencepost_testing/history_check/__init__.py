"""Checks a history: what clients asked of a log and were answered, against what a correct log can have answered.

The format is that of `fencepost.history_format`. The check goes through it once, and keeps about 300 bytes for each
value; `anomalies.Anomaly` lists what it finds. It needs nothing but the history: no broker, no clock, no order between
processes beyond that of the lines. What it takes for granted:

- A record is known by its value, so no two sends to a topic carry the same one.
- An outcome that is unknown may be either: such a record may be in the log or not, but once, in order, and permanently.
- A process hands its records over one after another to one producer, so they stand in a partition in that order.
  (Without idempotence, acks=0 or 1, they need not; the findings then show what that costs.)
- Where retention removes what no one has read yet, consumers say that their position was moved (`seek`), and a final
  read says where the log begins.

As a library: `check_history(lines)`, or `HistoryCheck` fed operation by operation; `with_operations` shows the findings
among the operations around them.
"""

from fencepost_testing.history_check.anomalies import MEANING, Anomaly, Finding, Shown, Verdict
from fencepost_testing.history_check.check import BrokenHistory, HistoryCheck
from fencepost_testing.history_check.context import with_operations
from fencepost_testing.history_check.kinds import KIND_OF, count, of_history
from fencepost_testing.history_check.lines import check_history

__all__ = [
    "KIND_OF",
    "MEANING",
    "Anomaly",
    "BrokenHistory",
    "Finding",
    "HistoryCheck",
    "Shown",
    "Verdict",
    "check_history",
    "count",
    "of_history",
    "with_operations",
]
