"""``/upload/image`` and ``/upload/mask``."""

import json
from io import BytesIO
from typing import Any

import python_multipart
from PIL import Image

from comfy_fleet.sim.files import OutsideFolder, SimFiles, annotated
from comfy_fleet.sim.messages import Request, Response, json_response


class Uploads:
    """Takes files into a node's folders.

    Args:
        files: The folders.
    """

    def __init__(self, files: SimFiles) -> None:
        self._files = files

    def image(self, request: Request) -> Response:
        """Take a picture, or any file, into the input folder."""
        fields, file = _form(request)
        return self._store(fields, file, None)

    def mask(self, request: Request) -> Response:
        """Take a picture whose transparency replaces that of an earlier one."""
        fields, file = _form(request)
        original = json.loads(fields["original_ref"])
        name, kind = annotated(original["filename"])
        if not name or name.startswith("/") or ".." in name:
            return Response(status=400)
        try:
            kind = kind or original.get("type", "output")
            path = self._files.inside(kind, original.get("subfolder", ""), name)
        except OutsideFolder:
            return Response(status=403)
        return self._store(fields, file, path.read_bytes() if path.is_file() else None)

    def _store(
        self, fields: dict[str, str], file: tuple[str, bytes] | None, original: bytes | None
    ) -> Response:
        if file is None or not file[0]:
            return Response(status=400)
        name, data = file
        kind, subfolder = fields.get("type", "input"), fields.get("subfolder", "")
        try:
            path = self._files.inside(kind, subfolder, name)
        except OutsideFolder:
            return Response(status=400)
        path.parent.mkdir(parents=True, exist_ok=True)
        if fields.get("overwrite") not in ("true", "1"):
            count = 1
            while path.exists() and path.read_bytes() != data:
                stem, dot, suffix = name.rpartition(".")
                path = path.with_name(f"{stem} ({count}){dot}{suffix}" if dot else f"{name} ({count})")
                count += 1
        path.write_bytes(data if original is None else _with_alpha(original, data))
        return json_response({"name": path.name, "subfolder": subfolder, "type": kind})


def _form(request: Request) -> tuple[dict[str, str], tuple[str, bytes] | None]:
    """Return a form's text fields and its file ``image``."""
    fields: dict[str, str] = {}
    found: list[tuple[str, bytes]] = []

    def on_field(field: Any) -> None:
        fields[field.field_name.decode()] = (field.value or b"").decode()

    def on_file(file: Any) -> None:
        if file.field_name == b"image":
            file.file_object.seek(0)
            found.append(((file.file_name or b"").decode(), file.file_object.read()))

    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return fields, None
    headers = {"Content-Type": kind.encode(), "Content-Length": str(len(request.body)).encode()}
    python_multipart.parse_form(headers, BytesIO(request.body), on_field, on_file)
    return fields, found[0] if found else None


def _with_alpha(original: bytes, mask: bytes) -> bytes:
    with Image.open(BytesIO(original)) as below, Image.open(BytesIO(mask)) as above:
        joined = below.convert("RGBA")
        joined.putalpha(above.convert("RGBA").getchannel(3).resize(joined.size))
        buffer = BytesIO()
        joined.save(buffer, "PNG", compress_level=4)
        return buffer.getvalue()
