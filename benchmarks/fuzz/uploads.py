"""What people send up: forms, pictures, and files inside of requests."""

import asyncio
import contextlib
import io
import json
from functools import cache
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.requests import Request
from starlette.types import Message

from benchmarks.fuzz import recordings, values
from benchmarks.fuzz.target import Target, right
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.multipart import UploadedForm
from comfy_fleet.domain.errors import BadInput, OutboundRefused
from comfy_fleet.domain.graphs import data_uris, graph_file
from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.domain.graphs.pictures.parsing import applied
from comfy_fleet.domain.graphs.pictures.restoring import PictureRestorer
from comfy_fleet.domain.graphs.pictures.submitted import SubmittedGraph
from comfy_fleet.domain.jobs import sniffing
from comfy_fleet.domain.outbound import parse_target
from comfy_fleet.services import picture_forms
from comfy_fleet.services.picture_forms import NoSuchForm, PictureForm

_LIMIT = 1024 * 1024
_MOST_PIXELS = 4096
_POSTED = {
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": f"{STAGING}/{recordings.RUN}/{recordings.RUN}/x"},
    }
}
_SUBMITTED = json.dumps({"2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}).encode()


def form(*parts: tuple[str, bytes], boundary: bytes = b"b") -> bytes:
    """Return a form of headers and bodies."""
    written = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary, head.encode(), body)
        for head, body in parts
    )
    return written + b"--%s--\r\n" % boundary


FORMS = [
    form(
        ('name="file"; filename="a.png"', b"\x89PNG"),
        ('name="tags"', b"input"),
        ('name="file_path"', b"x/a.png"),
    ),
    form(
        ('name="image"; filename="b.png"\r\nContent-Type: image/png', b"x" * 40),
        ('name="overwrite"', b"true"),
    ),
    form(('name="tags"', "ä".encode()), ("name=\"file\"; filename*=UTF-8''%c3%a4.png", b"")),
    form(
        ('name="subfolder"', b"../x"),
        ('name="type"', b"temp"),
        ('name="file"; filename="C:\\\\x\\\\a.png"', b"1"),
    ),
]


@cache
def pictures() -> list[bytes]:
    """Return small pictures of every kind that is read, with graphs where ComfyUI writes them."""
    made = []
    for graph in (json.dumps(_POSTED), json.dumps(recordings.graphs()[0]), "{"):
        texts = PngInfo()
        texts.add_text("prompt", graph)
        texts.add_itxt("workflow", json.dumps({"nodes": []}), zip=True)
        texts.add_text("parameters", graph, zip=True)
        made.append(_saved("PNG", pnginfo=texts))
        exif = Image.Exif()
        exif[0x0110] = f"prompt:{graph}"
        exif[0x010F] = "workflow:{}"
        made += [_saved("WEBP", exif=exif.tobytes()), _saved("JPEG", exif=exif.tobytes())]
    made += [_saved(kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "AVIF")]
    return [*made, _saved("PNG", mode="P"), _saved("PNG", mode="LA"), _saved("WEBP", mode="RGBA")]


def _saved(kind: str, *, mode: str = "RGB", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, kind, **more)
    return buffer.getvalue()


def _multipart(case: bytes | tuple[bytes, bytes, list[int], str]) -> None:
    body, kind, sizes, part = case if isinstance(case, tuple) else (case, b"", [7, 64], "file")
    _LOOP.run(_read_form(body, kind or b"multipart/form-data; boundary=b", sizes or [len(body) + 1], part))


async def _read_form(body: bytes, kind: bytes, sizes: list[int], part: str) -> None:
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < len(body):
        at = sum(map(len, pieces))
        pieces.append(body[at : at + sizes[len(pieces) % len(sizes)]])

    async def receive() -> Message:
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    try:
        read = UploadedForm(request, _LIMIT, part=part)
        size = 0
        async for piece in read.file():
            size += len(piece)
        right(size <= len(body), f"{size} bytes of {len(body)}")
        for name in (read.file_name, read.file_type, read.sent_name, read.one("tags"), *read.many("type")):
            (name or "").encode("utf-8")
        right("/" not in (read.file_name or "") and "\\" not in (read.file_name or ""), f"{read.file_name!r}")
    except HttpError as error:
        right(400 <= error.status < 500, f"{error.status} {error}")


def _restored(data: bytes) -> None:
    for size in (len(data) or 1, 61):
        restorer = PictureRestorer(SubmittedGraph(_SUBMITTED))
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        for chunk in chunks:
            restorer.feed(chunk)
        right(restorer.quick in (True, False), "quick")
        edits = restorer.edits()
        changed = b"".join(applied(edits, chunks))
        right(bool(edits) or changed == data, "it changes without an edit")


