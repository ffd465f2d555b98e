"""OpenAPI documents, made from a table of endpoints.

They use version 3.0: every client generator reads it, and some don't support 3.1 yet.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

import comfy_fleet
from comfy_fleet.api import wait_document
from comfy_fleet.api.answers import ErrorEnvelope
from comfy_fleet.api.endpoint import BINARY, EVENTS, JSON, Endpoint

_REF = "#/components/schemas/"
_PATH_NAME = re.compile(r"{(\w+)}")

SECURITY_SCHEMES: Mapping[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "`Authorization: Bearer KEY`; `Authorization: KEY` is taken, too. A fleet without "
        "keys needs none.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}

_ERRORS = {
    400: "The request can't be read: no JSON, a bad header or query.",
    401: "No valid key was shown.",
    403: "The key may not do this.",
    404: "There is no such thing, or it is somebody else's.",
    405: "It can't be done in this way.",
    406: "There is nothing of the type that `Accept` wants.",
    408: "The body comes too slowly.",
    409: "It contradicts what is there.",
    412: "Another version is spoken here: see Tus-Version.",
    413: "The body is too large.",
    415: "The body is compressed, or a browser sent JSON as something else.",
    416: "There are no such bytes.",
    422: "A field is wrong; the message names it.",
    423: "Somebody else does this now.",
    429: "The queue is full, too many streams are open, or too many requests came: see Retry-After.",
    500: "A defect of the fleet; its log says more.",
    502: "The node can't be read.",
    503: "The fleet takes nothing now: see Retry-After.",
    504: "The node does not answer.",
    507: "As many bytes are kept as the limit `stored` allows.",
}
_ALWAYS = (400, 401, 403, 429, 500, 503)
_WITH_BODY = (408, 413, 415, 422)
_SUCCESSES = {200: "Done.", 201: "Made.", 202: "Accepted.", 204: "Done; no body.", 206: "A part of it.",
              302: "The file is at this URL of its store.", 304: "Not changed.",
              503: "Not ready; the reasons say why."}  # fmt: skip


class _Schemas(GenerateJsonSchema):
    """Pydantic's schemas in OpenAPI 3.0's form, without titles that only repeat a field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        inner = self.generate_inner(schema["schema"])
        if "$ref" not in inner:
            return {**inner, "nullable": True}
        # The form of "or null" with a reference that all validators and generators understand.
        return {"anyOf": [inner, {"type": "object", "nullable": True, "enum": [None]}]}

    def none_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "nullable": True}

    def literal_schema(self, schema: Any) -> dict[str, Any]:
        made = super().literal_schema(schema)
        return made if "const" not in made else {"type": made["type"], "enum": [made["const"]]}


class Components:
    """The schemas of all types that a table names, under short names."""

    def __init__(self, types: Iterable[Any]) -> None:
        mode: Literal["validation"] = "validation"
        adapters = [(position, mode, TypeAdapter(kind)) for position, kind in enumerate(types)]
        refs, definitions = TypeAdapter.json_schemas(
            adapters, ref_template=f"{_REF}{{model}}", schema_generator=_Schemas
        )
        self.schemas: dict[str, Any] = _finished(definitions.get("$defs", {}))
        self.refs = [_finished(refs[position, mode]) for position, mode, _ in adapters]
        for schema in self.schemas.values():
            schema.pop("title", None)


