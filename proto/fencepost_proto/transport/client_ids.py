"""The client id of Fencepost's own clients: a name that a client gives itself, in the metadata of each of its calls.

As Kafka's, it proves nothing. It is for logs, for who describes a group, and for faults that are to meet one client only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import grpc

from fencepost_proto.protocol.errors import InvalidConfig

KEY: Final = "fencepost-client-id"
MAX_CHARACTERS: Final = 200
DEFAULT_CLIENT_ID: Final = "fencepost"

_POSSIBLE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")  # what metadata carry as they are


def check_client_id(client_id: str) -> str:
    """Returns it. Raises InvalidConfig where no call can carry it."""
    if not isinstance(client_id, str) or len(client_id) > MAX_CHARACTERS or _POSSIBLE.fullmatch(client_id) is None:
        shown = client_id[:80] if isinstance(client_id, str) else client_id
        raise InvalidConfig(
            f"client_id={shown!r}: 1 to {MAX_CHARACTERS} characters of printable ASCII, with no space at either end"
        )
    return client_id


def client_id_in(metadata: Any) -> str:
    """The client id in what came with a call, cut to its bound; empty: none was said."""
    for key, value in metadata or ():
        if key == KEY and isinstance(value, str):
            return value[:MAX_CHARACTERS]
    return ""


class NamedChannel:
    """Another channel, each of whose calls says the client id; what is not here is its own."""

    def __init__(self, channel: grpc.aio.Channel, client_id: str) -> None:
        self._channel = channel
        self._metadata = ((KEY, client_id),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def _named(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        return partial(begin, metadata=self._metadata)

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._named(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._named(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._named(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._named(self._channel.stream_stream(*arguments, **options))


def named(channel: grpc.aio.Channel, client_id: str) -> grpc.aio.Channel:
    """The channel, whose calls say the client id."""
    return cast(grpc.aio.Channel, NamedChannel(channel, client_id))
