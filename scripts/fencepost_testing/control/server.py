"""The HTTP server of one cluster: JSON over Starlette and uvicorn, on this machine's loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fencepost import __version__
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.async_cluster import AsyncLocalCluster
from fencepost_testing.control import openapi
from fencepost_testing.control.access import Access
from fencepost_testing.control.api import OPERATIONS, Operation, check_body
from fencepost_testing.exactly_once import NotExactlyOnce
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_http import config_of, listen
from fencepost_testing.own_requests import Refused
from fencepost_testing.ports import LOOPBACK

MAX_BODY_BYTES: Final = 64 * 1024
END_TIMEOUT_S: Final = 1  # for requests under way, when the server ends


class ServedCluster(Protocol):
    """The cluster that is served."""

    def look(self) -> AsyncLocalCluster:
        """As it is now. Raises CommandFailed."""
        ...

    def changing(self) -> AbstractAsyncContextManager[AsyncLocalCluster]:
        """The same, while nothing else changes it."""
        ...


class OwnedCluster:
    """One that this process has made, and no other changes."""

    def __init__(self, cluster: AsyncLocalCluster) -> None:
        self._cluster = cluster
        self._lock = asyncio.Lock()

    def look(self) -> AsyncLocalCluster:
        return self._cluster

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncLocalCluster]:
        async with self._lock:
            yield self._cluster


def application(served: ServedCluster, access: Access) -> Starlette:
    """The server's own part, without a socket."""

    def endpoint(operation: Operation) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                access.check_site(request.method, request.headers)
                access.check_token(request.headers)
                body = await _body(request)
                check_body(operation, body)
                if not operation.changes:
                    return JSONResponse(await operation.run(served.look(), request.path_params, body))
                async with served.changing() as cluster:
                    return JSONResponse(await operation.run(cluster, request.path_params, body))
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)
            except NotExactlyOnce as error:
                return JSONResponse({"error": str(error)}, 409)
            except (CommandFailed, FencepostError, TypeError) as error:
                return JSONResponse({"error": str(error)}, 400)

        return answer

    def shown(make: Callable[[], Response]) -> Callable[[Request], Any]:
        """What anyone on this machine may read: it says nothing of the cluster."""

        async def answer(request: Request) -> Response:
            try:
                access.check_site(request.method, request.headers)
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)
            return make()

        return answer

    url = f"http://{LOOPBACK}:{access.port}"
    routes = [
        Route("/", shown(lambda: HTMLResponse(openapi.page(__version__)))),
        Route("/openapi.json", shown(lambda: JSONResponse(openapi.document(__version__, url)))),
        *(Route(operation.path, endpoint(operation), methods=[operation.method]) for operation in OPERATIONS),
    ]

    async def no_such(request: Request, error: Exception) -> Response:
        known = sorted({operation.path for operation in OPERATIONS})
        return JSONResponse({"error": f"no {request.method} {request.url.path}: see /, there are {known}"}, 404)

    return Starlette(routes=routes, exception_handlers={404: no_such, 405: no_such})


async def _body(request: Request) -> dict[str, Any]:
    """Raises Refused."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    if not data:
        return {}
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "the body is to be JSON: send 'Content-Type: application/json'")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, f"the body is to be a JSON object, not {str(body)[:100]!r}")
    return body


class _Server(uvicorn.Server):
    """Leaves signals to the command that runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControlServer:
    """Listens from its making on, and serves while `serve` runs."""

    def __init__(self, port: int = 0, token: str | None = None) -> None:
        """Port 0: any that is free. Raises PortInUse."""
        self._socket = listen(port)
        number = int(self._socket.getsockname()[1])
        try:
            self.access = Access(number) if token is None else Access(number, token)
        except BaseException:
            self._socket.close()
            raise

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.access.port}"

    async def serve(self, served: ServedCluster) -> None:
        """Until it is cancelled."""
        config = config_of(application(served, self.access), "off", END_TIMEOUT_S)
        try:
            await _Server(config).serve([self._socket])
        finally:
            self._socket.close()

    def close(self) -> None:
        self._socket.close()
