"""What is said of wrong values in bodies and manifests has no names of the program's classes in it."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from comfy_fleet.adapters.workflows.manifest import resolve
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.api.v1.routes import TABLE as V1
from comfy_fleet.api.v2.routes import TABLE as V2
from comfy_fleet.domain.errors import ConfigError

WRONG: tuple[Any, ...] = (None, 5, "x", [5], {"a": 5}, {"a": [5]}, {"a": {"b": 5}}, [{"b": 5}])
BODIES = {
    row.body.__name__: row.body
    for row in (*V1, *V2)
    if inspect.isclass(row.body) and issubclass(row.body, BaseModel)
}
GRAPH: Any = {"1": {"class_type": "EmptyImage", "inputs": {"width": 64}, "_meta": {"title": "$width"}}}


def classes(one: type[BaseModel] = BaseModel) -> Iterator[str]:
    for made in one.__subclasses__():
        if made.__module__.startswith("comfy_fleet."):  # other libraries have classes called Input
            yield made.__name__
        yield from classes(made)


def told(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) & set(classes())


def refusals(field: str, model: type[BaseModel]) -> Iterator[str]:
    for value in WRONG:
        try:
            checked({field: value}, model)
        except HttpError as error:
            yield f"{error.message} {error.details}"


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused_in_plain_words(name: str) -> None:
    model = BODIES[name]
    texts = [text for field in (*model.model_fields, "nonsense") for text in refusals(field, model)]
    assert texts
    for text in texts:
        assert not told(text), text


def manifest_refusals(place: str) -> Iterator[str]:
    for value in WRONG:
        manifest: Any = value
        for key in reversed(place.split(".")):
            manifest = {key: manifest}
        try:
            resolve("w", GRAPH, manifest)
        except ConfigError as error:
            yield f"{error.message} {error.details}"


def test_a_manifest_is_refused_in_plain_words() -> None:
    places = ("title", "parameters", "requires", "requires.models", "parameters.width.choices")
    found = [text for place in places for text in manifest_refusals(place)]
    for text in found:
        assert not told(text), text
    for key in ("parameters.a", "requires"):
        assert any(text.startswith(f"{key}: must be an object") for text in found)
