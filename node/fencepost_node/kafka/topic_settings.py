"""Kafka's names of a topic's settings, and what they mean here: one table.

Each name is of one of three kinds: one of our settings, under another name and sometimes with other words for its values; a
setting that has one value here, which may be set to that and to nothing else (`FIXED`); or unknown. The last two refuse
by name, so that no one relies on a setting that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.protocol.metadata import (
    APPEND_TIME,
    CREATE_TIME,
    TOPIC_SETTINGS,
    TopicConfig,
    default_setting,
    format_setting,
    parse_setting,
)

NO_LIMIT = 2**63 - 1  # how Kafka writes what is -1 here
SHOWN = 100  # characters of a name or value that is refused


class ConfigType(IntEnum):
    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    LIST = 7


class Source(IntEnum):
    """Where a value comes from."""

    TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


@dataclass(frozen=True, slots=True)
class _Setting:
    ours: str  # its name in TopicConfig
    type: ConfigType
    read: Callable[[str], str] = str  # Kafka's text to ours; raises KeyError for none of the values that there are
    show: Callable[[str], str] = str  # and back


def _words(ours: dict[str, str]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    theirs = {text: word for word, text in ours.items()}
    return ours.__getitem__, theirs.__getitem__


def _to_limit(text: str) -> str:
    return "-1" if text == str(NO_LIMIT) else text


def _from_limit(text: str) -> str:
    return str(NO_LIMIT) if text == "-1" else text


SETTINGS: dict[str, _Setting] = {
    "retention.ms": _Setting("retention_ms", ConfigType.LONG),
    "retention.bytes": _Setting("retention_bytes", ConfigType.LONG),
    "segment.bytes": _Setting("segment_bytes", ConfigType.INT),
    "max.message.bytes": _Setting("max_message_bytes", ConfigType.INT),
    "min.insync.replicas": _Setting("min_insync_replicas", ConfigType.INT),
    "flush.messages": _Setting("flush_always", ConfigType.LONG, *_words({"1": "true", str(NO_LIMIT): "false"})),
    "message.timestamp.type": _Setting(
        "message_timestamp_type",
        ConfigType.STRING,
        *_words({"CreateTime": CREATE_TIME, "LogAppendTime": APPEND_TIME}),
    ),
    "message.timestamp.before.max.ms": _Setting(
        "message_timestamp_before_max_ms", ConfigType.LONG, _to_limit, _from_limit
    ),
    "message.timestamp.after.max.ms": _Setting(
        "message_timestamp_after_max_ms", ConfigType.LONG, _to_limit, _from_limit
    ),
}
FIXED: dict[str, tuple[str, ConfigType, str]] = {
    "cleanup.policy": ("delete", ConfigType.LIST, "There is no compaction."),
    "compression.type": ("producer", ConfigType.STRING, "Batches are stored as their producer has compressed them."),
    "flush.ms": (str(NO_LIMIT), ConfigType.LONG, "Nothing is synced by time; see flush.messages."),
    "follower.replication.throttled.replicas": ("", ConfigType.LIST, "Replication is not throttled."),
    "leader.replication.throttled.replicas": ("", ConfigType.LIST, "Replication is not throttled."),
    "preallocate": ("false", ConfigType.BOOLEAN, "Files grow as they are written."),
    "segment.ms": (str(NO_LIMIT), ConfigType.LONG, "Segments end by size."),
    "unclean.leader.election.enable": ("false", ConfigType.BOOLEAN, "Only an operator elects uncleanly."),
}


class Shown(NamedTuple):
    """One setting as it is described."""

    name: str
    value: str
    default: str
    source: Source
    type: ConfigType
    read_only: bool
    doc: str

    @property
    def synonyms(self) -> list[tuple[str, Source]]:
        """The values that there are for it, the one that counts first."""
        found = [(self.value, self.source)] if self.source is not Source.DEFAULT else []
        return [*found, (self.default, Source.DEFAULT)]


def describe(config: TopicConfig) -> list[Shown]:
    """All settings of a topic, by name."""
    shown = []
    for name, setting in SETTINGS.items():
        default = setting.show(format_setting(default_setting(setting.ours)))
        value = setting.show(format_setting(getattr(config, setting.ours)))
        source = Source.DEFAULT if value == default else Source.TOPIC
        doc = TOPIC_SETTINGS[setting.ours].metadata["doc"]
        shown.append(Shown(name, value, default, source, setting.type, read_only=False, doc=doc))
    shown += [
        Shown(name, value, value, Source.DEFAULT, kind, read_only=True, doc=doc)
        for name, (value, kind, doc) in FIXED.items()
    ]
    return sorted(shown)


def read_value(name: str, text: str | None) -> tuple[str, str] | None:
    """(our name, the value as our text) of one of Kafka's settings; None: it has that value already, and no other.

    Raises InvalidConfig naming both.
    """
    if text is None:
        raise InvalidConfig(f"null value not supported for topic setting {name[:SHOWN]!r}")
    if name in FIXED:
        only = FIXED[name][0]
        if text != only:
            raise InvalidConfig(f"{name}={text[:SHOWN]!r} is not supported: it is always {only!r}. {FIXED[name][2]}")
        return None
    setting = _setting(name)
    try:
        ours = setting.read(text)
        value = parse_setting(setting.ours, ours)
    except KeyError:
        raise InvalidConfig(f"invalid value {text[:SHOWN]!r} for topic setting {name}") from None
    except InvalidConfig as error:
        raise InvalidConfig(f"invalid value {text[:SHOWN]!r} for topic setting {name}: {error.message}") from None
    if value == 0 and not isinstance(value, bool):  # on the wire it would mean the default
        raise InvalidConfig(f"{name}={text[:SHOWN]}: must be 1 at least, or -1 where that means no limit")
    return setting.ours, ours


def our_name(name: str) -> str | None:
    """Of a setting that is to get its default; None: it has that already. Raises InvalidConfig."""
    return None if name in FIXED else _setting(name).ours


def _setting(name: str) -> _Setting:
    if name not in SETTINGS:
        raise InvalidConfig(f"Unknown topic config name: {name[:SHOWN]}")
    return SETTINGS[name]


def read_config(configs: Iterable[tuple[str, str | None]]) -> TopicConfig:
    """The settings of a new topic. Raises InvalidConfig."""
    changes = dict(filter(None, (read_value(name, text) for name, text in configs)))
    return TopicConfig(**{name: parse_setting(name, text) for name, text in changes.items()})  # type: ignore[arg-type]


def others_than(names: Sequence[str]) -> list[str]:
    """Our names of the settings that are none of these."""
    return [name for name in TOPIC_SETTINGS if name not in names]
