"""Node classes that read and write files, those that only test a server, and the fallback for others."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from comfy_fleet.sim.nodes_3d import MESHES
from comfy_fleet.sim.nodes_image import PIXELS, crop, load
from comfy_fleet.sim.nodes_mask import CHANNELS, MASKS
from comfy_fleet.sim.nodes_model import MODELS, Work
from comfy_fleet.sim.pictures import animation, png
from comfy_fleet.sim.run import Call, DependencyCycle, PromptRun, Result
from comfy_fleet.sim.values import Latent, Pictures

TICK_S = 0.01  # how often the sleeping test nodes report


async def save_image(run: PromptRun, call: Call) -> Result:
    """Save as PNG."""
    pictures: Pictures = call.inputs["images"]
    images = await run.save(pictures, call.inputs["filename_prefix"])
    return Result(outputs=(pictures,), ui={"images": images})


async def preview_image(run: PromptRun, call: Call) -> Result:
    """Save as a temporary PNG; the prefix is random once per node, as on a real server."""
    pictures: Pictures = call.inputs["images"]
    images = await run.save(pictures, run.preview_prefix, "temp", level=1)
    return Result(outputs=(pictures,), ui={"images": images})


async def preview_mask(run: PromptRun, call: Call) -> Result:
    """Save a mask as a temporary PNG, under a new prefix each time."""
    mask: Pictures = call.inputs["mask"]
    images = await run.save(mask, run.fresh_prefix(), "temp", level=1)
    return Result(outputs=(mask,), ui={"images": images, "animated": [False]})


async def crop_and_show(run: PromptRun, call: Call) -> Result:
    """Cut a part out and show it, without the graph in the file."""
    region = call.inputs["crop_region"]
    size = {"width": region.get("width", 512), "height": region.get("height", 512)}
    (pictures,) = crop(call.inputs["image"], **size, x=region.get("x", 0), y=region.get("y", 0))
    shown = await run.save(pictures, run.fresh_prefix(), "temp", level=1, bare=True)
    return Result(outputs=(pictures,), ui={"images": shown, "animated": [False]})


async def compare_images(run: PromptRun, call: Call) -> Result:
    """Show one or two batches of pictures."""
    ui = {}
    for side in ("a", "b"):
        pictures, prefix = call.inputs.get(f"image_{side}"), run.fresh_prefix(f"comfy.compare.{side}")
        ui[f"{side}_images"] = (
            await run.save(pictures, prefix, "temp", level=1, bare=True) if pictures else []
        )
    return Result(ui=ui)


async def send_image(run: PromptRun, call: Call) -> Result:
    """Send pictures over the websocket only."""
    pictures: Pictures = call.inputs["images"]
    for index, picture in enumerate(pictures):
        area = picture.width * picture.height
        data = await run.compute(area, lambda shown=picture: png(run.marked(shown), level=1))
        await run.progress(call, index, len(pictures), ("PNG", data))
    return Result()


async def save_animation(run: PromptRun, call: Call) -> Result:
    """Save a moving WebP or PNG."""
    webp = call.info.name == "SaveAnimatedWEBP"
    pictures: Pictures = call.inputs["images"]
    duration = int(1000 / call.inputs["fps"])
    area = pictures[0].width * pictures[0].height * len(pictures)
    data = await run.compute(area, animation, pictures, "WEBP" if webp else "PNG", duration, run.texts)
    saved = await run.save_file(call.inputs["filename_prefix"], ".webp" if webp else ".png", data)
    animated = len(pictures) != 1 or not webp
    return Result(outputs=(pictures,), ui={"images": [saved], "animated": [animated]})


async def save_latent(run: PromptRun, call: Call) -> Result:
    """Save a latent in the safetensors format, with zeros for numbers."""
    latent: Latent = call.inputs["samples"]
    shape = [latent.batch, 4, max(1, latent.height // 8), max(1, latent.width // 8)]
    size = shape[0] * shape[1] * shape[2] * shape[3] * 4
    texts = {name: json.dumps(value) for name, value in run.texts.items()}
    header = json.dumps(
        {
            "__metadata__": {**texts, "simulated": json.dumps(latent.notes)},
            "latent_tensor": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
            "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(size)
    saved = await run.save_file(call.inputs["filename_prefix"], ".latent", data)
    return Result(outputs=(latent,), ui={"latents": [saved]})


async def load_latent(run: PromptRun, call: Call) -> Result:
    """Load what :func:`save_latent` wrote; from another file only the size is taken."""
    data = run.machine.files.uploaded(call.inputs["latent"]).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    batch, _, height, width = header["latent_tensor"]["shape"]
    notes = json.loads(header.get("__metadata__", {}).get("simulated", "{}"))
    return Result(outputs=(Latent(width=width * 8, height=height * 8, batch=batch, notes=notes),))


async def save_files(run: PromptRun, call: Call) -> Result:
    """Save files of any kind, named under any key, as custom nodes do."""
    inputs = call.inputs
    saved = []
    for index in range(inputs["count"]):
        data = f"SIMULATED on {run.machine.name} {index}\n".encode() * (inputs["size"] // 8 + 1)
        saved.append(await run.save_file(inputs["filename_prefix"], inputs["suffix"], data[: inputs["size"]]))
    return Result(ui={inputs["key"]: saved})


async def preview_any(run: PromptRun, call: Call) -> Result:
    """Show a value as text."""
    source = call.inputs.get("source")
    if isinstance(source, str | bool | int | float) or source is None:
        text = str(source)
    else:
        try:
            text = json.dumps(source)
        except TypeError:
            text = str(source)
    return Result(outputs=(text,), ui={"text": [text]})


async def save_text(run: PromptRun, call: Call) -> Result:
    """Save a text, and show it."""
    text, suffix = call.inputs["text"], f".{call.inputs['format']}"
    saved = await run.save_file(call.inputs["filename_prefix"], suffix, text.encode(), end="")
    return Result(outputs=(text,), ui={"text": [text], "files": [saved]})


async def choose(run: PromptRun, call: Call) -> Result:
    """Hand a choice on that the user filled in, and its place among the choices."""
    return Result(outputs=(call.inputs["choice"], call.inputs.get("index", 0)))


async def load_image(run: PromptRun, call: Call) -> Result:
    """Read an uploaded picture."""
    return Result(outputs=_read(run, call.inputs["image"]))


async def load_mask(run: PromptRun, call: Call) -> Result:
    """Read one channel of an uploaded picture."""
    pictures, masks = _read(run, call.inputs["image"])
    if call.inputs["channel"] == "alpha":
        return Result(outputs=(masks[:1],))
    return Result(outputs=((pictures[0].getchannel(CHANNELS[call.inputs["channel"]]),),))


def _read(run: PromptRun, name: str) -> tuple[Pictures, Pictures]:
    with Image.open(run.machine.files.uploaded(name)) as data:
        return load(data)


async def value(run: PromptRun, call: Call) -> Result:
    """Hand the value on."""
    return Result(outputs=(call.inputs["value"],))


async def sleep(run: PromptRun, call: Call) -> Result:
    """Wait, reporting every 10 ms; the time is real and takes no part in the timing model."""
    seconds = call.inputs.get("seconds", call.inputs.get("sleep_seconds"))
    relative = call.info.name == "TestSyncProgressUpdate"
    start = run.clock.due
    now = start
    while now < start + seconds:
        passed = min(max(now - start, 1e-7), seconds)  # a real clock never shows 0 here
        await run.progress(call, passed / seconds if relative else passed, 1.0 if relative else seconds)
        now = min(now + TICK_S, start + seconds)
        await run.clock.until(now)
    await run.progress(call, 1.0 if relative else seconds, 1.0 if relative else seconds)
    return Result(outputs=(call.inputs["value"],))


async def work(run: PromptRun, call: Call) -> Result:
    """Keep the GPU busy for a given time, in steps, with a given amount of memory."""
    inputs = call.inputs
    run.machine.vram.reserve(int(inputs["vram_gb"] * 1e9))
    for step in range(1, inputs["steps"] + 1):
        await run.spend(inputs["seconds"] / inputs["steps"])
        await run.progress(call, step, inputs["steps"])
    return Result(outputs=(inputs["value"],))


async def fail(run: PromptRun, call: Call) -> Result:
    """Raise, as the testing nodes do."""
    if call.info.name == "TestAsyncError":
        await run.clock.spend(call.inputs["error_after"])
        raise RuntimeError("Intentional async execution error for testing")
    raise RuntimeError("Intentional sync execution error for testing")


async def run_into_cycle(run: PromptRun, call: Call) -> Result:
    """Go through the frames of a node whose place is taken by three others, two of which want each other."""
    mask, first, second = (f"{call.id}.0.0.{number}" for number in (1, 3, 2))
    run.expand(call, mask, finished=False)
    run.expand(call, mask, finished=True)
    run.expand(call, first, finished=False)
    run.expand(call, second, finished=False)
    raise DependencyCycle("Dependency cycle detected")


async def direct(run: PromptRun, call: Call) -> Result:
    """Work on pictures, masks and texts, in a thread when there is much to do."""
    known = {name: given for name, given in call.inputs.items() if name in call.info.inputs}
    area = call.inputs.get("width", 0) * call.inputs.get("height", 0)
    for given in known.values():
        if isinstance(given, tuple):
            area += sum(picture.width * picture.height for picture in given)
    return Result(outputs=await run.compute(area, lambda: DIRECT[call.info.name](**known)))


async def other(run: PromptRun, call: Call) -> Result:
    """Stand in for a class that the simulation knows only from an ``/object_info``.

    Each output gets the first input of its type, else an empty value; an output node saves the
    pictures it is given.
    """
    given: dict[str, Any] = {}
    for name, (kind, _, _) in call.info.inputs.items():
        if isinstance(kind, str) and name in call.inputs:
            given.setdefault(kind, call.inputs[name])
    if call.info.output_node:
        pictures = given.get("IMAGE")
        prefix = call.inputs.get("filename_prefix", "ComfyUI")
        return Result(ui={"images": await run.save(pictures, prefix)} if pictures else {})
    empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    made = []
    for kind in call.info.outputs:
        if kind in ("IMAGE", "MASK") and kind not in given:
            notes = {"prompt": call.info.name}
            drawn = run.machine.painter.generate(notes, 512, 512)
            made.append((drawn if kind == "IMAGE" else drawn.convert("L"),))
        else:
            made.append(given.get(kind, empty.get(kind)))
    return Result(outputs=tuple(made))


CASES: Mapping[str, Callable[[str], str]] = {
    "UPPERCASE": str.upper,
    "lowercase": str.lower,
    "Capitalize": str.capitalize,
    "Title Case": str.title,
}
TRIMS: Mapping[str, Callable[[str], str]] = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}
TEXTS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "StringConcatenate": lambda string_a, string_b, delimiter: (delimiter.join((string_a, string_b)),),
    "StringLength": lambda string: (len(string),),
    "StringTrim": lambda string, mode: (TRIMS[mode](string),),
    "StringReplace": lambda string, find, replace: (string.replace(find, replace),),
    "StringSubstring": lambda string, start, end: (string[start:end],),
    "StringFormat": lambda f_string, values: (f_string.format(**values),),
    "CaseConverter": lambda string, mode: (CASES[mode](string),),
}
DIRECT: Mapping[str, Callable[..., tuple[Any, ...]]] = {**PIXELS, **MASKS, **TEXTS}

#: Class -> what it does.
WORK: Mapping[str, Work] = {
    **dict.fromkeys(DIRECT, direct),
    **MODELS,
    **MESHES,
    "SaveImage": save_image,
    "PreviewImage": preview_image,
    "SaveImageWebsocket": send_image,
    "SaveAnimatedWEBP": save_animation,
    "SaveAnimatedPNG": save_animation,
    "SaveLatent": save_latent,
    "LoadLatent": load_latent,
    "LoadImage": load_image,
    "LoadImageMask": load_mask,
    "LoadImageOutput": load_image,
    "MaskPreview": preview_mask,
    "ImageCropV2": crop_and_show,
    "ImageCompare": compare_images,
    "SaveText": save_text,
    "CustomCombo": choose,
    "PreviewAny": preview_any,
    "PrimitiveInt": value,
    "PrimitiveFloat": value,
    "PrimitiveString": value,
    "PrimitiveStringMultiline": value,
    "PrimitiveBoolean": value,
    "SimSaveFiles": save_files,
    "SimWork": work,
    "TestSleep": sleep,
    "TestSyncProgressUpdate": sleep,
    "TestSyncError": fail,
    "TestAsyncError": fail,
    "TestDynamicDependencyCycle": run_into_cycle,
}
