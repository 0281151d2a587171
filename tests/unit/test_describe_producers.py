"""What DescribeProducers tells of the state."""

from __future__ import annotations

from batches import header
from test_producer_state import after

from fencepost_node.grpc.describe_producers import ALL, describe


def test_describe_lists_producers_by_id_with_their_batches() -> None:
    state = after((0, 3), (3, 1), epoch=4)
    state.record(header(producer_id=0), 200)
    first, second = describe(state, ALL)
    assert (first.producer_id, second.producer_id, second.producer_epoch) == (0, 1, 4)
    assert [(b.first_sequence, b.last_sequence, b.base_offset) for b in second.batches] == [(0, 2, 100), (3, 3, 103)]
    assert describe(state, 1) == [second]
    assert describe(state, 2) == []
