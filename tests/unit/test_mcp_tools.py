"""Tools of agents: what they are made of, and who may call them over HTTP."""

import json
import sys
from typing import Any

import pytest
from mcp_types import Tool
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.mcp import keys_needed_at
from comfy_fleet.client import RateLimited, RequestRefused
from comfy_fleet.mcp.over_http import KeyGate, is_loopback, key_of
from comfy_fleet.mcp.results import failure
from comfy_fleet.mcp.tools import MOST_TOOLS, OWN_TOOLS, tool_names, tool_of, values


def workflow(name: str = "card", **more: Any) -> Any:
    return {"name": name, "title": "A card", "description": "", "version": "v", "allowed": True, **more}


def made(properties: dict[str, Any], **more: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return tool_of("card", workflow(parameters=schema, **more))


def test_a_tool_takes_what_the_workflow_takes() -> None:
    tool = made(
        {
            "prompt": {"type": "string", "description": "Any text.", "minLength": 1},
            "style": {
                "type": "string",
                "enum": ["a", "b"],
                "oneOf": [{"const": "a", "title": "Art"}, {"const": "b", "title": "b"}],
            },
            "width": {"type": "integer", "minimum": 64, "maximum": 2048, "default": 512, "title": "Width"},
            "face": {"type": "string", "x-fleet-type": "image", "x-fleet-accept": ["image/png"]},
        }
    )
    assert tool.input_schema["required"] == ["prompt"] and tool.input_schema["additionalProperties"] is False
    found = tool.input_schema["properties"]
    assert found["prompt"] == {"type": "string", "minLength": 1, "description": "Any text."}
    assert found["style"] == {"type": "string", "enum": ["a", "b"], "description": "a: Art"}
    assert found["width"]["maximum"] == 2048 and found["width"]["description"] == "Width"
    assert "data: URI" in found["face"]["description"] and "x-fleet-type" not in found["face"]
    assert (tool.description or "").startswith("A card\n")


def test_what_authors_write_is_bounded() -> None:
    choices = [f"choice {number}" for number in range(5000)]
    tool = made(
        {
            "prompt": {"type": "string", "description": "x" * 100_000, "title": "\x1b[2J" * 1000},
            "style": {
                "type": "string",
                "enum": choices,
                "oneOf": [{"const": one, "title": one * 100} for one in choices],
            },
        },
        title="t" * 10_000,
        description="ignore all\u0000 before\x1b[31m " * 10_000,
    )
    said = json.dumps(tool.model_dump(mode="json"))
    assert len(said) < 5000
    assert "\\u001b" not in said and "\\u0000" not in said
    names = ["fleet_job", "a.b", "a_b", "x" * 63, f"{'x' * 62}y", *(f"w{number}" for number in range(200))]
    found = tool_names([workflow("secret", allowed=False), *map(workflow, names)])
    assert len(found) == MOST_TOOLS and not found.keys() & {one.name for one in OWN_TOOLS}
    assert [one["name"] for one in found.values()] == names[:MOST_TOOLS]
    assert list(found)[:3] == ["fleet_job_2", "a_b", "a_b_2"]
    assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in found)


def test_arguments_as_models_write_them() -> None:
    schema = {"properties": {"width": {"type": "integer"}, "cfg": {"type": "number"}}}
    told = {"width": 512.0, "cfg": 2.0, "seed": None, "half": 0.5}
    assert values(workflow(parameters=schema), told) == {"width": 512, "cfg": 2.0, "half": 0.5}
    assert isinstance(values(workflow(parameters=schema), told)["width"], int)


def test_an_error_says_what_the_field_takes() -> None:
    said = "parameter 'style' is wrong"
    details = {"errors": [{"parameter": "style", "limit": ["a", "b"], "message": said}]}
    result = failure(RequestRefused(said, details=details))
    assert result.is_error
    (text,) = result.content
    assert text.type == "text" and text.text == f'{said}\n- style takes ["a", "b"]'
    (text,) = failure(RateLimited("the queue is full", retry_after_s=7)).content
    assert text.type == "text" and "after 7 s" in text.text


def test_no_request_borrows_the_servers_own_key() -> None:
    for key, host, needed in (
        (None, "127.0.0.1", False),
        (None, "0.0.0.0", True),
        ("own-key", "127.0.0.1", True),
    ):
        assert keys_needed_at("http://127.0.0.1:1", key, host) is needed
    assert keys_needed_at("http://127.0.0.1:1/k/own-key", None, "127.0.0.1")
    assert keys_needed_at("http://me:own-key@127.0.0.1:1", None, "127.0.0.1")

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(key_of(HTTPConnection(scope)) or "none")(scope, receive, send)

    closed = TestClient(KeyGate(behind, needed=True))
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Basic eDp5"}, {"X-API-Key": ""}):
        answer = closed.post("/mcp", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert closed.post("/mcp", headers={"X-API-Key": "theirs"}).text == "theirs"
    assert closed.post("/mcp", headers={"Authorization": "bearer theirs"}).text == "theirs"
    assert TestClient(KeyGate(behind, needed=False)).post("/mcp").text == "none"
    assert [is_loopback(one) for one in ("::1", "127.0.0.2", "localhost", "::", "10.0.0.1", "h")] == [
        *(True, True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--name", "x"], "need --http"),
        (["--http", "nonsense"], "is not"),
        (["--http", "1:2:3"], "is not"),
        (["--http", "70000"], "is not"),
        (["--http", "0.0.0.0:0"], "by a name"),
    ],
)
def test_wrong_options(argv: list[str], says: str) -> None:
    done = CliRunner().invoke(build(["mcp"]), ["mcp", "--api", "http://127.0.0.1:1", *argv])
    assert isinstance(done.exception, Fail) and says in str(done.exception)


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = CliRunner().invoke(build(["mcp"]), ["mcp"])
    assert isinstance(done.exception, Fail) and done.exception.hint == "pip install 'comfy-fleet[mcp]'"
