"""Every command of the container files, run on this host with the variables that the files give.

No container engine is needed: service names become loopback addresses, ports come from the kernel, volumes
are folders. What an engine adds (networks, limits, users, mounts) is not tested here.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.system.redis_program import program
from tests.children import mortal
from tests.comfyui_server import ComfyServer, interpreter, wait_until_it_answers
from tests.conftest import free_port
from tests.container_files import COMPOSE, DOCKER, FLEET, IMAGES, STACK, last, services, stages
from tests.factories import bare_checkout

pytestmark = pytest.mark.timeout(240)

NODE = "gpu1-0"  # FLEET_GPU_HOST and the GPU's number

# Stands where ComfyUI's own main.py would: takes the same arguments, and is a simulated node.
MAIN = """\
import argparse, os, sys
flags = argparse.ArgumentParser()
for name in ("listen", "port", "output-directory", "input-directory", "user-directory", "temp-directory",
             "extra-model-paths-config", "database-url"):
    flags.add_argument("--" + name, required=name != "extra-model-paths-config")
flags.add_argument("--disable-auto-launch", action="store_true", required=True)
flags.add_argument("--lowvram", action="store_true", required=True)
told = flags.parse_args()
for folder in (told.output_directory, told.input_directory, told.user_directory, told.temp_directory):
    assert os.path.isdir(folder), folder
os.execv(sys.executable, [sys.executable, "-m", "comfy_fleet", "sim", "--host", told.listen,
                          "--port", told.port, "--job-seconds", "0.1"])
