"""Custom nodes for a real ComfyUI, with a script for its editor, that ask people in the middle of a run.

Without any model, the first does what choosers of pictures do: it sends a message to the editor and waits
until ``POST /chooser/choose`` comes. The second tells hashes of the secrets that reached it.
"""

from pathlib import Path

PACKAGE = "fleet-chooser"
SCRIPT = f"/extensions/{PACKAGE}/chooser.js"

NODES = """
import hashlib
import threading
import time

from aiohttp import web
from comfy import model_management
from server import PromptServer

WEB_DIRECTORY = "./web"
server, waiting = PromptServer.instance, {}


@server.routes.get("/chooser/waiting")
async def list_waiting(request):
    return web.json_response({"port": server.port, "waiting": sorted(waiting)})


@server.routes.post("/chooser/choose")
async def choose(request):
    told = await request.json()
    if told["id"] not in waiting:
        return web.json_response({"port": server.port, "error": "nobody waits"}, status=404)
    choice = waiting[told["id"]]
    choice["value"], choice["headers"] = told["choice"], sorted(request.headers)
    choice["made"].set()
    return web.json_response({"port": server.port, "told": told, "headers": choice["headers"]})


class FleetChooser:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "wait", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": {"id": "UNIQUE_ID"}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return time.time()

    def wait(self, images, id):
        choice = waiting[id] = {"made": threading.Event(), "value": 0}
        server.send_sync("fleet-chooser", {"id": id, "count": len(images), "port": server.port})
        try:
            while not choice["made"].wait(0.05):
                model_management.throw_exception_if_processing_interrupted()
        finally:
            del waiting[id]
        return (images[choice["value"]:choice["value"] + 1],)


class FleetSecrets:
    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), "tell", "test"

    @classmethod
    def INPUT_TYPES(cls):
        hidden = {"token": "AUTH_TOKEN_COMFY_ORG", "key": "API_KEY_COMFY_ORG"}
        return {"required": {"images": ("IMAGE",)}, "hidden": hidden}

    def tell(self, images, token=None, key=None):
        return {"ui": {"text": [hashlib.sha256(str(one).encode()).hexdigest() for one in (token, key)]}}


NODE_CLASS_MAPPINGS = {"FleetChooser": FleetChooser, "FleetSecrets": FleetSecrets}
"""

EDITOR = """
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "fleet.chooser",
  setup() {
    api.addEventListener("fleet-chooser", async ({ detail }) => {
      const body = JSON.stringify({ id: detail.id, choice: detail.count - 1 });
      const headers = { "Content-Type": "application/json" };
      const answer = await api.fetchApi("/chooser/choose", { method: "POST", headers, body });
      window.fleetChoices = [...(window.fleetChoices ?? []), answer.status];
    });
  },
});
"""


def write_pack(folder: Path) -> Path:
    """Write the package below a folder; returns what ComfyUI takes as a folder of custom nodes."""
    packs = folder / "chooser-packs"
    (packs / PACKAGE / "web").mkdir(parents=True, exist_ok=True)
    (packs / PACKAGE / "__init__.py").write_text(NODES)
    (packs / PACKAGE / "web" / "chooser.js").write_text(EDITOR)
    return packs
