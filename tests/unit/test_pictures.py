"""Pictures get the graph back that their client has submitted, and nothing else of them changes."""

import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.domain.graphs.graph import for_run
from comfy_fleet.domain.graphs.pictures import parsing
from comfy_fleet.domain.graphs.pictures.parsing import MAX_TEXTS, Edit, Found, PieceReader, applied
from comfy_fleet.domain.graphs.pictures.restoring import PictureRestorer, parse
from comfy_fleet.domain.graphs.pictures.submitted import SubmittedGraph

JOB, RUN = "0e3ab6a5-8d3c-4c92-bd4b-1b06e8a5a2f1", "7f0c7a4e-13c5-4f4e-9d7a-5f2f6f3a9c11"
GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "größe ✨.png"}},
    "2": {
        "class_type": "LoadImage",
        "inputs": {"image": {"__type": "core/ASSET", "info": {"id": "0b0f"}}},
        "_meta": {"title": "Beside"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "%date:yyyy%/a", "images": ["1", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0], "seed": 2**63, "cfg": 7.0}},
}
POSTED = for_run(
    GRAPH,
    job_id=JOB,
    run_id=RUN,
    replacements={("1", ("image",)): f"fleet/{JOB}/{RUN}/ab.png", ("2", ("image",)): "fleet/x.png"},
    rerun_nodes=frozenset({"4"}),
)
WORKFLOW = '{"nodes": [], "note": "fleet_run"}'
FRAMES = [Image.effect_noise((16, 9), 40 + n).convert("RGB") for n in range(3)]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        yield kind, content[at + 8 : at + 8 + size]
        at += 12 + size


def saved(kind: str, frames: list[Image.Image] = FRAMES[:1], **options: Any) -> bytes:
    file = BytesIO()
    several = {"save_all": True, "append_images": frames[1:], "duration": 100} if len(frames) > 1 else {}
    frames[0].save(file, kind, **several, **options)
    return file.getvalue()


def png(add: Callable[[PngInfo], None], frames: list[Image.Image] = FRAMES[:1]) -> bytes:
    info = PngInfo()
    add(info)
    info.add_text("workflow", WORKFLOW)
    info.add_text("parameters", f"a cat, Steps: 20, fleet/{JOB}/{RUN}/x")
    return saved("PNG", frames, pnginfo=info)


def exif(tags: dict[int, Any], comment: bytes | None = None) -> bytes:
    written = Image.Exif()
    for tag, value in tags.items():
        written[tag] = value
    if comment is not None:
        written[ExifTags.IFD.Exif] = {0x9286: comment}
    return written.tobytes()


def big_endian(text: str) -> bytes:
    """Return EXIF as ``piexif`` writes it: other byte order, and the text in UTF-8."""
    body = text.encode() + b"\0"
    entry = struct.pack(">HHII", 0x010F, 2, len(body), 26)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4) + body


def comfy_exif(graph: object) -> bytes:
    return exif({0x0110: f"prompt:{json.dumps(graph)}", 0x010F: f"workflow:{WORKFLOW}"})


def comf(info: PngInfo, graph: object) -> None:
    info.add(b"comf", b"prompt\0" + json.dumps(graph).encode(), after_idat=True)


def with_comment(graph: object) -> bytes:
    return b"UNICODE\0" + json.dumps({"prompt": graph, "workflow": {}}).encode("utf-16-be")


