"""One fault as a value: what it does, to what, how often. Pure; written to a cluster's folder as JSON.

A *request rule* meets requests of clients at a broker, of both protocols. Every condition that it names must hold. A
*link rule* meets what one party sends to another: parties are "broker-1", "controller", "clients", all of them, and
"client:<id>", those with that client id. A *disk rule* meets what a broker asks of its disk.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fencepost_testing.failures import CommandFailed

MAX_DELAY_MS: Final = 600_000
MAX_TIMES: Final = 1_000_000_000
MAX_TEXT: Final = 250  # characters of a topic's or a client's name
PROTOCOLS: Final = ("kafka", "fencepost")
CLIENTS: Final = "clients"  # the party that all clients together are
CLIENT_PREFIX: Final = "client:"  # of the party that those with one client id are


class FaultError(CommandFailed):
    """A fault that cannot be: the message names the value."""


class LinkAction(StrEnum):
    """What becomes of what is sent over a link."""

    CUT = "cut"  # it is held back until the link is whole again
    DELAY = "delay"
    LIMIT = "limit"  # so many bytes a second
    RESET = "reset"  # connections end


class DiskAction(StrEnum):
    """What a disk does."""

    FULL = "fill-disk"
    SLOW = "slow-disk"
    FAIL_SYNC = "fail-syncs"


DISK_ERRNO: Final = {DiskAction.FULL: errno.ENOSPC, DiskAction.FAIL_SYNC: errno.EIO}  # what a disk refuses with


class ProcessAction(StrEnum):
    """What is done to a process."""

    KILL = "kill"
    PAUSE = "pause"


class RequestAction(StrEnum):
    """What becomes of a request that a rule meets."""

    DROP_REQUEST = "drop-requests"  # the connection is closed before it is handled
    DROP_ANSWER = "drop-answers"  # … after it is handled and before it is answered
    DELAY = "delay-requests"  # it is handled later, and so is what comes behind it on its connection
    FAIL = "fail-requests"  # it is answered with an error code and not handled


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a rule that is met fires."""

    times: int | None = None  # at most, in all processes together; None: always
    probability: float = 1.0
    every_ms: int = 0  # no two firings are closer, in all processes together

    def check(self) -> None:
        """Raises FaultError."""
        if self.times is not None and not (type(self.times) is int and 1 <= self.times <= MAX_TIMES):
            raise FaultError(f"times={self.times!r}: from 1 to {MAX_TIMES}, or none for no limit")
        if not (isinstance(self.probability, int | float) and 0 < self.probability <= 1):
            raise FaultError(f"probability={self.probability!r} is not above 0 and at most 1")
        check_ms("every_ms", self.every_ms)


@dataclass(frozen=True, slots=True)
class RequestRule:
    """Meets requests; None stands for any."""

    action: RequestAction
    api: str | None = None
    topic: str | None = None
    partition: int | None = None
    broker: int | None = None
    client_id: str | None = None  # as the client says it
    protocol: str | None = None
    error: int = 0  # the code, of FAIL
    delay_ms: int = 0
    jitter_ms: int = 0  # up to so much more, evenly spread
    limits: Limits = Limits()

    def concerns(self, protocol: str, api: str) -> bool:
        """Whether a request may be met, before it is read."""
        return self.api in (None, api) and self.protocol in (None, protocol)

    def is_client(self, client_id: str | None) -> bool:
        return self.client_id is None or self.client_id == client_id

    @property
    def names_place(self) -> bool:
        return self.topic is not None or self.partition is not None

    def meets_place(self, topic: str, partition: int | None) -> bool:
        """Whether one place in a request is met. None: the request names the topic only."""
        if self.topic is not None and topic != self.topic:
            return False
        return self.partition is None or partition == self.partition

    def meets_any(self, places: Iterable[tuple[str, int | None]]) -> bool:
        return not self.names_place or any(self.meets_place(*place) for place in places)

    def describe(self) -> str:
        conditions = ("api", "topic", "partition", "broker", "client_id", "protocol", "error", "delay_ms", "jitter_ms")
        return _describe(self.action, self, conditions, self.limits)


