"""Who has which model files, put together."""

from collections.abc import Iterator
from typing import Any

from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.nodes.model_sizes import ModelSizes
from comfy_fleet.domain.nodes.model_stock import files_of, model_stock

SIZES = ModelSizes(
    folders={"loras": {"a.safetensors": 7, "sub/b.safetensors": 8}, "style": {"s.safetensors": 9}}
)


def loader(name: str, *files: object) -> dict[str, Any]:
    return {"input": {"required": {name: [list(files)]}}}


def inventory(*loras: object, **classes: Any) -> Inventory:
    both = {"LoraLoader": loader("lora_name", *loras), "LoraLoaderModelOnly": loader("lora_name", *loras)}
    return parse({**both, **classes})


def test_files_have_their_folder_and_their_size() -> None:
    known = inventory(
        "a.safetensors",
        "sub\\b.safetensors",
        "new.safetensors",
        KSampler=loader("sampler_name", "euler"),
        Odd=loader("what", "s.safetensors"),
        Odder=loader("which", "t.safetensors"),
        LoadImage={"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
    )
    assert files_of(known, SIZES) == {
        ("loras", "a.safetensors"): 7,
        ("loras", "sub/b.safetensors"): 8,
        ("loras", "new.safetensors"): None,
        ("style", "s.safetensors"): 9,
        ("models", "t.safetensors"): None,
    }


def test_nodes_with_the_same_files_are_one_group() -> None:
    one, both = {("loras", "a"): 7}, {("loras", "a"): None, ("loras", "b"): 8}
    stock = model_stock([(["n10"], both), (["n3", "n2"], one), (["n1"], dict(both))])
    assert stock.groups == (("n1", "n10"), ("n2", "n3"))
    assert [(file.name, file.size, file.groups, stock.having(file)) for file in stock.files] == [
        ("a", 7, (0, 1), 4),
        ("b", 8, (0,), 2),
    ]
    assert stock.group_of == {"n1": 0, "n10": 0, "n2": 1, "n3": 1}


def test_three_hundred_equal_nodes_with_two_thousand_files_are_two_groups() -> None:
    files = [f"f{number}.safetensors" for number in range(2000)]

    def having() -> Iterator[tuple[list[str], dict[tuple[str, str], int | None]]]:
        for kind, more in (("a", ()), ("b", ("extra.safetensors",))):
            known = files_of(inventory(*files, *more), ModelSizes())
            for number in range(150):
                yield [f"{kind}{number}"], known

    stock = model_stock(having())
    assert [len(nodes) for nodes in stock.groups] == [150, 150]
    assert len(stock.files) == 2001
    assert sum(len(file.groups) for file in stock.files) == 4001