MAKERS: dict[str, Callable[[object], bytes]] = {
    "png tEXt": lambda graph: png(lambda info: info.add_text("prompt", json.dumps(graph))),
    "png zTXt": lambda graph: png(lambda info: info.add_text("prompt", json.dumps(graph), zip=True)),
    "png iTXt": lambda graph: png(
        lambda info: info.add_itxt("prompt", json.dumps(graph, ensure_ascii=False), "en", "Wunsch")
    ),
    "png iTXt packed": lambda graph: png(lambda info: info.add_itxt("Prompt", json.dumps(graph), zip=True)),
    "png eXIf": lambda graph: saved("PNG", exif=comfy_exif(graph)),
    "apng comf": lambda graph: png(partial(comf, graph=graph), FRAMES),
    "webp": lambda graph: saved("WEBP", exif=comfy_exif(graph), lossless=True),
    "webp animated": lambda graph: saved("WEBP", FRAMES, exif=comfy_exif(graph), lossless=True),
    "webp of a pack": lambda graph: saved("WEBP", exif=exif({0x010F: f"Prompt:{json.dumps(graph)}"})),
    "webp utf-8": lambda graph: saved(
        "WEBP", exif=big_endian(f"Prompt:{json.dumps(graph, ensure_ascii=False)}")
    ),
    "jpeg": lambda graph: saved("JPEG", exif=comfy_exif(graph), progressive=True),
    "jpeg utf-8": lambda graph: saved("JPEG", exif=big_endian(f"Prompt:{json.dumps(graph)}")),
    "jpeg comment": lambda graph: saved("JPEG", exif=exif({}, with_comment(graph))),
    "jpeg comment ascii": lambda graph: saved(
        "JPEG", exif=exif({}, b"ASCII\0\0\0" + json.dumps({"prompt": json.dumps(graph)}).encode())
    ),
}


def texts(content: bytes) -> list[str]:
    """Return all texts of a picture as Pillow reads them."""
    image = Image.open(BytesIO(content))
    image.load()
    found = [f"{name}:{text}" for name, text in getattr(image, "text", {}).items()]
    if image.format == "PNG":
        found += [body.decode().replace("\0", ":") for kind, body in chunks(content) if kind == b"comf"]
    read = image.getexif()
    for value in (*read.values(), read.get_ifd(ExifTags.IFD.Exif).get(0x9286)):
        if isinstance(value, bytes):
            value = value[8:].decode("utf-16-be" if value.startswith(b"UNI") else "ascii")
        if isinstance(value, str):
            found.append(value)
    return found


def graph_in(content: bytes) -> Any:
    for text in texts(content):
        name, _, body = text.partition(":")
        if name.lower() == "prompt":
            return json.loads(body)
        if text.startswith('{"prompt"'):
            inner = json.loads(text)["prompt"]
            return json.loads(inner) if isinstance(inner, str) else inner
    raise AssertionError("no graph")


def pixels(content: bytes) -> list[bytes]:
    image = Image.open(BytesIO(content))
    found = []
    for frame in range(getattr(image, "n_frames", 1)):
        image.seek(frame)
        found.append(image.convert("RGBA").tobytes())
    return found


def fed(pieces: Iterable[bytes], graph: object = GRAPH) -> list[Edit]:
    restorer = PictureRestorer(SubmittedGraph(json.dumps(graph).encode()))
    for piece in pieces:
        restorer.feed(piece)
    return list(restorer.edits())


def restored(content: bytes, graph: object = GRAPH) -> bytes:
    return b"".join(applied(fed([content], graph), [content]))


# A graph that is shorter than the posted one, and one that is longer.
LONG = {**GRAPH, "5": {"class_type": "Note", "inputs": {"text": "ü" * 3001}}}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("graph", [GRAPH, LONG, {"1": {"class_type": "A", "inputs": {}}}])
def test_a_picture_carries_what_was_submitted(kind: str, graph: dict[str, Any]) -> None:
    came = MAKERS[kind](POSTED)
    stored = restored(came, graph)
    assert graph_in(came) == POSTED
    assert graph_in(stored) == graph
    assert pixels(stored) == pixels(came)
    assert RUN.encode() not in stored.replace(f"fleet/{JOB}/{RUN}/x".encode(), b"")
    others = [text for text in texts(came) if not text.lower().startswith(("prompt", '{"prompt'))]
    assert [text for text in texts(stored) if text in others] == others
    # What was put back is as good as what a server writes that got this graph.
    assert restored(stored, graph) == stored


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(GRAPH, id="a picture's own, passed on"),
        pytest.param("a cat that eats fleet_run", id="text"),
        pytest.param({"fleet_run": 1}, id="object"),
        pytest.param([POSTED], id="list"),
        pytest.param({**POSTED, "version": 1}, id="no graph"),
    ],
)
def test_what_no_run_has_posted_stays(kind: str, other: object) -> None:
    came = MAKERS[kind](other)
    assert fed([came], LONG) == []


