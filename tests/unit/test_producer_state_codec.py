"""Producer state as bytes."""

from __future__ import annotations

import pytest

from fencepost_node.producers.producer_state_codec import decode_producers, encode_producers
from fencepost_proto.protocol.errors import CorruptMessage
from tests.unit.batches import header
from tests.unit.test_producer_state import after


def test_decode_gives_what_was_encoded_with_all_five_batches() -> None:
    state = after((0, 3), (3, 1), (4, 2), (6, 1), (7, 4), (11, 1))
    state.record(header(producer_id=2**40, epoch=7), 500)
    decoded = decode_producers(encode_producers(state))
    assert decoded == state
    assert encode_producers(decoded) == encode_producers(state)
    entry = decoded.get(1)
    assert entry is not None
    assert len(entry.batches) == 5


def test_bytes_cut_anywhere_are_not_decoded() -> None:
    data = encode_producers(after((0, 3), (3, 1)))
    for length in range(len(data)):
        with pytest.raises(CorruptMessage):
            decode_producers(data[:length])
    with pytest.raises(CorruptMessage):
        decode_producers(data + b"\0")
