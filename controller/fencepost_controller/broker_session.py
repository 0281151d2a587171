"""One broker's session: what it has last said, and what is still to be said to it.

First the registration's answer, then a whole image, then changes in version order. A broker that takes changes more slowly
than they come gets, at `MAX_BACKLOG` of them or `MAX_BACKLOG_BYTES`, the image of the moment instead; so the backlog is
bounded and nothing is ever skipped. That the broker may shut down, and that the session is over, comes after the
metadata that it rests on.

A change, and an image of one version, is made into a message once, whatever the number of sessions (`MetadataMessages`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import BrokerRegistration, Changes, MetadataImage, encode_delta, length_delimited
from fencepost_proto.protocol.v1 import controller_pb2

MAX_BACKLOG = 256
MAX_BACKLOG_BYTES = 8 * 1024 * 1024
NOTHING_APPLIED = -1


_METADATA = controller_pb2.SessionResponse.DESCRIPTOR.fields_by_name["metadata"].number


@dataclass(frozen=True, slots=True)
class MetadataMessage:
    """What is said to every broker alike: not to be changed by anyone."""

    response: controller_pb2.SessionResponse
    size_bytes: int


class MetadataMessages:
    """Makes the messages that all sessions share."""

    def __init__(self, image: Callable[[], MetadataImage]) -> None:
        self._image = image
        self._made: tuple[int, MetadataMessage] | None = None  # of the newest version that was asked for

    def image(self) -> MetadataMessage:
        """The image of the moment."""
        image = self._image()
        if self._made is None or self._made[0] != image.version:
            self._made = (image.version, _message(encode_delta(image.version, image.entities(), image=True)))
        return self._made[1]

    def delta(self, version: int, changes: Changes) -> MetadataMessage:
        """What one commit has changed."""
        self._made = None  # it is out of date, and can be large
        changed = [entity for entity in changes.values() if entity is not None]
        deleted = [key for key, entity in changes.items() if entity is None]
        return _message(encode_delta(version, changed, deleted))


def _message(delta: bytes) -> MetadataMessage:
    data = length_delimited(_METADATA, delta)
    return MetadataMessage(controller_pb2.SessionResponse.FromString(data), len(data))


class BrokerSession:
    """From a registration to the end of its stream."""

    def __init__(self, broker: BrokerRegistration, start_version: int, greeting: controller_pb2.Registered) -> None:
        self.broker_id = broker.id
        self.broker_epoch = broker.broker_epoch
        self.start_version = start_version  # the image that this session begins with is at least this new
        self.applied_version = NOTHING_APPLIED
        self.ready = False
        self.wants_shutdown = False
        self.replicas_failed = False  # more of them than the metadata shows already
        self.ended = asyncio.Event()  # nothing more is said but what is due
        self.news = asyncio.Event()  # the broker has sent something that may need a command
        self._greeting: controller_pb2.Registered | None = greeting
        self._image_due = True
        self._deltas: deque[MetadataMessage] = deque()
        self._backlog_bytes = 0
        self._shutdown_allowed_due = False
        self._shutdown_allowed_said = False
        self._error: errors.FencepostError | None = None
        self._wake = asyncio.Event()

    @property
    def over(self) -> bool:
        return self.ended.is_set()

    def publish(self, delta: MetadataMessage) -> None:
        if self._image_due:
            return  # it will hold this
        self._deltas.append(delta)
        self._backlog_bytes += delta.size_bytes
        if len(self._deltas) > MAX_BACKLOG or self._backlog_bytes > MAX_BACKLOG_BYTES:
            self._deltas.clear()
            self._backlog_bytes = 0
            self._image_due = True
        self._wake.set()

    def allow_shutdown(self) -> None:
        if not self._shutdown_allowed_said:
            self._shutdown_allowed_due = True
            self._wake.set()

    def end(self, error: errors.FencepostError | None = None) -> None:
        """Nothing more is said but the error, after what is due already."""
        if not self.over:
            self._error = error
            self.ended.set()
            self._wake.set()

    async def next_response(self, image: Callable[[], MetadataMessage]) -> controller_pb2.SessionResponse | None:
        """What to say next, once there is something. None: the session is over and everything is said."""
        while True:
            response = self._next(image)
            if response is not None or self.over:
                return response
            self._wake.clear()
            await self._wake.wait()

    def _next(self, image: Callable[[], MetadataMessage]) -> controller_pb2.SessionResponse | None:
        if self._greeting is not None:
            greeting, self._greeting = self._greeting, None
            return controller_pb2.SessionResponse(registered=greeting)
        if self._image_due:
            self._image_due = False
            return image().response
        if self._deltas:
            delta = self._deltas.popleft()
            self._backlog_bytes -= delta.size_bytes
            return delta.response
        if self._shutdown_allowed_due:
            self._shutdown_allowed_due, self._shutdown_allowed_said = False, True
            return controller_pb2.SessionResponse(shutdown_allowed=controller_pb2.ShutdownAllowed())
        if self._error is not None:
            error, self._error = self._error, None
            return controller_pb2.SessionResponse(error=errors.to_proto(error))
        return None
