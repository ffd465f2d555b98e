"""Why a process ended: a reason, and never merely the last thing that it happened to say."""

import pytest

from comfy_fleet.domain.nodes.process_end import error_in, reason_of

CHATTER = [
    "Loading success.",
    "Server be_pool_1/gpu7 remains in forced drain mode.",
    '{"client":"127.0.0.1","frontend":"fe_public","status":503,"path":"/api/v1/failed"}',
    '{"level": "info", "msg": "prompt accepted", "error": ""}',
    "\x1b[32mPrompt executed in 0.08 seconds\x1b[0m",
]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-9, "killed by signal SIGKILL (perhaps out of memory)"),
        (137, "killed by signal SIGKILL (perhaps out of memory)"),
        (-11, "crashed with signal SIGSEGV"),
        (-15, "ended by signal SIGTERM"),
        (-65, "ended by signal 65"),
        (-6, "gave up with signal SIGABRT"),
        (0, "exit 0"),
        (3, "exit 3"),
        (255, "exit 255"),
    ],
)
def test_what_it_said_about_other_things_is_no_reason(status: int, reason: str) -> None:
    assert reason_of(status, CHATTER) == reason


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ModuleNotFoundError: No module named 'torch'", "ModuleNotFoundError: No module named 'torch'"),
        ("│ No such option: --no-such-option        │", "No such option: --no-such-option"),
        ("error: secret_file x is no key", "error: secret_file x is no key"),
        ("\x1b[31m[ERROR] CUDA\x1b[0m", "[ERROR] CUDA"),
        ("[ALERT] (7) : cannot bind socket", "[ALERT] (7) : cannot bind socket"),
        ('{"level":"error","msg":"not ready","reason":"port 1 is taken"}', "not ready: port 1 is taken"),
        ("x" * 500 + " error", "x" * 300),
    ],
)
def test_the_last_error_of_one_that_gave_up_is_its_reason(line: str, told: str) -> None:
    lines = [line, "╰─────╯", "hint: see the error above", *CHATTER]
    assert reason_of(1, lines) == told
    assert reason_of(-9, lines).startswith("killed by signal SIGKILL")


def test_one_that_aborts_says_why_before() -> None:
    assert reason_of(-6, ["  what():  CUDA error: out of memory", *CHATTER]) == (
        "gave up with signal SIGABRT: what():  CUDA error: out of memory"
    )


@pytest.mark.parametrize(
    "line", ["{broken error", "{}", '{"level":"error"}', '{"level":["error"]}', "", "error"]
)
def test_what_is_no_line_of_ours_is_passed_over(line: str) -> None:
    assert error_in([line]) == ""
