"""Memory, files, pictures, options and the catalogue of a simulated node."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from comfy_fleet.sim.catalogue import Catalogue
from comfy_fleet.sim.files import OutsideFolder, SimFiles, annotated
from comfy_fleet.sim.memory import OutOfMemory, Vram
from comfy_fleet.sim.nodes_output import WORK
from comfy_fleet.sim.options import NodeOptions, SimOptions, SimTiming, builtin_models, read_models
from comfy_fleet.sim.pictures import Painter, caption, jpeg, png
from comfy_fleet.sim.validation import check
from comfy_fleet.sim.versions import DEFAULT, VERSIONS, Version, find
from tests.unit.sim.graphs import text_to_image

WORKFLOWS = Path(__file__).parents[3] / "workflows"


# memory


def test_models_stay_loaded_until_room_is_needed() -> None:
    vram = Vram(10)
    assert [vram.load("a", 4), vram.load("b", 4), vram.load("a", 4)] == [4, 4, 0]
    assert vram.load("c", 4) == 4
    assert list(vram.models) == ["a", "c"]
    assert vram.free == 2


def test_activations_push_models_out_and_count_as_free_afterwards() -> None:
    vram = Vram(10)
    vram.load("a", 4)
    vram.load("b", 4, working=5)
    assert vram.models == {"b": 4}
    assert (vram.free, vram.reserved, vram.cached) == (6, 9, 5)


def test_what_does_not_fit_at_all_is_out_of_memory_and_unloads_everything() -> None:
    vram = Vram(10, foreign=3)
    vram.load("a", 4)
    with pytest.raises(OutOfMemory, match="belong to other processes"):
        vram.load("b", 8)
    assert vram.models == {}
    vram.load("a", 4)
    with pytest.raises(OutOfMemory):
        vram.reserve(4, keep="a")
    assert vram.free == 7


# files


@pytest.fixture
def files(tmp_path: Path) -> SimFiles:
    return SimFiles(tmp_path)


def test_numbers_go_on_after_the_highest(files: SimFiles) -> None:
    folder, subfolder, first, number = files.next_name("output", "a/b/x")
    assert (folder, subfolder, first, number) == (files.root / "output/a/b", "a/b", "x", 1)
    (folder / "x_00007_.png").touch()
    (folder / "xy_00009_.png").touch()
    (folder / "x_new.png").touch()
    assert files.next_name("output", "a/b/x")[3] == 8


def test_a_prefix_may_hold_variables(files: SimFiles) -> None:
    assert files.next_name("output", "%width%x%height%", 64, 32)[2] == "64x32"
    assert files.next_name("output", "%year%")[2].isdigit()


@pytest.mark.parametrize("prefix", ["../x", "/etc/x", "a/../../x"])
def test_a_prefix_can_not_leave_the_folder(files: SimFiles, prefix: str) -> None:
    with pytest.raises(OutsideFolder):
        files.next_name("output", prefix)


def test_inputs_may_name_another_folder(files: SimFiles) -> None:
    files.inside("output", "s", "x.png").parent.mkdir()
    files.inside("output", "s", "x.png").write_bytes(b"1")
    assert files.exists("s/x.png [output]")
    assert not files.exists("s/x.png")
    assert not files.exists("../output/s/x.png")
    assert annotated("x.png [temp]") == ("x.png", "temp")
    assert files.digest("s/x.png [output]")
    assert files.digest("missing") == ""


def test_temporary_folders_go_and_others_stay(tmp_path: Path) -> None:
    own, given = SimFiles(), SimFiles(tmp_path)
    own.close()
    given.close()
    assert not own.root.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"output", "input"}


# pictures


def test_a_picture_depends_on_its_notes_and_place() -> None:
    painter = Painter("gpu-1")
    same = [painter.generate({"prompt": "a", "seed": "1"}, 64, 64).tobytes() for _ in range(2)]
    other = [
        painter.generate({"prompt": "a", "seed": "2"}, 64, 64).tobytes(),
        painter.generate({"prompt": "b", "seed": "1"}, 64, 64).tobytes(),
        painter.generate({"prompt": "a", "seed": "1"}, 64, 64, 1).tobytes(),
    ]
    assert same[0] == same[1]
    assert len({same[0], *other}) == 4


def test_the_name_is_drawn() -> None:
    notes = {"prompt": "a fox"}
    one, two = (Painter(name).generate(notes, 256, 256) for name in ("gpu-1", "gpu-2"))
    assert one.tobytes() != two.tobytes()


def test_big_pictures_are_marked_and_small_ones_are_not() -> None:
    painter = Painter("gpu-1")
    big, small = Image.new("RGB", (256, 256), "red"), Image.new("RGB", (64, 64), "red")
    assert painter.mark(big, "text").tobytes() != big.tobytes()
    assert painter.mark(small) is small
    assert Painter("gpu-1", stamp=False).mark(big) is big


def test_a_caption_is_the_first_text_and_seed() -> None:
    assert caption(text_to_image(prompt="two\nlines", seed=7)) == "seed 7  two lines"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(64, 64), (400, 301)])
def test_a_png_holds_the_pixels_and_the_texts(mode: str, size: tuple[int, int]) -> None:
    picture = Image.linear_gradient("L").resize(size).convert(mode)
    back = PngImageFile(BytesIO(png(picture, {"prompt": {"1": "ä"}, "workflow": [1]})))
    back.load()
    assert back.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()
    assert json.loads(back.text["prompt"]) == {"1": "ä"}
    assert back.text["workflow"] == "[1]"


def test_previews_are_small() -> None:
    assert Image.open(BytesIO(jpeg(Image.new("RGB", (2000, 1000))))).size == (512, 256)


# options


def test_models_are_read_with_sizes_and_by_node(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text('{"loras": ["a"], "vae": {"v": 0.5}, "nodes": {"sim-2": {"loras": {"b": 2}}}}')
    assert read_models(path, "sim-1") == {"loras": {"a": 10**9}, "vae": {"v": 5 * 10**8}}
    options = SimOptions(models=path, nodes=2, vram_gib=1)
    assert options.node(2).models == {"loras": {"b": 2 * 10**9}, "vae": {"v": 5 * 10**8}}
    assert options.node(2).vram_bytes == 2**30


@pytest.mark.parametrize("content", ["[]", '{"loras": 3}'])
def test_a_wrong_models_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "models.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"models\.json"):
        read_models(path)


@pytest.mark.parametrize("wrong", [{"load_gb_per_s": 0.0}, {"scale": -1.0}, {"job_s": -0.1}])
def test_impossible_speeds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimTiming(**wrong)


# the catalogue


def test_every_class_of_the_catalogues_has_an_implementation() -> None:
    known = [set(Catalogue(version, {}, lambda _: []).object_info()) for version in VERSIONS.values()]
    assert set.union(*known) == set(WORK)
    assert all(len(classes) > 100 for classes in known)


@pytest.mark.parametrize(
    ("name", "found"), [("0.33.0", "0.33.0"), ("0.33", "0.33.0"), ("0.3.64", "0.3.64"), ("0.3", "0.3.64")]
)
def test_a_version_is_found_by_its_first_numbers(name: str, found: str) -> None:
    assert find(name).name == found


@pytest.mark.parametrize("name", ["", "0.3.6", "0.4", "0.33.0.1", "sim-0.33.0"])
def test_an_unknown_version_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are: 0\.33\.0, 0\.3\.64"):
        NodeOptions(comfyui=name).version  # noqa: B018 - it is looked up then


def test_classes_of_a_real_server_can_be_added() -> None:
    entry = {"input": {"required": {}}, "output": ["IMAGE"], "output_node": False}
    catalogue = Catalogue(find(DEFAULT), {}, lambda _: [], {"Extra": entry, "KSampler": entry})
    assert catalogue.find("Extra") is not None
    sampler = catalogue.find("KSampler")
    assert sampler is not None
    assert "seed" in sampler.inputs


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_model_folders_are_known(version: Version) -> None:
    assert set(builtin_models()) <= set(version.folders)


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*/workflow.json")), ids=lambda path: path.parent.name)
def test_the_shipped_workflows_are_valid_on_a_simulated_node(path: Path, version: Version) -> None:
    catalogue = Catalogue(version, builtin_models(), lambda _: [])
    found = check(json.loads(path.read_text()), catalogue, lambda _: True)
    assert (found.error, found.node_errors) == (None, {})
