"""`KafkaContainer` with the surface of the testcontainers package's; it starts real brokers in place of a container.

An existing suite changes one line:

    from fencepost_testing.testcontainers import KafkaContainer  # was: from testcontainers.kafka import KafkaContainer

    with KafkaContainer() as kafka:
        connect_to(kafka.get_bootstrap_server())

`RedpandaContainer` is the same under the other name. There is one broker, as there, or as many as `with_brokers` says;
`cluster` is the `LocalCluster` itself, to kill or pause.

What only a container has (its image, its network, a shell inside it) is refused by name with what to use in its place.
Calls that change nothing here, because it is so anyway, are taken: `with_kraft`, `with_name`, `with_exposed_ports`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from fencepost_testing.async_cluster import READY_TIMEOUT_S, STOP_TIMEOUT_S
from fencepost_testing.cluster_settings import ClusterSettings
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import LocalCluster

KAFKA_PORTS = (9092, 9093)  # inside a container, of the two images
HOST = "127.0.0.1"

# Environment variables of the images, and the settings that they are here.
_SETTINGS = {
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "auto_create_topics",
    "KAFKA_NUM_PARTITIONS": "default_partitions",
    "KAFKA_DEFAULT_REPLICATION_FACTOR": "default_replication_factor",
    "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "offsets_topic_partitions",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "offsets_topic_replication_factor",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "group_initial_rebalance_delay_ms",
}
_WITHOUT_EFFECT = {"KAFKA_HEAP_OPTS"}  # there is no JVM

_INSTEAD = {
    "exec": "there is no container to run a command in; use the methods of `cluster`",
    "get_docker_client": "no container engine is used",
    "get_schema_registry_address": "there is no schema registry",
    "get_wrapped_container": "there is no container; `cluster` is the LocalCluster",
    "with_command": "brokers are started as they are configured; use `with_env`, or LocalCluster's settings",
    "with_network": "brokers listen on this machine's loopback only",
    "with_network_aliases": "brokers listen on this machine's loopback only",
    "with_volume_mapping": "data are in a temporary folder; LocalCluster(directory) keeps them",
}


class NotInAProcess(CommandFailed):
    """What was asked for needs a container."""


class KafkaContainer:
    """A cluster of one broker (`with_brokers`: of more) that Kafka's clients can use."""

    def __init__(self, image: str = "", port: int | None = None, **kwargs: Any) -> None:
        """`image` is taken and not used. `port`: of the container; there is none. Raises NotInAProcess for anything else."""
        if kwargs:
            raise NotInAProcess(
                f"{type(self).__name__}({next(iter(kwargs))}=…): there is no container to start with it"
            )
        self.image = image
        self._container_port = port or KAFKA_PORTS[-1]
        self._brokers = 1
        self._first_kafka_port: int | None = None
        self._settings: dict[str, object] = {}
        self._cluster: LocalCluster | None = None

    # ---- How it is to be ----

    def with_brokers(self, brokers: int) -> Self:
        """Of this class only: how many brokers."""
        self._brokers = brokers
        return self

    def with_env(self, key: str, value: str) -> Self:
        """Environment variables of the images that are settings here; others are refused by name."""
        if key in _WITHOUT_EFFECT:
            return self
        if key not in _SETTINGS:
            raise NotInAProcess(
                f"{key}={value}: of a container's environment {', '.join(sorted(_SETTINGS))} are known here"
            )
        self._settings[_SETTINGS[key]] = _parsed(value)
        return self

    def with_envs(self, **variables: str) -> Self:
        """`with_env` for each."""
        for key, value in variables.items():
            self.with_env(key, value)
        return self

    def with_bind_ports(self, container: str | int, host: str | int | None = None) -> Self:
        """Kafka's port: the first broker listens on `host`, the others on those that follow."""
        port = int(str(container).partition("/")[0])
        if port not in (*KAFKA_PORTS, self._container_port):
            raise NotInAProcess(f"port {container}: a broker has Kafka's port only ({self._container_port})")
        self._first_kafka_port = None if host is None else int(host)
        return self

    def with_exposed_ports(self, *ports: str | int) -> Self:
        """Kafka's port is open."""
        for port in ports:
            self.with_bind_ports(port)
        return self

    def with_kraft(self) -> Self:
        """There is no ZooKeeper."""
        return self

    def with_name(self, name: str) -> Self:
        """Processes have no names to choose."""
        return self

    def with_kwargs(self, **kwargs: Any) -> Self:
        """Raises NotInAProcess for any."""
        if kwargs:
            raise NotInAProcess(f"with_kwargs({next(iter(kwargs))}=…): there is no container to start with it")
        return self

    def maybe_emulate_amd64(self) -> Self:
        """It runs as this Python does."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _INSTEAD and not name.startswith(("with_", "get_")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        reason = _INSTEAD.get(name, "this is no container, and has no such thing")
        raise NotInAProcess(f"{type(self).__name__}.{name}: {reason}")

    # ---- Its life ----

    def start(self, timeout: float = READY_TIMEOUT_S) -> Self:
        """Return once every broker serves. Raises ClusterError, with the end of its log, where one does not in time."""
        settings = ClusterSettings.of({"brokers": self._brokers, **self._settings})
        self._cluster = LocalCluster(
            brokers=settings.brokers,
            broker_overrides={"offsets_topic_replication_factor": min(3, settings.brokers), **dict(settings.broker)},
            first_kafka_port=self._first_kafka_port,
        )
        try:
            self._cluster.up(timeout_s=timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, force: bool = True, delete_volume: bool = True) -> None:
        """End all processes and remove their data. `force` False: shut them down cleanly first."""
        if self._cluster is None:
            return
        if not force:
            self._cluster.down(timeout_s=STOP_TIMEOUT_S)
        self._cluster.close()
        self._cluster = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- While it runs ----

    @property
    def cluster(self) -> LocalCluster:
        """The cluster: kill, pause, look. Raises NotInAProcess before `start` and after `stop`."""
        if self._cluster is None:
            raise NotInAProcess(f"{type(self).__name__} has not been started")
        return self._cluster

    def get_bootstrap_server(self) -> str:
        """`host:port` of every broker, comma-separated."""
        return self.cluster.kafka_bootstrap

    def get_container_host_ip(self) -> str:
        return HOST

    def get_exposed_port(self, port: str | int) -> int:
        """The first broker's, for Kafka's port."""
        self.with_bind_ports(port, self._first_kafka_port)
        return self.cluster.member(1).kafka_port

    def get_logs(self) -> tuple[bytes, bytes]:
        """What the processes wrote to standard output and standard error: all of it is in the second."""
        logs = self.cluster.logs()
        return b"", "".join(logs.values()).encode()


class RedpandaContainer(KafkaContainer):
    """The same, by the name of the other module."""


def _parsed(value: str) -> object:
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdecimal() else text
