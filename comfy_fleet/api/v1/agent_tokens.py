"""REST: agents' tokens, for operators. A token's text is in one answer only, that to its making."""

import hashlib
import logging
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read
from comfy_fleet.api.v1.hosts import NodeName
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.nodes.agent_token import AgentToken, text_of

logger = logging.getLogger(__name__)


class AgentTokenBody(BaseModel):
    """For which host a token is."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"host": "gpu1", "central": False}}
    )

    host: NodeName = Field(
        description="The host that its agent speaks for; no other token counts for it then."
    )
    central: bool = Field(False, description="Whether the agent may answer for nodes that were added by URL.")


async def list_tokens(request: Request) -> Response:
    """All tokens, without their text, which nobody keeps."""
    operator(request)
    return json_response({"tokens": [_shown(token) for token in await deps(request).agent_tokens.tokens()]})


async def create_token(request: Request) -> Response:
    """Its text is in this answer only. From now on the host's agent needs it, or another one of this host."""
    operator(request)
    d, body = deps(request), await read(request, AgentTokenBody)
    id_ = secrets.token_hex(4)
    text = text_of(body.host, id_, secrets.token_urlsafe(32))
    token = AgentToken(
        id=id_,
        host=body.host,
        central=body.central,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        created_at=await d.store_time(),
    )
    await d.agent_tokens.add(token)
    await audit(request, "agent_token.made", host=body.host, id=id_, central=body.central)
    return json_response({**_shown(token), "token": text}, 201)


async def revoke_token(request: Request) -> Response:
    """Its agent is refused from its next heartbeat on; its nodes are drained a little later."""
    operator(request)
    id_ = request.path_params["token"]
    token = await deps(request).agent_tokens.revoke(id_)
    if token is None:
        raise NotFound("no agent's token has this id", details={"id": id_[:80]})
    await audit(request, "agent_token.revoked", host=token.host, id=token.id)
    return Response(status_code=204)


def _shown(token: AgentToken) -> dict[str, Any]:
    return {"id": token.id, "host": token.host, "central": token.central, "created_at": token.created_at}
