"""The processes of a history: what each has sent and has no answer to yet, and how far it has read each partition."""

from __future__ import annotations

from dataclasses import dataclass, field

from fencepost_testing.history_check.elections import Election
from fencepost_testing.history_check.partition_log import PartitionLog, Skip

UNKNOWN_POSITION = -1


@dataclass(slots=True)
class Reading:
    """One process reading one partition, from a seek on or from its first poll."""

    log: PartitionLog
    process: int
    start_offset: int = 0  # from here to `end_offset` it went through the log
    end_offset: int = 0
    next_offset: int = UNKNOWN_POSITION  # that it should be handed next
    last_line: int = 0  # that moved it
    final: int = 0  # line that began the final read under way
    overruled: int = 0  # line of an unclean election that took what it had read last; it has not gone back since

    def seek(self, offset: int, line: int) -> None:
        """Begin again at `offset`, or wherever the next poll begins."""
        self.close()
        self.overruled = 0
        self.next_offset = self.start_offset = self.end_offset = offset
        self.last_line = line

    def jump(self, offset: int, line: int) -> bool:
        """`offset` is handed out where another one was next. Whether that is a step back."""
        expected = self.next_offset
        if expected == UNKNOWN_POSITION:
            if self.start_offset == UNKNOWN_POSITION:
                self.start_offset = offset
            return False
        if offset < expected:
            return True
        self.log.add_skip(Skip(self.process, expected, offset, line))
        return False

    def close(self) -> None:
        if self.start_offset != UNKNOWN_POSITION:
            self.log.add_read(self.start_offset, self.end_offset)


@dataclass(slots=True)
class Process:
    """One sequential caller, as a sender."""

    name: str
    number: int
    last_id: int = -1  # of its sends
    open_sends: dict[int, tuple[int, str]] = field(default_factory=dict)  # id -> value, topic
    open_elections: dict[int, tuple[PartitionLog, Election]] = field(default_factory=dict)
