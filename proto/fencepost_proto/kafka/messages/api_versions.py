"""ApiVersions (key 18): what a broker speaks; a client's first request on a connection.

A request of a version that the broker does not know is answered in version 0, with UNSUPPORTED_VERSION (35) and the
ranges (KIP-511). Version 4 lists features whose minimum is 0, which older clients reject. In version 5 a client says
which cluster and node it believes it has reached (KIP-1242).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import array, boolean, int16, int32, int64, message, string


@message
class ApiVersionsRequest:
    client_software_name: str = string(since=3)
    client_software_version: str = string(since=3)
    cluster_id: str | None = string(since=5, nullable=5, default=None)
    node_id: int = int32(since=5, default=-1)


@message
class ApiVersion:
    api_key: int = int16()
    min_version: int = int16()
    max_version: int = int16()


@message
class SupportedFeatureKey:
    """A feature that the broker could run, with the levels that it has."""

    name: str = string()
    min_version: int = int16()
    max_version: int = int16()


@message
class FinalizedFeatureKey:
    """A feature that the cluster runs, with the levels that are in force."""

    name: str = string()
    max_version_level: int = int16()
    min_version_level: int = int16()


@message
class ApiVersionsResponse:
    error_code: int = int16()
    api_keys: list[ApiVersion] = array(ApiVersion)
    throttle_time_ms: int = int32(since=1)
    supported_features: list[SupportedFeatureKey] = array(SupportedFeatureKey, since=3, tag=0)
    finalized_features_epoch: int = int64(since=3, tag=1, default=-1)
    finalized_features: list[FinalizedFeatureKey] = array(FinalizedFeatureKey, since=3, tag=2)
    zk_migration_ready: bool = boolean(since=3, tag=3)