@dataclass(frozen=True, slots=True)
class LinkRule:
    """Meets what one of `a` sends to one of `b`, and back if `both_ways`. No `b`: everyone else."""

    action: LinkAction
    a: tuple[str, ...]
    b: tuple[str, ...]
    both_ways: bool = True
    delay_ms: int = 0
    jitter_ms: int = 0  # up to so much more, evenly spread; nothing overtakes
    bytes_per_second: int = 0
    limits: Limits = Limits()

    def affects(self, sender: str, receiver: str) -> bool:
        return self._joins(sender, receiver) or (self.both_ways and self._joins(receiver, sender))

    def _joins(self, sender: str, receiver: str) -> bool:
        return _is_of(sender, self.a) and (_is_of(receiver, self.b) if self.b else not _is_of(receiver, self.a))

    def describe(self) -> str:
        between = f"{'+'.join(self.a)}{'<->' if self.both_ways else '->'}{'+'.join(self.b) or 'all'}"
        conditions = ("delay_ms", "jitter_ms", "bytes_per_second")
        return _describe(f"{self.action} {between}", self, conditions, self.limits)


@dataclass(frozen=True, slots=True)
class DiskRule:
    """Meets the files of a broker (None: of every one), or of one topic's or partition's replicas on it, or the store of the
    controller."""

    action: DiskAction
    broker: int | str | None = None  # "controller": its store
    topic: str | None = None
    partition: int | None = None
    delay_ms: int = 0
    jitter_ms: int = 0
    limits: Limits = Limits()

    def meets_folder(self, name: str) -> bool:
        """A folder with that name; a replica's is <topic>-<partition>."""
        topic, _, partition = name.rpartition("-")
        if self.topic is not None and topic != self.topic:
            return False
        return self.partition is None or partition == str(self.partition)

    def describe(self) -> str:
        return _describe(self.action, self, ("broker", "topic", "partition", "delay_ms", "jitter_ms"), self.limits)


@dataclass(frozen=True, slots=True)
class ProcessRule:
    """Was done to one process when it was posted."""

    action: ProcessAction
    party: str
    limits: Limits = Limits()

    def describe(self) -> str:
        return f"{self.action} {self.party}"


Rule = RequestRule | LinkRule | DiskRule | ProcessRule


@dataclass(frozen=True, slots=True)
class Posted:
    """A rule in force: its id, and its place among the counters."""

    id: str
    slot: int
    rule: Rule

    @property
    def description(self) -> str:
        return self.rule.describe()

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "slot": self.slot, "kind": _KIND_OF[type(self.rule)], **dataclasses.asdict(self.rule)}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Posted:
        fields = dict(said)
        posted_id, slot, kind = fields.pop("id"), fields.pop("slot"), _KINDS[fields.pop("kind")]
        fields["action"] = _ACTION_OF[kind](fields["action"])
        fields["limits"] = Limits(**fields["limits"])
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return Posted(posted_id, slot, kind(**fields))


@dataclass(frozen=True, slots=True)
class Ended:
    """A rule that was removed."""

    id: str
    description: str


_KINDS: Final[dict[str, type[Rule]]] = {
    "request": RequestRule,
    "link": LinkRule,
    "disk": DiskRule,
    "process": ProcessRule,
}
_KIND_OF: Final = {kind: name for name, kind in _KINDS.items()}
_ACTION_OF: Final[dict[type[Rule], type[StrEnum]]] = {
    RequestRule: RequestAction,
    LinkRule: LinkAction,
    DiskRule: DiskAction,
    ProcessRule: ProcessAction,
}


def is_client(party: str) -> bool:
    return party == CLIENTS or party.startswith(CLIENT_PREFIX)


def client_party(client_id: str | None) -> str:
    """A client as one end of a link; one that says no id is only one of all."""
    return f"{CLIENT_PREFIX}{client_id}" if client_id else CLIENTS


def _is_of(party: str, side: tuple[str, ...]) -> bool:
    return party in side or (CLIENTS in side and party.startswith(CLIENT_PREFIX))


def check_ms(name: str, value: int) -> None:
    """Raises FaultError for what is no time."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_DELAY_MS:
        raise FaultError(f"{name}={value!r}: whole milliseconds from 0 to {MAX_DELAY_MS}")


def check_name(name: str, value: str | None) -> None:
    """Raises FaultError for a name that nothing can have."""
    if value is not None and (not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT):
        raise FaultError(f"{name}={value!r}: a text of 1 to {MAX_TEXT} characters")


def _describe(action: str, rule: object, conditions: Iterable[str], limits: Limits) -> str:
    words = [action]
    for name in conditions:
        value = getattr(rule, name)
        if (value is not None and value != 0) or (name in ("partition", "broker") and value is not None):
            words.append(f"{name}={value}")
    for name, default in (("times", None), ("probability", 1.0), ("every_ms", 0)):
        value = getattr(limits, name)
        if value != default:
            words.append(f"{name}={value}")
    return " ".join(words)
