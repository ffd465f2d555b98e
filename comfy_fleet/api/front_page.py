"""The page at ``/``: what this is, and where to go from here. It says nothing about the fleet's state."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from comfy_fleet.api.endpoint import ServedRoute

CSP = "default-src 'none'; style-src 'unsafe-inline'"
# Links are relative: a proxy may have put a path in front.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>comfy_fleet</title>
<meta name="viewport" content="width=device-width">
<style>body{font:15px/1.6 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}a{color:#79c0ff}}</style></head>
<body><h1>comfy_fleet</h1>
<p>Many GPUs, one ComfyUI: this schedules jobs on many ComfyUI servers. It has no editor and none of
ComfyUI's own routes.</p>
<ul>
<li><code>/api/v1</code>: REST for programs that send parameters, and for operators;
<a href="api/v1/openapi.json">/api/v1/openapi.json</a> describes it</li>
<li><code>/api/v2</code>: Comfy API v2, for the official SDKs;
<a href="api/v2/openapi.json">/api/v2/openapi.json</a> describes it</li>
<li><a href="api/v1/health">/api/v1/health</a>: does the API work?
<a href="api/v1/ready">/api/v1/ready</a>: could a job run?</li>
</ul></body></html>
"""


async def page(request: Request) -> Response:
    """``GET /``."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": CSP})


routes = [ServedRoute("/", page, name="page", open=True)]
