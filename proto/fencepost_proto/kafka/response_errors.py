"""The errors in a Kafka response, wherever its API has them: of the whole, of each topic, of each partition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fencepost_proto.kafka.schema.fields import Kind, fields_of

_ERROR_CODE = "error_code"


class _Plan(NamedTuple):
    """Where one struct has errors."""

    has_own: bool
    nested: tuple[tuple[str, bool, _Plan], ...]  # fields with structs that have some: name, whether it is an array


def error_codes(response: object) -> Iterator[int]:
    """Each code that is not 0, once for each place that has it."""
    plan = _plan(type(response))
    return _codes(response, plan) if plan is not None else iter(())


def _codes(struct: object, plan: _Plan) -> Iterator[int]:
    if plan.has_own and (code := getattr(struct, _ERROR_CODE)):
        yield code
    for name, is_array, inner in plan.nested:
        value = getattr(struct, name)
        if value is None:
            continue
        for each in value if is_array else (value,):
            yield from _codes(each, inner)


_PLANS: dict[type[object], _Plan | None] = {}  # of the structs that were answered so far


def _plan(struct: type[object]) -> _Plan | None:
    """None: it has no place for an error."""
    if struct not in _PLANS:
        _PLANS[struct] = _make_plan(struct)
    return _PLANS[struct]


def _make_plan(struct: type[object]) -> _Plan | None:
    fields = fields_of(struct)
    has_own = any(field.name == _ERROR_CODE for field in fields)
    nested = []
    for field in fields:
        if not isinstance(field.kind, Kind) and (plan := _plan(field.kind)) is not None:
            nested.append((field.name, field.is_array, plan))
    return _Plan(has_own, tuple(nested)) if has_own or nested else None
