"""The HTTP of the live page: Starlette, loopback only; `guard` says who may ask.

    GET  /                 the page, with the token that the rest needs
    GET  /app.js, /style.css
    GET  /events           server-sent events: a snapshot, then patches (`hub`)
    POST /api/cluster      start a cluster of the page's own
    POST /api/do           {"action": "kill", "target": "2"} (`control.ACTIONS`)
    POST /api/load         {"on": true}
    POST /api/story        {"pace_s": 3}; null: step by step
    POST /api/story/next

An error is {"error": "why, with the value"}. A request body has at most MAX_BODY_BYTES.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fencepost_testing.failures import CommandFailed
from fencepost_testing.own_requests import Refused
from fencepost_testing.waiting import NotInTime
from fencepost_ui.guard import check_request
from fencepost_ui.hub import TooManyPages
from fencepost_ui.page import Page

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4_096
TOKEN_PLACE: Final = "@token@"

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Body = dict[str, Any]


class BadBody(CommandFailed):
    """A request's JSON is not what is asked for."""


class Guard:
    """Refuses what is not the page's own before anything else looks at it, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, port: Callable[[], int], token: str) -> None:
        self._app = app
        self._port = port
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        try:
            check_request(scope["method"], headers, self._port(), self._token)
        except Refused as refused:
            log.warning("request refused method=%s path=%r reason=%s", scope["method"], scope["path"][:100], refused)
            await JSONResponse({"error": str(refused)}, refused.status)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def make_app(page: Page, port: Callable[[], int], token: str) -> ASGIApp:
    """The application. `port`: where it listens, once it does; `token`: what the page shows to be allowed to act."""

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        await page.start()
        try:
            yield
        finally:
            await page.stop()

    async def index(_: Request) -> Response:
        return HTMLResponse(_static("index.html").replace(TOKEN_PLACE, token))

    async def script(_: Request) -> Response:
        return Response(_static("app.js"), media_type="text/javascript")

    async def style(_: Request) -> Response:
        return Response(_static("style.css"), media_type="text/css")

    async def events(_: Request) -> Response:
        messages = cast("AsyncGenerator[str, None]", page.hub.events())
        try:
            first = await anext(messages)
        except TooManyPages as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

        async def all_messages() -> AsyncIterator[str]:
            async with contextlib.aclosing(messages):
                yield first
                async for message in messages:
                    yield message

        return StreamingResponse(all_messages(), media_type="text/event-stream")

    async def start_cluster(_: Body) -> str:
        return await page.start_cluster()

    async def do(body: Body) -> str:
        return await page.do(_text(body, "action"), _text(body, "target"))

    async def switch_load(body: Body) -> str:
        return await page.switch_load(_flag(body, "on"))

    async def start_story(body: Body) -> str:
        page.story.start(_pace(body))
        return "The story begins"

    async def next_step(_: Body) -> str:
        page.story.advance()
        return "On to the next step"

    acts: dict[str, Callable[[Body], Awaitable[str]]] = {
        "/api/cluster": start_cluster,
        "/api/do": do,
        "/api/load": switch_load,
        "/api/story": start_story,
        "/api/story/next": next_step,
    }
    routes = [
        Route("/", index),
        Route("/app.js", script),
        Route("/style.css", style),
        Route("/events", events),
        *(Route(path, _acting(act), methods=["POST"]) for path, act in acts.items()),
    ]
    return Guard(Starlette(routes=routes, lifespan=life), port, token)


def _acting(act: Callable[[Body], Awaitable[str]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse({"done": await act(await _body(request))})
        except CommandFailed as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (NotInTime, OSError) as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)

    return endpoint


async def _body(request: Request) -> Body:
    """Raises BadBody. Read as it comes: one that is too long is not read to its end."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise BadBody(f"a body of more than {MAX_BODY_BYTES} bytes")
    if not data:
        return {}
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadBody(f"no JSON: {data[:50]!r}") from None
    if not isinstance(body, dict):
        raise BadBody(f"no JSON object: {data[:50]!r}")
    return body


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise BadBody(f"{name} is {value!r:.50}: a string is needed")
    return value


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise BadBody(f"{name} is {value!r:.50}: true or false is needed")
    return value


def _pace(body: Body) -> float | None:
    value = body.get("pace_s")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadBody(f"pace_s is {value!r:.50}: a number or null is needed")
    return float(value)


def _static(name: str) -> str:
    return (files("fencepost_ui") / "static" / name).read_text(encoding="utf-8")
