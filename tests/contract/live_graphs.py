"""Graphs that a simulated node and a real ComfyUI must treat alike."""

from typing import Any

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty(color: int = 255, size: int = 64, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=size, height=size, batch_size=batch, color=color)


def save(source: str, prefix: str = "live") -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix=prefix)


CYCLE = "a cycle that appears while it runs"


GRAPHS: dict[str, Graph] = {
    "one picture": {"1": empty(0x204060), "2": save("1")},
    "a batch in a folder": {"1": empty(77, batch=3), "2": save("1", "a/b/live")},
    "two outputs": {"1": empty(5), "2": node("PreviewImage", images=["1", 0]), "3": save("1")},
    "a websocket picture": {"1": empty(6), "2": node("SaveImageWebsocket", images=["1", 0])},
    "a longer chain": {
        "9": save("5"),
        "5": node("ImageBlend", image1=["3", 0], image2=["4", 0], blend_factor=0.25, blend_mode="normal"),
        "3": node("ImageInvert", image=["1", 0]),
        "4": node(
            "ImageScale", image=["2", 0], upscale_method="bilinear", width=64, height=64, crop="disabled"
        ),
        "1": empty(0x102030),
        "2": empty(0x405060, size=32),
    },
    "text and branches": {
        "1": node("PrimitiveInt", value=48),
        "2": node("EmptyImage", width=["1", 0], height=32, batch_size=1, color=9),
        "3": node("StringConcatenate", string_a="a", string_b="b", delimiter="-"),
        "4": node("PreviewAny", source=["3", 0]),
        "5": save("2"),
        "6": node("ImageCrop", image=["2", 0], width=16, height=16, x=4, y=4),
        "7": node("PreviewImage", images=["6", 0]),
    },
    "an unknown input": {"1": {**empty(3), "inputs": {**empty(3)["inputs"], "nonsense": 1}}, "2": save("1")},
    "an error on the way": {
        "1": empty(8),
        "2": node("TestSyncError", value=["1", 0]),
        "3": save("2"),
        "4": node("PreviewImage", images=["1", 0]),
    },
    "an alpha channel": {
        "1": empty(4),
        "2": node("SolidMask", value=0.25, width=64, height=64),
        "3": node("JoinImageWithAlpha", image=["1", 0], alpha=["2", 0]),
        "4": save("3"),
    },
    CYCLE: {
        "1": empty(9),
        "2": node("TestDynamicDependencyCycle", input1=["1", 0], input2=["1", 0]),
        "3": save("2"),
    },
}


MODEL = node(
    "Load3DAdvanced",
    model_file="3d/m.glb",
    viewport_state={"camera_info": {}, "model_3d_info": []},
    width=64,
    height=64,
)


SIDES = {"viewport_state": {}, "width": 64, "height": 64}


#: Graphs that 0.3.64 runs and later versions refuse.
EARLY_GRAPHS: dict[str, Graph] = {
    "an unchecked mode": {
        "1": empty(4),
        "2": node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="nope"),
        "3": save("2"),
    },
}


