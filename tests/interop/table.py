"""The table of clients in docs/KAFKA.md, between two marks."""

from __future__ import annotations

from pathlib import Path

from tests.interop.scenario import Result

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "KAFKA.md"
BEGIN = "<!-- interop table: ./scripts/interop --write-table -->"
END = "<!-- end of the interop table -->"


def to_table(results: list[Result]) -> str:
    rows = [
        "| client | version | produce | group | admin | failover, ms (median / most) |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.skipped:
            rows.append(f"| {result.client} | | skipped: {result.skipped} | | | |")
            continue
        produce = "exact" if not result.produce else "**fails**"
        if result.duplicates:
            produce += f", {result.duplicates} written twice (no idempotent producer)"
        group = "exact" if not result.consume else "**fails**"
        admin = "yes" if not result.admin else "no"
        rows.append(f"| {result.client} | {result.version} | {produce} | {group} | {admin} | {result.failover()} |")
    return "\n".join(rows)


def write_table(results: list[Result]) -> None:
    """Replace the table in the document. Raises ValueError where its marks are missing."""
    text = DOCUMENT.read_text()
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{DOCUMENT} lacks {BEGIN!r} or {END!r}")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{to_table(results)}\n\n{END}{after}")
