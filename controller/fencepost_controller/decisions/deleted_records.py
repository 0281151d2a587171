"""DeleteRecords: a leader deletes the records at the beginning of partitions that it leads.

A deletion is a pair: the offset below which records are gone, and the leader epoch whose leader has deleted them. It is
metadata, so it holds on every replica that there is or will be, however long it was away, after every failover and restart.

What may fail, and what then:

- *The leader dies before the commit*: nothing is deleted, and the client asks the next leader.
- *The answer is lost after the commit*: the records are deleted; who asks again is told so.
- *Another leader is elected before the commit*: it is refused. Whether the offset was below the high watermark only the
  leader of that epoch knows, and all below it is on every replica that could have been elected.
- *A replica hears of it late*: no leader of a later epoch leads before it has applied the version of its election, and so
  every deletion of earlier epochs.
- *A log ends below the offset* (its disk lost what was not synced, or an operator has elected it uncleanly): what a later
  leader appends there carries a later epoch. The deletion does not hold for it, so nothing new is ever hidden.

A deletion under a later epoch takes the place of one under an earlier epoch, even below it: after an unclean election the
log may have been cut to below what was deleted. Otherwise a leader asks only for more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.isr import led_partition
from fencepost_proto.protocol.errors import FencepostError, OffsetOutOfRange
from fencepost_proto.protocol.metadata import PartitionKey


@dataclass(frozen=True, slots=True)
class Deletion:
    partition: PartitionKey
    leader_epoch: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class DeleteRecords(Command[tuple[FencepostError | None, ...]]):
    """Answers, for each deletion, with the error that refuses it; None: these records, or more, are deleted."""

    broker_id: int
    broker_epoch: int
    deletions: tuple[Deletion, ...]

    def decide(self, draft: Draft) -> tuple[FencepostError | None, ...]:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        return tuple(self._decide(draft, deletion) for deletion in self.deletions)

    def _decide(self, draft: Draft, deletion: Deletion) -> FencepostError | None:
        try:
            partition = led_partition(draft, deletion.partition, self.broker_id, deletion.leader_epoch)
            if deletion.end_offset < 0:
                raise OffsetOutOfRange(f"{partition.key}: no record is below offset {deletion.end_offset}")
        except FencepostError as error:
            return error
        asked = (deletion.leader_epoch, deletion.end_offset)
        if asked > (partition.deleted_in_epoch, partition.deleted_end_offset):
            after = replace(partition, deleted_in_epoch=asked[0], deleted_end_offset=asked[1])
            draft.put(replace(after, partition_epoch=partition.partition_epoch + 1))
        return None
