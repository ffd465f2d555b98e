"""How many pixels a graph samples at once, as far as its own inputs show. Classes need not be known.

ComfyUI estimates a sampler's working memory as linear in the latent's width, height, frames and batch, by a
factor of the model's (``BaseModel.memory_required`` in ``comfy/model_base.py``, 0.3.64 and 0.33). Decoding is
left out: a batch is decoded in as many parts as fit, and a picture that does not fit is decoded in tiles
(``VAE.decode`` in ``comfy/sd.py``). Upscaling by a model works in tiles, too.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.inputs import unwrapped

MOST_PIXELS = 1e12
"""More than any card holds; a graph that says so says nothing."""
MOST_SIDE = 65_536
MOST_PICTURES = 65_536
MOST_FACTOR = 16.0
HOPS = 8
"""How far a number is followed from node to node."""

_WIDTH, _HEIGHT = ("width", "empty_latent_width"), ("height", "empty_latent_height")
_PICTURES = ("batch_size", "batch")
_FRAMES = ("length", "num_frames")
_FACTORS = ("scale_by", "upscale_by")
_CARRIES = re.compile(r"latent|samples|image|pixels|video|frames|pipe")
"""Names of links through which pictures or latents come."""
_MODEL = re.compile(r"^model|guider|pipe")
_SAMPLES = frozenset({"steps", "sigmas", "sampler", "sampler_name"})


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A picture's or a latent's size in pixels; ``pictures`` counts a video's frames, too."""

    width: float
    height: float
    pictures: float = 1

    @property
    def pixels(self) -> float:
        return self.width * self.height * self.pictures


def sampled_pixels(graph: Graph) -> float:
    """Return width times height times pictures or frames of the largest latent that a sampler gets.

    Returns:
        0 if the graph does not tell that of every sampler, or has none.
    """
    sizes: dict[str, _Size | None] = {}
    largest = 0.0
    for node_id, node in graph.items():
        inputs = node["inputs"]
        if not _is_sampler(inputs):
            continue
        for name in _order(graph, node_id, sizes):
            sizes[name] = _size(graph, graph[name]["inputs"], graph[name]["class_type"], sizes)
        size = sizes[node_id]
        if size is None:
            return 0.0
        tile = _own(graph, inputs, ("tile_width", "tile_size"), ("tile_height", "tile_size"))
        largest = max(largest, tile.pixels if isinstance(tile, _Size) else size.pixels)
    return largest if largest <= MOST_PIXELS else 0.0


def _is_sampler(inputs: Mapping[str, Any]) -> bool:
    links = [name for name, value in inputs.items() if is_link(value)]
    carried = any(_CARRIES.search(name) for name in links) or any(name in inputs for name in _WIDTH)
    return carried and any(map(_MODEL.search, links)) and not _SAMPLES.isdisjoint(inputs)


def _order(graph: Graph, node_id: str, known: Mapping[str, object]) -> list[str]:
    """Return the nodes from which a node's size comes, and itself, each after those that it reads."""
    found: list[str] = []
    seen = {node_id}
    stack: list[tuple[str, Iterator[str]]] = [(node_id, _sources(graph, node_id))]
    while stack:
        name, rest = stack[-1]
        for source in rest:
            if source not in seen and source not in known:
                seen.add(source)
                stack.append((source, _sources(graph, source)))
                break
        else:
            stack.pop()
            if name not in known:
                found.append(name)
    return found


def _sources(graph: Graph, node_id: str) -> Iterator[str]:
    for name, value in graph[node_id]["inputs"].items():
        if is_link(value) and _CARRIES.search(name) and value[0] in graph:
            yield value[0]


