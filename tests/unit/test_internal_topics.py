"""Only a coordinator writes to an internal topic, and it writes to no other."""

from __future__ import annotations

import pytest

from fencepost_node.coordination.table import TABLE
from fencepost_node.replication.leadership import ALL_ACKS, AppendOrigin
from fencepost_proto.protocol.errors import InvalidTopic
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC
from fencepost_proto.protocol.metadata import Topic
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.replicas import leading, open_replica


@asynchronous
async def test_a_client_does_not_write_to_an_internal_topic() -> None:
    leadership = leading(open_replica(leader=1, replicas=(1,), topic=Topic("T", OFFSETS_TOPIC)))
    with pytest.raises(InvalidTopic, match="a client does not write to the topic __consumer_offsets"):
        leadership.append_batch(batch(), ALL_ACKS, 0.0)
    assert leadership.log.log_end_offset == 0
    appended = leadership.append_batch(batch(2), ALL_ACKS, 0.0, origin=AppendOrigin.COORDINATOR)
    assert appended.end_offset == leadership.high_watermark == 2
    assert dict(leadership.log.states[TABLE].items()) == {b"0": b"value", b"1": b"value"}


@asynchronous
async def test_a_coordinator_does_not_write_elsewhere() -> None:
    leadership = leading(open_replica(leader=1, replicas=(1,)))
    with pytest.raises(InvalidTopic):
        leadership.append_batch(batch(), ALL_ACKS, 0.0, origin=AppendOrigin.COORDINATOR)
    assert leadership.log.log_end_offset == 0
