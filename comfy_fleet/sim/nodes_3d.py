"""Node classes that read and write 3D models; the bytes pass through as they are."""

import uuid
from collections.abc import Awaitable, Callable, Mapping

from comfy_fleet.sim.run import Call, PromptRun, Result
from comfy_fleet.sim.values import File3D


async def load_3d(run: PromptRun, call: Call) -> Result:
    """Read an uploaded 3D model."""
    path = run.machine.files.uploaded(call.inputs["model_file"])
    seen = call.inputs["viewport_state"]
    model = File3D(data=path.read_bytes(), suffix=path.suffix)
    sides = call.inputs["width"], call.inputs["height"]
    return Result(outputs=(model, seen.get("model_3d_info", []), seen.get("camera_info"), *sides))


async def save_3d(run: PromptRun, call: Call) -> Result:
    """Save a 3D model."""
    model: File3D = call.inputs["mesh"]
    saved = await run.save_file(call.inputs["filename_prefix"], model.suffix, model.data)
    return Result(ui={"3d": [saved]})


async def save_3d_advanced(run: PromptRun, call: Call) -> Result:
    """Save a 3D model and name it by a bare string, as the advanced classes do."""
    model: File3D = call.inputs["model_3d"]
    saved = await run.save_file(call.inputs["filename_prefix"], model.suffix, model.data, end="")
    return _shown_3d(call, "/".join(filter(None, (saved["subfolder"], saved["filename"]))))


async def preview_3d(run: PromptRun, call: Call) -> Result:
    """Show a 3D model, which stays in the output folder for ever, or one whose name is given."""
    model = call.inputs["model_file"]
    name = model
    if isinstance(model, File3D):
        name = f"preview3d_{uuid.uuid4().hex}{model.suffix}"
        run.machine.files.inside("output", "", name).write_bytes(model.data)
    return Result(ui={"result": [name, call.inputs.get("camera_info"), None]})


async def preview_3d_advanced(run: PromptRun, call: Call) -> Result:
    """Show a 3D model from the temporary folder."""
    model: File3D = call.inputs["model_3d"]
    name = f"preview3d_advanced_{uuid.uuid4().hex}{model.suffix}"
    run.machine.files.inside("temp", "", name).write_bytes(model.data)
    return _shown_3d(call, name)


def _shown_3d(call: Call, name: str) -> Result:
    seen, inputs = call.inputs["viewport_state"], call.inputs
    camera = inputs.get("camera_info", seen.get("camera_info"))
    info = inputs.get("model_3d_info", seen.get("model_3d_info", []))
    sides = inputs["width"], inputs["height"]
    return Result(outputs=(inputs["model_3d"], info, camera, *sides), ui={"result": [name, camera, info]})


#: Class -> what it does.
MESHES: Mapping[str, Callable[[PromptRun, Call], Awaitable[Result]]] = {
    "Load3DAdvanced": load_3d,
    "SaveGLB": save_3d,
    "Save3DAdvanced": save_3d_advanced,
    "Preview3D": preview_3d,
    "Preview3DAdvanced": preview_3d_advanced,
}
