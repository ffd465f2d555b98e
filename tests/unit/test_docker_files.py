"""The container files: valid, and true to what the documentation promises of them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.settings import Settings
from tests.container_files import (
    COMPOSE,
    DOCKER,
    FLEET,
    IMAGES,
    MONITORING,
    ROOT,
    STACK,
    example,
    last,
    load,
    services,
    stages,
    variables_in,
)
from tests.key_files import keys_of

FILES = [COMPOSE, FLEET, STACK]
IN_DOCKER = [DOCKER / "make-secrets", DOCKER / "comfyui" / "entrypoint"]
SCRIPTS = [
    *IN_DOCKER,
    ROOT / ".ci" / "run",
    *sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix),
]
OURS = {"api", "dispatch", "haproxy", "agent"}


def every_service() -> list[Any]:
    return [
        pytest.param(path, name, service, id=f"{path.stem}-{name}")
        for path in FILES
        for name, service in services(path).items()
    ]


def mounted(service: dict[str, Any]) -> list[list[str]]:
    """Return source, target and mode, if it is given, of what a service mounts."""
    return [volume.split(":") for volume in service.get("volumes", []) if isinstance(volume, str)]


def comfyuis(path: Path) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services(path).items() if name.startswith("comfyui-")}


def sysctls() -> dict[str, str]:
    lines = (DOCKER / "sysctl.conf").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


# ---- the formats -------------------------------------------------------------------------------------------


def test_the_compose_files_follow_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [*FILES, MONITORING]
    told = subprocess.run([*checker, *map(str, files)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("start_period:", "start_perod:"))
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    told = subprocess.run([*checker, str(wrong)], capture_output=True, text=True, check=False)
    assert told.returncode == 1


# What Swarm's client puts into a service. It accepts other keys, and drops most of them without a word.
SWARM = {
    *("cap_drop", "command", "deploy", "environment", "healthcheck", "image", "logging", "networks", "ports"),
    *("read_only", "secrets", "stop_grace_period", "sysctls", "ulimits", "user", "volumes"),
}


def test_swarm_carries_out_all_of_the_stack() -> None:
    for name, service in services(STACK).items():
        assert service.keys() <= SWARM, name
    if docker := shutil.which("docker"):
        command = [docker, "stack", "config", "-c", str(STACK)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        assert "published: 8188" in told.stdout


@pytest.mark.parametrize(("path", "name", "service"), every_service())
def test_what_may_write_nowhere_else_has_a_tmp(path: Path, name: str, service: dict[str, Any]) -> None:
    if service.get("read_only") and not (name == "redis" or name.startswith("gpu-")):
        short = service.get("tmpfs", [])
        long = [volume for volume in service.get("volumes", []) if isinstance(volume, dict)]
        assert [entry.split(":")[0] for entry in short] + [volume["target"] for volume in long] == ["/tmp"]


def test_the_scripts_are_clean() -> None:
    checker = Path(sys.executable).with_name("shellcheck")  # the development tools' own, not the system's
    told = subprocess.run([checker, *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_file_names_is_declared_in_it(path: Path) -> None:
    whole = load(path)
    for name, service in services(path).items():
        assert set(service.get("networks", [])) <= whole["networks"].keys(), name
        shared = service.get("network_mode", "").removeprefix("service:")
        assert bool(shared) is not bool(service.get("networks")), name
        assert not shared or shared in whole["services"], name
        for volume in service.get("volumes", []):
            if not isinstance(volume, str):
                assert volume["type"] == "tmpfs", name
                continue
            source = volume.split(":")[0]
            assert source.startswith((".", "/")) or source in whole["volumes"], (name, volume)
        for secret in service.get("secrets", []):
            known = secret if isinstance(secret, str) else secret["source"]
            assert known in whole["secrets"], (name, secret)
        assert service.get("depends_on", {}).keys() <= whole["services"].keys(), name


def test_every_variable_is_in_the_example_with_the_same_default() -> None:
    known = example()
    asked = {name for path in [*FILES, MONITORING] for name in variables_in(path)}
    optional = {"FLEET_LOG_LEVEL", "REDIS_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE"}
    assert asked - optional <= known.keys()
    assert known.keys() - asked == {"COMPOSE_PROFILES"}
    for path in [*FILES, MONITORING]:
        for name, defaults in variables_in(path).items():
            assert len(defaults) == 1, name
            assert name in optional or defaults == {known[name]}, name


# ---- services ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "name", "service"), every_service())
def test_a_service_runs_confined_and_checked(path: Path, name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service
    if path is not STACK:  # a stack does not know it
        assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "cli" or name.startswith("gpu-"):
        return
    process = re.sub(r"^central-|-\d$", "", name)
    if process in OURS:
        assert service["healthcheck"]["test"] == ["CMD", "fleet", "health", process]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_edge_is_published_and_only_here(path: Path) -> None:
    published = {name: service["ports"] for name, service in services(path).items() if "ports" in service}
    assert published.keys() == {"haproxy"}
    if path is not STACK:
        assert published["haproxy"] == ["127.0.0.1:8188:8188", "127.0.0.1:8189:8189"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_networks_keep_redis_and_nodes_apart(path: Path) -> None:
    whole, found = load(path), services(path)
    where = {name: set(service.get("networks", [])) for name, service in found.items()}
    assert where["haproxy"] == {"edge", "backend", "nodes"}
    assert all(where[name] == {"backend"} for name in ("redis", "api", "dispatch"))
    for name, networks in where.items():
        if name.startswith("gpu-") or name == "central-agent":
            assert networks == {"nodes"}, name
        elif name.startswith(("comfyui-", "agent-")):
            assert found[name]["network_mode"] == f"service:gpu-{name[-1]}", name
    assert whole["networks"]["backend"]["internal"] is True
    nodes = whole["networks"]["nodes"]
    assert nodes.get("internal") or nodes == {"external": True, "name": "fleet-nodes"}


@pytest.mark.parametrize("path", [COMPOSE, FLEET], ids=lambda path: path.stem)
def test_each_comfyui_has_a_gpu_and_data_of_its_own_and_changes_no_models(path: Path) -> None:
    gpus, places = [], []
    for name, service in comfyuis(path).items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        gpus += device["device_ids"]
        mounts = {target: (source, mode) for source, target, *mode in mounted(service)}
        assert mounts["/opt/comfyui/models"][1] == mounts["/custom_nodes"][1] == ["ro"], name
        places.append(mounts["/data"][0])
        assert not any(variable.startswith("FLEET_") for variable in service["environment"])
    assert len(set(gpus)) == len(gpus) == len(set(places)) == len(comfyuis(path))


def test_profiles_start_as_many_nodes_as_they_say() -> None:
    for path in (COMPOSE, FLEET):
        for profile, count in (("gpus-1", 1), ("gpus-2", 2), ("gpus-4", 4)):
            started = [name for name, service in comfyuis(path).items() if profile in service["profiles"]]
            assert started == [f"comfyui-{index}" for index in range(count)]


@pytest.mark.parametrize("path", [COMPOSE, FLEET], ids=lambda path: path.stem)
def test_a_node_and_its_agent_share_an_address_with_a_name_of_its_own(path: Path) -> None:
    found = services(path, {"FLEET_GPU_HOST": "rack4"})
    for index in range(4):
        name = f"rack4-{index}"
        holder, agent, comfyui = (found[f"{kind}-{index}"] for kind in ("gpu", "agent", "comfyui"))
        assert holder["hostname"] == name
        assert holder["networks"]["nodes"]["aliases"] == [name]
        assert holder["profiles"] == agent["profiles"] == comfyui["profiles"]
        words = agent["command"]
        told = dict(zip(words[1::2], words[2::2], strict=True))
        assert told["--node"] == f"{name}=http://{name}:8188@{index}"
        assert told["--host"] == told["--advertise"] == agent["environment"]["FLEET_AGENT_HOST"] == name
        assert told["--output-dir"] == f"{name}=/comfyui/output"
        assert agent["volumes"] == [f"comfyui-{index}:/comfyui"]


def test_an_agent_sees_the_hosts_processes_and_may_remove_its_nodes_files() -> None:
    node_user = last(stages(IMAGES["comfyui"])["node"], "USER")
    for path in (COMPOSE, FLEET):
        for index in range(4):
            agent = services(path)[f"agent-{index}"]
            assert agent["pid"] == "host"
            assert agent["user"] == node_user


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dispatchers_and_the_api_share_their_files(path: Path) -> None:
    found = services(path)
    places = [
        {source for source, target, *_ in mounted(found[name]) if target == "/data"}
        for name in ("dispatch", "api")
    ]
    assert places[0] == places[1] and len(places[0]) == 1


def test_an_update_is_watched_until_it_could_be_found_ill_and_secrets_are_their_readers() -> None:
    user, _ = (last(stages(IMAGES["fleet"])["api"], "USER") or "").split(":")
    for name, service in services(STACK).items():
        update = service["deploy"]["update_config"]
        check = service["healthcheck"]
        ill_s = check["retries"] * int(check["interval"].removesuffix("s"))
        assert int(update["monitor"].removesuffix("s")) >= ill_s, name
        keeps_files = any(source == name for source, *_ in mounted(service))
        assert not keeps_files or update["order"] == "stop-first", name  # two would write them
        for secret in service.get("secrets", []):
            assert (secret["mode"], secret["uid"]) == (0o400, user), name


# ---- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "name", "service"), every_service())
def test_variables_are_settings_and_their_values_are_accepted(
    path: Path, name: str, service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {key: value for key, value in service.get("environment", {}).items() if "FLEET" in key}
    if name == "cli":
        assert environment.keys() == {"FLEET_API_URL", "FLEET_API_KEY"}
        return
    known = {f"FLEET_{field.upper()}" for field in Settings.model_fields}
    assert environment.keys() <= known
    token = tmp_path / "agent_token"
    token.write_text("a token\n")
    for key, value in environment.items():
        monkeypatch.setenv(key, str(token) if key == "FLEET_AGENT_TOKEN_FILE" else value)
    settings = Settings()
    assert settings.agent_token == ("a token" if "FLEET_AGENT_TOKEN_FILE" in environment else None)


def test_the_agents_token_is_told_or_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from the file\n")
    assert Settings(agent_token_file=path).agent_token == "from the file"
    assert Settings(agent_token_file=path, agent_token="told").agent_token == "told"
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        Settings(agent_token_file=path)
    with pytest.raises(ValueError, match="can't be read"):
        Settings(agent_token_file=tmp_path / "none")


def test_sysctls_are_the_hosts_and_containers_have_only_those_of_networks() -> None:
    host = sysctls()
    for path in FILES:
        for name, service in services(path).items():
            for key, value in service.get("sysctls", {}).items():
                assert key.startswith("net."), (name, key)
                assert host[key] == str(value), (name, key)
    lowest = int(host["net.ipv4.ip_local_port_range"].split()[0])
    ports = [
        one.default for name, one in Settings.model_fields.items() if name.endswith("port") and one.default
    ]
    assert ports
    assert max(ports) < lowest


def test_sysctls_are_known_to_the_kernel() -> None:
    for key in sysctls():
        assert Path("/proc/sys", *key.split(".")).exists(), key


# ---- images ------------------------------------------------------------------------------------------------


def test_every_built_target_exists() -> None:
    fleet, node = stages(IMAGES["fleet"]), stages(IMAGES["comfyui"])
    for path in (COMPOSE, FLEET):
        for name, service in services(path).items():
            if (build := service.get("build")) is None:
                continue
            assert build["target"] in (node if name.startswith("comfyui-") else fleet), name
            context = (DOCKER / build["context"]).resolve()
            assert (context / build.get("dockerfile", "Dockerfile")).is_file(), name


@pytest.mark.parametrize("target", ["api", "dispatch", "haproxy", "agent", "cli"])
def test_a_target_runs_as_nobody_special_under_an_init(target: str) -> None:
    steps = stages(IMAGES["fleet"])[target]
    assert last(steps, "USER") == "10001:10001"
    assert json.loads(last(steps, "ENTRYPOINT") or "") == ["tini", "--", "fleet"]
    check = last(steps, "HEALTHCHECK") or ""
    if target == "cli":
        assert check == "NONE"
        return
    assert json.loads(check.split(" CMD ")[1]) == ["fleet", "health", target]
    service = services(COMPOSE)["central-agent" if target == "agent" else target]
    words = json.loads(last(steps, "CMD") or "")
    assert service["command"][: len(words)] == words


def test_the_node_image_runs_as_nobody_special_under_an_init() -> None:
    steps = stages(IMAGES["comfyui"])["node"]
    assert last(steps, "USER") == "10002:10002"
    assert json.loads(last(steps, "ENTRYPOINT") or "")[:2] == ["tini", "--"]
    command = (last(steps, "HEALTHCHECK") or "").split(" CMD ")[1]
    check = services(COMPOSE)["comfyui-0"]["healthcheck"]["test"]
    assert ["/bin/sh", "-c", check[1]] == json.loads(command)


@pytest.mark.parametrize("path", IMAGES.values(), ids=lambda path: path.parent.name)
def test_image_files_keep_the_rules(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# syntax=docker/dockerfile:1\n")
    for name, value in (step for steps in stages(path).values() for step in steps):
        assert name not in ("ADD", "MAINTAINER", "VOLUME"), value
        if name in ("CMD", "ENTRYPOINT"):
            assert value.startswith("["), value
        if name == "RUN" and "apt-get install" in value:
            for part in ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"):
                assert part in value, value
        if name == "RUN" and "pip install" in value:
            assert "--mount=type=cache" in value, value
        if name == "FROM":
            assert ":latest" not in value
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|secret|passw|api_key", value), value


@pytest.mark.parametrize("path", IMAGES.values(), ids=lambda path: path.parent.name)
def test_copied_files_exist_and_are_sent_to_the_builder(path: Path) -> None:
    context = ROOT if path.parent == DOCKER else path.parent
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for steps in stages(path).values():
        for name, value in steps:
            if name == "COPY" and "--from=" not in value:
                copied |= {word for word in shlex.split(value)[:-1] if not word.startswith("--")}
    assert copied
    for source in copied:
        assert (context / source).exists(), source
        if context == ROOT:
            assert source in allowed, source
    if context == ROOT:
        assert copied == allowed


def test_the_wheel_can_be_built_from_what_the_builder_gets(tmp_path: Path) -> None:
    """The package's own build, on exactly the copied files, without network."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tmp_path / line[1:])
    told = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.startswith("comfy_fleet-")


# ---- secrets -----------------------------------------------------------------------------------------------


def test_secrets_are_made_once_and_are_what_the_processes_take(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def make() -> dict[str, str]:
        subprocess.run([str(DOCKER / "make-secrets"), str(folder)], check=True, capture_output=True)
        return {path.name: path.read_text() for path in folder.iterdir()}

    made = make()
    assert made.keys() == {"keys", "agent_token", "secret_key", "grafana_password"}
    assert make() == made
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    (folder / "keys").chmod(0o400)  # as it is mounted, for its reader alone
    settings = Settings(keys_file=folder / "keys", agent_token_file=folder / "agent_token")
    assert not keys_of(settings.keys_file).open
    assert len(settings.agent_token or "") >= 40
    key = tmp_path / "mounted"  # Swarm mounts it for its reader alone
    shutil.copy(folder / "secret_key", key)
    key.chmod(0o400)
    assert SecretBox.open(key).open_sealed(SecretBox.open(key).seal(b"x")) == b"x"


def test_scripts_explain_themselves() -> None:
    for script in IN_DOCKER:
        assert os.access(script, os.X_OK)
        told = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True)
        assert "Usage: " in told.stdout
        assert "set -eu" not in told.stdout
