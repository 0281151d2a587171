"""What a run's clients recorded, judged by the checker that judges chaos and its users' own workloads.

It is a second opinion. The judge sees every log and every state; the checker knows only what clients were told and what
they read, and has rules of its own. What a history has no words for is left out of it: topics that were deleted, and
those that lost data to a power failure, as they may. Producers with acks=1 or 0 are promised too little: where there is
one, nothing is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fencepost import ConsumerRecord
from fencepost.history import History
from fencepost.history_format import Operation, from_line
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.records import Record
from fencepost_testing.history_check import Anomaly
from tests.simulation.workload import SendLedger

FINAL_READER = "reader"

# The promise that each anomaly breaks.
PROMISES: Mapping[Anomaly, str] = {
    Anomaly.LOST_WRITE: "G1",
    Anomaly.UNSEEN: "G1",
    Anomaly.G1A: "G1",
    Anomaly.NOT_LOST: "G1",
    Anomaly.DUPLICATE: "G2",
    Anomaly.PHANTOM: "G2",
    Anomaly.NONMONOTONIC_SEND: "G3",
    Anomaly.REORDERED: "G3",
    Anomaly.SEQUENCE_GAP: "G3",
    Anomaly.INCONSISTENT_OFFSETS: "G10",
    Anomaly.NONMONOTONIC_POLL: "G10",
    Anomaly.POLL_SKIP: "G10",
    Anomaly.PRECOMMITTED_READ: "G10",
}


def read_whole(history: History, topic: str, partition: int, log: Sequence[Record], start_offset: int) -> None:
    """Tell that a reader has been handed the whole log from its start on."""
    end_offset = log[-1].offset + 1 if log else start_offset
    final = history.invoke_final(topic, partition)
    history.moved(topic, partition, start_offset)
    poll = history.invoke_poll()
    for record in log:
        history.polled(poll, ConsumerRecord(topic, partition, *record), end_offset)
    history.complete_final(final, topic, partition, start_offset, end_offset)


def told_of(ledger: SendLedger, topics: Mapping[str, str], tainted: Sequence[PartitionKey]) -> list[Operation]:
    """What was recorded of the topics (name -> id) that a history can tell of; nothing where acks were too few."""
    if any(entry.may_be_lost for entry in ledger.entries.values()):
        return []
    lost = {topic_id for topic_id, _ in tainted}
    deleted = {entry.topic for entry in ledger.entries.values() if entry.topic_id not in ("", topics.get(entry.topic))}
    left_out = deleted | {name for name, topic_id in topics.items() if topic_id in lost}
    return [operation for operation in map(from_line, ledger.history) if operation.topic not in left_out]
