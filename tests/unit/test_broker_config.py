"""What a process's configuration may say, and how each mistake in it is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fencepost_controller.config import ControllerConfig
from fencepost_node.config import BrokerConfig
from fencepost_proto.runtime.config import ConfigError, load, parse

GOOD: dict[str, object] = {"broker_id": 1, "data_dir": "/data", "controller": "127.0.0.1:9090"}


def test_three_keys_are_enough_and_the_rest_has_defaults() -> None:
    config = parse(BrokerConfig, GOOD)
    assert (config.broker_id, config.data_dir, config.controller) == (1, "/data", "127.0.0.1:9090")
    assert config.listen == "127.0.0.1:0"
    assert config.replica_lag_time_max_ms == 5_000
    assert config.snapshot_interval_bytes == 64 * 1024 * 1024
    assert config.producer_expiration_ms == 7 * 24 * 3600 * 1000
    assert config.retention_check_interval_ms == 30_000


def test_a_file_says_the_same_as_the_object(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(
        'broker_id = 3\ndata_dir = "/d"\ncontroller = "c:1"\nlisten = "127.0.0.2:9092"\nlog_level = "DEBUG"\n'
    )
    expected = BrokerConfig(broker_id=3, data_dir="/d", controller="c:1", listen="127.0.0.2:9092", log_level="DEBUG")
    assert load(BrokerConfig, str(file)) == expected


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("broker_id", -1, "broker_id = -1: must be at least 0"),
        ("broker_id", 2**31, "broker_id = 2147483648: must be at most 2147483647"),
        ("broker_id", "1", "broker_id = '1': expected int"),
        ("broker_id", True, "broker_id = True: expected int"),
        ("broker_id", 1.5, "broker_id = 1.5: expected int"),
        ("data_dir", "", "data_dir = '': must not be empty"),
        ("data_dir", 5, "data_dir = 5: expected str"),
        ("controller", "localhost", "controller = 'localhost': must be host:port"),
        ("controller", ":9090", "controller = ':9090': must be host:port"),
        ("controller", "c:http", "port 'http' is not a number"),
        ("listen", "127.0.0.1:70000", "listen = '127.0.0.1:70000': port '70000'"),
        ("listen", "127.0.0.1\n:9092", "host '127.0.0.1.n' has characters that no host has"),
        ("advertised_address", "broker 1:9092", "host 'broker 1' has characters"),
        ("insecure_listen", "yes", "insecure_listen = 'yes': expected bool"),
        ("log_level", "verbose", "log_level = 'verbose': must be one of DEBUG, INFO, WARNING, ERROR"),
        ("replica_lag_time_max_ms", 0, "replica_lag_time_max_ms = 0: must be at least 100"),
        ("snapshot_interval_bytes", -5, "snapshot_interval_bytes = -5"),
        ("producer_expiration_ms", 0, "producer_expiration_ms = 0"),
        ("retention_check_interval_ms", [1], r"retention_check_interval_ms = \[1\]: expected int"),
        ("max_request_bytes", 2**40, "max_request_bytes = 1099511627776: must be at most"),
        ("no_such_key", 1, "unknown key 'no_such_key' .value 1.; known: broker_id, data_dir"),
    ],
)
def test_an_impossible_value_is_refused_naming_key_and_value(key: str, value: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(BrokerConfig, {**GOOD, key: value})


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"key {key!r} is missing"):
        parse(BrokerConfig, {name: value for name, value in GOOD.items() if name != key})


def test_an_object_made_in_code_is_checked_too() -> None:
    config = parse(BrokerConfig, GOOD)
    with pytest.raises(ConfigError, match="tail_bytes = -1"):
        dataclasses.replace(config, tail_bytes=-1)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml.*No such file"):
        load(BrokerConfig, str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("content", [b"broker_id = ", b"\xff\xfe", b"[table]\nbroker_id = 1\n"])
def test_a_file_that_makes_no_sense_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(BrokerConfig, str(file))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "localhost", "LOCALHOST", "[::1]", "::1", "127.8.9.10", "[::ffff:127.0.0.1]"]
)
def test_this_machine_alone_is_listened_to_without_a_word(host: str) -> None:
    parse(BrokerConfig, {**GOOD, "listen": f"{host}:9092"})
    parse(ControllerConfig, {"data_dir": "/data", "listen": f"{host}:9092"})


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::]", "::", "*", "0", "10.1.2.3", "broker-1.example", "[2001:db8::1]", "localhost.example"]
)
def test_a_listener_that_other_machines_reach_has_to_be_asked_for_by_name(host: str) -> None:
    listen = f"{host}:9092"
    for refused, settings in (
        (BrokerConfig, {**GOOD, "listen": listen, "advertised_address": "broker-1:9092"}),
        (ControllerConfig, {"data_dir": "/data", "listen": listen}),
    ):
        with pytest.raises(ConfigError, match="insecure_listen = true") as caught:
            parse(refused, dict(settings))
        assert repr(listen) in str(caught.value)
        parse(refused, {**settings, "insecure_listen": True})


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "::", "*", "0"])
def test_a_wildcard_is_listened_to_only_with_an_address_that_clients_can_connect_to(host: str) -> None:
    settings = {**GOOD, "listen": f"{host}:9092", "insecure_listen": True}
    with pytest.raises(ConfigError, match="set advertised_address"):
        parse(BrokerConfig, settings)
    for advertised in (f"{host}:9092", "0.0.0.0:1"):
        with pytest.raises(
            ConfigError, match=r"advertised_address = .*: must be an address that clients can connect to"
        ):
            parse(BrokerConfig, {**settings, "advertised_address": advertised})
    parse(BrokerConfig, {**settings, "advertised_address": "broker-1.example:9092"})
    parse(ControllerConfig, {"data_dir": "/data", "listen": f"{host}:9092", "insecure_listen": True})  # tells no one
