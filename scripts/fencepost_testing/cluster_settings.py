"""Settings of a local cluster by their names alone: how many brokers and controllers, and settings of these and topics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from fencepost_testing.member import ClusterError, Setting

DEFAULT_BROKERS = 3
_OF_THE_FOLDER = {  # the cluster chooses them itself
    "advertised_address",
    "broker_id",
    "controller",
    "controller_id",
    "data_dir",
    "etcd_endpoints",
    "insecure_listen",
    "kafka_advertised",
    "kafka_listen",
    "listen",
    "store",
}

Items = tuple[tuple[str, Setting], ...]


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Clusters of equal settings are interchangeable."""

    brokers: int = DEFAULT_BROKERS
    broker: Items = ()
    controller: Items = ()
    topic: Items = ()  # of topics that `create_topic` makes
    controllers: int = 1  # more: on an etcd of the cluster's own

    @classmethod
    def of(cls, named: Mapping[str, object]) -> ClusterSettings:
        """Of `brokers`, `controllers`, and settings as `docs/CONFIGURATION.md` has them; one that both kinds of process have
        is for both.

        Raises ClusterError for an unknown name, or a value that is no number, text, True or False.
        """
        from fencepost_controller.config import ControllerConfig
        from fencepost_node.config import BrokerConfig
        from fencepost_proto.protocol.metadata import TOPIC_SETTINGS

        kinds = {
            "broker": {field.name for field in dataclasses.fields(BrokerConfig)} - _OF_THE_FOLDER,
            "controller": {field.name for field in dataclasses.fields(ControllerConfig)} - _OF_THE_FOLDER,
            "topic": set(TOPIC_SETTINGS),
        }
        found: dict[str, dict[str, Setting]] = {kind: {} for kind in kinds}
        counts = {"brokers": DEFAULT_BROKERS, "controllers": 1}
        for name, value in named.items():
            if not isinstance(value, int | float | str):
                raise ClusterError(f"{name}={value!r}: a setting is a number, a text, True or False")
            if name in counts:
                if not isinstance(value, int) or isinstance(value, bool):
                    raise ClusterError(f"{name}={value!r}: must be a whole number")
                counts[name] = value
                continue
            of_kinds = [kind for kind, names in kinds.items() if name in names]
            if not of_kinds:
                known = ", ".join(sorted({*counts, *kinds["broker"], *kinds["controller"], *kinds["topic"]}))
                raise ClusterError(f"{name}={value!r}: no setting of a cluster is called {name!r}; there are {known}")
            for kind in of_kinds:
                found[kind][name] = value
        broker, controller, topic = (tuple(sorted(found[kind].items())) for kind in ("broker", "controller", "topic"))
        return cls(counts["brokers"], broker, controller, topic, counts["controllers"])


def parse_settings(lines: list[str]) -> dict[str, Setting]:
    """Of lines `name = value`. Raises ClusterError for one that is none."""
    parsed: dict[str, Setting] = {}
    for line in lines:
        name, equals, text = (part.strip() for part in line.partition("="))
        if not equals or not name or not text:
            raise ClusterError(f"{line!r} is not 'name = value'")
        parsed[name] = _value(text)
    return parsed


def _value(text: str) -> Setting:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
