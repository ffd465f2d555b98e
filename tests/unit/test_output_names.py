"""Names of saved files, taken apart and put together again."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.asset import listed_name
from comfy_fleet.domain.jobs.job import OutputKind
from comfy_fleet.domain.jobs.output_names import (
    NodeFile,
    OutputId,
    SavedFile,
    asset_in,
    number_groups,
    place_of,
)
from comfy_fleet.domain.jobs.outputs import FileRef, InlineText, OutputItem, find_outputs
from tests.factories import an_output

RUN = "fleet/0f9f0f6e-7d6a-4b0f-9d55-5f6d1a2b3c4d/1f9f0f6e-7d6a-4b0f-9d55-5f6d1a2b3c4d"


def parsed(filename: str, subfolder: str = RUN, type_: str = "output") -> NodeFile:
    return NodeFile.parse(FileRef(filename=filename, subfolder=subfolder, type=type_))


def with_number(file: NodeFile, number: int) -> SavedFile:
    before, after = file.around
    return SavedFile.parse(f"{before}{number:05}{after}")


@pytest.mark.parametrize(
    ("filename", "number", "shown"),
    [
        ("ComfyUI_00001_.png", 1, "ComfyUI_00042_.png"),
        ("ComfyUI_00001_.webp", 1, "ComfyUI_00042_.webp"),
        ("AnimateDiff_00001.mp4", 1, "AnimateDiff_00042.mp4"),
        ("AnimateDiff_00001-audio.mp4", 1, "AnimateDiff_00042-audio.mp4"),
        ("x_00007.md", 7, "x_00042.md"),
        ("img_3_00004_.png", 4, "img_3_00042_.png"),
        ("2026-11-29_00002_.png", 2, "2026-11-29_00042_.png"),
        ("a_00001_00002_.png", 2, "a_00001_00042_.png"),
        ("ComfyUI_123456_.png", 123456, "ComfyUI_00042_.png"),
        ("ComfyUI_0003.png", 3, "ComfyUI_00042.png"),
        ("00001.png", 1, "00042.png"),
        ("0001_ComfyUI.png", 1, "00042_ComfyUI.png"),
        ("_00001_.png", 1, "_00042_.png"),
        ("no_dot_00001_", 1, "no_dot_00042_"),
        ("depth.png", None, "depth_00042_.png"),
        ("photo_2024.png", None, "photo_2024_00042_.png"),
        ("20240101_ComfyUI.png", None, "20240101_ComfyUI_00042_.png"),
        ("2024-01-01_09-30-05.png", None, "2024-01-01_09-30-05_00042_.png"),
        ("flux_123456789012345.png", None, "flux_123456789012345_00042_.png"),
        (f"x_{'9' * 30}_.png", None, f"x_{'9' * 30}__00042_.png"),
        ("preview3d_0752def6daf94a89a5e4d28ddcdae8b5.glb", None, None),
        (".png", None, "_png_00042_"),
        ("archive", None, "archive_00042_"),
    ],
)
def test_numbers_are_found_as_classes_write_them(
    filename: str, number: int | None, shown: str | None
) -> None:
    file = parsed(filename)
    assert file.number == number
    unnumbered = f"output/{'_' if filename.startswith('.') else ''}{filename.removeprefix('.')}"
    assert file.unnumbered == (unnumbered if number is None else None)
    if shown is not None:
        assert with_number(file, 42) == SavedFile(type="output", subfolder="", filename=shown)


@pytest.mark.parametrize(
    ("subfolder", "shown"),
    [
        (RUN, ""),
        (f"{RUN}/a/b", "a/b"),
        (f"{RUN}\\a\\b", "a/b"),
        (f"{RUN}/fleet/a/b/c", "fleet/a/b/c"),
        (f"own/{RUN}/a", "own/a"),
        ("", ""),
        ("packs/own", "packs/own"),
        ("/etc", "etc"),
        ("../../etc", "etc"),
        (f"{RUN}/../../x", "x"),
        (f"{RUN}/a\0b", "a_b"),
        ("C:\\Users\\me", "C_/Users/me"),
        ("fleet", "fleet"),
    ],
)
def test_an_owner_does_not_see_the_folder_of_the_run(subfolder: str, shown: str) -> None:
    assert with_number(parsed("x_00001_.png", subfolder), 3) == SavedFile(
        type="output", subfolder=shown, filename="x_00003_.png"
    )


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("a..b_00001_.png", "a_b_00003_.png"),
        ("..", "output"),
        ("", "output"),
        ("a\0\r\nSet-Cookie: x_00001_.png", "a___Set-Cookie_ x_00003_.png"),
        ("\u202egnp.exe_00001_.png", "_gnp.exe_00003_.png"),
        ("CON.png", "_CON.png"),
        (".bashrc", "_bashrc"),
        ("a/.ssh_00001_.png", "_ssh_00003_.png"),
        ("x.png [temp]", "x.png _temp_"),
        ("a\\b\\x_00001_.png", "x_00003_.png"),
        ("cafe\u0301_00001_.png", "caf\u00e9_00003_.png"),
    ],
)
def test_no_name_of_a_node_leads_out_of_its_folder(filename: str, shown: str) -> None:
    ref = find_outputs("1", {"images": [{"filename": filename or "/", "subfolder": RUN, "type": "output"}]})
    assert isinstance(ref[0].source, FileRef)
    file = NodeFile.parse(ref[0].source)
    saved = with_number(file, 3) if file.unnumbered is None else SavedFile.parse(file.unnumbered)
    assert saved.filename == shown
    assert saved.type == "output"


TEXTS = st.text(max_size=40) | st.text("_./\\-0123456789aA [].", max_size=40)
NAMES = st.builds(
    lambda before, digits, after: f"{before}_{digits}{after}",
    TEXTS,
    st.text("0123456789", min_size=1, max_size=31),
    st.sampled_from(["_.png", ".png", ".mp4", "-audio.mp4", "", "_x_.png"]),
)
TYPES = st.sampled_from(["output", "temp", "input", "../x", "\0"])


@given(NAMES | TEXTS, TEXTS, TYPES, st.integers(0, 9_999_999))
def test_a_name_with_an_owners_number_says_how_it_was_made(
    filename: str, subfolder: str, type_: str, number: int
) -> None:
    """So two names are different if their counters or their numbers are."""
    file = parsed(filename, subfolder, type_)
    saved = with_number(file, number)
    again = parsed(saved.filename, saved.subfolder, saved.type)
    assert (again.counter, again.number, again.unnumbered) == (file.counter, number, None)
    if file.unnumbered is not None:
        as_it_is = SavedFile.parse(file.unnumbered)
        same = parsed(as_it_is.filename, as_it_is.subfolder, as_it_is.type)
        assert same.unnumbered == file.unnumbered


@given(st.text(max_size=2000), st.text(max_size=2000), TYPES)
def test_every_name_can_be_asked_for(filename: str, subfolder: str, type_: str) -> None:
    saved = with_number(parsed(filename, subfolder, type_), 1)
    assert SavedFile.parse(saved.path) == saved
    assert listed_name(saved.path) == saved.path, "what is asked for is looked up in its normal form"
    assert saved.type in ("output", "temp")
    for part in (*saved.subfolder.split("/"), saved.filename) if saved.subfolder else (saved.filename,):
        assert part.strip(". ")
        assert ".." not in part
        assert not set(part) & set('/\\<>:"|?*\0\r\n')
        assert len(part.encode()) <= 255
    assert len(saved.subfolder) <= 160


def test_letters_that_a_node_draws_are_counted_together() -> None:
    counters = {
        parsed(f"ComfyUI_temp_{letters}_00001_.png", "", "temp").counter for letters in ("abcde", "zzzzz")
    }
    assert counters == {"temp/ComfyUI_temp_*"}
    assert parsed("ComfyUI_temp_abcde_00001_.png", "").counter == "output/ComfyUI_temp_abcde_*"


def items_of(node_id: str, **output: list[tuple[str, str, str]]) -> tuple[OutputItem, ...]:
    return find_outputs(
        node_id,
        {
            key: [{"filename": name, "subfolder": folder, "type": type_} for folder, name, type_ in files]
            for key, files in output.items()
        },
    )


def saved(*names: str, folder: str = RUN, type_: str = "output") -> list[tuple[str, str, str]]:
    return [(folder, name, type_) for name in names]


def grouped(items: tuple[OutputItem, ...]) -> list[list[OutputId]]:
    return [list(group.files) for group in number_groups(items)]


def test_numbers_are_drawn_in_the_order_of_the_nodes() -> None:
    items = (
        *items_of("9", images=saved("t_00003_.png", "t_00002_.png")),
        *items_of("4", images=saved("t_00001_.png")),
    )
    assert grouped(items) == [[("9", "images", 1)], [("9", "images", 0)], [("4", "images", 0)]]
    assert not any(group.follows for group in number_groups(items))


def test_a_video_and_its_picture_share_a_number() -> None:
    items = items_of("1", gifs=saved("AnimateDiff_00001.mp4"), images=saved("AnimateDiff_00001.png"))
    assert grouped(items) == [[("1", "gifs", 0), ("1", "images", 0)]]


def test_files_of_different_prefixes_folders_or_nodes_share_nothing() -> None:
    items = (
        *items_of("1", a=saved("x_00001_.png", "y_00001_.png"), b=saved("x_00001_.png", type_="temp")),
        *items_of("1", c=saved("x_00001_.png", folder=f"{RUN}/sub")),
        *items_of("2", d=saved("x_00001_.png")),
    )
    assert len(grouped(items)) == 5


def test_a_batch_with_a_prefix_for_each_picture_counts_on() -> None:
    groups = number_groups(items_of("1", images=saved("b_0_00001_.png", "b_1_00002_.png", "b_2_00003_.png")))
    assert [group.follows for group in groups] == [False, True, True]


def test_one_file_named_twice_is_one_and_two_that_look_alike_are_two() -> None:
    twice = items_of("1", images=saved("x_00001_.png"), files=saved("x_00001_.png"))
    assert len(number_groups(twice)) == 1
    alike = items_of("1", images=saved("x_00001_.png"), files=saved("x_00001_.png", folder=""))
    assert len(number_groups(alike)) == 2
    bare = items_of("1", images=saved("x.png", "x.png"), files=saved("x.png", folder=""))
    assert grouped(bare) == [[("1", "images", 0), ("1", "images", 1)], [("1", "files", 0)]]


def test_texts_get_no_numbers() -> None:
    text = OutputItem(
        node_id="1",
        key="text",
        index=0,
        name="text_00001.txt",
        kind=OutputKind.TEXT,
        content_type="text/plain",
        source=InlineText("hi"),
    )
    assert number_groups([text]) == []


def test_a_thousand_files_that_look_alike_are_grouped_at_once() -> None:
    folders = [f"fleet/{uuid4()}/{uuid4()}" for _ in range(1000)]
    items = items_of("1", images=[(folder, "x_00001_.png", "output") for folder in folders])
    assert len(number_groups(items)) == 1000


def test_outputs_of_versions_without_numbers_are_told_apart() -> None:
    asset_id = "0f9f0f6e-7d6a-4b0f-9d55-5f6d1a2b3c4d"
    old = an_output(asset_id=asset_id, name="ComfyUI_00001_.png", saved=False)
    assert place_of(old) == SavedFile(
        type="output", subfolder=f"asset/{asset_id}", filename="ComfyUI_00001_.png"
    )
    assert asset_in(place_of(old).subfolder) == asset_id
    assert asset_in("asset/me") is None
    assert asset_in(asset_id) is None
    new = an_output(asset_id=asset_id, name="x_00003_.png", saved=True, subfolder="a", temporary=True)
    assert place_of(new) == SavedFile(type="temp", subfolder="a", filename="x_00003_.png")