def _graph_file(data: bytes) -> None:
    with contextlib.suppress(BadInput):
        read = graph_file.read_graph_file(data)
        json.dumps([read.graph, read.ui])


def _forms(case: bytes | tuple[bytes, bytes, dict[str, str]]) -> None:
    data, mask, query = case if isinstance(case, tuple) else (case, case, {"preview": "webp;80"})
    form_ = PictureForm.read(query) or PictureForm(channel="a")
    right(0 <= form_.quality <= 100 and form_.content_type and form_.tag, f"{form_}")
    with contextlib.suppress(NoSuchForm):
        picture_forms.formed(data, form_, most_pixels=_MOST_PIXELS)
    with contextlib.suppress(NoSuchForm):
        picture_forms.masked(data, mask, "a.png", most_pixels=_MOST_PIXELS)
    with contextlib.suppress(NoSuchForm):
        made = picture_forms.thumbnail(data, side=16, most_bytes=4096, most_pixels=_MOST_PIXELS)
        right(made[8:12] == b"WEBP" and len(made) <= 4096, "no thumbnail")


def _sniffed(case: bytes | tuple[bytes, str]) -> None:
    head, url = case if isinstance(case, tuple) else (case, "http://x/" + case[:80].decode("latin-1"))
    kind = sniffing.content_type_of_bytes(head, url)
    right(kind.isascii() and "/" in kind, kind)
    with contextlib.suppress(OutboundRefused):
        name = sniffing.file_name(parse_target(url).url, kind, "0" * 64)
        right(".." not in name.split("/") and name.count("/") == 2 and name.isprintable(), name)


def _data_uri(uri: str | bytes) -> None:
    text = uri.decode("latin-1") if isinstance(uri, bytes) else uri
    data_uris.is_data_uri(text)
    with contextlib.suppress(BadInput):
        data = data_uris.decode(text, most_bytes=100)
        right(0 < len(data) <= 100, f"{len(data)} bytes")


_LOOP = asyncio.Runner()
_URIS = [
    b"data:image/png;base64,iVBORw0KGgo=",
    b"data:;base64,AA==",
    b"DATA:text/plain;a=b;c=d;base64,eA==",
    b"data:,x",
]
_HEADS = [picture[:64] for picture in pictures()] + [
    b"<svg xmlns='x'>",
    b"#usda 1.0",
    b"PK\3\4",
    b"{}",
    b"ftyp" * 3,
]
_BOUNDARIES = [
    b"multipart/form-data; boundary=b",
    b'multipart/form-data; boundary="b"; charset=utf-8',
    b"multipart/form-data",
    b"multipart/form-data; boundary=" + b"b" * 300,
]

TARGETS = [
    Target(
        name="multipart",
        group="uploads",
        cases=values.changed_bytes(FORMS)
        | st.tuples(
            values.changed_bytes(FORMS),
            st.sampled_from(_BOUNDARIES) | values.changed_bytes(_BOUNDARIES),
            st.lists(st.integers(1, 200), max_size=4),
            st.sampled_from(["file", "image", ""]),
        ),
        check=_multipart,
        corpus=FORMS,
    ),
    Target(
        name="pictures-restored",
        group="uploads",
        cases=values.changed_bytes(pictures()),
        check=_restored,
        corpus=pictures(),
    ),
    Target(
        name="graph-files",
        group="uploads",
        cases=values.changed_bytes([*pictures(), *map(values.written, recordings.graphs())])
        | values.changed_json(recordings.graphs()),
        check=_graph_file,
        corpus=[*pictures(), *map(values.written, recordings.graphs()[:4])],
    ),
    Target(
        name="picture-forms",
        group="uploads",
        cases=st.tuples(
            values.changed_bytes(pictures()),
            values.changed_bytes(pictures()),
            st.dictionaries(
                st.sampled_from(["preview", "channel"]),
                st.sampled_from(["webp;90", "jpeg", "jpeg;", "rgb", "a", "webp;-1", "webp;99999999999"])
                | st.text(max_size=8),
            ),
        ),
        check=_forms,
        corpus=pictures(),
    ),
    Target(
        name="sniffing",
        group="uploads",
        cases=st.tuples(
            values.changed_bytes(_HEADS),
            (st.text(max_size=40).map(quote) | st.text(max_size=40)).map(
                lambda path: f"http://x.test/{path}"
            ),
        ),
        check=_sniffed,
        corpus=_HEADS,
    ),
    Target(
        name="data-uris",
        group="uploads",
        cases=values.changed_bytes(_URIS).map(lambda data: data.decode("utf-8", "replace")),
        check=_data_uri,
        corpus=_URIS,
    ),
]
