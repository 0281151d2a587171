"""The description of the HTTP API: OpenAPI 3.1 as JSON, and a page that shows it. Both are made of `api.OPERATIONS`."""

from __future__ import annotations

import html
import re
from typing import Any

from fencepost_testing.control.api import OPERATIONS, Operation

_PARAMETER = re.compile(r"{(\w+)}")
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font: 0.95em ui-monospace, monospace; }
section { border-top: 1px solid #8888; padding: 0.6rem 0; }
h2 { font-size: 1.05rem; margin: 0; }
p { margin: 0.2rem 0; }
"""


def document(version: str, url: str) -> dict[str, Any]:
    """The API as OpenAPI has it."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "A Fencepost cluster for tests", "version": version},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
            },
        },
        "paths": paths,
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.what,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {}}},
            "default": {
                "description": "Why not.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    parameters = _PARAMETER.findall(operation.path)
    if parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if operation.body is not None:
        fields = {name: {"type": field.type, "description": field.what} for name, field in operation.body.items()}
        required = [name for name, field in operation.body.items() if field.required]
        schema = {"type": "object", "properties": fields, **({"required": required} if required else {})}
        described["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return described


def page(version: str) -> str:
    """The same, to be read."""
    sections = "\n".join(
        f"<section><h2><code>{operation.method} {html.escape(operation.path)}</code></h2>"
        f"<p>{html.escape(operation.what)}</p>{_fields(operation)}</section>"
        for operation in OPERATIONS
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fencepost for tests</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<h1>A Fencepost cluster for tests</h1><p>Version {html.escape(version)}. Each request has the header "
        f"<code>Authorization: Bearer &lt;token&gt;</code>; bodies and answers are JSON; an error is "
        f'<code>{{"error": "…"}}</code>. A <code>target</code> is a broker&#39;s id, <code>controller</code> or '
        f"<code>leader:TOPIC-PARTITION</code>; of a cluster with several controllers <code>controller-N</code>, "
        f"<code>controller:active</code>, <code>etcd-N</code> or <code>etcd:leader</code>. The same as "
        f'<a href="/openapi.json">OpenAPI</a>.</p>{sections}</main></body></html>'
    )


def _fields(operation: Operation) -> str:
    if not operation.body:
        return ""
    rows = "".join(
        f"<li><code>{html.escape(name)}</code> ({field.type}): {html.escape(field.what)}</li>"
        for name, field in operation.body.items()
    )
    return f"<ul>{rows}</ul>"
