"""Runs the demo and draws what it printed as docs/demo.svg, with the figures of that run: `./scripts/docs --picture`."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

from rich.console import Console

from fencepost_cli.demo import Demo, DemoOptions, DemoResult
from fencepost_cli.demo_report import show_result
from fencepost_testing import AsyncLocalCluster

PICTURE = Path(__file__).parents[1] / "demo.svg"
WIDTH = 124  # characters: the widest table
FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # they would be fetched from elsewhere
FONTS = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> None:
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print("$ ./scripts/demo", style="bold")
    result = asyncio.run(_run(console))
    if not result.ok:
        raise SystemExit(f"the demo was not exact: {result.problems}")
    show_result(result, console)
    picture = FONT_FACES.sub("", console.export_svg(title="fencepost demo")).replace("Fira Code, monospace", FONTS)
    PICTURE.write_text(picture, encoding="utf-8")


async def _run(console: Console) -> DemoResult:
    options = DemoOptions()
    cluster = AsyncLocalCluster(brokers=options.brokers)
    async with options.clients(cluster) as clients, cluster:
        console.print(f"a controller and {options.brokers} brokers are up")
        demo = Demo(cluster, clients, options, console.print)
        await demo.run()
        await cluster.down()
    return demo.result


if __name__ == "__main__":
    main()
