"""What a controller's configuration may say of its store; what does not go together is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fencepost_controller.config import ControllerConfig
from fencepost_controller.store import StoreError
from fencepost_controller.store.etcd.connecting import connect
from fencepost_node.config import BrokerConfig
from fencepost_proto.runtime.config import ConfigError
from fencepost_proto.runtime.host import Host
from tests.asynchronous import asynchronous

ETCD = {"data_dir": "/d", "store": "etcd", "controller_id": 1, "etcd_endpoints": "a:2379, b:2379"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"store": "zookeeper"}, "store = 'zookeeper': must be one of sqlite, etcd"),
        ({"etcd_endpoints": "a:2379"}, "etcd_endpoints = 'a:2379': only with store = 'etcd'"),
        ({"controller_id": 2}, "controller_id = 2: only with store = 'etcd'"),
        ({"leader_lease_s": 5}, "leader_lease_s = 5: only with store = 'etcd'"),
        ({**ETCD, "etcd_endpoints": ""}, "etcd_endpoints = '': store = 'etcd' needs"),
        ({**ETCD, "etcd_endpoints": "a:2379,b"}, "etcd_endpoints = 'a:2379,b': 'b' must be host:port"),
        ({**ETCD, "etcd_endpoints": "a:1,a:1"}, "'a:1' stands there twice"),
        ({**ETCD, "etcd_endpoints": ",".join(f"a:{n}" for n in range(1, 12))}, "11 addresses; at most 9"),
        ({**ETCD, "controller_id": 0}, "controller_id = 0: with store = 'etcd'"),
        ({**ETCD, "etcd_prefix": "no-slash"}, "etcd_prefix = 'no-slash': at most 200"),
        ({**ETCD, "etcd_prefix": "/a b/"}, "etcd_prefix = '/a b/'"),
        ({**ETCD, "leader_lease_s": 1}, "leader_lease_s = 1: must be at least 2"),
        ({**ETCD, "etcd_cert_file": "c.pem"}, "etcd_cert_file = 'c.pem', etcd_key_file = '': both or neither"),
        ({**ETCD, "etcd_cert_file": "c", "etcd_key_file": "k"}, "etcd_cert_file = 'c': needs etcd_ca_file"),
        ({**ETCD, "etcd_user": "root"}, "etcd_user = 'root', etcd_password_file = '': both or neither"),
        ({**ETCD, "listen": "0.0.0.0:1", "insecure_listen": True}, "listen = '0.0.0.0:1' is no address"),
    ],
)
def test_settings_of_the_store_that_do_not_go_together_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ControllerConfig(**{"data_dir": "/d", **settings})  # type: ignore[arg-type]
    assert problem in str(refused.value)


@pytest.mark.parametrize("prefix", ["/", "/fencepost/", "/a/b-c_d.e/"])
def test_prefixes(prefix: str) -> None:
    assert ControllerConfig(**{**ETCD, "etcd_prefix": prefix}).etcd_prefix == prefix  # type: ignore[arg-type]


def test_a_broker_takes_one_controller_or_several() -> None:
    assert BrokerConfig(broker_id=1, data_dir="/d", controller="a:1, b:2").controller == "a:1, b:2"
    with pytest.raises(ConfigError, match="controller = 'a:1,': '' must be host:port"):
        BrokerConfig(broker_id=1, data_dir="/d", controller="a:1,")


@asynchronous
async def test_files_of_the_connection_to_etcd_are_read_and_named(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    settings = {**ETCD, "etcd_user": "fencepost", "etcd_password_file": str(password)}
    shared = connect(ControllerConfig(**settings), Host())  # type: ignore[arg-type]
    assert shared.etcd._access.password == "secret"  # type: ignore[attr-defined]
    await shared.etcd.close()
    missing = {**ETCD, "etcd_ca_file": str(tmp_path / "nowhere.pem")}
    with pytest.raises(StoreError, match=r"etcd_ca_file = '.*nowhere.pem' cannot be read: No such file"):
        connect(ControllerConfig(**missing), Host())  # type: ignore[arg-type]
    password.write_text("")
    with pytest.raises(StoreError, match="has 0 bytes or more"):
        connect(ControllerConfig(**settings), Host())  # type: ignore[arg-type]
