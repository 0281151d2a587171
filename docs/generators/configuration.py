"""Prints docs/CONFIGURATION.md: every setting, from the dataclasses that hold and check it. `./scripts/docs` runs it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from fencepost import Consumer, ProducerConfig
from fencepost.consuming.consumer_core import ResetPolicy, StartPolicy, UnreadablePolicy
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.placement import MAX_REPLICATION_FACTOR
from fencepost_controller.decisions.topics import MAY_BE_UNLIMITED, MIN_SEGMENT_BYTES, limits_of_config
from fencepost_node.config import BrokerConfig
from fencepost_proto.protocol.metadata import TopicConfig

INTRODUCTION = """\
# Configuration

<!-- Made by docs/generators/configuration.py; ./scripts/docs writes it again. -->

Every setting, with its default, its unit and what it may be. An unknown key, or a value out of its range, is refused by name
when a process starts or an object is made.

A local cluster (`fencepost cluster up`, `./scripts/demo`, `LocalCluster`) writes the files of its processes itself. By hand:
`python -m fencepost_node broker.toml` and `python -m fencepost_controller controller.toml`; with `--help` they print the
settings below and an example. The files are flat TOML.

| environment variable | what it sets |
|---|---|
| `FENCEPOST_BOOTSTRAP` | the brokers, `host:port` with commas between, that commands of `fencepost` ask first |
| `FENCEPOST_CARRIER` | how clients call brokers: `auto` (default), `lean` or `grpc`; as the setting `carrier` of brokers |
| `FENCEPOST_DATA_DIR` | the folder of the cluster that they work on; otherwise `.fencepost` in the current folder |
"""

SECTIONS = {
    "Broker": (
        "In the TOML file of `python -m fencepost_node`.",
        BrokerConfig,
    ),
    "Controller": (
        "In the TOML file of `python -m fencepost_controller`.",
        ControllerConfig,
    ),
    "Producer": (
        'Keywords of `Producer("host:port", …)`. Sizes are those of records before compression.',
        ProducerConfig,
    ),
}

# Of each: the policy whose values it may have, or in words what it may be.
CONSUMER: dict[str, tuple[Any, str]] = {
    "start": (StartPolicy, "Where a partition without a position begins."),
    "reset": (
        ResetPolicy,
        "Where to continue if the next record is not in the log any more: its start, its end, or raise OffsetOutOfRange.",
    ),
    "unreadable": (
        UnreadablePolicy,
        "At a batch that cannot be read: raise CorruptMessage and stay there, or continue behind it, log it and count it.",
    ),
    "max_decompressed_bytes": ("1 or more", "What one compressed batch may open to. The rest of it is never opened."),
    "group": (
        "1 to 255 characters",
        "The group whose members share the topics' partitions; without one it reads alone.",
    ),
    "auto_commit_ms": (
        "1 or more, or none",
        "In a group: how often what the application is done with is committed; none: only `commit` commits.",
    ),
    "max_poll_interval_ms": (
        "1 or more",
        "In a group: an application that does not read for so long leaves it until it reads again.",
    ),
    "client_id": ("text", "In a group: a name for those who describe it."),
}
NO_SETTINGS = {
    "self",
    "bootstrap",
    "topics",
    "history",
    "host",
    "on_assigned",
    "on_revoked",
    "on_lost",
}  # of the consumer's parameters

UNITS = {"_ms": "ms", "_bytes": "bytes", "_bytes_per_second": "bytes/s", "_per_second": "1/s"}
UNITS_BY_NAME = {"batch_size": "bytes", "buffer_memory": "bytes", "max_request_size": "bytes"}


class Row(NamedTuple):
    """One setting, as text."""

    name: str
    default: str
    unit: str
    range: str
    doc: str


def main() -> None:
    print(INTRODUCTION)
    for title, (text, cls) in SECTIONS.items():
        _section(title, text, _rows_of(cls))
    _section("Consumer", 'Keywords of `Consumer("host:port", *topics, …)`.', _consumer_rows())
    _section(
        "Topic",
        "Of `fencepost topic create` (as `--retention-ms`) and `AdminClient.create_topic`. They are fixed at creation.",
        _topic_rows(),
        last=True,
    )


def _section(title: str, text: str, rows: Iterator[Row], *, last: bool = False) -> None:
    print(f"## {title}\n\n{text}\n\n| setting | default | unit | range | what it sets |\n|---|---|---|---|---|")
    for row in rows:
        if not row.doc:
            raise SystemExit(f"{title}: the setting {row.name} has no doc")
        print(f"| `{row.name}` | {row.default} | {row.unit} | {row.range} | {row.doc} |")
    if not last:
        print()


def _rows_of(cls: Any) -> Iterator[Row]:
    """Of a class whose fields are `setting(…)`."""
    for field in dataclasses.fields(cls):
        limits = field.metadata
        unit = _unit(field.name)
        default = "required" if field.default is dataclasses.MISSING else _value(field.default, unit)
        yield Row(field.name, default, unit, _range(field.type, limits, unit), limits["doc"])


def _consumer_rows() -> Iterator[Row]:
    parameters = inspect.signature(Consumer.__init__).parameters
    if parameters.keys() != CONSUMER.keys() | NO_SETTINGS:
        raise SystemExit(f"the parameters of Consumer are not those described here: {sorted(parameters)}")
    for name, (policy, doc) in CONSUMER.items():
        allowed = policy if isinstance(policy, str) else _choices(get_args(policy))
        yield Row(name, _value(parameters[name].default, _unit(name)), _unit(name), allowed, doc)


def _topic_rows() -> Iterator[Row]:
    limits = limits_of_config(MAX_REPLICATION_FACTOR, MIN_SEGMENT_BYTES)
    for field in dataclasses.fields(TopicConfig):
        unit = _unit(field.name)
        if field.name in limits:
            least, most = limits[field.name]
            allowed = ("-1, or " if field.name in MAY_BE_UNLIMITED else "") + _between(least, most, unit)
        else:
            allowed = _range(field.type, field.metadata, unit)
        yield Row(field.name, _value(field.default, unit), unit, allowed, field.metadata["doc"])


def _unit(name: str) -> str:
    for ending in sorted(UNITS, key=len, reverse=True):
        if name.endswith(ending):
            return UNITS[ending]
    return UNITS_BY_NAME.get(name, "")


def _range(kind: Any, limits: Any, unit: str) -> str:
    if limits["choices"]:
        return _choices(limits["choices"])
    if kind == "bool":
        return _choices((True, False))
    if limits.get("address"):
        return "host:port" + (", or empty" if limits["optional"] else "")
    if kind == "str":
        return "not empty" if limits["minimum"] else "text"
    return _between(limits["minimum"], limits["maximum"], unit)


def _choices(values: tuple[object, ...]) -> str:
    return ", ".join(_value(value, "") for value in values)


def _between(least: float, most: float | None, unit: str) -> str:
    if most is None or most == 2**63 - 1:
        return f"{_value(least, unit)} or more"
    return f"{_value(least, unit)} to {_value(most, unit)}"


def _value(value: object, unit: str) -> str:
    """As it is written in a TOML file, with a size or time that a person can read."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    if value is None:
        return "none"
    assert isinstance(value, int | float)
    sizes = {2**30: "GiB", 2**20: "MiB", 2**10: "KiB"} if unit.startswith("bytes") else {}
    times = {86_400_000: "days", 3_600_000: "h", 60_000: "min", 1_000: "s"} if unit == "ms" else {}
    for size, name in {**sizes, **times}.items():
        if value >= size and value % size == 0:
            return f"{value} ({value // size} {name})"
    return str(value)


if __name__ == "__main__":
    main()
