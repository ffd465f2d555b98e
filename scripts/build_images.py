"""Build the container images, and start what is in them; see ``scripts/images``."""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.conftest import free_port
from tests.container_files import COMPOSE, DOCKER, IMAGES, ROOT, services

NODE = "gpu1-0"
TARGETS = ("api", "dispatch", "haproxy", "agent", "cli")
# In this order, as `docker compose up` would by their dependencies.
STARTED = ("redis", "haproxy", "api", "dispatch", "central-agent", "comfyui-0", "agent-0")
SOURCES = (
    "/etc/apt/sources.list.d",
    "/etc/apt/apt.conf.d",
    "/etc/apt/keyrings",
    "/usr/share/keyrings",
    "/etc/pip.conf",
    "/etc/xdg/pip",
    "/root/.config/pip",
    "/etc/ssl/certs",
    "/opt/wheels",
)
NODE_USER = 10002
HEALTH = "/usr/local/bin/health.py"
HEALTHY_S = 240.0
CHECK_S = 30.0
STOP_S = 30.0
# A node without a ComfyUI: the fleet's own image runs a simulated one.
SIMULATED = ["sim", "--host", "127.0.0.1", "--job-seconds", "0.2"]

console = Console()


def say(text: str) -> None:
    """Tell what is being done."""
    console.print(text, markup=False, highlight=False)


def run(*words: str) -> str:
    """Run a command whose failure ends everything; return what it says.

    Raises:
        SystemExit: It failed; its last lines are in the message.
    """
    told = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if told.returncode:
        sys.exit(f"images: {' '.join(words[:3])} ... failed:\n{told.stdout[-4000:]}")
    return told.stdout


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was built.

    Attributes:
        name: What it is called in buildah's store.
        size: With all its layers, not compressed.
        seconds: What building took.
    """

    name: str
    size: str
    seconds: float


class Builder:
    """Builds images.

    Args:
        python: The image with Python 3.11 to build on.
        here: Whether packages come from where this machine gets them.
    """

    def __init__(self, python: str, *, here: bool) -> None:
        self._python = python
        mounted = [place for place in SOURCES if here and Path(place).exists()]
        self._mounts = [word for place in mounted for word in ("--volume", f"{place}:{place}:ro")]

    def base(self, root: Path) -> None:
        """Make the image to build on from a Debian's root."""
        plain = f"{self._python}-root"
        container = run("buildah", "from", "scratch").strip()
        run("buildah", "add", "--quiet", container, str(root), "/")
        run("buildah", "commit", "--quiet", "--rm", container, plain)
        self._layer(plain, self._python, "python-is-python3 python3-pip python3-venv")

    def redis(self) -> Image:
        """Make the image of Debian's Redis."""
        return self._layer(self._python, "localhost/fleet-redis:local", "redis-server")

    def _layer(self, base: str, name: str, packages: str) -> Image:
        text = (
            f"FROM {base}\nRUN apt-get update -q && apt-get install -y -q --no-install-recommends {packages}"
            " && rm -rf /var/lib/apt/lists/*\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Dockerfile").write_text(text)
            return self.build(Path(folder) / "Dockerfile", Path(folder), name)

    def build(self, file: Path, context: Path, name: str, *words: str) -> Image:
        """Build an image file."""
        say(f"building {name}")
        begun = time.monotonic()
        python = ("--build-arg", f"PYTHON_IMAGE={self._python}")
        # Docker's format: the other one knows no health checks.
        run(
            *("buildah", "build", "--isolation", "chroot", "--format", "docker", "--layers"),
            *(*self._mounts, *python, *words, "--tag", name, "--file", str(file), str(context)),
        )
        size = json.loads(run("buildah", "images", "--json", name))[0]["size"]
        return Image(name=name, size=size, seconds=time.monotonic() - begun)


