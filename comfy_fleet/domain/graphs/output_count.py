"""How many files a graph makes at least, as far as its own numbers show."""

from typing import Any

from comfy_fleet.domain.graphs.graph import Graph, is_link

# One file for each picture of a batch.
_SAVERS = {"SaveImage": "images", "PreviewImage": "images"}
# These put out as many pictures as they take in.
_KEEPERS = {
    "VAEDecode": "samples",
    "VAEDecodeTiled": "samples",
    "KSampler": "latent_image",
    "KSamplerAdvanced": "latent_image",
    "ImageInvert": "image",
    "ImageScale": "image",
    "ImageScaleBy": "image",
}
_HOPS = 32  # longer chains are rare, and a cycle would never end
# Classes in which ``batch_size`` is the number of pictures.
_SOURCES = frozenset({"EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage"})


def certain_files(graph: Graph) -> tuple[int, str | None]:
    """Return how many files the graph makes at least, and the node whose batch is the largest."""
    total, largest, blamed = 0, 0, None
    for node in graph.values():
        name = _SAVERS.get(node["class_type"])
        if name is None:
            continue
        size, source = _batch(graph, node["inputs"].get(name))
        total += size
        if size > largest:
            largest, blamed = size, source
    return total, blamed


def _batch(graph: Graph, value: Any) -> tuple[int, str | None]:
    """Follow a link to where its batch begins; one picture if that can't be told."""
    for _ in range(_HOPS):
        if not is_link(value):
            break
        node = graph.get(value[0])
        if node is None:
            break
        if node["class_type"] in _SOURCES:
            size = node["inputs"].get("batch_size")
            known = isinstance(size, int) and not isinstance(size, bool) and size > 0
            return (size, value[0]) if known else (1, None)
        name = _KEEPERS.get(node["class_type"])
        if name is None:
            break
        value = node["inputs"].get(name)
    return 1, None