"""


class Host:
    """Runs services of a Compose file as processes of this machine."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        subprocess.run([str(DOCKER / "make-secrets"), str(self.secrets)], check=True, capture_output=True)
        (self.secrets / "keys").chmod(0o600)  # below /run/secrets any mode will do
        key = (self.secrets / "keys").read_text().split()[1]
        self.services = services(path, {"FLEET_API_KEY": key, "COMFYUI_ARGS": "--lowvram"})
        names = (
            "redis",
            "port",
            "console_port",
            "api_port",
            "lease_port",
            "direct_port",
            "agent_port",
            "node",
        )
        self.ports = {name: free_port() for name in names}
        self.beside_port = free_port()  # in its container the node's own agent has the usual one
        self.home = bare_checkout(folder, main=MAIN, database=True)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, service: str) -> dict[str, str]:
        """The service's variables and its image's, with this machine's places in them."""
        given = {name: str(value) for name, value in self.services[service].get("environment", {}).items()}
        volumes = [entry for entry in self.services[service].get("volumes", []) if isinstance(entry, str)]
        data = next((entry.split(":")[0] for entry in volumes if entry.split(":")[1] == "/data"), service)
        here: dict[str, str] = {}
        for name, value in given.items():
            value = re.sub(r"^/run/secrets\b", str(self.secrets), value)
            value = value.replace("/workflows", str(DOCKER.parent / "workflows"))
            value = value.replace("redis://redis:6379", f"redis://127.0.0.1:{self.ports['redis']}")
            value = value.replace("http://haproxy:8189", f"http://127.0.0.1:{self.ports['console_port']}")
            here[name] = "127.0.0.1" if name.endswith(("_HOST", "_BIND")) else value
        if any(name.startswith("FLEET_REDIS") or name == "FLEET_DATA" for name in given):
            here["FLEET_DATA"] = str(self.folder / data)
            ports = ("port", "console_port", "api_port", "lease_port", "direct_port", "agent_port")
            here |= {f"FLEET_{name.upper()}": str(self.ports[name]) for name in ports}
        if service == "agent-0":
            here["FLEET_AGENT_PORT"] = str(self.beside_port)
        if here.get("FLEET_SECRET_FILE", "").startswith("/api/"):  # where the API's volume is mounted
            here["FLEET_SECRET_FILE"] = here["FLEET_SECRET_FILE"].replace("/api", str(self.folder / "data"))
        elif "FLEET_SECRET_FILE" in here:  # as the engine would mount it: for its reader alone
            private = self.folder / "secret_key"
            if not private.exists():
                shutil.copy(self.secrets / "secret_key", private)
                private.chmod(0o400)
            here["FLEET_SECRET_FILE"] = str(private)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        return {**kept, **here}

    def argv(self, service: str, words: list[str] | None = None) -> list[str]:
        """What the container runs: the image's entry point, without the init, and the service's command."""
        told = words if words is not None else list(self.services[service]["command"])
        entry = json.loads(last(stages(IMAGES["fleet"])["base"], "ENTRYPOINT") or "")
        assert entry == ["tini", "--", "fleet"]
        places = {
            "http://haproxy:8189": f"http://127.0.0.1:{self.ports['console_port']}",
            f"http://{NODE}:8188": f"http://127.0.0.1:{self.ports['node']}",
            "/comfyui/": f"{self.folder}/node/",
        }
        for name, place in places.items():
            told = [word.replace(name, place) for word in told]
        if "--advertise" in told:
            told[told.index("--advertise") + 1] = "127.0.0.1"
        return [sys.executable, "-m", "comfy_fleet", *told]

    def start(self, service: str, *, copy: int = 1) -> None:
        if service == "redis":
            command = list(self.services["redis"]["command"])
            (self.folder / "redis").mkdir(exist_ok=True)
            command[0] = program()
            command[command.index("--dir") + 1] = str(self.folder / "redis")
            argv = [*command, "--port", str(self.ports["redis"]), "--bind", "127.0.0.1"]
        else:
            argv = self.argv(service)
        with (self.folder / f"{service}-{copy}.log").open("ab") as log:
            self.running[f"{service}-{copy}"] = subprocess.Popen(
                mortal(argv), stdout=log, stderr=log, env=self.environment(service)
            )

    def start_node(self) -> None:
        with (self.folder / "node.log").open("ab") as log:
            self.running["node"] = subprocess.Popen(
                mortal([str(DOCKER / "comfyui" / "entrypoint")]),
                stdout=log,
                stderr=log,
                env=self.node_environment(),
            )

    def node_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **{name: str(value) for name, value in self.services["comfyui-0"]["environment"].items()},
            "COMFYUI_HOME": str(self.home),
            "COMFYUI_PYTHON": sys.executable,
            "COMFYUI_DATA": str(self.folder / "node"),
            "COMFYUI_TEMP": str(self.folder / "node-temp"),
            "COMFYUI_LISTEN": "127.0.0.1",
            "COMFYUI_PORT": str(self.ports["node"]),
            "PYTHONPATH": str(DOCKER.parent),
        }

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check as the engine would."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            script = words[0].replace("/usr/local/bin/health.py", str(DOCKER / "comfyui" / "health.py"))
            argv, env = ["/bin/sh", "-c", script], self.node_environment()
        elif words[0] == "redis-cli":
            env = dict(os.environ)
            argv = [words[0], "-p", str(self.ports["redis"]), *words[1:]]
        else:
            assert words[0] == "fleet"
            argv, env = self.argv(service, words[1:]), self.environment(service)
        try:
            return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=env)
        except subprocess.TimeoutExpired:  # to the engine one that failed: it asks again
            return subprocess.CompletedProcess(argv, 1, "", "no answer within 30 s")

    def healthy(self, service: str, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while (told := self.health(service)).returncode != 0:
            if time.monotonic() > deadline:
                raise AssertionError(f"{service}: {told.stdout}{told.stderr}\n{self.logs()}")
            time.sleep(0.5)  # each look is a process, and takes time from what it waits for

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose run --rm cli WORDS``."""
        argv = self.argv("cli", list(words) or None)
        told = subprocess.run(
            argv, capture_output=True, text=True, timeout=90, check=False, env=self.environment("cli")
        )
        assert told.returncode == 0, f"{words}: {told.stdout}{told.stderr}\n{self.logs()}"
        return told

    def picture(self, prompt: str) -> dict[str, Any]:
        """Have a picture made, as a person would; returns the job."""
        words = ("submit", "image_card", "-p", f"prompt={prompt}", "--wait", "--timeout", "60", "--json")
        made: dict[str, Any] = json.loads(self.cli(*words).stdout)
        return made

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in self.folder.glob("*.log")
        )

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop_all(self) -> None:
        order = ("dispatch", "api", "agent", "central", "haproxy", "node", "redis")
        for start in order:
            for name in [name for name in self.running if name.startswith(start)]:
                self.stop(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for HAProxy's sockets."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as made:
        yield Path(made)


@pytest.fixture
def one_host(folder: Path) -> Iterator[Host]:
    host = Host(folder, COMPOSE)
    try:
        yield host
    finally:
        host.stop_all()


def test_one_host_from_nothing_to_a_picture(one_host: Host) -> None:
    host = one_host
    checked = ["redis", "haproxy", "api", "dispatch", "central-agent", "agent-0", "comfyui-0"]
    # Nothing runs yet. A dispatcher without Redis is not ill: starting it again would bring no Redis back.
    sick = {name: host.health(name).returncode for name in checked}
    assert sick == dict.fromkeys(checked, 1) | {"dispatch": 0}
    assert "unknown: Redis does not answer" in host.health("dispatch").stderr

    host.start("redis")
    host.healthy("redis")
    assert host.health("dispatch").returncode == 1  # now it can be told that there is none
    for service in ("haproxy", "api", "central-agent", "dispatch"):
        host.start(service)
    host.start("dispatch", copy=2)
    for name in ("redis", "haproxy", "api", "central-agent", "dispatch"):
        host.healthy(name)

    # All of them work, yet no job could run: there is no node.
    status = subprocess.run(
        host.argv("cli", ["status"]), capture_output=True, text=True, check=False, env=host.environment("cli")
    )
    assert status.returncode == 1
    assert "no node is known" in status.stdout + status.stderr

    # The agent beside the node registers it: nobody has to.
    host.start_node()
    host.start("agent-0")
    for name in checked:
        host.healthy(name)
    host.cli()  # its command: status --wait
    job = host.picture("a fox")
    assert (job["status"], job["node"]) == ("succeeded", NODE)

    # An update, one container after the other: a dispatcher goes, then the API; the next job runs.
    assert host.stop("dispatch-1") == 0
    assert host.stop("api-1") == 0
    assert host.health("api").returncode == 1
    host.start("api")
    host.healthy("api")
    assert host.picture("an owl")["status"] == "succeeded"

    # HAProxy's own question and the container's are one: no leases without a healthy node, either way.
    host.stop("node")
    told = host.health("comfyui-0")
    assert told.returncode == 1
    assert "nothing answers" in told.stderr
    host.stop("agent-0-1")
    assert "nothing answers" in host.health("agent-0").stderr
    host.stop("haproxy-1")
    assert "does not answer" in host.health("haproxy").stderr
    host.stop("dispatch-2")
    assert "no heartbeat" in host.health("dispatch").stderr


def start_in_any_order(host: Host) -> None:
    """Start Redis last: a process may end while it is away, and its restart policy starts it again."""
    kept = ("haproxy", "api", "dispatch", "central-agent", "agent-0")
    for service in kept:
        assert host.services[service]["restart"] == "unless-stopped"
        host.start(service)
    host.start("redis")
    host.healthy("redis")
    waiting = set(kept)
    deadline = time.monotonic() + 120
    while waiting:
        assert time.monotonic() < deadline, f"{waiting}\n{host.logs()}"
        for service in kept:
            if host.running[f"{service}-1"].poll() is not None:
                host.start(service)
        waiting = {service for service in waiting if host.health(service).returncode != 0}
        time.sleep(0.5)  # as above


@pytest.mark.parametrize("path", [FLEET, STACK], ids=lambda path: path.stem)
def test_the_control_host_starts_and_nodes_join(folder: Path, path: Path) -> None:
    host = Host(folder, path)
    if path is STACK:  # its GPU hosts, and people, use the other file
        key = (host.secrets / "keys").read_text().split()[1]
        fleet = services(FLEET, {"FLEET_API_KEY": key, "COMFYUI_ARGS": "--lowvram"})
        host.services |= {name: fleet[name] for name in ("cli", "comfyui-0", "agent-0")}
    try:
        host.start_node()
        if path is FLEET:
            start_in_any_order(host)
        else:
            for service in ("redis", "haproxy", "api", "dispatch", "central-agent", "agent-0"):
                host.start(service)
            for service in ("redis", "haproxy", "api", "dispatch", "central-agent", "agent-0"):
                host.healthy(service)
        host.healthy("comfyui-0")
        host.cli("status", "--wait", "--timeout", "60")
        assert host.picture("a boat")["node"] == NODE
        # One that has no agent: the central one answers for it.
        host.stop("agent-0-1")
        host.cli("node", "rm", NODE, "--force")
        url = f"http://127.0.0.1:{host.ports['node']}"
        host.cli("node", "add", "remote", url, "--wait", "--timeout", "30")
        assert host.picture("a lake")["node"] == "remote"
    finally:
        host.stop_all()


@pytest.mark.parametrize("target", ["api", "dispatch", "haproxy", "agent", "cli"])
def test_every_images_command_exists(target: str) -> None:
    words = json.loads(last(stages(IMAGES["fleet"])[target], "CMD") or "")
    argv = [sys.executable, "-m", "comfy_fleet", *(word for word in words if word != "--help"), "--help"]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "Usage" in told.stdout


def test_the_nodes_entry_point_says_what_is_missing(tmp_path: Path) -> None:
    entry = str(DOCKER / "comfyui" / "entrypoint")
    told = subprocess.run(
        [entry],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COMFYUI_HOME": str(tmp_path)},
    )
    assert told.returncode == 2
    assert "set COMFYUI_HOME" in told.stderr


def test_the_nodes_arguments(tmp_path: Path) -> None:
    """Flags that this ComfyUI does not know are left out; the command's arguments come last, so they win."""
    home = bare_checkout(tmp_path, main="import os, sys; print(os.getcwd()); print(*sys.argv[1:], sep='\\n')")
    (tmp_path / "nodes").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "COMFYUI_HOME": str(home),
        "COMFYUI_PYTHON": sys.executable,
        "COMFYUI_DATA": str(tmp_path / "data"),
        "COMFYUI_TEMP": str(tmp_path / "temp"),
        "COMFYUI_EXTRA_NODES": str(tmp_path / "nodes"),
        "COMFYUI_ARGS": "--lowvram --verbose",
    }
    entry = str(DOCKER / "comfyui" / "entrypoint")
    told = subprocess.run(
        [entry, "--port", "9"], capture_output=True, text=True, check=True, env=environment
    ).stdout
    folder, *argv = told.splitlines()
    assert folder == str(home)
    assert argv[:4] == ["--listen", "0.0.0.0", "--port", "8188"]
    assert argv[-4:] == ["--lowvram", "--verbose", "--port", "9"]
    assert "--database-url" not in argv
    config = Path(argv[argv.index("--extra-model-paths-config") + 1])
    assert str(tmp_path / "nodes") in config.read_text()


