"""Which parts of a graph are missing where, and what people are told about it."""

from comfy_fleet.domain.graphs.graph_problems import Problem, ProblemKind
from comfy_fleet.domain.graphs.missing import (
    MOST_NODES,
    MOST_PARTS,
    MissingPart,
    PartKind,
    missing_parts,
    sourced,
)
from comfy_fleet.domain.graphs.part_sources import PartSource, PartSources


def no_class(node_id: str, class_type: str = "Fancy") -> Problem:
    return Problem(
        kind=ProblemKind.UNKNOWN_CLASS, node_id=node_id, class_type=class_type, message=f"no {class_type}"
    )


def no_file(node_id: str, file: object = "x.pt") -> Problem:
    return Problem(
        kind=ProblemKind.FILE_MISSING,
        node_id=node_id,
        class_type="LoraLoader",
        field="lora_name",
        value=file,
        message="no file",
    )


PLACES = {("1", "class_type"), ("2", "class_type"), ("3", "lora_name"), ("4", "lora_name")}


def test_each_part_is_told_once_with_its_places_and_the_nodes_that_lack_it() -> None:
    problems = {
        "gpu10": [no_class("1"), no_class("2"), no_file("3")],
        "gpu2": [no_class("1"), no_class("2")],
        "gpu1": [no_file("3"), no_file("4", 5), no_class("9", "Other")],
    }
    assert missing_parts(problems, PLACES) == [
        MissingPart(
            kind=PartKind.FILE,
            name="x.pt",
            class_type="LoraLoader",
            input="lora_name",
            node_ids=("3",),
            lacked_by=("gpu1", "gpu10"),
        ),
        MissingPart(
            kind=PartKind.CLASS,
            name="Fancy",
            class_type="Fancy",
            node_ids=("1", "2"),
            lacked_by=("gpu2", "gpu10"),
        ),
    ]
    assert missing_parts(problems, set()) == []


def test_the_fleets_own_knowledge_counts_more_than_the_graphs() -> None:
    part = MissingPart(
        kind=PartKind.FILE, name="a/x.pt", class_type="LoraLoader", source=PartSource(folder="loras")
    )
    manifest = PartSources(files={("", "x.pt"): PartSource(folder="ignored")})
    graph = PartSources(files={("LoraLoader", "x.pt"): PartSource(folder="evil", url="https://e.example/x")})
    assert [one.source for one in sourced([part], manifest, graph)] == [
        PartSource(folder="loras", url="https://e.example/x")
    ]
    fancy = MissingPart(kind=PartKind.CLASS, name="Fancy", class_type="Fancy")
    known = PartSources(classes={"Fancy": PartSource(package="fancy-pack", version="1.2")})
    assert [one.source.version for one in sourced([fancy], PartSources(), known)] == ["1.2"]


def test_hints() -> None:
    fancy = MissingPart(kind=PartKind.CLASS, name="Fancy", class_type="Fancy", lacked_by=("g1", "g2"))
    assert fancy.hint == "missing on g1, g2"
    (packed,) = sourced([fancy], PartSources(classes={"Fancy": PartSource(package="p", version="1.2")}))
    assert packed.hint == "it is in the package p 1.2; missing on g1, g2"
    (core,) = sourced(
        [fancy], PartSources(classes={"Fancy": PartSource(package="comfy-core", version="0.33.0")})
    )
    assert core.way == "ComfyUI itself has it, in 0.33.0 for example"
    file = MissingPart(
        kind=PartKind.FILE,
        name="x",
        class_type="L",
        lacked_by=("a", "b", "c", "d", "e"),
        source=PartSource(folder="vae", url="https://e.example/x"),
    )
    assert file.hint == (
        "it belongs into models/vae; the workflow says where it is from: https://e.example/x; "
        "missing on a, b, c and 2 more"
    )


def test_what_is_told_has_limits() -> None:
    names = [f"n{n}" for n in range(50)]
    problems = {name: [no_class(str(n), f"C{n}") for n in range(50)] for name in names}
    places = {(str(n), "class_type") for n in range(50)}
    parts = missing_parts(problems, places)
    assert len(parts) == MOST_PARTS
    assert len(parts[0].lacked_by) == 50
    assert len(parts[0].to_json()["lacked_by"]) == MOST_NODES
    long = MissingPart(kind=PartKind.FILE, name="x" * 10_000, class_type="y" * 10_000)
    assert len(str(long.to_json())) < 1000
