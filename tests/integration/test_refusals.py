"""Settings that can't work are refused at once, by the name of their variable and in a line that fits."""

from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.integration.up_kit import fleet


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"FLEET_DATA": "{}/my fleet"}, "FLEET_DATA: '{}/my fleet' must not hold blanks"),
        ({"FLEET_HAPROXY_BIN": "/nope/haproxy"}, "FLEET_HAPROXY_BIN: there is no program /nope/haproxy"),
        ({"FLEET_TLS_CERT_FILE": "/nope.pem"}, "FLEET_TLS_CERT_FILE: /nope.pem can't be read: No such file"),
        (
            {"FLEET_TLS_CERT_FILE": "{}/cert.pem", "FLEET_TLS_KEY_FILE": "/nope.key"},
            "FLEET_TLS_CERT_FILE: {}/cert.pem holds no certificate",
        ),
        (
            {"FLEET_WORKFLOWS": "/nope"},
            "/nope, can't be read: No such file or directory; set FLEET_WORKFLOWS",
        ),
        ({"FLEET_CORS_ORIGINS": "x" * 3000}, f"FLEET_CORS_ORIGINS: '{'x' * 100}…' is no origin"),
    ],
)
def test_up_starts_nothing(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    (tmp_path / "cert.pem").write_text("none")
    env = {name: value.replace("{}", str(tmp_path)) for name, value in variables.items()}
    env = {"FLEET_DATA": str(tmp_path / "data"), "FLEET_PORT": str(free_port()), **env}
    told = fleet("up", timeout_s=60, **env)
    assert told.returncode != 0 and says.replace("{}", str(tmp_path)) in told.stderr, told.stderr
    assert len(told.stderr) < 600
    assert not (Path(env["FLEET_DATA"]) / "redis").exists()


def test_the_api_does_not_start_without_its_folder_of_workflows(tmp_path: Path, redis_port: int) -> None:
    told = fleet(
        "api",
        FLEET_DATA=str(tmp_path),
        FLEET_WORKFLOWS="/nope",
        FLEET_REDIS_URL=f"redis://127.0.0.1:{redis_port}/0",
    )
    assert told.returncode == 1 and "set FLEET_WORKFLOWS" in told.stderr
