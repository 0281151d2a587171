"""The settings of one topic, as values and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fencepost_proto.protocol.errors import InvalidConfig

CREATE_TIME = "create"  # a topic's message_timestamp_type
APPEND_TIME = "append"


def _setting(default: object, *, choices: tuple[object, ...] = (), doc: str) -> Any:
    """A field of TopicConfig. The controller checks numbers (`decisions/topics.py`); `doc` is for docs/CONFIGURATION.md."""
    return field(default=default, metadata={"choices": choices, "doc": doc})


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """Settings of one topic.

    Records carry their producer's timestamps ("create"), which must lie within the two bounds around the leader's clock,
    or that of the append ("append"). -1: no limit.
    """

    min_insync_replicas: int = _setting(
        1, doc="Writes with `acks=all` are refused while fewer replicas are in sync. At most the replication factor."
    )
    retention_ms: int = _setting(
        7 * 24 * 3600 * 1000,
        doc="A segment goes when its newest record, and its last append, are older than this. -1: no limit.",
    )
    retention_bytes: int = _setting(-1, doc="The oldest segments go while what stays is still as large. -1: no limit.")
    segment_bytes: int = _setting(
        128 * 1024 * 1024, doc="Size at which the next segment begins. At least the controller's `min_segment_bytes`."
    )
    max_message_bytes: int = _setting(4 * 1024 * 1024, doc="The largest batch, after compression.")
    flush_always: bool = _setting(
        False, doc="Whether a batch is acknowledged only once every in-sync disk has stored it."
    )
    message_timestamp_type: str = _setting(
        CREATE_TIME,
        choices=(CREATE_TIME, APPEND_TIME),
        doc="Whose time records carry: their producer's, or that of the append, on the leader's clock.",
    )
    message_timestamp_before_max_ms: int = _setting(
        -1, doc="How far before the leader's clock a producer's timestamp may lie. -1: no limit."
    )
    message_timestamp_after_max_ms: int = _setting(
        3600 * 1000, doc="How far after the leader's clock a producer's timestamp may lie. -1: no limit."
    )


DEFAULT_CONFIG = TopicConfig()

TOPIC_SETTINGS = {field.name: field for field in fields(TopicConfig)}
MAX_SETTING_LENGTH = 100  # characters of a value
_TRUTH = {"true": True, "false": False}

Setting = int | bool | str

_DEFAULTS: dict[str, Setting] = asdict(DEFAULT_CONFIG)


def parse_setting(name: str, text: str) -> Setting:
    """The value that `text` stands for. Raises InvalidConfig for an unknown name, or text that is none of its type.

    Whether the value is possible the controller decides (`decisions/topics.py`).
    """
    default = default_setting(name)
    if len(text) > MAX_SETTING_LENGTH:
        raise InvalidConfig(f"{name}: a value of {len(text)} characters; at most {MAX_SETTING_LENGTH} are allowed")
    if isinstance(default, bool):
        if text.lower() not in _TRUTH:
            raise InvalidConfig(f"{name}={text!r}: must be 'true' or 'false'")
        return _TRUTH[text.lower()]
    if isinstance(default, int):
        if not text.removeprefix("-").isdecimal() or not text.isascii():
            raise InvalidConfig(f"{name}={text!r}: must be a whole number")
        return int(text)
    return text


def format_setting(value: Setting) -> str:
    """The text that `parse_setting` makes this value of."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def default_setting(name: str) -> Setting:
    """Raises InvalidConfig for an unknown name."""
    if name not in _DEFAULTS:
        raise InvalidConfig(f"topic setting {name!r} is not known; known: {', '.join(_DEFAULTS)}")
    return _DEFAULTS[name]
