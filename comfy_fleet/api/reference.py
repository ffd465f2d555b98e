"""The OpenAPI page: plain HTML made from the schema, without scripts and without any other host."""

import re
from html import escape
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from comfy_fleet.api.jobs import JobOptionsBody

CSP = "default-src 'none'; style-src 'unsafe-inline'"

_KINDS = {"integer": "whole number", "string": "text", "boolean": "true or false"}

_JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"
_PICTURE = "http://HOST:PORT/api/v2/assets/fe20a383-0919-4293-a9cf-7700d438e849/content"
ANSWERS: dict[str, Any] = {
    "POST /api/v1/generate": {
        "task_id": _JOB,
        "status": "queued",
        "estimated_wait_time_sec": 4,
        "status_url": f"http://HOST:PORT/api/v1/status/{_JOB}",
    },
    "GET /api/v1/status/{task_id}": {
        "task_id": _JOB,
        "status": "completed",
        "job_status": "succeeded",
        "progress": 1.0,
        "image_url": _PICTURE,
        "error": None,
    },
    "GET /api/v1/result": {"task_id": _JOB, "status": "success", "image_url": _PICTURE, "error": None},
    "POST /api/submit": {
        "task_id": _JOB,
        "status": "submitted",
        "estimated_wait_time_sec": 4,
        "status_url": f"http://HOST:PORT/api/status/{_JOB}",
    },
    "GET /api/status": {"task_id": _JOB, "status": "done", "image_url": _PICTURE, "error": None},
    "POST /api/v1/workflows/{name}/jobs": {
        "id": _JOB,
        "status": "queued",
        "queue_position": 3,
        "outputs": [],
    },
    "GET /api/v1/jobs/{job_id}": {
        "id": _JOB,
        "status": "succeeded",
        "node": "gpu-1",
        "outputs": [{"name": "image_card_00001_.png", "type": "image", "url": _PICTURE}],
    },
    "POST /api/v1/nodes": {"name": "gpu-1", "url": "http://10.0.0.1:8188", "verdict": "new", "why": ""},
}
"""Answers by operation, with their most important fields."""

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
        "<p>Before you try the examples: <code>export FLEET=http://HOST:PORT</code>. If the fleet has keys, "
        "add <code>-H &quot;Authorization: Bearer KEY&quot;</code> to each.</p>"
        f"{parts}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    answer = ANSWERS.get(f"{method} {path}")
    return (
        f'<details><summary><span class="m {method}">{method}</span> <code>{escape(path)}</code> '
        f"{escape(operation.get('summary', ''))}</summary><p>{_words(operation.get('description', ''))}</p>"
        f"{_parameters(operation.get('parameters', []))}{_body(body) if body else ''}"
        f"{_call(method, path, body or {})}{_answer(answer) if answer else ''}</details>"
    )


def _words(text: str) -> str:
    """Return a text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _parameters(parameters: list[dict[str, Any]]) -> str:
    if not parameters:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}</td>"
        f"<td>{_words(p.get('description', ''))}</td></tr>"
        for p in parameters
    )
    return f"<table><tr><th>Parameter</th><th>in</th><th></th></tr>{rows}</table>"


def _body(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    fields = schema.get("properties", {})
    # First what one has to give, last where the job may run: most people leave that open.
    ordered = sorted(fields, key=lambda name: (name not in required, name in JobOptionsBody.model_fields))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(fields[name], schema))}</td>"
        f"<td>{'required' if name in required else ''}</td>"
        f"<td>{_words(fields[name].get('description', ''))}</td></tr>"
        for name in ordered
    )
    return f"<table><tr><th>Body field</th><th>type</th><th></th><th></th></tr>{rows}</table>"


def _call(method: str, path: str, schema: dict[str, Any]) -> str:
    """Return the request as a command line."""
    words = ["curl"] if method == "GET" else ["curl", "-X", method]
    lines = [" ".join([*words, f'"$FLEET{path}"'])]
    if example := schema.get("example"):
        lines += ["-H 'Content-Type: application/json'", f"-d '{orjson.dumps(example).decode()}'"]
    return f"<pre>{escape(f' {chr(92)}{chr(10)}  '.join(lines))}</pre>"


def _answer(example: Any) -> str:
    return f"<p>Answers</p><pre>{escape(orjson.dumps(example, option=orjson.OPT_INDENT_2).decode())}</pre>"


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a field's type in words: ``list of text``, ``whole number``."""
    if reference := field.get("$ref"):
        return _type(schema.get("$defs", {}).get(reference.rpartition("/")[2], {}), schema)
    if "anyOf" in field:
        return " or ".join(_type(one, schema) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    kinds = field.get("type", "any")
    kinds = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
    return " or ".join(
        f"list of {_type(field.get('items', {}), schema)}" if kind == "array" else _KINDS.get(kind, kind)
        for kind in kinds
    )


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
