"""Families as text, in the format that Prometheus reads (version 0.0.4).

A scrape is made on the event loop in turns: a broker may have thousands of partitions, and requests go on meanwhile. So each
sample is one line, put together from labels that are escaped once; prometheus-client looks at every label of every sample
again, which takes ten times as long. What every process has (memory, CPU, open files, the interpreter) comes from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import accumulate
from typing import Final

from fencepost_proto.runtime.metrics.families import Family, Kind
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.latencies import BOUNDS_S, Latencies

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LINES_IN_A_STEP: Final = 32  # written between two looks at whether something else is due: some ten microseconds

Families = Callable[[], AsyncIterator[Family]]

_LE = [f"{bound:g}" for bound in BOUNDS_S] + ["+Inf"]


async def exposition(families: Families) -> bytes:
    """The text of all families, and of the process itself."""
    turns = Turns()
    parts: list[str] = []
    async for family in families():
        parts += (f"# HELP {family.name} {_help(family.help)}\n", f"# TYPE {family.name} {family.kind.value}\n")
        for start in range(0, len(family.samples), LINES_IN_A_STEP):
            parts.append("".join(_lines(family, start)))
            await turns.step(4 if family.kind is Kind.HISTOGRAM else 1)
    return "".join(parts).encode() + await asyncio.to_thread(of_the_process)


def _lines(family: Family, start: int) -> Iterator[str]:
    for labels, value in family.samples[start : start + LINES_IN_A_STEP]:
        if isinstance(value, Latencies):
            yield from _histogram_lines(family.name, labels, value)
        elif labels:
            yield f"{family.name}{{{labels}}} {value}\n"
        else:
            yield f"{family.name} {value}\n"


def _histogram_lines(name: str, labels: str, value: Latencies) -> Iterator[str]:
    counts, total_s = list(value.counts), value.total_s
    before = f"{labels}," if labels else ""
    for le, count in zip(_LE, accumulate(counts), strict=True):
        yield f'{name}_bucket{{{before}le="{le}"}} {count}\n'
    braced = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{braced} {total_s}\n"
    yield f"{name}_count{braced} {sum(counts)}\n"


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def of_the_process() -> bytes:
    """[thread: the first call imports the library]

    Memory, CPU, open files and the interpreter, by the names that every exporter uses.
    """
    from prometheus_client import REGISTRY, generate_latest

    return generate_latest(REGISTRY)
