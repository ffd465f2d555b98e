"""Calls that are passed on to a node, and answers that are passed back: the fleet does not look into them.

What is too long, or comes too slowly, is an error of this call only. It does not count against the node:
people can have any file of an extension fetched.
"""

from collections.abc import Mapping

import aiohttp
from yarl import URL

from comfy_fleet.adapters.comfyui.answer_limits import AnswerLimits, read_body
from comfy_fleet.adapters.comfyui.broker_headers import is_another_fleets
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.ports.comfyui import RawAnswer

NODE = "X-Fleet-Node"
_CHUNK = 256 * 1024
_PASSED = ("content-type", "content-disposition", "cache-control", "last-modified", "etag")
_MOST_HEADER = 1000


async def raw_call(
    session: aiohttp.ClientSession,
    url: URL,
    node: str,
    method: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    limits: AnswerLimits,
    patience: aiohttp.ClientTimeout,
) -> RawAnswer:
    """Call a node through the broker; see :meth:`comfy_fleet.ports.comfyui.NodeApi.raw`."""
    details = {"node": node}
    try:
        async with session.request(
            method,
            url,
            headers={**headers, NODE: node},
            data=body or None,
            skip_auto_headers=("Content-Type",),
            timeout=patience,
            allow_redirects=False,
        ) as response:
            if NODE not in response.headers:
                raise _not_passed(node, response.status, response.headers)
            chunks = response.content.iter_chunked(_CHUNK)
            content = await read_body(response.headers, chunks, limits, what="it")
            return RawAnswer(status=response.status, headers=_kept(response.headers), body=bytes(content))
    except NodeError as error:
        raise NodeError(
            error.message if error.details.get("node") else f"node {node}: {error.message}",
            details={**details, **error.details},
        ) from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise NodeError(f"node {node} can't be asked: {words}", details=details) from error


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    found = {name: headers.get(name, "") for name in _PASSED}
    return {
        name: value
        for name, value in found.items()
        if value and len(value) <= _MOST_HEADER and value.isprintable() and value.isascii()
    }


def _not_passed(node: str, status: int, headers: Mapping[str, str]) -> NodeError:
    if is_another_fleets(headers):
        why = (
            f"node {node} can't be asked: the broker at FLEET_DIRECT_PORT, or its secret, is another fleet's"
        )
    elif status == 503:
        why = f"node {node} can't be reached through the broker"
    elif status == 404:
        why = f"the broker passes no such call on to node {node}: does it run with the same settings?"
    else:
        why = f"the broker answered for node {node} with {status}"
    return NodeError(why, details={"node": node, "status": status})
