"""Node classes that stand for a model's work: these take its time and memory and draw a note of it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from PIL import Image

from comfy_fleet.sim.nodes_image import resize
from comfy_fleet.sim.run import ACTIVATION_BYTES_PER_PIXEL, Call, PromptRun, Result
from comfy_fleet.sim.values import Conditioning, Guider, Latent, Model, Pictures

Work = Callable[[PromptRun, Call], Awaitable[Result]]
ENCODE_S = 0.05  # a text encoder's work on one prompt
MAX_UPSCALED = 8192  # pixels of a side


async def load_checkpoint(run: PromptRun, call: Call) -> Result:
    """One file with three parts; it is read when a part is first used."""
    model = run.model("checkpoints", call.inputs["ckpt_name"])
    return Result(outputs=(model, model, model))


def loader(folder: str, *names: str) -> Work:
    """Make a loader of one or more files of a folder that count as one model."""

    async def load(run: PromptRun, call: Call) -> Result:
        models = [run.model(folder, call.inputs[name]) for name in names]
        joined = Model(file=" + ".join(model.file for model in models), size=sum(m.size for m in models))
        return Result(outputs=(joined,))

    return load


async def add_lora(run: PromptRun, call: Call) -> Result:
    """A LoRA is read at once and changes the model, and the text encoder where it has one."""
    name = call.inputs["lora_name"]
    size = run.model("loras", name).size
    await run.spend(size / 1e9 / run.machine.timing.load_gb_per_s)
    parts = [
        call.inputs[part].patched(f"{name} x{call.inputs['strength_model']:g}")
        for part in ("model", "clip")
        if part in call.inputs
    ]
    return Result(outputs=tuple(parts))


async def patch(run: PromptRun, call: Call) -> Result:
    """A setting of a model."""
    values = [f"{name}={value:g}" for name, value in call.inputs.items() if isinstance(value, int | float)]
    return Result(outputs=(call.inputs["model"].patched(f"{call.info.name} {' '.join(values)}"),))


async def encode_text(run: PromptRun, call: Call) -> Result:
    """Load the text encoder and read the prompt, and the pictures that belong to it."""
    await run.load(call.inputs["clip"])
    await run.spend(ENCODE_S)
    texts = [
        value for name, value in call.inputs.items() if isinstance(value, str) and name != "system_prompt"
    ]
    pictures: Pictures = ()
    for name in ("image", "image1", "image2", "image3"):
        pictures += call.inputs.get(name) or ()
    return Result(outputs=(Conditioning(text=" ".join(dict.fromkeys(texts)), pictures=pictures),))


async def combine(run: PromptRun, call: Call) -> Result:
    """Put two texts together."""
    first, second = (value for value in call.inputs.values() if isinstance(value, Conditioning))
    text = f"{first.text} {second.text}"
    return Result(outputs=(Conditioning(text=text, pictures=first.pictures + second.pictures),))


async def zero_out(run: PromptRun, call: Call) -> Result:
    """Forget the text."""
    return Result(outputs=(replace(call.inputs["conditioning"], text=""),))


async def reference(run: PromptRun, call: Call) -> Result:
    """Give a text the pictures of a latent."""
    latent = call.inputs.get("latent")
    found = call.inputs["conditioning"]
    pictures = found.pictures + (latent.pictures if latent else ())
    return Result(outputs=(replace(found, pictures=pictures),))


async def empty_latent(run: PromptRun, call: Call) -> Result:
    """Make room for pictures."""
    inputs = call.inputs
    return Result(
        outputs=(Latent(width=inputs["width"], height=inputs["height"], batch=inputs["batch_size"]),)
    )


async def scale_latent(run: PromptRun, call: Call) -> Result:
    """Change the size of what will be decoded."""
    latent: Latent = call.inputs["samples"]
    factor = call.inputs.get("scale_by")
    if factor is not None:
        width, height = round(latent.width * factor), round(latent.height * factor)
    else:
        width, height = call.inputs["width"] or latent.width, call.inputs["height"] or latent.height
    return Result(outputs=(replace(latent, width=width, height=height),))


async def keep_latent(run: PromptRun, call: Call) -> Result:
    """Leave the latent as it is: a mask does not show in the simulation."""
    return Result(outputs=(call.inputs["samples"],))


async def encode(run: PromptRun, call: Call) -> Result:
    """Turn pictures into a latent."""
    pictures: Pictures = call.inputs["pixels"]
    width, height = pictures[0].size
    latent = Latent(width=width, height=height, batch=len(pictures), pictures=pictures)
    await run.load(call.inputs["vae"])
    await run.spend(run.machine.timing.vae_s * latent.megapixels(run.machine.timing.batch_share))
    return Result(outputs=(latent,))


async def decode(run: PromptRun, call: Call) -> Result:
    """Turn a latent into pictures that say what made them."""
    latent: Latent = call.inputs["samples"]
    area = latent.width * latent.height
    await run.load(call.inputs["vae"], working=area * latent.batch * ACTIVATION_BYTES_PER_PIXEL // 2)
    await run.spend(run.machine.timing.vae_s * latent.megapixels(run.machine.timing.batch_share))
    pictures = await run.compute(area * latent.batch, _draw, run, latent)
    return Result(outputs=(pictures,))


def _draw(run: PromptRun, latent: Latent) -> Pictures:
    painter = run.machine.painter
    if latent.pictures and not latent.notes:
        return tuple(resize(picture, latent.width, latent.height, "bilinear") for picture in latent.pictures)
    drawn = []
    for index in range(latent.batch):
        picture = painter.generate(latent.notes, latent.width, latent.height, index)
        for place, source in enumerate(latent.pictures[:3]):  # what it was made from, at the lower edge
            small = source.convert("RGB")
            small.thumbnail((latent.width // 4, latent.height // 4))
            picture.paste(small, (6 + place * (latent.width // 4 + 6), latent.height - small.height - 24))
        drawn.append(picture)
    return tuple(drawn)


async def sample(run: PromptRun, call: Call) -> Result:
    """Denoise: the steps take time, and the model and its activations take memory."""
    inputs = call.inputs
    steps = inputs["steps"]
    first = min(inputs.get("start_at_step", 0), steps)
    last = min(inputs.get("end_at_step", steps), steps)
    seed = inputs.get("seed", inputs.get("noise_seed", 0))
    guider = Guider(
        model=inputs["model"], positive=inputs["positive"], negative=inputs["negative"], cfg=inputs["cfg"]
    )
    how = f"{inputs['sampler_name']} {inputs['scheduler']}"
    if inputs.get("denoise", 1.0) < 1.0:
        how += f" denoise {inputs['denoise']:g}"
    return await _denoise(run, call, guider, inputs["latent_image"], seed, max(1, last - first), how)


async def sample_custom(run: PromptRun, call: Call) -> Result:
    """Denoise with parts from other nodes."""
    inputs = call.inputs
    result = await _denoise(
        run,
        call,
        inputs["guider"],
        inputs["latent_image"],
        inputs["noise"],
        inputs["sigmas"],
        inputs["sampler"],
    )
    return Result(outputs=result.outputs * 2)


async def _denoise(
    run: PromptRun, call: Call, guider: Guider, latent: Latent, seed: int, steps: int, how: str
) -> Result:
    pixels = latent.width * latent.height * latent.batch
    await run.load(guider.model, working=pixels * ACTIVATION_BYTES_PER_PIXEL)
    notes = {
        "prompt": guider.positive.text,
        "seed": str(seed),
        "steps": f"{steps}, cfg {guider.cfg:g}, {how}",
    }
    notes["model"] = guider.model.file
    if guider.negative is not None and guider.negative.text:
        notes["negative"] = guider.negative.text
    if guider.model.patches:
        notes["with"] = ", ".join(guider.model.patches)
    pictures = latent.pictures + guider.positive.pictures
    done = replace(latent, notes=notes, pictures=pictures)
    # The unguided half costs a second pass, as on a real GPU.
    passes = 2 if guider.negative is not None and guider.cfg > 1 else 1

    def preview() -> Image.Image:
        return run.machine.painter.generate(notes, latent.width, latent.height)

    megapixels = latent.megapixels(run.machine.timing.batch_share)
    await run.steps(call, steps, megapixels * passes, preview)
    return Result(outputs=(done,))


async def guide(run: PromptRun, call: Call) -> Result:
    """Say what a custom sampler is guided by."""
    inputs = call.inputs
    positive = inputs.get("positive", inputs.get("conditioning"))
    guider = Guider(
        model=inputs["model"], positive=positive, negative=inputs.get("negative"), cfg=inputs.get("cfg", 1.0)
    )
    return Result(outputs=(guider,))


def pick(name: str) -> Work:
    """Make a node class that hands one input on."""

    async def hand_on(run: PromptRun, call: Call) -> Result:
        return Result(outputs=(call.inputs[name],))

    return hand_on


async def apply_control(run: PromptRun, call: Call) -> Result:
    """Hand both texts on, the wanted one with the control picture."""
    positive = call.inputs["positive"]
    wanted = replace(positive, pictures=positive.pictures + call.inputs["image"])
    return Result(outputs=(wanted, call.inputs["negative"]))


async def upscale(run: PromptRun, call: Call) -> Result:
    """Enlarge by the factor in the model's name (``4x...``, ``...x2...``), else by 4."""
    model: Model = call.inputs["upscale_model"]
    found = re.search(r"(\d)x|x(\d)", model.file.lower())
    factor = int(found[1] or found[2]) if found else 4
    pictures: Pictures = call.inputs["image"]
    width, height = (min(side * max(1, factor), MAX_UPSCALED) for side in pictures[0].size)
    area = width * height * len(pictures)
    await run.load(model, working=area * 12)
    await run.spend(run.machine.timing.upscale_s * area / 1e6)
    larger = await run.compute(
        area, lambda: tuple(resize(picture, width, height, "bilinear") for picture in pictures)
    )
    return Result(outputs=(larger,))


