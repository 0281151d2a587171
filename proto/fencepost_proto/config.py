"""Process configuration: one frozen dataclass for each process, from a flat TOML file, checked before anything starts.

A configuration class declares its fields with plain types (`str`, `int`, `bool`) and, where a value can be impossible,
with `setting(…)`; its `__post_init__` calls `check_settings(self)`, so an object built in code is checked like one read
from a file. Every refusal is a ConfigError that names the key and the value.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_PORT = 65535


class ConfigError(Exception):
    """A configuration that a process cannot start with; the message names the key and the value."""


def setting(
    default: object = dataclasses.MISSING,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    choices: Sequence[str] = (),
    address: bool = False,
) -> Any:
    """A dataclass field with limits: numbers from `minimum` to `maximum`, strings out of `choices` or host:port."""
    limits = {"minimum": minimum, "maximum": maximum, "choices": tuple(choices), "address": address}
    return dataclasses.field(default=default, metadata=limits)


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
        if limits.get("choices") and value not in limits["choices"]:
            return f"must be one of {', '.join(limits['choices'])}"
        if limits.get("address"):
            return _address_problem(value)
        if not value and limits.get("minimum"):
            return "must not be empty"
    return ""


def _address_problem(address: str) -> str:
    host, separator, port = address.rpartition(":")
    if not separator or not host:
        return "must be host:port"
    if not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        return f"port {port!r} is not a number from 0 to {MAX_PORT}"
    return ""
