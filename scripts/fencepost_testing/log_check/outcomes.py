"""The outcome of a send, and what it says of the log."""

from __future__ import annotations

from enum import IntEnum

from fencepost_testing.log_check.findings import Kind


class Outcome(IntEnum):
    """What became of a record, as far as its sender knows."""

    NEVER_SENT = 0
    UNKNOWN = 1  # nothing yet, or an error that says it may be in the log
    ACKED = 2
    REFUSED = 3  # an error that says it is not in the log


_WRONG_IN_LOG = {Outcome.NEVER_SENT: Kind.FOREIGN, Outcome.REFUSED: Kind.RESURRECTED}


def wrong_outcome(outcome: Outcome, *, in_log: bool, must_be_kept: bool = True) -> Kind | None:
    """What is wrong when a record of that outcome is in the log, or is not; None: nothing is.

    `must_be_kept`: neither retention nor an unclean election may have removed an acknowledged record.
    """
    if in_log:
        return _WRONG_IN_LOG.get(outcome)
    return Kind.LOST if outcome is Outcome.ACKED and must_be_kept else None
