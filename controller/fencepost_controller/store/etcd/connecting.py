"""The connection to etcd that a configuration describes."""

from __future__ import annotations

from fencepost_controller.config import ControllerConfig
from fencepost_controller.store import StoreError
from fencepost_controller.store.etcd.layout import Keys
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_proto.runtime.config import split_addresses
from fencepost_proto.runtime.host import Host

MAX_FILE_BYTES = 1024 * 1024


def connect(config: ControllerConfig, host: Host) -> SharedMetadata:
    """Called inside the running event loop; nothing is asked of etcd yet. Raises StoreError."""
    try:
        from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
    except ImportError as error:
        raise StoreError(f"store = 'etcd' needs more packages: pip install 'fencepost[etcd]' ({error})") from error
    access = EtcdAccess(
        endpoints=split_addresses(config.etcd_endpoints),
        ca=_content("etcd_ca_file", config.etcd_ca_file),
        certificate=_content("etcd_cert_file", config.etcd_cert_file),
        private_key=_content("etcd_key_file", config.etcd_key_file),
        user=config.etcd_user,
        password=(_content("etcd_password_file", config.etcd_password_file) or b"").decode().rstrip("\r\n"),
    )
    return SharedMetadata(EtcdClient(host.wire, access), Keys(config.etcd_prefix.encode()))


def _content(key: str, path: str) -> bytes | None:
    """None: there is no such file in the configuration. Raises StoreError."""
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StoreError(f"{key} = {path!r} cannot be read: {error.strerror}") from error
    if not content or len(content) > MAX_FILE_BYTES:
        raise StoreError(f"{key} = {path!r} has {len(content)} bytes or more; from 1 to {MAX_FILE_BYTES} are possible")
    return content
