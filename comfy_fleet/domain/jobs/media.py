"""MIME types and kinds of outputs, by file name.

The standard library's ``mimetypes`` reads the machine's tables; a job's outputs must not depend on the
machine.
"""

from comfy_fleet.domain.jobs.job import OutputKind

UNKNOWN_TYPE = "application/octet-stream"

MODELS = {
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".fbx": "model/x-fbx",
    ".dae": "model/vnd.collada+xml",
    ".3mf": "model/3mf",
    ".usda": "model/vnd.usda",
    ".usd": "model/x-usd",
    ".usdc": "model/x-usd",
    ".usdz": "model/vnd.usdz+zip",
    ".ply": "model/ply",
    ".splat": "model/x-splat",
    ".ksplat": "model/x-ksplat",
    ".spz": "model/x-spz",
}
"""3D files. Types without a name at IANA begin with ``x-``."""

_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".jxl": "image/jxl",
    ".apng": "image/apng",
    ".hdr": "image/vnd.radiance",
    ".psd": "image/vnd.adobe.photoshop",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".exr": "image/x-exr",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".ogv": "video/ogg",
    ".wmv": "video/x-ms-wmv",
    ".flv": "video/x-flv",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".mid": "audio/midi",
    ".txt": "text/plain",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".srt": "text/plain",
    ".vtt": "text/vtt",
    ".log": "text/plain",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".pdf": "application/pdf",
    ".zip": "application/zip",
    ".json": "application/json",
    **MODELS,
    ".latent": UNKNOWN_TYPE,
    ".safetensors": UNKNOWN_TYPE,
}
_KINDS = {
    "image": OutputKind.IMAGE,
    "video": OutputKind.VIDEO,
    "audio": OutputKind.AUDIO,
    "text": OutputKind.TEXT,
}
_LATENT = frozenset({".latent", ".safetensors"})


def content_type_of(name: str) -> str:
    """Return the MIME type that a file name stands for; ``application/octet-stream`` if unknown."""
    return _TYPES.get(extension_of(name), UNKNOWN_TYPE)


def kind_of(name: str, content_type: str) -> OutputKind:
    """Return the normalised kind: by MIME type, latents by extension, else ``file`` (3D models are files)."""
    if extension_of(name) in _LATENT:
        return OutputKind.LATENT
    return _KINDS.get(content_type.partition("/")[0], OutputKind.FILE)


def extension_of(name: str) -> str:
    """Return a name's last dot and what follows, in small letters; empty without a dot."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


_PICTURES = frozenset(
    f"image/{kind}" for kind in ("png", "apng", "jpeg", "webp", "gif", "bmp", "tiff", "avif")
)


def is_picture(content_type: str) -> bool:
    """Return whether files of this type are pictures that can be had in another format or size."""
    return content_type.partition(";")[0].strip().lower() in _PICTURES
