"""What a file is, by its first bytes: whoever serves or sends it may say anything."""

import re
from collections.abc import Mapping
from posixpath import basename
from urllib.parse import unquote, urlsplit

from comfy_fleet.domain.jobs.media import MODELS, UNKNOWN_TYPE, content_type_of, extension_of

HEAD_BYTES = 4096
"""How much of a file's beginning tells what it is."""

_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")

EXTENSIONS: Mapping[str, str] = {
    content_type_of(extension): extension
    for extension in (
        *(".png", ".jpg", ".webp", ".gif", ".avif", ".bmp", ".heic", ".jxl", ".hdr", ".psd", ".tif", ".exr"),
        *(".svg", ".mp4", ".mpg", ".ogv", ".wmv", ".flv", ".webm", ".mkv", ".mov", ".avi", ".flac", ".mp3"),
        *(".wav", ".ogg", ".m4a", ".aac", ".aif", ".mid", ".txt", ".pdf", ".zip", ".json"),
        *MODELS,
    )
}
"""A file's extension by its MIME type."""

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"\x76\x2f\x31\x01", "image/x-exr"),
    (b"#?RADIANCE", "image/vnd.radiance"),
    (b"\xff\x0a", "image/jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xf1", "audio/aac"),
    (b"\xff\xf9", "audio/aac"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"\xff\xf2", "audio/mpeg"),
    (b"MThd", "audio/midi"),
    (b"FLV\x01", "video/x-flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-wmv"),
    (b"\0\0\x01\xba", "video/mpeg"),
    (b"\0\0\x01\xb3", "video/mpeg"),
    (b"glTF", "model/gltf-binary"),
    (b"ply\n", "model/ply"),
    (b"ply\r\n", "model/ply"),
    (b"PXR-USDC", "model/x-usd"),
    (b"#usda", "model/vnd.usda"),
    (b"Kaydara FBX Binary", "model/x-fbx"),
    (b"%PDF-", "application/pdf"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "image/heic"),
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    b"qt  ": "video/quicktime",
}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")


def content_type_of_bytes(head: bytes, name: str) -> str:
    """Return what a file is by its beginning, whatever its server says.

    Args:
        head: At least its first :data:`HEAD_BYTES`, if it has as many.
        name: Its name or URL's path; its extension tells between kinds that have no mark of their own.
    """
    if (kind := _marked(head)) is not None:
        return kind
    named = content_type_of(name)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith(_PAGES):
        return "text/html"
    if start.startswith((b"<?xml", b"<svg", b"<!--")):
        if b"<svg" in head:
            return "image/svg+xml"
        if b"<html" in head.lower():
            return "text/html"
    if extension_of(name) in MODELS:
        return named
    if head.startswith(b"PK\x03\x04"):
        return "application/zip"
    if b"\0" not in head and _is_text(head):
        return named if named.startswith("text/") or named == "application/json" else "text/plain"
    return UNKNOWN_TYPE


def _marked(head: bytes) -> str | None:
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head[:4] == b"OggS":
        return "video/ogg" if b"\x80theora" in head[:128] else "audio/ogg"
    return next((kind for start, kind in _STARTS if head.startswith(start)), None)


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character that goes on behind the end
    return True


def file_name(url: str, content_type: str, digest: str) -> str:
    """Return the name for a file of a URL, in a folder of its own: ``fetched/HASH/photo.jpg``.

    No two contents share one, and none is that of a file which its owner has uploaded.

    Args:
        url: Where it came from.
        content_type: What it is.
        digest: The hash of its bytes in hex.
    """
    last = basename(unquote(urlsplit(url).path, errors="replace"))
    name = _PLAIN.sub("_", last)[-64:].strip("._") or "file"
    if content_type != UNKNOWN_TYPE and content_type_of(name) != content_type:
        name += EXTENSIONS.get(content_type, "")
    return f"fetched/{digest[:16]}/{name}"
