"""Hold HTTP answers against an OpenAPI specification, and note which of its answers were seen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from jsonschema import Draft202012Validator, FormatChecker

formats = FormatChecker(formats=[])


@formats.checks("date-time")
def _date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    shape = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
    return re.fullmatch(shape, value) is not None and datetime.fromisoformat(value).tzinfo is not None


@formats.checks("uri")
def _uri(value: object) -> bool:
    return not isinstance(value, str) or (urlsplit(value).scheme == "http" and bool(urlsplit(value).netloc))


@formats.checks("uri-reference")
def _uri_reference(value: object) -> bool:
    return not isinstance(value, str) or value.startswith(("http://", "/"))


def plain(schema: Any) -> Any:
    """Turn an OpenAPI 3.0 schema into JSON Schema: only ``nullable`` differs here."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: plain(value) for key, value in schema.items() if key not in ("nullable", "example")}
    return {"anyOf": [{"type": "null"}, made]} if schema.get("nullable") is True else made


@dataclass
class Contract:
    """The specification, and what has been seen of it."""

    spec: dict[str, Any]
    seen: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.operations: dict[str, dict[str, Any]] = {
            operation["operationId"]: operation
            for methods in self.spec["paths"].values()
            for operation in methods.values()
        }
        self.components = plain(self.spec["components"])

    def resolved(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in value:
            found: Any = self.spec
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def valid(self, schema: Any, value: object) -> None:
        """Hold a value against a schema of the specification."""
        whole = {**plain(schema), "components": self.components}
        errors = sorted(Draft202012Validator(whole, format_checker=formats).iter_errors(value), key=str)
        assert not errors, [f"{error.json_path}: {error.message}" for error in errors]

    def named(self, name: str, value: object) -> None:
        self.valid({"$ref": f"#/components/schemas/{name}"}, value)

    def check(self, operation: str, answer: httpx.Response, status: int) -> Any:
        """Hold an answer against its operation; return its JSON body, if it has one."""
        assert answer.status_code == status, answer.text
        self.seen.add((operation, status))
        documented = self.operations[operation]["responses"].get(str(status))
        if documented is None:
            assert status in (400, 405, 413), f"{operation} does not know {status}"
            documented = {
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
            }
        documented = self.resolved(documented)
        for name, header in documented.get("headers", {}).items():
            if name == "Retry-After" and status == 429:
                assert answer.headers[name].isdecimal(), self.resolved(header)
        if answer.request.method == "HEAD" or status == 204:
            assert answer.content == b""
            return None
        kinds = documented.get("content", {})
        if "application/json" not in kinds:
            return None
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        self.valid(kinds["application/json"]["schema"], body)
        if status >= 400:
            assert set(body) == {"error"} and set(body["error"]) == {"code", "message", "details"}
        return body