@pytest.mark.parametrize("text", ["", "{", "fleet_run", "[" * 100_000 + "fleet_run", '{"fleet_run": NaN}'])
def test_a_prompt_that_is_not_json_stays(text: str) -> None:
    assert fed([png(lambda info: info.add_text("prompt", text))]) == []


@pytest.mark.parametrize("kind", MAKERS)
@given(cuts=st.lists(st.integers(0, 3000), max_size=12))
@example(cuts=list(range(3000)))
def test_any_pieces_give_the_same_picture(kind: str, cuts: list[int]) -> None:
    came = MAKERS[kind](POSTED)
    marks = [0, *sorted(min(cut, len(came)) for cut in cuts), len(came)]
    pieces = [came[a:b] for a, b in itertools.pairwise(marks)]
    edits = fed(pieces)
    assert edits == fed([came]) != []
    assert b"".join(applied(edits, pieces)) == restored(came)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_picture_that_is_cut_off_stays(kind: str) -> None:
    came = MAKERS[kind](POSTED)
    # Pillow ends a JPEG with its end marker, a PNG with IEND's CRC, a WebP with the EXIF.
    for size in {*range(0, len(came), 97), len(came) - 1}:
        assert fed([came[:size]]) == [], size


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if "png" in kind])
def test_a_png_with_a_wrong_bit_stays(kind: str) -> None:
    came = MAKERS[kind](POSTED)
    for at in range(0, len(came), 11):
        damaged = bytearray(came)
        damaged[at] ^= 0x10
        assert fed([bytes(damaged)]) == [], at


def stay(content: bytes) -> None:
    assert fed([content]) == []


POSTED_TEXT = json.dumps(POSTED).encode()
HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
TAIL = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
TEXT = chunk(b"tEXt", b"prompt\0" + POSTED_TEXT)


def test_a_text_that_is_much_longer_than_the_graph_is_not_even_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = {**POSTED, "x": {"class_type": "A", "inputs": {"is_changed": "x" * 20 * len(json.dumps(LONG))}}}
    assert fed([png(lambda info: info.add_text("prompt", json.dumps(long)))])
    real = json.loads
    bomb = zlib.compress(b'{"fleet_run": [' + b"[]," * 1_000_000 + b"[]]}")
    came = HEAD + TEXT + chunk(b"zTXt", b"prompt\0\0" + bomb) + TAIL
    lengths: list[int] = []

    def loads(text: str) -> Any:
        lengths.append(len(text))
        return real(text)

    monkeypatch.setattr(json, "loads", loads)
    (edit,) = fed([came])
    assert (edit.offset, max(lengths) < 100_000) == (len(HEAD), True)


