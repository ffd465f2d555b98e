"""Nodes that an operator's commands add and remove, and services of a Docker Swarm."""

import logging
import secrets
import shlex
from collections.abc import Mapping, Sequence

from comfy_fleet.adapters.system.child_processes import Child
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.scaling.orders import ScalingOrder
from comfy_fleet.domain.scaling.scaling_file import ProviderSpec
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_LINE_LIMIT = 300  # characters of a command's output in a reason


class CommandProvider:
    """Runs one command for each node that is added or removed.

    A command is run without a shell, with none of the fleet's own variables, for a limited time; its last
    line is the reason if it fails. It has to do nothing, and succeed, where its work is done already.

    Args:
        spec: The commands.
        pool: The pool, for ``{pool}``.
        prefix: With which nodes' names begin.
    """

    def __init__(self, spec: ProviderSpec, *, pool: str, prefix: str) -> None:
        self._spec = spec
        self._pool = pool
        self._prefix = prefix

    again = False

    def draw(self, orders: Sequence[ScalingOrder]) -> tuple[str, Mapping[str, str]] | None:
        """Return a name that was never used: a machine may outlive its removal for a while."""
        del orders
        return f"{self._prefix}-{secrets.token_hex(3)}", {}

    async def add(self, order: ScalingOrder) -> Node | None:
        """Run the command that adds a node; its own agent registers it."""
        await run_command(self._filled(self._spec.add, order.name), limit_s=self._spec.limit_s)
        return None

    async def remove(self, order: ScalingOrder) -> None:
        """Run the command that removes it."""
        await run_command(self._filled(self._spec.remove, order.name), limit_s=self._spec.limit_s)

    def _filled(self, words: Sequence[str], name: str) -> list[str]:
        return [word.replace("{name}", name).replace("{pool}", self._pool) for word in words]


class SwarmProvider:
    """Scales services of a Docker Swarm from no replica to one, and back.

    Of a service with several replicas, Swarm itself chooses which one ends: it could be one that works. So
    each node is a service of its own.

    Args:
        spec: The services, each of which is called as its node.
    """

    def __init__(self, spec: ProviderSpec) -> None:
        self._spec = spec

    again = True

    def draw(self, orders: Sequence[ScalingOrder]) -> tuple[str, Mapping[str, str]] | None:
        """Return the first service that has no replica."""
        taken = {order.name for order in orders}
        return next(((service, {}) for service in self._spec.services if service not in taken), None)

    async def add(self, order: ScalingOrder) -> Node | None:
        """Give a service its replica; the agent in it registers the node."""
        await self._scale(order.name, 1)
        return None

    async def remove(self, order: ScalingOrder) -> None:
        """Take it away."""
        await self._scale(order.name, 0)

    async def _scale(self, service: str, replicas: int) -> None:
        argv = [self._spec.docker, "service", "scale", "--detach", f"{service}={replicas}"]
        await run_command(argv, limit_s=self._spec.limit_s)


async def run_command(argv: Sequence[str], *, limit_s: float) -> None:
    """Run a command.

    Args:
        argv: Program and arguments.
        limit_s: How long it may take.

    Raises:
        ConfigError: It can't be run, failed or took too long.
    """
    shown = shlex.join(argv)[:_LINE_LIMIT]
    command = Child("provider command", argv, on_line=lambda _: None)
    try:
        await command.start()
        async with Timeout(limit_s):
            status = await command.wait()
    except TimeoutError:
        raise ConfigError(f"{shown} took longer than {limit_s:g} s") from None
    finally:
        if command.running:
            await command.stop()
    if status:
        said = next((line.strip() for line in reversed(command.last_lines) if line.strip()), "")
        ended = f"failed with {status}" if status > 0 else f"was ended by signal {-status}"
        raise ConfigError(": ".join(filter(None, (f"{shown} {ended}", said[:_LINE_LIMIT]))))
