"""Whether a node has answered at all yet.

HAProxy takes a server that leaves maintenance for healthy until its first checks have failed. So the agent
says no ``ready`` before it has seen an answer itself: a ComfyUI that is still starting gets no lease. From
then on HAProxy's own checks know better.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from comfy_fleet.adapters.comfyui.direct_node import DirectNode, trust
from comfy_fleet.adapters.comfyui.node_address import answers_as_fleet
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.tasks import start

ASK_EVERY_S = 0.25
ANSWER_WITHIN_S = 2.0


class Reach:
    """Asks every new node's ``/system_stats`` until it has answered once."""

    def __init__(
        self, ca_file: Path | None = None, *, credentials: Callable[[Node], str] = lambda _: ""
    ) -> None:
        """Ask nothing yet.

        Args:
            ca_file: Who may sign the certificates of https nodes; None: whom the machine trusts.
            credentials: Tells a node's ``USER:PASSWORD``; empty for none.
        """
        self._ca_file = ca_file
        self._credentials = credentials
        self._asking: dict[str, tuple[str, str, asyncio.Task[None]]] = {}
        self._trouble: dict[str, str] = {}
        self._clients: dict[bool, httpx.AsyncClient] = {}

    def reached(self, node: Node) -> bool:
        """Return whether the node has answered at the URL that it has now."""
        url, _, task = self._asking.get(node.name, ("", "", None))
        return task is not None and url == node.url and task.done() and not task.cancelled()

    def trouble(self, node: Node) -> str:
        """Return why the node has not answered; empty while that is not known."""
        return self._trouble.get(node.name, "")

    def follow(self, nodes: Sequence[Node]) -> None:
        """Ask the nodes that are new or have moved, and forget those that are gone."""
        wanted = {node.name: (node.url, self._credentials(node)) for node in nodes}
        for name, (url, credentials, task) in list(self._asking.items()):
            if wanted.get(name) != (url, credentials):
                task.cancel()
                del self._asking[name]
                self._trouble.pop(name, None)
        for name, (url, credentials) in wanted.items():
            if name not in self._asking:
                task = start(self._ask(name, url, credentials), name=f"reach {name}")
                self._asking[name] = url, credentials, task

    async def stop(self) -> None:
        """Stop asking."""
        tasks = [task for _, _, task in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    async def _ask(self, name: str, url: str, credentials: str) -> None:
        node = DirectNode(url, self._client(tls=url.startswith("https:")), credentials=credentials)
        while True:
            try:
                stats = await node.json("/system_stats", timeout_s=ANSWER_WITHIN_S)
                if isinstance(stats, dict):
                    self._trouble.pop(name, None)
                    return
                self._trouble[name] = "that is no ComfyUI: no JSON object at /system_stats"
            except NodeError as error:
                why = error.message
                if not error.details and await answers_as_fleet(node, timeout_s=ANSWER_WITHIN_S):
                    why = f"that is the fleet itself, no ComfyUI: {url}"
                self._trouble[name] = why
            await asyncio.sleep(ASK_EVERY_S)

    def _client(self, *, tls: bool) -> httpx.AsyncClient:
        if tls not in self._clients:
            # For plain HTTP, a context that trusts nobody is made in no time, while reading the machine's
            # certificates would hold the agent up just when its first node is waited for.
            verify = trust(self._ca_file) if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._clients[tls] = httpx.AsyncClient(timeout=ANSWER_WITHIN_S, trust_env=False, verify=verify)
        return self._clients[tls]
