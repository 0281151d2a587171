"""`KafkaContainer` is used as the one of the testcontainers package is, and says what it cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient

from fencepost_testing.testcontainers import KafkaContainer, NotInAProcess, RedpandaContainer


def test_a_suite_of_containers_runs_on_processes() -> None:
    container = (
        KafkaContainer("confluentinc/cp-kafka:7.6.0")
        .with_kraft()
        .with_env("KAFKA_NUM_PARTITIONS", "2")
        .with_envs(KAFKA_AUTO_CREATE_TOPICS_ENABLE="true", KAFKA_HEAP_OPTS="-Xmx256M")
        .with_exposed_ports(9093)
        .with_name("kafka")
    )
    with container as kafka:
        host, port = kafka.get_bootstrap_server().split(":")
        assert (host, int(port)) == (kafka.get_container_host_ip(), kafka.get_exposed_port(9093))
        admin = AdminClient({"bootstrap.servers": kafka.get_bootstrap_server()})
        assert len(admin.list_topics("orders", timeout=20).topics) == 1  # asks for it, so it is created
        assert len(kafka.cluster.partitions("orders")) == 2
        assert kafka.get_logs()[0] == b""
        assert b"controller" in kafka.get_logs()[1]
        directory = kafka.cluster.directory
    assert not directory.exists()
    with pytest.raises(NotInAProcess, match="KafkaContainer has not been started"):
        container.get_bootstrap_server()
    container.stop()  # once more is as good


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: KafkaContainer(mem_limit="1g"), r"KafkaContainer\(mem_limit=…\): there is no container"),
        (
            lambda: KafkaContainer().with_env("KAFKA_LOG_DIRS", "/data"),
            "KAFKA_LOG_DIRS=/data: of a container's environ",
        ),
        (
            lambda: KafkaContainer().with_volume_mapping("/a", "/b"),
            "with_volume_mapping: data are in a temporary folder",
        ),
        (lambda: KafkaContainer().exec("ls"), "KafkaContainer.exec: there is no container to run a command in"),
        (lambda: RedpandaContainer().get_schema_registry_address(), "get_schema_registry_address: there is no schema"),
        (lambda: KafkaContainer().with_bind_ports(8081, 8081), "port 8081: a broker has Kafka's port only"),
        (lambda: KafkaContainer().with_kwargs(privileged=True), r"with_kwargs\(privileged=…\)"),
        (lambda: KafkaContainer().with_something_else(), "with_something_else: this is no container"),
    ],
)
def test_what_only_a_container_has_is_refused_by_name(use: Callable[[], object], message: str) -> None:
    with pytest.raises(NotInAProcess, match=message):
        use()
