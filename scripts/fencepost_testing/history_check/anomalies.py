"""What can be wrong with a history, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_SHOWN = 10  # findings of one kind that are shown; all are counted
MAX_EVIDENCE = 8  # lines that a finding names


class Anomaly(StrEnum):
    """The names are those of Jepsen's workloads for Kafka-like systems; from "reordered" on they are Fencepost's own."""

    LOST_WRITE = "lost-write"
    DUPLICATE = "duplicate"
    INCONSISTENT_OFFSETS = "inconsistent-offsets"
    G1A = "G1a"
    NONMONOTONIC_SEND = "nonmonotonic-send"
    NONMONOTONIC_POLL = "nonmonotonic-poll"
    POLL_SKIP = "poll-skip"
    UNSEEN = "unseen"
    PRECOMMITTED_READ = "precommitted-read"
    REORDERED = "reordered"
    SEQUENCE_GAP = "sequence-gap"
    PHANTOM = "phantom"
    NOT_LOST = "not-lost"
    MISPLACED_KEY = "misplaced-key"
    TWO_OWNERS = "two-owners"
    COMMIT_WENT_BACK = "commit-went-back"
    LOST_COMMIT = "lost-commit"
    COMMITTED_UNREAD = "committed-unread"


MEANING: Mapping[Anomaly, str] = {
    Anomaly.LOST_WRITE: "acknowledged, and not in the log where it was read",
    Anomaly.DUPLICATE: "in the log more than once: a value, or a producer's sequence number",
    Anomaly.INCONSISTENT_OFFSETS: "one offset was seen with different values",
    Anomaly.G1A: "certainly failed, and read nevertheless",
    Anomaly.NONMONOTONIC_SEND: "acknowledged at an offset below that of an earlier send of the same process",
    Anomaly.NONMONOTONIC_POLL: "a consumer was handed an offset that it had passed",
    Anomaly.POLL_SKIP: "a consumer was not handed a record between two that it got",
    Anomaly.UNSEEN: "acknowledged, and never read: no one is known to have come that far",
    Anomaly.PRECOMMITTED_READ: "read at or above the high watermark, or read and later gone from the log",
    Anomaly.REORDERED: "records of one producer stand in the log in another order than they were sent in",
    Anomaly.SEQUENCE_GAP: "a sequence number of a producer is missing in the log",
    Anomaly.PHANTOM: "read, and sent by no one in the history",
    Anomaly.NOT_LOST: "an operator was shown that an unclean election takes it, and it still stands at its offset",
    Anomaly.MISPLACED_KEY: "records of one key are in two partitions",
    Anomaly.TWO_OWNERS: "commits of two members of a group were taken, one of which had not been given the partition since",
    Anomaly.COMMIT_WENT_BACK: "a commit was taken below one that had been taken before it was sent",
    Anomaly.LOST_COMMIT: "a member was given a partition and began below what had been committed",
    Anomaly.COMMITTED_UNREAD: "committed by a group of which no member was handed the record",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of the history, as it is shown."""

    where: str  # file:line, or the line's number
    text: str
    evidence: bool  # else it only stands beside


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    anomaly: Anomaly
    text: str
    evidence: tuple[int, ...]  # ordinals of lines, from 1
    offsets: tuple[int, ...] = ()  # what to look at in polls of many records
    operations: tuple[Shown, ...] = ()  # the evidence and what stands around it; see context.py

    def to_json(self) -> dict[str, Any]:
        shown = [{"at": line.where, "text": line.text, "evidence": line.evidence} for line in self.operations]
        return {"anomaly": self.anomaly.value, "text": self.text, "operations": shown}


def printable(text: str) -> str:
    """A history may come from anywhere; what is shown of it must not steer a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


@dataclass(slots=True)
class AnomalyFindings:
    """How often each thing is wrong, and the first of each kind."""

    counts: Counter[Anomaly] = field(default_factory=Counter)
    shown: list[Finding] = field(default_factory=list)

    def add(
        self, anomaly: Anomaly, text: str, evidence: tuple[int, ...] = (), offsets: tuple[int, ...] = (), count: int = 1
    ) -> None:
        """Ordinals of 0 in `evidence` stand for lines that there are not."""
        told = self.counts[anomaly]
        self.counts[anomaly] += count
        if told < MAX_SHOWN:
            lines = sorted({ordinal for ordinal in evidence if ordinal})[:MAX_EVIDENCE]
            self.shown.append(Finding(anomaly, printable(text), tuple(lines), offsets))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a whole history says."""

    lines: int
    sends: int
    acked: int
    failed: int
    unknown: int  # no outcome recorded, or an unknown one
    stamped: int  # sends whose stamp is known: their sequences were followed through the logs
    records_read: int  # each as often as it was handed out
    partitions: int
    final_reads: int  # partitions with a complete final read
    counts: Mapping[Anomaly, int]
    findings: tuple[Finding, ...]
    elections: int = 0  # unclean ones that were ordered
    lost_as_told: int = 0  # acknowledged records that they took, as the operator was shown
    commits: int = 0  # of members of groups, that were stored

    @property
    def clean(self) -> bool:
        return not any(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.clean,
            "lines": self.lines,
            "sends": self.sends,
            "acked": self.acked,
            "failed": self.failed,
            "unknown": self.unknown,
            "stamped": self.stamped,
            "records_read": self.records_read,
            "partitions": self.partitions,
            "final_reads": self.final_reads,
            "elections": self.elections,
            "lost_as_told": self.lost_as_told,
            "commits": self.commits,
            "anomalies": {anomaly.value: count for anomaly in Anomaly if (count := self.counts.get(anomaly, 0))},
            "findings": [finding.to_json() for finding in self.findings],
        }