@pytest.mark.comfyui
@pytest.mark.timeout(700)  # what a start takes is the machine's business
def test_a_real_comfyui_starts_by_the_entry_point(comfyui_home: Path, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    python = os.environ.get("COMFYUI_PYTHON") or interpreter(comfyui_home)
    port = free_port()
    environment = {
        **os.environ,
        "COMFYUI_HOME": str(comfyui_home),
        "COMFYUI_PYTHON": python,
        "COMFYUI_DATA": str(tmp_path / "data"),
        "COMFYUI_TEMP": str(tmp_path / "temp"),
        "COMFYUI_EXTRA_NODES": str(tmp_path / "nodes"),
        "COMFYUI_LISTEN": "127.0.0.1",
        "COMFYUI_PORT": str(port),
        "COMFYUI_ARGS": "--cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    _, check = services(COMPOSE)["comfyui-0"]["healthcheck"]["test"]
    script = check.replace("/usr/local/bin/health.py", shlex.quote(str(DOCKER / "comfyui" / "health.py")))
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(
            mortal([str(DOCKER / "comfyui" / "entrypoint")]), stdout=log, stderr=log, env=environment
        )
    try:
        assert subprocess.run(["/bin/sh", "-c", script], env=environment, check=False).returncode == 1
        wait_until_it_answers(ComfyServer(f"http://127.0.0.1:{port}", port, tmp_path), node)
        deadline = time.monotonic() + 90
        while subprocess.run(["/bin/sh", "-c", script], env=environment, check=False).returncode != 0:
            assert node.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert (tmp_path / "data" / "user").is_dir()
    finally:
        node.terminate()
        node.wait(20)