@dataclass
class Container:
    """A container of a service, and what runs in it.

    Attributes:
        service: The service's name.
        id: The container's, in buildah's store.
        options: Its user, variables and volumes, in buildah's words.
        argv: What it runs.
        process: Buildah's process, once it was started.
    """

    service: str
    id: str
    options: list[str]
    argv: list[str]
    process: "subprocess.Popen[bytes] | None" = None

    def inside(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs something in it."""
        return ["buildah", "run", "--isolation", "chroot", *self.options, self.id, "--", *words]


@dataclass
class Stack:
    """The services of ``compose.yaml`` on this machine's own network.

    Attributes:
        folder: Volumes, secrets and logs.
        images: The image of each service that is started.
        commands: What services run in place of the file's command.
        running: The containers.
    """

    folder: Path
    images: Mapping[str, str]
    commands: Mapping[str, list[str]] = field(default_factory=dict)
    running: dict[str, Container] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run(str(DOCKER / "make-secrets"), str(self.folder / "secrets"))
        (self.folder / "secrets").chmod(0o755)
        self.key = (self.folder / "secrets" / "keys").read_text().split()[1]
        for name in ("models", "custom_nodes"):
            (self.folder / name).mkdir()
        told = {
            "FLEET_API_KEY": self.key,
            "COMFYUI_ARGS": "--cpu",
            "COMFYUI_MODELS": str(self.folder / "models"),
            "COMFYUI_CUSTOM_NODES": str(self.folder / "custom_nodes"),
        }
        self._services = services(COMPOSE, told)
        names = ("redis", "port", "console_port", "api_port", "lease_port", "direct_port", "agent_port")
        self._ports = {name: free_port() for name in (*names, "node", "beside")}

    def _here(self, text: str) -> str:
        """Put this machine's places into a variable or a word of a command."""
        for name, place in {
            "redis:6379": f"127.0.0.1:{self._ports['redis']}",
            "haproxy:8189": f"127.0.0.1:{self._ports['console_port']}",
            f"{NODE}:8188": f"127.0.0.1:{self._ports['node']}",
        }.items():
            text = text.replace(f"//{name}", f"//{place}")
        return text

    def _environment(self, service: str) -> dict[str, str]:
        given = {
            name: self._here(str(value))
            for name, value in self._services[service].get("environment", {}).items()
        }
        here = {
            name: "127.0.0.1" if name.endswith(("_HOST", "_BIND")) else value for name, value in given.items()
        }
        if service.startswith("comfyui"):
            return here | {"COMFYUI_LISTEN": "127.0.0.1", "COMFYUI_PORT": str(self._ports["node"])}
        if service == "agent-0":  # in its own network it has the usual port
            return here | {"FLEET_AGENT_PORT": str(self._ports["beside"])}
        drawn = [name for name in self._ports if name.endswith("port")]
        return here | {f"FLEET_{name.upper()}": str(self._ports[name]) for name in drawn}

    def _volumes(self, service: str, user: int) -> Iterator[str]:
        for entry in self._services[service].get("volumes", []):
            source, place, *mode = entry.split(":")
            if source.startswith("."):
                folder = (DOCKER / source).resolve()
            elif source.startswith("/"):
                folder = Path(source)
            else:
                folder = self.folder / "volumes" / source
                if not folder.exists():  # whoever mounts it first gives it its owner
                    folder.mkdir(parents=True)
                    os.chown(folder, user, user)
            yield ":".join([str(folder), place, *(mode or ["rw"])])
        if self._services[service].get("secrets"):
            yield f"{self.folder / 'secrets'}:/run/secrets:ro"

    def container(self, service: str, words: Sequence[str] = ()) -> Container:
        """Make a service's container.

        Args:
            service: Its name.
            words: What it runs in place of the file's command.
        """
        made = run("buildah", "from", self.images[service]).strip()
        self.running[made] = one = Container(service, made, [], [])
        config = json.loads(run("buildah", "inspect", made))["Docker"]["config"]
        told = list(words) or self.commands.get(service) or self._services[service].get("command") or []
        simulated = told[:1] == SIMULATED[:1]
        if user := NODE_USER if simulated else self._services[service].get("user"):
            one.options += ["--user", str(user)]
        uid = int(run(*one.inside(["id", "-u"])).splitlines()[-1])
        for name, value in self._environment(service).items():
            one.options += ["--env", f"{name}={value}"]
        for volume in self._volumes(service, uid):
            one.options += ["--volume", volume]
        if service == "redis":
            told = [*told, "--port", str(self._ports["redis"]), "--bind", "127.0.0.1"]
        if simulated:
            told = [*told, "--port", str(self._ports["node"])]
            one.options += ["--volume", f"{DOCKER / 'comfyui' / 'health.py'}:{HEALTH}:ro"]
        told = [self._here(word) for word in told]
        if "--advertise" in told:
            told[told.index("--advertise") + 1] = "127.0.0.1"
        one.argv = [*(config.get("Entrypoint") or []), *(told or config.get("Cmd") or [])]
        return one

    def start(self, service: str) -> None:
        """Start a service, and wait until it is healthy."""
        one = self.container(service)
        with (self.folder / f"{service}.log").open("wb") as log:
            one.process = subprocess.Popen(
                one.inside(one.argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        kind, *words = self._services[service]["healthcheck"]["test"]
        check = ["/bin/sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        if service == "redis":
            check[1:1] = ["-p", str(self._ports["redis"])]
        if SIMULATED[0] in one.argv:
            check = ["python", HEALTH]
        deadline = time.monotonic() + HEALTHY_S
        while True:
            told = subprocess.run(
                one.inside(check), capture_output=True, text=True, check=False, timeout=CHECK_S
            )
            if told.returncode == 0:
                return
            if one.process.poll() is not None or time.monotonic() > deadline:
                log_text = (self.folder / f"{service}.log").read_text(errors="replace")[-3000:]
                sys.exit(f"images: {service} is not healthy: {told.stdout}{told.stderr}\n{log_text}")
            time.sleep(1)

    def fleet(self, *words: str) -> str:
        """Run ``docker compose run --rm cli WORDS``; return what it prints."""
        one = self.container("cli", words)
        told = subprocess.run(one.inside(one.argv), capture_output=True, text=True, check=False)
        if told.returncode:
            sys.exit(f"images: fleet {words[0]}: {told.stdout}{told.stderr}")
        return told.stdout

    def stop(self) -> None:
        """Stop everything as an engine would: ask each, wait, then end it; and delete the containers."""
        for one in reversed(self.running.values()):
            if one.process is None:
                continue
            inside = [pid for pid in _below(one.process.pid) if pid != one.process.pid]
            for pid in inside:  # buildah would pass SIGTERM on as SIGKILL, and to the first process alone
                if not _name(pid).startswith(("buildah", "exe")):
                    _send(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while left := [pid for pid in inside if _name(pid)]:
                if time.monotonic() > deadline:
                    say(f"{one.service} did not stop within {STOP_S:.0f} s")
                    for pid in left:
                        _send(pid, signal.SIGKILL)
                    break
                one.process.poll()
                time.sleep(0.2)
            one.process.wait(STOP_S)
        for name in self.running:
            subprocess.run(["buildah", "rm", name], capture_output=True, check=False)


def _below(pid: int) -> Iterator[int]:
    """Yield a process and those that it has started, parents first."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield from _below(int(child))


def _name(pid: int) -> str:
    """Return a process's name; nothing if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "" if state == "Z" else Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def try_out(images: Mapping[str, str], node: str, commands: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Start the services, make a picture, and stop them.

    Args:
        images: The image of each service.
        node: What the node is, for the table.
        commands: What services run in place of the file's command.

    Returns:
        A service and what was seen of it, for each.
    """
    seen = []
    with tempfile.TemporaryDirectory(prefix="fleet-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        stack = Stack(folder, images, commands)
        try:
            for service in STARTED:
                say(f"starting {service}" + (f" ({node})" if service.startswith("comfyui") else ""))
                begun = time.monotonic()
                stack.start(service)
                seen.append((service, f"healthy after {time.monotonic() - begun:.0f} s"))
            stack.fleet("status", "--wait", "--timeout", "120")
            told = stack.fleet("submit", "image_card", "-p", "prompt=a fox", "--wait", "--json")
            job = json.loads(told)
            seen.append((f"a picture, {node}", f"{job['status']} on {job['node']}"))
        finally:
            stack.stop()
    return seen


def version(folder: Path) -> str:
    """Return the version that a ComfyUI's source names.

    Raises:
        SystemExit: It is no ComfyUI.
    """
    try:
        found = re.search(r'__version__ = "([^"]+)"', (folder / "comfyui_version.py").read_text())
    except OSError as error:
        sys.exit(f"images: {folder} holds no ComfyUI: {error}")
    return found[1] if found else "unknown"


def main() -> None:
    """Build, start, and print what was seen."""
    told = argparse.ArgumentParser(add_help=False)
    told.add_argument("--base", type=Path)
    told.add_argument("--here", action="store_true")
    told.add_argument("--comfyui", type=Path, action="append", default=[])
    told.add_argument("--pip", default="")
    told.add_argument("--only-build", action="store_true")
    given = told.parse_args()

    name = "localhost/fleet-python:3.11" if given.base else "docker.io/library/python:3.11-slim-bookworm"
    builder = Builder(name, here=given.here)
    if given.base:
        builder.base(given.base)
    built = {
        target: builder.build(
            IMAGES["fleet"], ROOT, f"localhost/comfy-fleet-{target}:local", "--target", target
        )
        for target in TARGETS
    }
    nodes = {}
    for folder in given.comfyui:
        number = version(folder)
        nodes[number] = builder.build(
            *(IMAGES["comfyui"], IMAGES["comfyui"].parent, f"localhost/comfy-fleet-comfyui:{number}"),
            *("--target", "node", "--build-context", f"comfyui={folder.resolve()}"),
            # The file's own default; buildah before 1.30 leaves out a stage that only a default names.
            *("--build-arg", "COMFYUI_FROM=source", "--build-arg", f"PIP_ARGS={given.pip}"),
        )
    seen: list[tuple[str, str]] = []
    if not given.only_build:
        redis = builder.redis()
        images = {name: built[name].name for name in ("haproxy", "api", "dispatch", "cli")}
        images |= {"redis": redis.name} | dict.fromkeys(("central-agent", "agent-0"), built["agent"].name)
        if not nodes:
            simulated = images | {"comfyui-0": built["agent"].name}
            seen += try_out(simulated, "SIMULATED", {"comfyui-0": SIMULATED})
        for number, image in nodes.items():
            seen += try_out(images | {"comfyui-0": image.name}, f"ComfyUI {number}", {})
    table = Table("image", "size", "built in")
    for image in itertools.chain(built.values(), nodes.values()):
        table.add_row(image.name, image.size, f"{image.seconds:.0f} s")
    console.print(table)
    if seen:
        table = Table("container", "seen")
        for row in seen:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