#: Class -> what it does.
MODELS: Mapping[str, Work] = {
    "CheckpointLoaderSimple": load_checkpoint,
    "UNETLoader": loader("diffusion_models", "unet_name"),
    "CLIPLoader": loader("text_encoders", "clip_name"),
    "DualCLIPLoader": loader("text_encoders", "clip_name1", "clip_name2"),
    "TripleCLIPLoader": loader("text_encoders", "clip_name1", "clip_name2", "clip_name3"),
    "VAELoader": loader("vae", "vae_name"),
    "ControlNetLoader": loader("controlnet", "control_net_name"),
    "CLIPVisionLoader": loader("clip_vision", "clip_name"),
    "StyleModelLoader": loader("style_models", "style_model_name"),
    "UpscaleModelLoader": loader("upscale_models", "model_name"),
    "LoraLoader": add_lora,
    "LoraLoaderModelOnly": add_lora,
    "ModelSamplingAuraFlow": patch,
    "ModelSamplingSD3": patch,
    "ModelSamplingFlux": patch,
    "CFGNorm": patch,
    "RenormCFG": patch,
    "CLIPSetLastLayer": pick("clip"),
    "CLIPTextEncode": encode_text,
    "CLIPTextEncodeFlux": encode_text,
    "CLIPTextEncodeLumina2": encode_text,
    "TextEncodeQwenImageEdit": encode_text,
    "TextEncodeQwenImageEditPlus": encode_text,
    "ConditioningCombine": combine,
    "ConditioningConcat": combine,
    "ConditioningZeroOut": zero_out,
    "FluxGuidance": pick("conditioning"),
    "ReferenceLatent": reference,
    "ControlNetApplyAdvanced": apply_control,
    "EmptyLatentImage": empty_latent,
    "EmptySD3LatentImage": empty_latent,
    "LatentUpscale": scale_latent,
    "LatentUpscaleBy": scale_latent,
    "SetLatentNoiseMask": keep_latent,
    "VAEEncode": encode,
    "VAEEncodeForInpaint": encode,
    "VAEDecode": decode,
    "VAEDecodeTiled": decode,
    "KSampler": sample,
    "KSamplerAdvanced": sample,
    "SamplerCustomAdvanced": sample_custom,
    "RandomNoise": pick("noise_seed"),
    "BasicGuider": guide,
    "CFGGuider": guide,
    "BasicScheduler": pick("steps"),
    "KSamplerSelect": pick("sampler_name"),
    "ImageUpscaleWithModel": upscale,
}
SAMPLERS = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"})