def webp(*parts: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def tiff(*entries: tuple[int, int, int, int], rest: bytes = b"", following: int = 0) -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", following) + rest


def test_hostile_pictures_stay() -> None:
    assert fed([HEAD + TEXT + TAIL])  # only what follows makes the difference
    size = len(POSTED_TEXT)
    bomb = zlib.compress(bytes(parsing.MAX_TEXT_BYTES * 8), 9)
    stay(HEAD + TEXT + chunk(b"zTXt", b"prompt\0\0" + bomb) + TAIL)
    stay(HEAD + TEXT + chunk(b"zTXt", b"prompt\0\0" + zlib.compress(POSTED_TEXT)[:-6]) + TAIL)
    stay(HEAD + TEXT + chunk(b"zTXt", b"prompt\0\0no zlib") + TAIL)
    stay(HEAD + TEXT + chunk(b"iTXt", b"prompt\0\0\0en") + TAIL)
    stay(HEAD + TEXT * (MAX_TEXTS + 1) + TAIL)
    stay(HEAD + TEXT + struct.pack(">I", 2**32 - 1) + b"tEXtprompt\0" + bytes(1000))
    stay(HEAD + TEXT + HEAD[8:] + TAIL)
    stay(HEAD[:8] + TEXT + HEAD[8:] + TAIL)
    stay(HEAD + TEXT + TAIL[:-12])
    own = tiff((0x010F, 2, size + 8, 26), rest=b"prompt:" + POSTED_TEXT + b"\0")
    assert fed([webp((b"VP8X", bytes(10)), (b"EXIF", own))])
    stay(webp((b"EXIF", own), (b"EXIF", own)))
    stay(webp((b"EXIF", own), size=12))
    stay(webp((b"EXIF", own), size=2**32 - 1))
    stay(webp((b"EXIF", own))[:-1])
    # The text lies over its own table, over another text, and outside; tables in a circle.
    stay(webp((b"EXIF", tiff((0x010F, 2, size + 8, 12), rest=b"prompt:" + POSTED_TEXT + b"\0"))))
    two = [(0x010F, 2, size + 8, 38), (0x0110, 2, size + 8, 38)]
    stay(webp((b"EXIF", tiff(*two, rest=b"prompt:" + POSTED_TEXT + b"\0"))))
    stay(webp((b"EXIF", tiff((0x010F, 2, 2**32 - 1, 26), rest=b"prompt:" + POSTED_TEXT))))
    stay(webp((b"EXIF", tiff((0x010F, 2, size + 8, 26), rest=b"prompt:" + POSTED_TEXT, following=8))))
    stay(webp((b"EXIF", tiff((0x8769, 4, 1, 8)))))
    stay(webp((b"EXIF", b"II*\0")))
    stay(b"\xff\xd8\xff\xe1\0\1")
    stay(b"\xff\xd8" + b"\xff" * 1000 + b"\xd9")


def test_a_graph_that_does_not_fit_into_a_jpeg_is_written_without_blanks_or_stays() -> None:
    fits = {str(n): {"class_type": "A", "inputs": {}} for n in range(1600)}
    came = MAKERS["jpeg"](POSTED)
    assert len(json.dumps(fits)) > 2**16 - 100 > len(json.dumps(fits, separators=(",", ":")))
    assert graph_in(restored(came, fits)) == fits
    assert restored(came, {**fits, "x": LONG["5"]}) == came


def test_thousands_of_chunks_take_no_time_and_no_memory() -> None:
    many = chunk(b"tEXt", b"note\0x") * 1000
    reader = PieceReader(parse(Found()))
    reader.feed(HEAD + TEXT)
    for _ in range(parsing.MAX_PARTS // 1000 + 1):
        reader.feed(many)
    assert reader.ended
    assert not reader.whole


def test_other_files_are_left_alone_from_their_first_bytes_on() -> None:
    for start in (
        b"\0\0\0 ftypisom",
        b"\x1aE\xdf\xa3",
        b"fLaC",
        b"GIF89a",
        b"RIFF\0\0\0\0WAVE",
        b"\x89PNQ.....",
    ):
        found = Found()
        reader = PieceReader(parse(found))
        reader.feed(start)
        assert reader.ended
        assert not reader.whole
        assert not found.blocks


def test_what_follows_a_picture_is_kept() -> None:
    for kind in ("png tEXt", "jpeg"):
        came = MAKERS[kind](POSTED)
        stored = restored(came + b"rest\xff\xd8\xff")
        assert stored == restored(came) + b"rest\xff\xd8\xff"


@pytest.mark.parametrize("kind", MAKERS)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_changed_in_a_picture_nothing_raises_and_nothing_is_lost(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    came = bytearray(MAKERS[kind](POSTED))
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(came))
        match draw.randrange(4):
            case 0:
                came[at] = draw.randrange(256)
            case 1:
                came[at : at + draw.randint(1, 40)] = b""
            case 2:
                came[at:at] = draw.randbytes(draw.randint(1, 40))
            case _:
                came[at : at + 4] = draw.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack("<I", len(came))]
                )
        came = came or bytearray(b"x")
    content = bytes(came)
    edits = fed([content])
    end = 0
    for edit in edits:
        assert end <= edit.offset
        end = edit.offset + edit.length
    assert end <= len(content)
    # Outside of the edits, every byte is where it was.
    kept = b"".join(applied([Edit(e.offset, e.length, b"") for e in edits], [content]))
    assert len(kept) == len(content) - sum(edit.length for edit in edits)
    assert b"".join(applied(edits, [content])) == restored(content)
