"""A second state machine, as small as one can be: how many batches a log has been given."""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_node.log.state_machine import Pause, StateMachine
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken
from fencepost_proto.protocol.record_batch import BatchHeader

UNFOLDABLE_MS = 666  # of a batch that cannot follow, whatever was before it


class BatchCount:
    def __init__(self, batches: int = 0) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def stage(self, headers: Sequence[BatchHeader]) -> int:
        for header in headers:
            if header.max_timestamp == UNFOLDABLE_MS:
                raise InvariantBroken(f"batch at offset {header.base_offset} cannot be counted")
        return self.batches + len(headers)

    def apply(self, staged: int) -> None:
        self.batches = staged

    def copy(self) -> BatchCount:
        return BatchCount(self.batches)


def _encode(state: BatchCount, pause: Pause) -> bytes:
    pause()
    return state.batches.to_bytes(8)


def _decode(data: bytes, part_format: int, pause: Pause) -> BatchCount:
    if part_format != 1 or len(data) != 8:
        raise CorruptMessage(f"{len(data)} bytes in format {part_format} are no count of batches")
    pause()
    return BatchCount(int.from_bytes(data))


BATCHES_COUNTED = StateMachine("batch-count", format=1, initial=BatchCount, encode=_encode, decode=_decode)
