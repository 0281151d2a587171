"""The table of clients in docs/KAFKA.md, between two marks."""

from __future__ import annotations

from pathlib import Path

from tests.interop.clients import CLIENTS
from tests.interop.scenario import Result

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "KAFKA.md"
BEGIN = "<!-- interop table: ./scripts/interop --write-table -->"
END = "<!-- end of the interop table -->"


_HEAD = [
    "| client | version | produce | group | admin | records | kills | cuts | failover, ms: median / most |",
    "|---|---|---|---|---|---|---|---|---|",
]


def to_row(result: Result) -> str:
    if result.skipped:
        return f"| {result.client} | | skipped: {result.skipped} | | | | | | |"
    produce = "exact" if not result.produce else "**fails**"
    if result.duplicates:
        produce += f", {result.duplicates} written twice (no idempotent producer)"
    group = "exact" if not result.consume else "**fails**"
    admin = "–" if not result.administers else "yes" if not result.admin else "no"
    counts = [str(result.records), str(result.kills), str(result.cuts)]
    words = [result.client, result.version, produce, group, admin, *counts, result.failover()]
    return f"| {' | '.join(words)} |"


def merge(old: str, results: list[Result]) -> str:
    """The table with the new results' rows in place of those of the same clients."""
    rows = {line.split("|")[1].strip(): line for line in old.strip().splitlines()[len(_HEAD) :]}
    rows.update((result.client, to_row(result)) for result in results)
    return "\n".join([*_HEAD, *(rows[name] for name in CLIENTS if name in rows)])


def write_table(results: list[Result]) -> None:
    """Renew the rows of these clients in the document. Raises ValueError where its marks are missing."""
    text = DOCUMENT.read_text()
    before, mark, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{DOCUMENT} lacks {BEGIN!r} or {END!r}")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{merge(old, results)}\n\n{END}{after}")
