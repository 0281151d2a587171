"""The metadata of one cluster in etcd, as a controller is given it. Imports nothing that only etcd needs."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_controller.store.etcd.calls import Etcd
from fencepost_controller.store.etcd.layout import Keys


@dataclass(frozen=True, slots=True)
class SharedMetadata:
    """Where the cluster's metadata is, for several controllers."""

    etcd: Etcd
    keys: Keys
