"""`./scripts/interop`: run clients one after the other and write the table into docs/KAFKA.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.failures import CommandFailed
from tests.interop.clients import CLIENTS, Client
from tests.interop.scenario import Options, Result, Scenario
from tests.interop.table import write_table


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def main() -> int:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="./scripts/interop", description=__doc__)
    parser.add_argument("client", nargs="*", choices=[*CLIENTS, []], help="which clients; none: all of them")
    parser.add_argument("--records", type=int, default=defaults.records)
    parser.add_argument("--rate", type=float, default=defaults.rate, help="records a second")
    parser.add_argument("--kills", type=int, default=defaults.kills)
    parser.add_argument("--without-groups", action="store_true", help="one consumer of all partitions reads along")
    parser.add_argument(
        "--folder", type=Path, help="where logs and data stay; without it a temporary one, kept on failure"
    )
    parser.add_argument(
        "--write-table", action="store_true", help="renew these clients' rows of the table in docs/KAFKA.md"
    )
    arguments = parser.parse_args()
    options = Options(arguments.records, arguments.rate, arguments.kills, groups=not arguments.without_groups)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fencepost-interop-"))
    results = []
    for name in arguments.client or CLIENTS:
        results.append(run_client(CLIENTS[name], options, folder / name.replace("/", "-")))
        report(results[-1])
        if arguments.write_table:
            write_table(results[-1:])
    failed = [result.client for result in results if not result.skipped and not result.ok]
    if failed:
        tell(f"failed: {', '.join(failed)}; everything is in {folder}")
    return 1 if failed else 0


def run_client(client: Client, options: Options, folder: Path) -> Result:
    """Build its program, run the scenario. What keeps the run from going on is a problem of the result."""
    missing = client.missing()
    if missing:
        return Result(client.name, skipped=f"{' and '.join(missing)} not found")
    tell(f"{client.name} {client.version()}")
    folder.mkdir(parents=True)
    client.build()
    scenario = Scenario(client, options, folder, tell)
    try:
        asyncio.run(scenario.run())
    except (CommandFailed, FencepostError) as error:
        scenario.result.produce.append(f"{type(error).__name__}: {error}")
    return scenario.result


def report(result: Result) -> None:
    if result.skipped:
        tell(f"{result.client}: skipped, {result.skipped}")
        return
    tell(
        f"{result.client} {result.version}: {'passed' if result.ok else 'FAILED'}; {result.records} records in the log, "
        f"{result.kills} leaders killed, {result.cuts} connections cut, unavailable {result.failover()} ms (median, most)"
    )
    for part, problems in (
        ("produce", result.produce),
        ("consume", result.consume),
        ("admin", result.admin),
        ("story", result.story),
    ):
        for problem in problems:
            tell(f"    {part}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
