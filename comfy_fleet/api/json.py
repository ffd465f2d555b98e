"""JSON out, without models: the hot path."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(
        orjson.dumps(content),
        status,
        dict(headers) if headers else None,
        media_type="application/json",
    )
