"""What the fleet's own pages have in common. They run no script and load nothing."""

from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse

_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action {forms}; frame-ancestors 'none'; "
    "base-uri 'none'{pictures}"
)
# With `no-referrer`, a browser would send `Origin: null` with the pages' own forms.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="same-origin">
<style>
:root{{color-scheme:light dark;--back:#fff;--text:#1f2328;--faint:#59636e;--line:#d1d9e0;--soft:#f6f8fa;
--link:#0969da;--button:#1f6feb;--wrong:#b42318}}
@media(prefers-color-scheme:dark){{:root{{--back:#0d1117;--text:#e6edf3;--faint:#9198a1;--line:#3d444d;
--soft:#151b23;--link:#79c0ff;--button:#1f6feb;--wrong:#ff8a80}}}}
*{{box-sizing:border-box}}
body{{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:0 auto;padding:2.5rem 1.25rem 4rem;
background:var(--back);color:var(--text)}}
h1{{font-size:1.75rem;line-height:1.25;margin:0}}
h2{{font-size:1.1rem;margin:2.25rem 0 .5rem;padding-top:1.5rem;border-top:1px solid var(--line)}}
p{{margin:.6rem 0}}
.faint{{color:var(--faint);margin-top:.25rem}}
.wrong{{color:var(--wrong)}}
a{{color:var(--link)}}
code{{font:.9em ui-monospace,monospace;background:var(--soft);padding:.15em .35em;border-radius:4px;
overflow-wrap:anywhere}}
.address{{font:1.05rem ui-monospace,monospace;background:var(--soft);border:1px solid var(--line);
border-radius:8px;padding:.8rem 1rem;margin:1rem 0;overflow-wrap:anywhere;user-select:all}}
dl{{display:grid;grid-template-columns:minmax(9rem,auto) 1fr;gap:.5rem 1.25rem;margin:.75rem 0}}
dt{{color:var(--faint)}}
dd{{margin:0;min-width:0}}
label{{display:block;margin:1.25rem 0 .35rem}}
input{{font:inherit;width:100%;padding:.55rem .7rem;border:1px solid var(--line);border-radius:8px;
background:var(--back);color:inherit}}
button,.button{{display:inline-block;font:inherit;margin-top:1rem;padding:.5rem 1.2rem;border:0;
border-radius:8px;background:var(--button);color:#fff;text-decoration:none;cursor:pointer}}
@media(max-width:34rem){{body{{padding-top:1.5rem}}dl{{grid-template-columns:1fr;gap:0}}
dd{{margin-bottom:.75rem}}}}
{style}</style></head>
<body>
{body}
</body></html>
"""


def page(
    title: str,
    body: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    forms_lead_to: str = "",
    style: str = "",
    pictures: bool = False,
) -> HTMLResponse:
    """Return a page. No other origin may frame it, or keep a hold of the window that shows it.

    Args:
        title: Plain text without markup.
        body: HTML; what comes from outside is escaped already.
        status: The answer's.
        headers: Further headers.
        forms_lead_to: Another origin to which the answer to a form may send the browser.
        style: Further rules of CSS.
        pictures: Whether it shows pictures: outputs of jobs, and small ones inside the page.
    """
    found = {
        "Content-Security-Policy": _CSP.format(
            forms=f"'self' {forms_lead_to}".rstrip(), pictures="; img-src 'self' data:" if pictures else ""
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
        **(headers or {}),
    }
    return HTMLResponse(_PAGE.format(title=escape(title), body=body, style=style), status, found)
