"""`fencepost ui`: the live page of a cluster."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from fencepost_cli.terminal import DEFAULT_DATA_DIR, EXIT_USAGE, DataDir, fail

LIBRARIES = ("starlette", "uvicorn")


def ui(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    bootstrap: Annotated[
        str, typer.Option(help="Only look at the cluster with these brokers, host:port with commas between.")
    ] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page listens, on loopback. 0: any free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Show a cluster in a browser, live: who leads, what each replica remembers of each producer, and a batch's way through
    a leader's death, step by step. Kill, pause and restart its processes there.

    Where the folder has no cluster the page offers to start one, which ends with this command.
    """
    if bootstrap:
        _check_bootstrap(bootstrap)
    show_page(data_dir, bootstrap, port, browser=browser)


def _check_bootstrap(bootstrap: str) -> None:
    from fencepost.cluster import parse_bootstrap
    from fencepost_proto.protocol.errors import FencepostError

    try:
        parse_bootstrap(bootstrap)
    except FencepostError as error:
        fail(f"--bootstrap: {error}", EXIT_USAGE)


def show_page(data_dir: Path, bootstrap: str, port: int, *, browser: bool) -> None:
    """Until Ctrl-C."""
    from importlib.util import find_spec

    for library in LIBRARIES:
        if find_spec(library) is None:
            fail(f"the page needs {library}: pip install 'fencepost[http]'")
    from fencepost_testing.failures import CommandFailed
    from fencepost_testing.local_http import listen
    from fencepost_ui.server import run_page

    def ready(url: str) -> None:
        typer.echo(f"The page is at {url} until Ctrl-C")
        if browser:
            webbrowser.open(url)

    try:
        run_page(data_dir, bootstrap, listen(port), ready)
    except CommandFailed as error:
        fail(str(error))