def _size(
    graph: Graph, inputs: Mapping[str, Any], class_type: str, sizes: Mapping[str, _Size | None]
) -> _Size | None:
    """Return the size of what a node puts out; None if that can't be told."""
    links = [value[0] for name, value in inputs.items() if is_link(value) and _CARRIES.search(name)]
    known = [size for source in links if (size := sizes.get(source)) is not None]
    carried = max(known, key=lambda size: size.pixels, default=None)
    own = _own(graph, inputs, _WIDTH, _HEIGHT)
    if own is None:
        return None
    if isinstance(own, _Size):
        counted = _count(graph, inputs, carried)
        if counted is None:
            return None
        return replace(_kept_aspect(own, carried), pictures=counted) if own.pixels or carried else None
    if (megapixels := _number(graph, inputs, "megapixels", most=1000.0)) is not None:
        side = math.sqrt(megapixels) * 1024
        return _Size(width=side, height=side, pictures=carried.pictures if carried else 1)
    if carried is None:
        return None
    factor, times = _factor(graph, inputs), 1.0
    if "amount" in inputs and "Repeat" in class_type:
        times = _number(graph, inputs, "amount", most=MOST_PICTURES) or 0.0
    if factor is None or not times:
        return None
    return _Size(
        width=min(MOST_SIDE, carried.width * factor),
        height=min(MOST_SIDE, carried.height * factor),
        pictures=min(MOST_PICTURES, carried.pictures * times),
    )


class _Nothing:
    """A node that names no size of its own."""


def _own(
    graph: Graph, inputs: Mapping[str, Any], widths: tuple[str, ...], heights: tuple[str, ...]
) -> "_Size | _Nothing | None":
    """Return the size that a node's own inputs name; None if they name one that can't be told."""
    width = next((name for name in widths if name in inputs), None)
    height = next((name for name in heights if name in inputs), None)
    if width is None or height is None:
        return _Nothing()
    sides = [_number(graph, inputs, name, most=MOST_SIDE) for name in (width, height)]
    if sides[0] is None or sides[1] is None:
        return None
    return _Size(width=sides[0], height=sides[1])


def _kept_aspect(own: _Size, carried: _Size | None) -> _Size:
    """As ``ImageScale`` and ``LatentUpscale``: a side of 0 follows from the other, two change nothing."""
    if own.pixels or carried is None:
        return own
    if not own.width and not own.height:
        return carried
    if own.width:
        return replace(own, height=min(MOST_SIDE, own.width * carried.height / max(1.0, carried.width)))
    return replace(own, width=min(MOST_SIDE, own.height * carried.width / max(1.0, carried.height)))


def _count(graph: Graph, inputs: Mapping[str, Any], carried: _Size | None) -> float | None:
    """Return pictures times frames of a node that names a size."""
    named = [names for names in (_PICTURES, _FRAMES) if any(name in inputs for name in names)]
    if not named:
        return carried.pictures if carried else 1.0
    count = 1.0
    for names in named:
        name = next(name for name in names if name in inputs)
        value = _number(graph, inputs, name, most=MOST_PICTURES)
        if not value:
            return None
        count *= value
    return count if count <= MOST_PICTURES else None


def _factor(graph: Graph, inputs: Mapping[str, Any]) -> float | None:
    """Return by how much a node enlarges what it gets; None if that can't be told."""
    for name in _FACTORS:
        if name in inputs:
            return _number(graph, inputs, name, most=MOST_FACTOR) or None
    link = inputs.get("upscale_model")
    if not is_link(link):
        return 1.0
    loader = graph.get(link[0])
    file = loader["inputs"].get("model_name") if loader else None
    found = re.search(r"(\d)x|x(\d)", file[:300].lower()) if isinstance(file, str) else None
    return float(found[1] or found[2]) or None if found else None


def _number(graph: Graph, inputs: Mapping[str, Any], name: str, *, most: float) -> float | None:
    """Return an input's number, followed through nodes that hold one; None if it is none up to ``most``."""
    value = unwrapped(inputs.get(name))
    for _ in range(HOPS):
        if not is_link(value):
            break
        source = graph.get(value[0])
        if source is None:
            return None
        held = source["inputs"]
        at = next((at for at in (name, "value") if at in held), None) or (
            next(iter(held)) if len(held) == 1 else ""
        )
        value = unwrapped(held.get(at))  # else it computes its number
    if isinstance(value, str) and len(value) <= 20:  # ComfyUI reads a text as the number that it spells
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None
