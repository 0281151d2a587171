"""Groups of consumers in a history: whose commits were taken, and what was given to whom.

Fed with the lines of members in the order of time. What it knows of a partition in a group: which member was given it last,
every commit with its outcome, and which offsets members were handed. The rules:

- *two owners*: once a member's commit for a partition was taken, no commit that another one sends later is taken unless that
  one was given the partition again. The first commit shows whose the partition is in the coordinator's present generation;
  so the second one is of an older generation (a member that was paused), or two have the partition in one generation.
- *a commit goes back*: a commit is not below one that was taken before it was sent: its member began at the committed
  offset.
- *a commit is lost*: a member that is given a partition begins at or behind every commit that was taken before.
- *committed and not read*: everything below a commit was handed to a member of the group, from the first record that any
  of them was handed.

A commit whose outcome is unknown may have been taken; it proves nothing and breaks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fencepost.history_format import Operation
from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings
from fencepost_testing.history_check.spans import Spans

NOBODY = ""


@dataclass(frozen=True, slots=True)
class SentCommit:
    """A commit on its way, and what was known when it was sent."""

    process: str
    offset: int
    line: int
    taken_offset: int  # the highest one that was taken by then; -1: none
    taken_line: int
    owner: str  # whose commit was taken last
    owner_line: int
    given_line: int  # when its own member was last given the partition


@dataclass(slots=True)
class GroupPartition:
    """One partition, as one group reads it."""

    name: str
    taken_offset: int = -1
    taken_line: int = 0
    owner: str = NOBODY
    owner_line: int = 0
    given: dict[str, int] = field(default_factory=dict)  # by member: the line at which it was last given the partition
    begins: dict[str, tuple[int, int]] = field(default_factory=dict)  # … what was taken by then, and that line
    sent: dict[tuple[str, int], SentCommit] = field(default_factory=dict)  # by process and id
    read: Spans = field(default_factory=Spans)


class GroupCheck:
    """Feed it the lines of members; then `finish`."""

    def __init__(self, findings: AnomalyFindings) -> None:
        self.commits = 0  # that were taken
        self._findings = findings
        self._partitions: dict[tuple[str, str, int], GroupPartition] = {}
        self._groups: dict[str, str] = {}  # by process

    def _of(self, group: str, topic: str, partition: int) -> GroupPartition:
        key = group, topic, partition
        found = self._partitions.get(key)
        if found is None:
            found = self._partitions[key] = GroupPartition(f"{topic}-{partition} in group {group}")
        return found

    def feed(self, operation: Operation, line: int) -> None:
        """`given`, `taken` or `commit`."""
        self._groups[operation.process] = operation.group
        at = self._of(operation.group, operation.topic, operation.partition)
        if operation.op == "given":
            at.given[operation.process] = line
            at.begins[operation.process] = at.taken_offset, at.taken_line
        elif operation.op == "commit" and operation.type == "invoke":
            at.sent[operation.process, operation.id] = SentCommit(
                operation.process,
                operation.offset,
                line,
                at.taken_offset,
                at.taken_line,
                at.owner,
                at.owner_line,
                at.given.get(operation.process, 0),
            )
        elif operation.op == "commit":
            commit = at.sent.pop((operation.process, operation.id), None)
            if commit is not None and operation.type == "ok":
                self._taken(at, commit, line)

    def polled(self, operation: Operation, line: int) -> None:
        """Records that a process was handed, which may be a member's."""
        group = self._groups.get(operation.process)
        if group is None or not operation.records:
            return
        at = self._of(group, operation.topic, operation.partition)
        first = operation.records[0][0]
        begins = at.begins.pop(operation.process, None)
        if begins is not None and first < begins[0]:
            self._findings.add(
                Anomaly.LOST_COMMIT,
                f"{operation.process} was given {at.name} and begins at offset {first}, where {begins[0]} was committed",
                (begins[1], at.given.get(operation.process, 0), line),
            )
        for offset, _ in operation.records:
            at.read.add(offset)

    def _taken(self, at: GroupPartition, commit: SentCommit, line: int) -> None:
        self.commits += 1
        if commit.owner not in (NOBODY, commit.process) and commit.given_line < commit.owner_line:
            self._findings.add(
                Anomaly.TWO_OWNERS,
                f"a commit of {commit.process} for {at.name} is taken, after one of {commit.owner}, to which it was given",
                (commit.given_line, commit.owner_line, commit.line, line),
            )
        if commit.offset < commit.taken_offset:
            self._findings.add(
                Anomaly.COMMIT_WENT_BACK,
                f"{commit.process} commits offset {commit.offset} of {at.name}, after {commit.taken_offset} was committed",
                (commit.taken_line, commit.line, line),
            )
        if commit.offset > at.taken_offset:
            at.taken_offset, at.taken_line = commit.offset, line
        at.owner, at.owner_line = commit.process, line

    def finish(self) -> None:
        for at in self._partitions.values():
            first = at.read.first
            if at.taken_offset <= 0 or first is None:
                continue
            missing = at.read.missing(first, at.taken_offset)
            if missing:
                self._findings.add(
                    Anomaly.COMMITTED_UNREAD,
                    f"offset {at.taken_offset} of {at.name} is committed, and no member was handed offset {missing[0]}",
                    (at.taken_line,),
                    count=len(missing),
                )
