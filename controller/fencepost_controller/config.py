"""The configuration of the controller process: what its TOML file may say. Units stand in the names."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.runtime.config import LOG_LEVELS, ConfigError, check_listen, check_settings, setting

MAX_PRODUCER_NAMES = 35_000  # named producers, those remembered as expired included: all metadata goes in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Checked when it is made: raises ConfigError naming key and value."""

    data_dir: str = setting(minimum=1)
    listen: str = setting("127.0.0.1:0", address=True)  # port 0: any free one
    insecure_listen: bool = setting(False)  # may other machines reach `listen`? Nothing authenticates them
    log_level: str = setting("INFO", choices=LOG_LEVELS)

    session_timeout_ms: int = setting(3_000, minimum=100, maximum=300_000)  # silence that means dead
    heartbeat_interval_ms: int = setting(500, minimum=10)  # what brokers are asked for
    preferred_leader_interval_ms: int = setting(10_000, minimum=10)  # between rounds that restore preferred leaders
    min_segment_bytes: int = setting(16 * 1024, minimum=256)  # that a topic may ask for; less is for tests

    max_producer_names: int = setting(20_000, minimum=1, maximum=MAX_PRODUCER_NAMES)
    producer_name_expiration_ms: int = setting(7 * 24 * 3600 * 1000, minimum=1_000)  # not used for so long: forgotten

    def __post_init__(self) -> None:
        check_settings(self)
        check_listen(self.listen, self.insecure_listen)
        if 2 * self.heartbeat_interval_ms > self.session_timeout_ms:
            raise ConfigError(
                f"heartbeat_interval_ms = {self.heartbeat_interval_ms}: must be at most half of "
                f"session_timeout_ms = {self.session_timeout_ms}"
            )
