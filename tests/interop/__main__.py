"""`./scripts/interop`: run clients one after the other and write the table into docs/KAFKA.md, or run a suite of others."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.failures import CommandFailed
from tests.interop.clients import CLIENTS, Client
from tests.interop.scenario import Options, Result, Scenario
from tests.interop.suites.run import AT_ONCE, NEEDS, SUITES, Settings, run_suite
from tests.interop.suites.suite import Choice, State
from tests.interop.table import write_table

MAX_KILL_PAUSE_S = 3_600


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
    add_suite_arguments(parser)
    arguments = parser.parse_args()
    if arguments.suite:
        return run_a_suite(parser, arguments)
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


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("test suites of others")
    group.add_argument(
        "--suite",
        nargs=2,
        metavar=("NAME", "CHECKOUT"),
        help=f"run a suite ({' or '.join(SUITES)}) from a folder with its sources, instead of clients",
    )
    group.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="only tests with one of these in their names"
    )
    group.add_argument(
        "--suite-records",
        type=int,
        default=0,
        metavar="N",
        help="kgo: of TestGroupETL; without it as many as it has itself",
    )
    group.add_argument(
        "--idempotent", action="store_true", help="librdkafka: all its producers idempotent (its own option -P)"
    )
    group.add_argument(
        "--kill-every", type=_seconds, default=0.0, metavar="5s", help="kill a broker that leads that often meanwhile"
    )
    group.add_argument(
        "--at-once", type=int, default=AT_ONCE, metavar="N", help=f"tests side by side; {AT_ONCE} by default"
    )


def _seconds(text: str) -> float:
    """Of `5s` or `5`. Raises ArgumentTypeError."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 < value <= MAX_KILL_PAUSE_S:
        raise argparse.ArgumentTypeError(f"{text!r}: more than 0 s and at most {MAX_KILL_PAUSE_S} s")
    return value


def run_a_suite(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    name, checkout = arguments.suite
    if name not in SUITES:
        parser.error(f"--suite {name}: there are {' and '.join(SUITES)}")
    if missing := [command for command in NEEDS[name] if shutil.which(command) is None]:
        parser.error(f"--suite {name} needs {' and '.join(missing)}, which is not here")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fencepost-suite-"))
    folder.mkdir(parents=True, exist_ok=True)
    choice = Choice(arguments.only, arguments.suite_records, arguments.idempotent)
    settings = Settings(choice, arguments.kill_every, arguments.at_once)
    try:
        outcomes = asyncio.run(run_suite(name, Path(checkout), settings, folder.absolute(), tell))
    except CommandFailed as error:
        tell(str(error))
        return 1
    ran = [outcome for outcome in outcomes if outcome.state is not State.EXCLUDED]
    return 1 if not ran or any(outcome.state is State.FAILED for outcome in ran) else 0


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
