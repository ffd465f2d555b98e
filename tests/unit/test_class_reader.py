"""``/object_info`` read class by class, however it is cut into pieces."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.adapters.comfyui.answer_limits import MIB, AnswerLimits
from comfy_fleet.adapters.comfyui.object_info import ClassReader
from comfy_fleet.domain.errors import NodeError, NodeFault
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.graphs.object_info import unpack
from tests.integration.api_kit import object_info

LIMITS = AnswerLimits(size=3 * MIB, setting="FLEET_SOME_BYTES")
"""One class may have 768 KiB; decoding it may take 2 MiB, keeping all of them 4 MiB."""


async def read(body: bytes, *, piece: int = 65536, limits: AnswerLimits = LIMITS) -> Inventory:
    reader = ClassReader(limits)
    for at in range(0, len(body), piece):
        await reader.take(body[at : at + piece])
    return (await reader.end()).inventory()


def one_class(**inputs: Any) -> bytes:
    return orjson.dumps({"input": {"required": inputs}})


async def test_a_real_server_s_classes() -> None:
    info = object_info()
    for body in (orjson.dumps(info), orjson.dumps(info, option=orjson.OPT_INDENT_2)):
        assert await read(body) == parse(info)


async def test_numbers_of_any_size_are_told_to_clients_as_the_node_wrote_them() -> None:
    told = b'{"A": {"input": {"required": {"n": ["FLOAT", {"min": -18446744073709551615, "max": %d}]}}}}' % (
        10**30
    )
    reader = ClassReader(LIMITS)
    await reader.take(told)
    (await reader.end()).inventory()
    kept = reader.packed()
    assert kept is not None
    assert json.loads(unpack(kept.packed)["A"]) == json.loads(told)["A"]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(['a"b', "{", "\\", '\\"', "}]", "é🙂"]),
        st.recursive(
            st.none() | st.integers(-5, 5) | st.text(max_size=8) | st.sampled_from(['"', "\\", "}{"]),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=5,
    ),
    st.integers(1, 40),
    st.booleans(),
)
async def test_any_object_however_it_is_cut(info: dict[str, Any], piece: int, indent: bool) -> None:
    body = orjson.dumps(info, option=orjson.OPT_INDENT_2 if indent else 0)
    reader = ClassReader(LIMITS)
    for at in range(0, len(body), piece):
        await reader.take(body[at : at + piece])
        reader.look()  # a large answer is looked at many times
    assert (await reader.end()).inventory() == parse(info)


async def test_a_large_installation() -> None:
    """Five thousand classes, and lists of as many models in some."""
    info = object_info()
    large = {f"{name} {number}": body for number in range(5000 // len(info)) for name, body in info.items()}
    loader = {"input": {"required": {"name": [models(5000), {}]}}}
    stacker = {"input": {"optional": {f"lora_{index}": [models(1000), {}] for index in range(50)}}}
    large |= {f"Loader {number}": loader for number in range(15)} | {"Stacker": stacker}
    assert (await read(orjson.dumps(large), limits=AnswerLimits())).classes.keys() == large.keys()


async def test_the_answer_itself_is_packed_however_it_is_cut_and_written() -> None:
    info = object_info()
    packed = []
    for body, piece in ((orjson.dumps(info), 999), (orjson.dumps(info, option=orjson.OPT_INDENT_2), 65536)):
        reader = ClassReader(LIMITS)
        for at in range(0, len(body), piece):
            await reader.take(body[at : at + piece])
        await reader.end()
        packed.append(reader.packed())
    first = packed[0]
    assert first is not None and packed == [first, first]
    assert {name: orjson.loads(body) for name, body in unpack(first.packed).items()} == info


async def test_what_only_the_slower_decoder_takes() -> None:
    found = await read(b'{"A": {"input": {"required": {"x": ["FLOAT", {"max": Infinity}]}}}, "B": {}}')
    assert found.classes.keys() == {"A", "B"}
    assert found.classes["A"].required["x"].maximum == float("inf")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'[{"A": {}}]',
        b'{"A": {}',
        b'{"A": {}}{"B": {}}',
        b'{{"A": {}}}',
        b'{"A": {"b"}}',
        b'{"A": {"b": }}',
        b'{"A": {"b": [1, 2}}',
        b"<html>{}</html>",
    ],
)
async def test_what_is_no_object_is_an_error(body: bytes) -> None:
    with pytest.raises(NodeError):
        await read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b" " * MIB * 2,
        b" " * MIB * 2,
        b'{"a": "' + b"x" * MIB + b'"}',
        b'{"a": {"b": "' + b"x" * MIB + b'"}}',
        b"{" + b'"a": 1, ' * 200_000 + b"}",
        b"{" + b"[]," * 400_000 + b"[]}",
    ],
    ids=["list", "blanks", "text", "class", "numbers", "unnamed"],
)
async def test_more_than_a_class_may_have_is_the_nodes_fault(body: bytes) -> None:
    with pytest.raises(NodeFault, match=r"more than 786432 bytes .*a quarter of FLEET_SOME_BYTES"):
        await read(body)


@pytest.mark.parametrize(
    "value",
    [
        b"[" + b"[]," * 20_000 + b"[]]",
        b"[" + b'{"a":0},' * 10_000 + b"{}]",
        b'"' + "\N{SLIGHTLY SMILING FACE}".encode() + b"x" * 600_000 + b'"',
    ],
)
async def test_a_class_that_is_dear_to_decode_is_the_nodes_fault(value: bytes) -> None:
    with pytest.raises(NodeFault, match=r"/object_info for class 'A' came with .*\(FLEET_SOME_BYTES\)"):
        await read(b'{"A": {"input": ' + value + b"}}")


def growing(prefix: str, most: int) -> list[Any]:
    template = {"input": {"required": {"a": ["A"]}}, "prefix": prefix, "max": most}
    return ["COMFY_AUTOGROW_V3", {"template": template}]


def choosing(*inputs: dict[str, Any]) -> list[Any]:
    options = [{"key": f"k{n}", "inputs": {"required": one}} for n, one in enumerate(inputs)]
    return ["COMFY_DYNAMICCOMBO_V3", {"options": options}]


def models(count: int, folder: int = 0) -> list[str]:
    return [f"{folder}/model number {number}.safetensors" for number in range(count)]


def many(body: bytes, count: int) -> bytes:
    return b"{" + b",".join(b'"C%d":' % number + body for number in range(count)) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        many(b"{}", 10_000),
        many(one_class(**{f"i{number}": ["A"] for number in range(1000)}), 20),
        many(one_class(**{f"i{number}": ["A" * 500] for number in range(1000)}), 5),
        many(
            one_class(x=growing("p" * 150, 1000)),
            40,
        ),
        orjson.dumps({f"C{n}": {"input": {"required": {"x": [models(4_000, n)]}}} for n in range(20)}),
        many(one_class(x=[[{"n": 1}] * 2000]), 20),
    ],
    ids=["classes", "inputs", "types", "growing", "lists", "objects"],
)  # fmt: skip
async def test_more_than_all_classes_may_take_is_the_nodes_fault(body: bytes) -> None:
    assert len(body) < LIMITS.size
    with pytest.raises(NodeFault, match=r"classes take more than 4 MiB to hold .four thirds of FLEET_SOME"):
        await read(body)


async def test_lists_that_are_alike_are_held_once() -> None:
    names = models(5_000)
    found = await read(many(one_class(x=[names], y=["COMBO", {"options": names}]), 12))
    lists = {id(spec.options) for info in found.classes.values() for _, spec in info}
    assert len(found.classes) == 12 and len(lists) == 1
    mixed = await read(many(one_class(x=[[1, True, 1.0]], y=[[True, 1, 1]]), 1))
    assert str(mixed.classes["C0"].required["x"].options) == "(1, True, 1.0)"
    assert str(mixed.classes["C0"].required["y"].options) == "(True, 1, 1)"


@pytest.mark.parametrize(
    "inputs",
    [
        {f"i{number}": ["INT"] for number in range(20_000)},
        {"x" * 60_000: choosing({f"i{n}": ["INT"] for n in range(50)})},
        {"x": choosing(*[{}] * 20_000)},
        {f"i{n}": growing("p", 10**9) for n in range(20)},
    ],
    ids=["inputs", "names", "branches", "growing"],
)  # fmt: skip
def test_a_class_with_more_inputs_than_any_has_takes_anything(inputs: dict[str, Any]) -> None:
    found = parse({"A": {"input": {"required": inputs}, "output_node": True}})
    assert found.classes["A"].output_node
    assert not found.classes["A"].required