#: Graphs that later versions run and 0.3.64 refuses.
LATER_GRAPHS: dict[str, Graph] = {
    "a group that grows": {
        "1": empty(10, size=16),
        "2": empty(11, size=32),
        "3": node("BatchImagesNode", **{"images.image0": ["1", 0], "images.image2": ["2", 0]}),
        "4": save("3"),
    },
    "a group with nothing in it": {
        "1": node("StringFormat", f_string="hi"),
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a text from a group": {
        "1": node("PrimitiveInt", value=5),
        "2": node("StringFormat", f_string="{a}-{b}", **{"values.a": ["1", 0], "values.b": "x"}),
        "3": node("PreviewAny", source=["2", 0]),
    },
    "a choice with members": {
        "1": empty(12),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale dimensions",
            scale_method="area",
            **{"resize_type.width": 32, "resize_type.height": "16", "resize_type.crop": "disabled"},
        ),
        "3": save("2"),
    },
    "a choice that is not offered": {
        "1": empty(13),
        "2": node("ResizeImageMaskNode", input=["1", 0], resize_type="bogus", scale_method="area"),
        "3": save("2"),
    },
    "a choice of the user's own": {
        "1": node("CustomCombo", choice="b", index=1, option1="a", option2="b"),
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a picture on the way": {
        "1": empty(14),
        "2": node("ImageCropV2", image=["1", 0], crop_region={"x": 8, "y": 0, "width": 16, "height": 16}),
        "3": save("2"),
    },
    "an output on the way": {
        "1": empty(15),
        "2": save("1", "middle"),
        "3": node("PreviewAny", source=["4", 0]),
        "4": node("CustomCombo", choice="x"),
        "5": node("ImageInvert", image=["2", 0]),
        "6": save("5"),
    },
    "a comparison": {"1": empty(16), "2": node("ImageCompare", compare_view={}, image_a=["1", 0])},
    "a saved text": {
        "1": node("PrimitiveString", value="a b"),
        "2": node("SaveText", text=["1", 0], filename_prefix="t/live", format="md"),
    },
    "3D models": {
        "1": MODEL,
        "2": node("SaveGLB", mesh=["1", 0], filename_prefix="3d/x"),
        "3": node("Save3DAdvanced", model_3d=["1", 0], filename_prefix="3d/y", **SIDES),
        "4": node("Preview3D", model_file=["1", 0]),
        "5": node("Preview3DAdvanced", model_3d=["1", 0], **SIDES),
    },
    "a 3D model by name, and a mask": {
        "4": node("CustomCombo", choice="x"),
        "1": node("Preview3D", model_file="some.glb"),
        "2": node("SolidMask", value=0.5, width=8, height=8),
        "3": node("MaskPreview", mask=["2", 0]),
    },
}


REFUSED: dict[str, Any] = {
    "no outputs": {"1": empty()},
    "unknown class": {"1": node("Nope"), "2": save("1")},
    "no class": {"1": {"inputs": {}}},
    "no inputs": {"1": {"class_type": "PreviewImage"}},
    "missing input": {"1": node("SaveImage", filename_prefix="x")},
    "out of range": {"1": empty(color=1 << 30), "2": save("1")},
    "not a number": {"1": node("EmptyImage", width="abc", height=1, batch_size=1, color=0), "2": save("1")},
    "wrong link": {"1": empty(), "2": node("SaveImage", images=["1", 0, 0], filename_prefix="x")},
    "wrong type": {"1": node("PrimitiveInt", value=1), "2": save("1")},
    "no such output": {"1": empty(), "2": node("SaveImage", images=["1", 1], filename_prefix="x")},
    "link to nowhere": {"2": save("99")},
    "inner link to nowhere": {"1": node("ImageInvert", image=["99", 0]), "2": save("1")},
    "a cycle": {"1": node("ImageInvert", image=["1", 0]), "2": save("1")},
    "a longer cycle": {
        "0": node("ImageInvert", image=["1", 0]),
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "4": save("0"),
    },
    "an unknown class with a title": {"1": {**node("Nope"), "_meta": {"title": "Mine"}}, "2": save("1")},
    "no class but a title": {"1": {"inputs": {}, "_meta": {"title": "Mine"}}},
    "a class that was replaced": {
        "1": {**node("T2IAdapterLoader", t2i_adapter_name="x"), "_meta": {"title": "t"}},
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a group without its first member": {
        "1": empty(),
        "2": node("BatchImagesNode", **{"images.image1": ["1", 0]}),
        "3": save("2"),
    },
    "a bad member": {
        "1": empty(),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale by multiplier",
            scale_method="area",
            **{"resize_type.multiplier": -5},
        ),
        "3": save("2"),
    },
    "a member that is not in the list": {
        "1": empty(),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale dimensions",
            scale_method="area",
            **{"resize_type.width": 8, "resize_type.height": 8, "resize_type.crop": "bad"},
        ),
        "3": save("2"),
    },
    "a list that is no link": {
        "1": empty(),
        "2": node("ImageCropV2", image=["1", 0], crop_region=[1, 2]),
        "3": save("2"),
    },
    "a text for a choice": {
        "1": node("PrimitiveString", value="normal"),
        "2": empty(),
        "3": node("ImageBlend", image1=["2", 0], image2=["2", 0], blend_factor=0.5, blend_mode=["1", 0]),
        "4": save("3"),
    },
    "no such file": {"1": node("LoadImage", image="missing.png"), "2": save("1")},
    "not in the list": {
        "1": empty(),
        "2": node("ImageScale", image=["1", 0], upscale_method="magic", width=8, height=8, crop="disabled"),
        "3": save("2"),
    },
}
