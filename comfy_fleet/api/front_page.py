"""The page at ``/``: what this is, and where to go from here. It says nothing about the fleet's state."""

from html import escape

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import editor_page
from comfy_fleet.api.deps import deps, links, origin
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.origins import Origin
from comfy_fleet.api.page import page

# Links are relative: a proxy may have put a path in front, or a key stands there.
_BODY = """<h1>comfy_fleet</h1>
<p class="faint">Many GPUs, one ComfyUI</p>
<p>This address answers as one ComfyUI does, and schedules the jobs on many ComfyUI servers. Give it to any
program that speaks to a ComfyUI:</p>
<p class="address">{base}</p>
<p>Its prompts run on all GPUs at once. It sees its own queue, history, files and progress.</p>
{keys}
{people}
<h2>For programs</h2>
<dl>
<dt>ComfyUI's interface</dt><dd><code>/prompt</code> <code>/ws</code> <code>/queue</code>
<code>/history</code> <code>/view</code> <code>/upload/image</code> <code>/object_info</code> and others, with
and without <code>/api</code> in front</dd>
<dt>Comfy API v2</dt><dd><code>/api/v2</code>, for the official SDKs: <a href="api/v2/openapi.json">described
here</a></dd>
<dt>REST</dt><dd><code>/api/v1</code>, for stored workflows with parameters, and for operators:
<a href="api/v1/openapi.json">described here</a></dd>
<dt>Health</dt><dd><a href="api/v1/health">Does the API work?</a><br>
<a href="api/v1/ready">Could a job run?</a></dd>
</dl>"""

_PEOPLE = """<h2>For people</h2>
<p>Nodes, jobs, workflows and models on pages that keep themselves up to date.</p>
<p><a class="button" href="console">Open the console</a></p>"""
_OPEN = "<p>On this machine it needs no key.</p>"
_KEYED = """<h2>Your key</h2>
<p>Programs send it in one of these ways:</p>
<dl>
<dt>A header</dt><dd><code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code></dd>
<dt>A password</dt><dd><code>{scheme}://me:KEY@{place}</code></dd>
<dt>Only an address fits</dt><dd><code>{base}/k/KEY</code></dd>
</dl>
<p>With a browser, sign in once.</p>
<p><a class="button" href="login">Sign in</a></p>"""


async def front(request: Request) -> Response:
    """``GET /``: ComfyUI's editor where there is one, else what this is."""
    if (editor := await editor_page.editor(request)) is not None:
        return editor
    base = escape(links(request).base)
    scheme, _, place = base.partition("://")
    keys = _OPEN if deps(request).keys.open else _KEYED.format(base=base, scheme=scheme, place=place)
    there = origin(request) is Origin.CONSOLE and not request.scope["key_in_path"]
    return page("comfy_fleet", _BODY.format(base=base, keys=keys, people=_PEOPLE if there else ""))


routes = [ServedRoute("/", front, name="page", open=True)]
