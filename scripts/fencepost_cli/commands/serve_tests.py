"""`fencepost serve-tests`: a cluster for tests in other languages, by HTTP and JSON."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fencepost_cli.terminal import fail, run
from fencepost_testing.cluster_folder import MAX_CONTROLLERS
from fencepost_testing.failures import CommandFailed

if TYPE_CHECKING:
    from fencepost_testing.control.server import ControlServer

URL = "FENCEPOST_TEST_URL"
TOKEN = "FENCEPOST_TEST_TOKEN"
KAFKA_BOOTSTRAP = "FENCEPOST_KAFKA_BOOTSTRAP"
DEFAULT_PORT = 8090
DEFAULT_BROKERS = 3


def serve_tests(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND…]", help="Run it with the address and the token in its environment, and end with it."
        ),
    ] = None,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Of this machine's loopback; 0: any that is free.")
    ] = DEFAULT_PORT,
    brokers: Annotated[int, typer.Option(min=1, help="How many.")] = DEFAULT_BROKERS,
    controllers: Annotated[
        int, typer.Option(min=1, max=MAX_CONTROLLERS, help="How many; more than one need etcd, which is started too.")
    ] = 1,
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN, help="What requests have to carry.", show_default="a random one, printed"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, once it serves.")
    ] = False,
) -> None:
    """Serve a temporary cluster to tests in any language: topics, kills, pauses and faults by HTTP and JSON."""
    from fencepost_testing.async_cluster import AsyncLocalCluster

    server = control_server(port, token)

    async def main() -> int:
        from fencepost_testing.control.server import OwnedCluster

        try:
            async with AsyncLocalCluster(brokers=brokers, controllers=controllers) as cluster:
                serving = asyncio.create_task(server.serve(OwnedCluster(cluster)))
                try:
                    said = said_by(server, cluster.kafka_bootstrap)
                    if command:
                        return await _run_beside(serving, command, said)
                    show_control(said, cluster.bootstrap, as_json)
                    await serving
                    return 0
                finally:
                    serving.cancel()
                    await asyncio.wait([serving])
        finally:
            server.close()

    if code := run(main()):
        raise typer.Exit(code)


def control_server(port: int, token: str | None) -> ControlServer:
    """One that listens; the command ends where it cannot."""
    try:
        from fencepost_testing.control.server import ControlServer
    except ModuleNotFoundError as error:
        fail(f"control by HTTP needs {error.name}: pip install 'fencepost[cli]'")
    try:
        return ControlServer(port, token)
    except CommandFailed as error:
        fail(str(error))


def said_by(server: ControlServer, kafka_bootstrap: str) -> dict[str, str]:
    """What a test has to know, by the names of environment variables."""
    return {URL: server.url, TOKEN: server.access.token, KAFKA_BOOTSTRAP: kafka_bootstrap}


async def _run_beside(serving: asyncio.Task[None], command: list[str], said: Mapping[str, str]) -> int:
    """Its exit code; of one that a signal has ended, as a shell has it."""
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **said})
    except OSError as error:
        fail(f"{command[0]!r} cannot be run: {error.strerror}")
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait([ended, serving], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await serving  # says why it has ended
    finally:
        if process.returncode is None:
            process.terminate()
        code = await ended
    return code if code >= 0 else 128 - code


def show_control(said: Mapping[str, str], bootstrap: str, as_json: bool) -> None:
    """On standard output, as a shell takes it in, or as JSON."""
    if as_json:
        names = {
            "url": said[URL],
            "token": said[TOKEN],
            "bootstrap": bootstrap,
            "kafka_bootstrap": said[KAFKA_BOOTSTRAP],
        }
        typer.echo(json.dumps(names))
        return
    for name, value in said.items():
        typer.echo(f"export {name}={value}")
    typer.echo(f"# what can be asked for: {said[URL]}/   Ctrl-C ends it", err=True)
