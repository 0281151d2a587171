"""The configuration of the controller process: what its TOML file may say. Units stand in the names."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from fencepost_proto.runtime.config import (
    LOG_LEVELS,
    ConfigError,
    check_listen,
    check_settings,
    is_wildcard_address,
    setting,
)
from fencepost_proto.transport.carriers.carrier_wire import CARRIERS

MAX_PRODUCER_NAMES = 35_000  # named producers, those remembered as expired included: all metadata goes in one message

STORES = ("sqlite", "etcd")
MAX_CONTROLLER_ID = 1_000
ONLY_WITH_ETCD = (
    "advertised_address",
    "controller_id",
    "etcd_endpoints",
    "etcd_prefix",
    "etcd_ca_file",
    "etcd_cert_file",
    "etcd_key_file",
    "etcd_user",
    "etcd_password_file",
    "leader_lease_s",
)
_PREFIX = re.compile(r"/|/[A-Za-z0-9._/-]{0,198}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Checked when it is made: raises ConfigError naming key and value."""

    data_dir: str = setting(
        minimum=1,
        doc="Folder of this controller, with the metadata store if that is SQLite. One process at a time uses it.",
    )
    listen: str = setting("127.0.0.1:0", address=True, doc="Address to listen on, host:port. Port 0: any free one.")
    insecure_listen: bool = setting(
        False, doc="Whether `listen` may be an address that other machines reach. Nothing authenticates who connects."
    )
    carrier: str = setting(
        "auto",
        choices=CARRIERS,
        doc="How calls travel. auto: by the lean carrier, and by gRPC where a peer speaks only that. lean: no peer is "
        "called by gRPC. grpc: by gRPC only, and nothing else is listened for. All on one port.",
    )
    advertised_address: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address that brokers and the other controllers connect to, host:port. Empty: where it listens. Only with etcd.",
    )
    log_level: str = setting("INFO", choices=LOG_LEVELS, doc="The least severe events that are logged.")

    session_timeout_ms: int = setting(
        3_000, minimum=100, maximum=300_000, doc="A broker that has been silent for longer counts as dead."
    )
    heartbeat_interval_ms: int = setting(
        500, minimum=10, doc="How often brokers send heartbeats. At most half of `session_timeout_ms`."
    )
    preferred_leader_interval_ms: int = setting(
        10_000, minimum=10, doc="Pause between two rounds that give leaderships back to preferred leaders."
    )
    min_segment_bytes: int = setting(
        16 * 1024,
        minimum=256,
        doc="The smallest `segment_bytes` that a topic may ask for. Less than the default is for tests.",
    )

    max_producer_names: int = setting(
        20_000,
        minimum=1,
        maximum=MAX_PRODUCER_NAMES,
        doc="Named producers at a time, those that are remembered as expired included.",
    )
    producer_name_expiration_ms: int = setting(
        7 * 24 * 3600 * 1000,
        minimum=1_000,
        doc="A name that has not been used for longer is forgotten, and its id is refused permanently.",
    )

    # Where metadata is kept
    store: str = setting(
        "sqlite",
        choices=STORES,
        doc="Where metadata is kept. sqlite: in a file of the data folder, for one controller. etcd: in etcd, for any "
        "number of controllers, of which one is active.",
    )
    controller_id: int = setting(
        0,
        minimum=0,
        maximum=MAX_CONTROLLER_ID,
        doc="Number of this controller among those that share a store. 0: it is alone.",
    )
    etcd_endpoints: str = setting(
        "", addresses=True, optional=True, doc="Addresses of etcd's members, host:port, separated by commas."
    )
    etcd_prefix: str = setting(
        "/fencepost/", minimum=1, doc="Before every key in etcd: one for each cluster. It begins and ends with a slash."
    )
    etcd_ca_file: str = setting(
        "", doc="PEM file with the authority that has signed etcd's certificates. Empty: without TLS."
    )
    etcd_cert_file: str = setting("", doc="PEM file with this controller's certificate for etcd. Empty: it shows none.")
    etcd_key_file: str = setting("", doc="PEM file with the key of that certificate.")
    etcd_user: str = setting("", doc="Name under which etcd lets this controller in. Empty: it does not ask.")
    etcd_password_file: str = setting("", doc="File with that user's password.")
    leader_lease_s: int = setting(
        3,
        minimum=2,
        maximum=60,
        doc="For how long the active controller may be silent towards etcd before another one takes over. etcd itself needs "
        "more than its election timeout, 1 s by default.",
    )

    # Metrics
    metrics_listen: str = setting(
        "",
        address=True,
        optional=True,
        doc="Address on which Prometheus reads /metrics, host:port. Empty: none is listened on. Port 0: any free one.",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_listen(self.listen, self.insecure_listen)
        if self.metrics_listen:
            check_listen(self.metrics_listen, self.insecure_listen, keys=("metrics_listen", ""))
        self._check_store()
        if 2 * self.heartbeat_interval_ms > self.session_timeout_ms:
            raise ConfigError(
                f"heartbeat_interval_ms = {self.heartbeat_interval_ms}: must be at most half of "
                f"session_timeout_ms = {self.session_timeout_ms}"
            )

    def _check_store(self) -> None:
        """Raises ConfigError for settings of the store that do not go together."""
        if self.store == "sqlite":
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for name in ONLY_WITH_ETCD:
                value = getattr(self, name)
                if value != defaults[name]:
                    raise ConfigError(f"{name} = {value!r}: only with store = 'etcd'")
            return
        if not self.etcd_endpoints:
            raise ConfigError("etcd_endpoints = '': store = 'etcd' needs the addresses of etcd's members")
        if not self.controller_id:
            raise ConfigError(
                "controller_id = 0: with store = 'etcd' each controller needs a number of its own, from 1 on"
            )
        if not _PREFIX.fullmatch(self.etcd_prefix):
            raise ConfigError(
                f"etcd_prefix = {self.etcd_prefix!r}: at most 200 letters, digits and '-_./', with '/' at both ends"
            )
        if is_wildcard_address(self.advertised_address or self.listen):
            key = "advertised_address" if self.advertised_address else "listen"
            raise ConfigError(
                f"{key} = {self.advertised_address or self.listen!r} is no address that brokers could connect to: set "
                "advertised_address = 'HOST:PORT'"
            )
        if bool(self.etcd_cert_file) != bool(self.etcd_key_file):
            raise ConfigError(
                f"etcd_cert_file = {self.etcd_cert_file!r}, etcd_key_file = {self.etcd_key_file!r}: both or neither"
            )
        if self.etcd_cert_file and not self.etcd_ca_file:
            raise ConfigError(f"etcd_cert_file = {self.etcd_cert_file!r}: needs etcd_ca_file, for TLS")
        if bool(self.etcd_user) != bool(self.etcd_password_file):
            raise ConfigError(
                f"etcd_user = {self.etcd_user!r}, etcd_password_file = {self.etcd_password_file!r}: both or neither"
            )
