"""The document of stored workflows: whatever they are called, generated code can tell them apart."""

import re
from collections import Counter, defaultdict
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from comfy_fleet.api import openapi
from comfy_fleet.api.v1.document import with_workflows
from comfy_fleet.api.v1.routes import TABLE
from comfy_fleet.domain.graphs.workflow import Choice, Parameter, ParameterType, Workflow

EVIL = 'a\'b"c\\d\n*/ </script> {{x}} ${y} %s \u2028\x00 """ ?> \u202e ünï 💥'
COMMON = openapi.document(TABLE, title="t", description="d", tags={}, paths=defaultdict(str))
REF = "#/components/schemas/"


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def choice(name: str, *choices: str) -> Parameter:
    made = tuple(Choice(name=one, value=one, label=EVIL) for one in choices)
    return Parameter(name=name, type=ParameterType.CHOICE, choices=made, default=choices[0])


def text(name: str, **more: Any) -> Parameter:
    return Parameter(name=name, type=ParameterType.STRING, title=EVIL, description=EVIL, **more)


def workflow(name: str, *parameters: Parameter) -> Workflow:
    return Workflow(
        name=name, graph={}, version="v", title=EVIL, description=EVIL, parameters=tuple(parameters)
    )


def check(*workflows: Workflow) -> dict[str, Any]:
    """Return the models' schemas, which are called apart and hold all that the workflows take."""
    made = with_workflows(COMMON, workflows)
    schemas: dict[str, Any] = made["components"]["schemas"]
    operations = [one for methods in made["paths"].values() for one in methods.values()]
    ids = [one["operationId"] for one in operations]
    names = [*schemas]
    for name, shape in schemas.items():  # generators make a class for these, too
        for field, inner in shape.get("properties", {}).items():
            if "enum" in inner or inner.get("type") == "object":
                names.append(name + field)
    for taken in (ids, names):
        assert [one for one, count in Counter(map(plain, taken)).items() if count > 1] == []
        assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", one) for one in taken)
    assert max(map(len, ids)) <= 45 and max(map(len, schemas)) <= 55
    assert all(sign.isprintable() or sign == "\n" for one in operations for sign in one["description"])
    for one in workflows:
        operation = made["paths"][f"/api/v1/workflows/{one.name}/jobs"]["post"]
        assert "\n" not in operation["summary"] and len(operation["summary"]) <= 120
        body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].removeprefix(REF)
        params = schemas[schemas[body]["properties"]["params"]["$ref"].removeprefix(REF)]
        for parameter in one.parameters:
            shape = params["properties"].get(parameter.name)
            if shape is None:
                assert params["additionalProperties"] is True
                assert re.search(rf"\b{parameter.name}\b", params["description"])
            elif "enum" in shape:
                assert shape["enum"] == [kind.name for kind in parameter.choices]
                constants = shape["x-enum-varnames"]
                assert (
                    len({plain(constant) for constant in constants}) == len(constants) == len(shape["enum"])
                )
                assert all(re.fullmatch("[A-Z][A-Z0-9_]*", constant) for constant in constants)
    return schemas


NAMES = st.from_regex(r"[a-c0-2][ab1_.-]{0,6}|[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True)
WORDS = st.from_regex(r"[a-c][ab1_]{0,5}|[a-z][a-z0-9_]{0,63}", fullmatch=True)
PARAMETERS = st.one_of(
    st.builds(text, WORDS, required=st.booleans()),
    st.builds(lambda name, some: choice(name, *some), WORDS, st.lists(st.text(), min_size=1, unique=True)),
)
WORKFLOWS = st.builds(
    lambda name, some: workflow(name, *some),
    NAMES,
    st.lists(PARAMETERS, max_size=5, unique_by=lambda parameter: parameter.name),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(st.lists(WORKFLOWS, max_size=6, unique_by=lambda one: one.name))
def test_any_names_stay_apart(workflows: list[Workflow]) -> None:
    check(*workflows)


def test_names_that_languages_and_generators_use_themselves() -> None:
    names = [
        "class",
        "from",
        "2nd",
        "self",
        "job",
        "error",
        "job-detail",
        "new_job_body",
        "a-b",
        "a_b",
        "a.b",
    ]
    used = [
        "class",
        "from",
        "this",
        "to_dict",
        "from_dict",
        "cls",
        "d",
        "additional_properties",
        "model_name",
    ]
    long = [workflow("x" * 62 + end, text("prompt")) for end in "yz"]
    clash = [
        workflow("a", choice("b_params", "x"), choice("b_job", "x")),
        workflow("a_params_b", text("x")),
        workflow("a_b_params", text("x"), text("a_b"), text("ab"), text("a__b", required=True)),
    ]
    odd = workflow(
        "odd", choice("one", "a b", "a-b", "A_B", "", "2nd", "ünï", "日本"), choice("two", "*/", "x")
    )
    schemas = check(*(workflow(name, *map(text, used)) for name in names), *long, *clash, odd)
    validate(with_workflows(COMMON, [*long, *clash, odd]))
    assert schemas["ClassParams"]["properties"].keys() == {"class", "from"}
    assert schemas["OddParams"]["properties"]["one"]["x-enum-varnames"] == [
        "A_B", "A_B2", "A_B3", "VALUE", "VALUE_2ND", "N", "VALUE2",
    ]  # fmt: skip
    assert "enum" not in schemas["OddParams"]["properties"]["two"]  # written into code, `*/` is another value
    untyped = next(shape for shape in schemas.values() if "a__b" in shape["description"])
    assert untyped["properties"].keys() == {"x", "a_b"} and "required" not in untyped
