"""The OpenAPI page: plain HTML made from the schema, without scripts and without any other host."""

from html import escape
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

CSP = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.6rem}
h2{margin-top:2.5rem;border-bottom:1px solid #d0d7de;text-transform:capitalize}
details{border:1px solid #d0d7de;border-radius:6px;margin:.5rem 0;padding:.5rem .8rem}
summary{cursor:pointer}
code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f6f8fa;padding:.8rem;border-radius:6px;overflow:auto}
.m{display:inline-block;min-width:4.5rem;font-weight:700}
.GET{color:#0550ae}.POST{color:#116329}.DELETE{color:#a40e26}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem;border-top:1px solid #d0d7de}
@media(prefers-color-scheme:dark){
body{background:#0d1117;color:#e6edf3}pre{background:#161b22}a{color:#79c0ff}
.GET{color:#79c0ff}.POST{color:#7ee787}.DELETE{color:#ffa198}
}
"""


async def page(request: Request) -> Response:
    """``GET /api/v1/docs``."""
    return HTMLResponse(
        render(request.app.openapi()),
        headers={"Content-Security-Policy": CSP},
    )


def render(schema: dict[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    info = schema["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    parts = "".join(f"<h2>{escape(tag)}</h2>{''.join(rows)}" for tag, rows in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>"
        '<p>The schema is at <a href="openapi.json">openapi.json</a>. Beside this REST face the same jobs '
        "are reached at <code>/api/v2</code>, which follows the Comfy API v2 contract. Errors have one form: "
        '<code>{"error": {"code", "message", "details"}}</code>.</p>'
        f"{parts}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return (
        f'<details><summary><span class="m {method}">{method}</span> <code>{escape(path)}</code> '
        f"{escape(operation.get('summary', ''))}</summary><p>{escape(operation.get('description', ''))}</p>"
        f"{_parameters(operation.get('parameters', []))}{_body(body) if body else ''}</details>"
    )


def _parameters(parameters: list[dict[str, Any]]) -> str:
    if not parameters:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}</td>"
        f"<td>{escape(p.get('description', ''))}</td></tr>"
        for p in parameters
    )
    return f"<table><tr><th>Parameter</th><th>in</th><th></th></tr>{rows}</table>"


def _body(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'*' if name in required else ''}</td>"
        f"<td>{escape(_type(field))}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    example = {n: f.get("default") for n, f in schema.get("properties", {}).items() if n in required}
    shown = f"<pre>{escape(orjson.dumps(example).decode())}</pre>" if example else ""
    return f"<table><tr><th>Body field</th><th>type</th><th></th></tr>{rows}</table>{shown}"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    return str(field.get("type", "any"))


async def to_page(request: Request) -> Response:
    """``GET /docs``."""
    return RedirectResponse("/api/v1/docs")


async def to_schema(request: Request) -> Response:
    """``GET /openapi.json``."""
    return RedirectResponse("/api/v1/openapi.json")


routes = [
    Route("/api/v1/docs", page, methods=["GET"]),
    Route("/docs", to_page, methods=["GET"]),
    Route("/openapi.json", to_schema, methods=["GET"]),
]
