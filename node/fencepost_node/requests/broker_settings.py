"""The settings of a broker's own process, as it has them: from its file, or by default."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import NamedTuple

from fencepost_node.config import BrokerConfig


class BrokerSetting(NamedTuple):
    name: str
    value: str
    default: str | None  # None: it has none, and has to be set
    doc: str

    @property
    def is_default(self) -> bool:
        return self.value == self.default


def broker_settings(config: BrokerConfig) -> list[BrokerSetting]:
    """All of them, by name."""
    found = []
    for field in fields(config):
        default = None if field.default is MISSING else _text(field.default)
        found.append(
            BrokerSetting(field.name, _text(getattr(config, field.name)), default, str(field.metadata.get("doc", "")))
        )
    return sorted(found)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
