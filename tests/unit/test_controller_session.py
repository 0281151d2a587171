"""What one session says, in which order, however slowly its broker listens."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_controller import broker_session as session_module
from fencepost_controller.broker_session import MAX_BACKLOG, MAX_BACKLOG_BYTES, BrokerSession, MetadataMessages
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Topic,
)
from fencepost_proto.protocol.v1 import controller_pb2
from tests.asynchronous import asynchronous


class Listener:
    """A session with the metadata behind it, and a broker that applies what it is told."""

    def __init__(self) -> None:
        self.image = MetadataImage(version=2)
        self.messages = MetadataMessages(lambda: self.image)
        self.session = BrokerSession(
            BrokerRegistration(1, "h:1", 2, "life", fenced=True), 2, controller_pb2.Registered(broker_epoch=2)
        )
        self.heard = MetadataImage()
        self.kinds: list[str] = []
        self.images = 0

    def changes(self, entity: Topic | NextProducerId | NamedProducer) -> None:
        self.image = self.image.with_changes(self.image.version + 1, {entity.key: entity})
        self.session.publish(self.messages.delta(self.image.version, {entity.key: entity}))

    def listens(self) -> bool:
        """Take one response. False: there is none."""
        response = self.session._next(self.messages.image)
        if response is None:
            return False
        kind = response.WhichOneof("kind")
        assert kind is not None
        self.kinds.append(kind)
        if kind == "metadata":
            assert response.metadata.image or response.metadata.version == self.heard.version + 1
            assert response.metadata.version >= self.heard.version
            self.heard = self.heard.apply(response.metadata)
            self.images += response.metadata.image
        return True


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_whatever_the_pace_the_broker_ends_with_all_metadata_and_skips_none(script: list[bool], backlog: int) -> None:
    saved = session_module.MAX_BACKLOG
    session_module.MAX_BACKLOG = backlog
    try:
        listener = Listener()
        for number, speaks in enumerate(script):
            if speaks:
                listener.changes(Topic(f"id-{number % 7}", f"topic-{number % 7}"))
                assert len(listener.session._deltas) <= backlog
            else:
                listener.listens()
        while listener.listens():
            pass
        assert listener.kinds[0] == "registered"
        assert listener.heard == listener.image
    finally:
        session_module.MAX_BACKLOG = saved


def test_a_broker_that_falls_behind_gets_the_image_instead_of_the_backlog() -> None:
    listener = Listener()
    assert listener.listens()
    assert listener.listens()
    for number in range(MAX_BACKLOG + 10):
        listener.changes(NextProducerId(number))
    listener.session.allow_shutdown()
    listener.session.end(errors.NotController("bye"))
    while listener.listens():
        pass
    assert listener.kinds == ["registered", "metadata", "metadata", "shutdown_allowed", "error"]
    assert listener.images == 2
    assert listener.heard == listener.image


def test_the_backlog_is_bounded_in_bytes_too() -> None:
    listener = Listener()
    while listener.listens():
        pass
    changes = 0
    while listener.session._deltas or not changes:
        listener.changes(NamedProducer("p", 1, changes, retired_ids=tuple(range(2**40, 2**40 + 20_000))))
        changes += 1
        assert listener.session._backlog_bytes <= MAX_BACKLOG_BYTES
        assert changes < MAX_BACKLOG
    assert listener.listens()
    assert listener.images == 2


def test_that_a_shutdown_is_allowed_is_said_once_and_after_the_metadata_it_rests_on() -> None:
    listener = Listener()
    listener.session.allow_shutdown()
    listener.changes(NextProducerId(1))
    while listener.listens():
        pass
    listener.session.allow_shutdown()
    assert not listener.listens()
    assert listener.kinds == ["registered", "metadata", "shutdown_allowed"]


@asynchronous
async def test_waiting_for_the_next_response_ends_with_the_session() -> None:
    listener = Listener()
    while listener.listens():
        pass
    waiting = asyncio.ensure_future(listener.session.next_response(listener.messages.image))
    await asyncio.sleep(0)
    assert not waiting.done()
    listener.session.end()
    assert await waiting is None
