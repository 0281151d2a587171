"""What the APIs of operators have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fencepost_node.coordination.internal_topics import INTERNAL_TOPICS
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, InvalidTopic

MAX_CHANGES = 1_000  # of one request
SHOWN_NAME = 249  # characters of a name that is refused


def check_changes(count: int) -> None:
    """Raises InvalidRequest for more changes than one request may ask for."""
    if count > MAX_CHANGES:
        raise InvalidRequest(f"{count} changes in one request; at most {MAX_CHANGES} are allowed")


def twice(names: Iterable[str]) -> set[str]:
    """Those that are there more than once."""
    return {name for name, count in Counter(names).items() if count > 1}


def check_not_internal(name: str) -> None:
    """Raises InvalidTopic for a topic that only coordinators make and change."""
    if name in INTERNAL_TOPICS:
        raise InvalidTopic(f"topic {name!r} is internal: brokers make it when it is needed, and keep it as it is")


def code_and_message(error: FencepostError) -> tuple[int, str]:
    return int(error.code), error.message
