"""Process configuration: one frozen dataclass for each process, from a flat TOML file, checked before anything starts.

A configuration class declares its fields with plain types (`str`, `int`, `bool`) and, where a value can be impossible,
with `setting(…)`; its `__post_init__` calls `check_settings(self)`, so an object built in code is checked like one read
from a file. Every refusal is a ConfigError that names the key and the value.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
import tomllib
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_PORT = 65535
MAX_ADDRESSES = 9  # in one setting

_HOST = re.compile(r"[A-Za-z0-9._*%:-]+|\[[0-9A-Fa-f:.%A-Za-z]+\]")


class ConfigError(Exception):
    """A configuration that a process cannot start with; the message names the key and the value."""


def setting(
    default: object = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[object] = (),
    address: bool = False,
    addresses: bool = False,
    optional: bool = False,
    doc: str = "",
) -> Any:
    """A dataclass field with limits: numbers from `minimum` to `maximum`, strings out of `choices` or host:port.

    `addresses`: one host:port or several, separated by commas. `optional`: a string may also be empty. `doc`: what it
    sets, for docs/CONFIGURATION.md.
    """
    limits: dict[str, object] = {"minimum": minimum, "maximum": maximum, "choices": tuple(choices)}
    limits |= {"address": address, "addresses": addresses, "optional": optional, "doc": doc}
    return dataclasses.field(default=default, metadata=limits)


def settings_help(cls: type) -> str:
    """A line for each setting: its name, its default and what it sets."""
    lines = []
    for field in dataclasses.fields(cls):
        default = "required" if field.default is dataclasses.MISSING else f"default {field.default!r}"
        lines.append(f"  {field.name} ({default}): {field.metadata.get('doc', '')}")
    return "\n".join(lines)


def load(cls: type[T], path: str) -> T:
    """The configuration in the file at `path`. Raises ConfigError where it cannot be read or makes no sense."""
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path!r} is not TOML: {error}") from error
    try:
        return parse(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(cls: type[T], values: dict[str, object]) -> T:
    """The configuration with these values. Raises ConfigError for an unknown, missing or impossible one."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} (value {values[unknown[0]]!r}); known: {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"key {missing[0]!r} is missing")
    return cls(**values)


def check_settings(config: object) -> None:
    """Check every field of a configuration object against its type and limits. Raises ConfigError."""
    types = get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if type(value) is not types[field.name]:  # not isinstance: true is no number here
            raise ConfigError(f"{field.name} = {value!r}: expected {types[field.name].__name__}")
        problem = _problem(value, field.metadata)
        if problem:
            raise ConfigError(f"{field.name} = {value!r}: {problem}")


def _problem(value: object, limits: Any) -> str:
    """What is wrong with a value of the right type; empty: nothing."""
    minimum, maximum = limits.get("minimum"), limits.get("maximum")
    if isinstance(value, int):
        if minimum is not None and value < minimum:
            return f"must be at least {minimum}"
        if maximum is not None and value > maximum:
            return f"must be at most {maximum}"
    if isinstance(value, str):
        if not value and limits.get("optional"):
            return ""
        if limits.get("choices") and value not in limits["choices"]:
            return f"must be one of {', '.join(limits['choices'])}"
        if limits.get("address"):
            return address_problem(value)
        if limits.get("addresses"):
            return addresses_problem(value)
        if not value and limits.get("minimum"):
            return "must not be empty"
    return ""


def check_listen(
    listen: str,
    insecure_listen: bool,
    advertised_address: str | None = None,
    *,
    keys: tuple[str, str] = ("listen", "advertised_address"),
) -> None:
    """Check where a process listens: beyond this machine only by name. Raises ConfigError.

    There is neither encryption nor authentication: any process that reaches the port may read, write and delete everything.
    `advertised_address`: what others connect to; empty: where it listens; None: no one else connects.
    `keys`: of the two addresses.
    """
    listen_key, advertised_key = keys
    host = listen.rpartition(":")[0]
    if not _is_loopback(host) and not insecure_listen:
        raise ConfigError(
            f"{listen_key} = {listen!r} can be reached from other machines, and nothing authenticates who connects: "
            f"listen on 127.0.0.1, or set insecure_listen = true where only trusted machines reach it"
        )
    if advertised_address is None:
        return
    if _is_wildcard(host) and not advertised_address:
        raise ConfigError(
            f"{listen_key} = {listen!r} is no address that clients could connect to: set {advertised_key} = 'HOST:PORT'"
        )
    if _is_wildcard(advertised_address.rpartition(":")[0]):
        raise ConfigError(f"{advertised_key} = {advertised_address!r}: must be an address that clients can connect to")


def is_wildcard_address(address: str) -> bool:
    """Is it the address of every interface, like 0.0.0.0:9092? One can listen there, and not connect to it."""
    return _is_wildcard(address.rpartition(":")[0])


def _is_loopback(host: str) -> bool:
    ip = _ip_of(host)
    return host.lower() == "localhost" if ip is None else ip.is_loopback


def _is_wildcard(host: str) -> bool:
    ip = _ip_of(host)
    return host == "*" if ip is None else ip.is_unspecified


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, in whichever notation the system takes; None for a name."""
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # "0" and "127.1" too
        except (OSError, UnicodeError):
            return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def split_addresses(text: str) -> tuple[str, ...]:
    """What `addresses_problem` finds nothing wrong with, one by one."""
    return tuple(address.strip() for address in text.split(","))


def addresses_problem(text: str) -> str:
    """What keeps a string from being host:port, or several of them separated by commas; empty: nothing."""
    addresses = split_addresses(text)
    if len(addresses) > MAX_ADDRESSES:
        return f"{len(addresses)} addresses; at most {MAX_ADDRESSES} are possible"
    for address in addresses:
        if problem := address_problem(address):
            return problem if len(addresses) == 1 else f"{address!r} {problem}"
        if addresses.count(address) > 1:
            return f"{address!r} stands there twice"
    return ""


def address_problem(address: str) -> str:
    """What keeps a string from being host:port; empty: nothing."""
    host, separator, port = address.rpartition(":")
    if not separator or not host:
        return "must be host:port"
    if not _HOST.fullmatch(host):
        return f"host {host!r} has characters that no host has"
    if not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        return f"port {port!r} is not a number from 0 to {MAX_PORT}"
    return ""
