"""What files are, by their first bytes; and files that requests carry themselves."""

import base64
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.data_uris import decode, is_data_uri
from comfy_fleet.domain.graphs.folders import storable
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.input_fetch import FRESH_S, MOST_FRESH_S, FetchedInput, fresh_s, is_url
from comfy_fleet.domain.jobs.media import content_type_of
from comfy_fleet.domain.jobs.sniffing import EXTENSIONS, content_type_of_bytes, file_name


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_are_known_whatever_their_name(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, form)
    assert content_type_of_bytes(file.getvalue(), "page.html") == f"image/{form.lower()}"


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "a", "audio/wav"),
        (b"RIFF\0\0\0\0XXXX", "a.png", "application/octet-stream"),
        (b"\0\0\0\x20ftypisom", "a", "video/mp4"),
        (b"\0\0\0\x20ftypqt  ", "a", "video/quicktime"),
        (b"\0\0\0\x20ftypavif", "a", "image/avif"),
        (b"\0\0\0\x20ftypM4A ", "a", "audio/mp4"),
        (b"\x1a\x45\xdf\xa3\x01\x42\x82\x84webm", "a", "video/webm"),
        (b"\x1a\x45\xdf\xa3\x01\x42\x82\x88matroska", "a", "video/x-matroska"),
        (b"OggS\0\x02" + bytes(22) + b"\x80theora", "a", "video/ogg"),
        (b"OggS\0\x02" + bytes(22) + b"OpusHead", "a", "audio/ogg"),
        (b"FORM\0\0\0\0AIFF", "a", "audio/aiff"),
        (b"ID3\x04", "a", "audio/mpeg"),
        (b"glTF\x02\0\0\0", "a", "model/gltf-binary"),
        (b"v 0 0 0\nf 1 1 1\n", "cube.obj", "model/obj"),
        (b"v 0 0 0\nf 1 1 1\n", "cube", "text/plain"),
        (b"<!doctype html><p>", "cube.obj", "text/html"),
        (b"\xef\xbb\xbf\n <HTML>", "a.png", "text/html"),
        (b"<?xml version='1.0'?><svg xmlns='x'>", "a", "image/svg+xml"),
        (b"<?xml version='1.0'?><html>", "a", "text/html"),
        (b"PK\x03\x04", "a.usdz", "model/vnd.usdz+zip"),
        (b"PK\x03\x04", "a.png", "application/zip"),
        (b"\x10\0\0\0\0\0\0\0{}", "x.latent", "application/octet-stream"),
        ("müll".encode()[:2], "a", "text/plain"),
        (b"\xff\xfe\x00", "a.png", "application/octet-stream"),
        (b"plain", "a.png", "text/plain"),
        (b"", "a.png", "text/plain"),
    ],
)
def test_what_a_file_is(head: bytes, name: str, kind: str) -> None:
    assert content_type_of_bytes(head, name) == kind


@given(st.binary(max_size=64), st.text(max_size=80))
def test_any_bytes_have_a_type_and_any_url_a_name(head: bytes, path: str) -> None:
    kind = content_type_of_bytes(head, path)
    name = file_name(f"http://shop.test/{path}", kind, "ab" * 32)
    assert storable(name)
    assert name.startswith("fetched/abababababababab/")
    assert ".." not in name.split("/")


def test_a_file_gets_the_extension_of_what_it_is() -> None:
    assert file_name("http://x/photo.png", "image/png", "0" * 64).endswith("/photo.png")
    assert file_name("http://x/photo.jpeg", "image/jpeg", "0" * 64).endswith("/photo.jpeg")
    assert file_name("http://x/photo.php", "image/png", "0" * 64).endswith("/photo.php.png")
    assert file_name("http://x/%2e%2e%2f", "image/png", "0" * 64).endswith("/file.png")
    assert {content_type_of(extension) for extension in EXTENSIONS.values()} == set(EXTENSIONS)


@given(st.binary(min_size=1, max_size=300))
def test_a_data_uri_is_its_bytes(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    for head in ("data:;base64,", "DATA:image/png;base64,", "data:image/svg+xml;charset=utf-8;base64,"):
        assert is_data_uri(head + text)
        assert decode(head + text, most_bytes=300) == data
    with pytest.raises(BadInput, match="larger"):
        decode("data:;base64," + text, most_bytes=len(data) - 1)


def test_urls_are_told_from_names() -> None:
    assert is_url("https://x/y")
    assert is_url("HTTP://x")
    assert not is_url("http.png")
    assert not is_url("ftp://x")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("", FRESH_S),
        ("max-age=600", 600),
        ("public, max-age=600", 600),
        ("s-max-age=5", FRESH_S),
        ("max-age=1", FRESH_S),
        ("max-age=999999999", MOST_FRESH_S),
        ("no-store, max-age=600", FRESH_S),
        ("max-age=600, No-Cache", FRESH_S),
    ],
)
def test_for_how_long_a_file_is_fresh(said: str, seconds: float) -> None:
    assert fresh_s({"cache-control": said}) == seconds


@pytest.mark.parametrize(
    ("accept", "most", "fits"),
    [
        (("image/png",), None, True),
        (("image/*",), 10, True),
        (("image/*",), 9, False),
        (("video/*", "*/*"), None, True),
        (("image/jpeg", "video/*"), None, False),
        (("im/*",), None, False),
    ],
)
def test_which_files_an_input_takes(accept: tuple[str, ...], most: int | None, fits: bool) -> None:
    asset = Asset(
        id="a",
        owner="o",
        hash="h",
        size_bytes=10,
        content_type="image/png",
        file_path="",
        path="",
        created_at=0,
    )
    assert FetchedInput(place="1/image", accept=accept, most_bytes=most).fits(asset) is fits
