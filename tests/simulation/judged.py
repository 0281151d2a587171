"""What the judge keeps of each partition, and the violation that ends a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fencepost_proto.protocol.metadata import PartitionKey
from tests.simulation.elected_log import Past
from tests.simulation.logview import Batch, LogView, ProducerFold
from tests.simulation.retention_judge import Starts

# producer id -> (epoch, its last batches as (first sequence, last sequence, base offset))
Producers = dict[int, tuple[int, tuple[tuple[int, int, int], ...]]]


class Violation(Exception):
    """A promise is broken. Ends the run."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


@dataclass(slots=True)
class Fence:
    """From here on, no batch of the producer with a lower epoch is appended."""

    producer_id: int
    epoch: int
    leader_epoch: int
    log_end_offset: int
    at: float  # what was in any log before then may still be copied


@dataclass(slots=True)
class PartitionRecord:
    """What the judge knows of one partition."""

    key: PartitionKey
    name: str  # topic-partition
    flush_always: bool
    append_time: bool  # leaders write their own time into batches, whose CRCs change by it
    views: dict[int, LogView] = field(default_factory=dict)  # by broker id
    committed: list[Batch] = field(default_factory=list)  # for ever, from offset 0
    fold: ProducerFold = field(default_factory=ProducerFold)  # of all that is committed
    appended: dict[tuple[int, int], Batch] = field(default_factory=dict)  # by (leader epoch, base offset)
    appended_at: dict[Batch, float] = field(default_factory=dict)  # when it was first seen …
    stored_at: dict[Batch, float] = field(default_factory=dict)  # … and when the last replica to get it had got it
    fences: list[Fence] = field(default_factory=list)
    tainted: str = ""
    verified: dict[int, tuple[int, int]] = field(default_factory=dict)  # broker -> (rebuilds, batches compared)
    folds: dict[int, tuple[int, int, ProducerFold]] = field(default_factory=dict)  # broker -> (rebuilds, batches, fold)
    past: Past = field(default_factory=Past)
    starts: Starts = field(default_factory=Starts)
    deleted: tuple[int, int] = (
        -1,
        0,
    )  # under which leader epoch an operator has deleted records, and below which offset

    @property
    def committed_end(self) -> int:
        return self.committed[-1].end_offset if self.committed else 0


@dataclass(slots=True)
class Leader:
    """One replica of a live process, as the simulation's peepholes show it."""

    broker_id: int
    key: PartitionKey
    leads: bool
    leader_epoch: int
    high_watermark: int
    log_end_offset: int
    producers: Callable[[], Producers]  # live producer state at the log's end
    being_cut: bool = False  # a thread is at work on its log
