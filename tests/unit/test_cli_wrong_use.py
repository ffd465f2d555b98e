"""What an operator may type wrong: one line that says what, and nothing is begun."""

import pytest
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.errors import BadInput

AGENT = ("agent", "--join", "http://127.0.0.1:1", "--host", "h1", "--port", "0")
BESIDE = (*AGENT, "--node", "g1=http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((*AGENT, "--comfyui", "/nowhere", "--comfyui-args", "'x"), '--comfyui-args "\'x"'),
        ((*AGENT, "--comfyui", "/nowhere", "--override", "0:'x"), "--override"),
        (("up", "--comfyui", "/nowhere", "--comfyui-args", "'x"), "--comfyui-args"),
        (("up", "--sim-args", "'x"), "--sim-args"),
        (("node", "roll", "--restart-command", "'x"), "--restart-command"),
        (("node", "roll", "--restart-command", " "), "--restart-command is empty"),
        (("node", "roll", "--restart-command", "/no/such {name}"), "no program /no/such"),
        (("node", "roll", "--restart-command", "", "--wait-restart"), "either"),
        (("up", "--data", "/tmp/\udcff"), "--data"),
        (("down", "--data", "/tmp/a\nb"), "--data"),
        ((*BESIDE, "--node", "g1=http://127.0.0.1:2"), "named twice"),
    ],
)
def test_it_is_told_before_anything_is_begun(line: tuple[str, ...], words: str) -> None:
    refused = CliRunner().invoke(build(), line)
    assert isinstance(refused.exception, Fail), refused.exception
    assert (refused.exception.exit, words in str(refused.exception)) == (Exit.USAGE, True)


def test_a_pool_s_name_is_looked_at_before_the_api_is_asked() -> None:
    refused = CliRunner().invoke(build(), [*BESIDE, "--pool", "Big One"])
    assert isinstance(refused.exception, BadInput)
    assert "pool 'Big One'" in str(refused.exception)
