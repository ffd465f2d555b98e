"""Holds the API's answers against its OpenAPI documents."""

import re
from typing import Any

from jsonschema import Draft202012Validator

from tests.contract.openapi import plain
from tests.integration.api_kit import Api

V1, V2 = "/api/v1/openapi.json", "/api/v2/openapi.json"


async def document(api: Api, path: str) -> dict[str, Any]:
    answer = await api.client.get(path)
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def closed(schema: Any) -> Any:
    """Return a schema that takes no field that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and schema.get("description", "").find("what its agent told") < 0:
        made.setdefault("additionalProperties", False)
    return made


class Described:
    """A document, against which answers are held."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.components = plain(closed(spec["components"]))
        self.seen: set[str] = set()

    def operation(self, method: str, path: str) -> dict[str, Any]:
        paths = sorted(self.spec["paths"], key=lambda one: "{" in one)
        for template in paths:
            shape = re.sub(r"{\w+}", "[^/]+", template)
            if re.fullmatch(shape, path) and method.lower() in self.spec["paths"][template]:
                found: dict[str, Any] = self.spec["paths"][template][method.lower()]
                return found
        raise AssertionError(f"{method} {path} is not described")

    def check(self, method: str, path: str, answer: Any) -> Any:
        operation = self.operation(method, path)
        self.seen.add(operation["operationId"])
        response = operation["responses"].get(str(answer.status_code))
        assert response is not None, (method, path, answer.status_code, answer.text)
        kind = response.get("content", {}).get("application/json")
        if kind is None:
            return None
        body = answer.json()
        whole = {**plain(closed(kind["schema"])), "components": self.components}
        errors = [f"{one.json_path}: {one.message}" for one in Draft202012Validator(whole).iter_errors(body)]
        assert not errors, (method, path, errors)
        return body
