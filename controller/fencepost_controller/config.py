"""The configuration of the controller process: what its TOML file may say. Units stand in the names."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.runtime.config import LOG_LEVELS, ConfigError, check_listen, check_settings, setting
from fencepost_proto.transport.carriers.carrier_wire import CARRIERS

MAX_PRODUCER_NAMES = 35_000  # named producers, those remembered as expired included: all metadata goes in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Checked when it is made: raises ConfigError naming key and value."""

    data_dir: str = setting(minimum=1, doc="Folder with the metadata store. One process at a time uses it.")
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
        if 2 * self.heartbeat_interval_ms > self.session_timeout_ms:
            raise ConfigError(
                f"heartbeat_interval_ms = {self.heartbeat_interval_ms}: must be at most half of "
                f"session_timeout_ms = {self.session_timeout_ms}"
            )
