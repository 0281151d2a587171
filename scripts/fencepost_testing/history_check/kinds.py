"""What a history says of the log, in the kinds of `log_check`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fencepost_testing.history_check.anomalies import Anomaly, Verdict
from fencepost_testing.log_check.findings import MAX_EXAMPLES, Example, Findings, Kind

# Of an anomaly in what the log holds. The others are in what a consumer was handed.
KIND_OF: Mapping[Anomaly, Kind] = {
    Anomaly.LOST_WRITE: Kind.LOST,
    Anomaly.UNSEEN: Kind.LOST,
    Anomaly.DUPLICATE: Kind.DUPLICATED,
    Anomaly.REORDERED: Kind.REORDERED,
    Anomaly.NONMONOTONIC_SEND: Kind.REORDERED,
    Anomaly.SEQUENCE_GAP: Kind.GAP,
    Anomaly.G1A: Kind.RESURRECTED,
    Anomaly.NOT_LOST: Kind.RESURRECTED,
    Anomaly.MISPLACED_KEY: Kind.MISPLACED,
    Anomaly.PHANTOM: Kind.FOREIGN,
}


def count(verdict: Verdict, kind: Kind) -> int:
    """How often a history shows it."""
    return sum(number for anomaly, number in verdict.counts.items() if KIND_OF.get(anomaly) is kind)


def of_history(verdict: Verdict) -> tuple[Findings, list[str]]:
    """What a history says of the log; and what is wrong with what consumers were handed, in words."""
    findings, misread = Findings(), []
    for kind in Kind:
        findings.counts[kind] += count(verdict, kind)
    for finding in verdict.findings:
        kind_found = KIND_OF.get(finding.anomaly)
        if kind_found is None:
            misread.append(f"{finding.anomaly}: {finding.text}")
        elif len(findings.shown) < MAX_EXAMPLES:
            findings.shown.append(Example(kind_found, finding.text))
    return findings, misread
