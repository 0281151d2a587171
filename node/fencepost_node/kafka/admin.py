"""What the APIs of operators have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, InvalidTopic
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS

MAX_CHANGES = 1_000  # of one request
SHOWN_NAME = 249  # characters of a name that is refused


def check_changes(count: int) -> None:
    """Raises InvalidRequest for more changes than one request may ask for."""
    if count > MAX_CHANGES:
        raise InvalidRequest(f"{count} changes in one request; at most {MAX_CHANGES} are allowed")


def twice(names: Iterable[str]) -> set[str]:
    """Those that are there more than once."""
    return {name for name, count in Counter(names).items() if count > 1}


class NamedOnce:
    """What one request asks to be changed: not too much of it, and each by itself."""

    def __init__(self, what: str, keys: Iterable[Hashable]) -> None:
        self._what = what  # for messages
        self._counts = Counter(keys)

    def check(self, key: Hashable, name: object) -> None:
        """Raises InvalidRequest for each where there are more than one request may name, and for one that is named twice."""
        check_changes(self._counts.total())
        if self._counts[key] > 1:
            raise InvalidRequest(f"{self._what} {name!r} is named twice")


def check_not_internal(name: str) -> None:
    """Raises InvalidTopic for a topic that only coordinators make and change."""
    if name in INTERNAL_TOPICS:
        raise InvalidTopic(f"topic {name!r} is internal: brokers make it when it is needed, and keep it as it is")


def code_and_message(error: FencepostError) -> tuple[int, str]:
    return int(error.code), error.message