def _finished(value: Any) -> Any:
    """Return a schema with the names that clients see: ``Job``, not ``JobAnswer``."""
    if isinstance(value, list):
        return [_finished(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {_short_name(key): _finished(item) for key, item in value.items()}
    if not isinstance(made.get("$ref"), str):
        return made
    reference = {"$ref": _REF + _short_name(made.pop("$ref").removeprefix(_REF))}
    return {"allOf": [reference], **made} if made else reference  # a reference must be alone in its object


def _short_name(name: str) -> str:
    return name.removesuffix("Answer") or name


def document(
    table: Sequence[Endpoint],
    *,
    title: str,
    description: str,
    tags: Mapping[str, str],
    paths: Mapping[str, str],
) -> dict[str, Any]:
    """Return the document of a table.

    Args:
        tags: Descriptions of the tags.
        paths: What the names in paths mean.
    """
    kinds = list(
        dict.fromkeys(
            kind
            for endpoint in table
            for kind in (
                endpoint.failure,
                *endpoint.answers.values(),
                *endpoint.events.values(),
                endpoint.body,
                endpoint.query,
            )
            if kind is not None
        )
    )
    components = Components(kinds)
    refs = dict(zip(kinds, components.refs, strict=True))
    made: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        operation = _operation(endpoint, refs, components.schemas, paths)
        made.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    queries = {_name(refs[endpoint.query]) for endpoint in table if endpoint.query is not None}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": title,
            "description": description,
            "version": comfy_fleet.__version__,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "tags": [{"name": name, "description": about} for name, about in tags.items()],
        "paths": made,
        "components": {
            "securitySchemes": dict(SECURITY_SCHEMES),
            "schemas": {
                name: without_defaults(schema)
                for name, schema in components.schemas.items()
                if name not in queries
            },
        },
    }


def without_defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's model with the defaults in its fields' descriptions.

    Some generators assume that a field with a default is always present, and make clients send it.
    """
    made = dict(model)
    for name, shape in model.get("properties", {}).items():
        if "default" not in shape:
            continue
        field = {key: value for key, value in shape.items() if key != "default"}
        if (default := shape["default"]) not in (None, "", [], {}):
            told = f"Default: `{orjson.dumps(default).decode()}`."
            field["description"] = (
                f"{field['description'].rstrip('.')}. {told}" if "description" in field else told
            )
        made["properties"] = {**made["properties"], name: field}
    return made


def _name(ref: Mapping[str, Any]) -> str:
    return str(ref["$ref"]).removeprefix(_REF)


def _operation(
    endpoint: Endpoint, refs: Mapping[Any, Any], schemas: Mapping[str, Any], paths: Mapping[str, str]
) -> dict[str, Any]:
    names = _PATH_NAME.findall(endpoint.path)
    parameters: list[Any] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": paths[name],
            "schema": {"type": "string"},
        }
        for name in names
    ]
    if endpoint.query is not None:
        parameters += _query(schemas[_name(refs[endpoint.query])])
    parameters += endpoint.parameters
    responses = {
        str(status): _success(status, endpoint.kind, refs.get(kind) if kind is not None else None)
        for status, kind in endpoint.answers.items()
    }
    if endpoint.events:
        responses["200"] = _stream({name: refs[kind] for name, kind in endpoint.events.items()})
    statuses = {
        *(_ALWAYS if not endpoint.open else (400, 429, 500)),
        *(_WITH_BODY if endpoint.body else ()),
        *((404,) if names else ()),
        *((422,) if endpoint.query else ()),
        *(wait_document.ERRORS if endpoint.waits else ()),
        *endpoint.errors,
    }
    if endpoint.failure is not ErrorEnvelope:  # OpenAI's interface has 400 instead
        statuses.discard(422)
    for status in sorted(statuses - endpoint.answers.keys()):
        responses[str(status)] = _failure(status, refs[endpoint.failure])
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "description": _paragraphs(endpoint.handler.__doc__ or ""),
        "tags": [endpoint.tag],
    }
    if endpoint.open:
        operation["security"] = []
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": endpoint.body_required,
            "content": {endpoint.body_kind: {"schema": refs[endpoint.body]}},
        }
    return {**operation, "responses": wait_document.waited(responses) if endpoint.waits else responses}


def _query(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a model's fields as query parameters."""
    required = schema.get("required", [])
    found = []
    for name, shape in schema["properties"].items():
        # A parameter is left out, never null.
        inner = {
            key: value
            for key, value in shape.items()
            if key not in ("description", "nullable") and not (key == "default" and value is None)
        }
        parameter = {"name": name, "in": "query", "required": name in required, "schema": inner}
        if "description" in shape:
            parameter["description"] = shape["description"]
        found.append(parameter)
    return found


def _success(status: int, kind: str, schema: Any) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _SUCCESSES[status]}
    if schema is not None:
        response["content"] = {JSON: {"schema": schema}}
    elif kind not in (JSON, EVENTS) and status in (200, 206):
        if kind != BINARY and not kind.startswith("text/"):
            # Some generators leave out an answer of any type that they don't know.
            response["description"], kind = f"The bytes, as `{kind}`.", BINARY
        response["content"] = {kind: {"schema": {"type": "string", "format": "binary"}}}
    return response


def _stream(events: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of a stream of events; OpenAPI can't describe the events themselves."""
    told = ", ".join(f"`{name}` with a {_name(ref)}" for name, ref in events.items())
    return {
        "description": f"Server-Sent Events, each with a name and one line of JSON as its data: {told}.",
        "content": {EVENTS: {"schema": {"type": "string"}, "x-fleet-events": dict(events)}},
    }


def _failure(status: int, schema: Any) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _ERRORS[status], "content": {JSON: {"schema": schema}}}
    if status in (429, 503):
        seconds = {"schema": {"type": "integer"}, "description": "Seconds after which to try again."}
        response["headers"] = {"Retry-After": seconds}
    return response


def _paragraphs(text: str) -> str:
    """Return a docstring without its line breaks."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def dumped(found: Mapping[str, Any], base: str) -> bytes:
    """Return a document as JSON, for a fleet at ``base``."""
    return orjson.dumps({**found, "servers": [{"url": base}]})
