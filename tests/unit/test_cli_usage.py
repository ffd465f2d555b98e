"""``fleet usage``: what it asks for, and what it prints."""

import csv
import io
import json

from tests.canned import Canned, run

FIGURES = {"gpu_seconds": 12.5, "jobs": 3, "succeeded": 2, "failed": 1, "canceled": 0, "expired": 0}
ROWS = [
    {"name": "=cmd()\x1b[31m", **FIGURES, "output_bytes": 2048},
    {"name": "", **FIGURES, "output_bytes": 0},
]
ANSWER = {"by": "workflow", "since": "2030-01-01T00:00:00Z", "until": "2030-01-08T00:00:00Z", "rows": ROWS}


def test_csv_is_for_spreadsheets_and_computes_nothing_there(canned: Canned) -> None:
    canned.on("GET", "/api/v1/usage", ANSWER)
    found = run(canned, "usage", "--by", "workflow", "--format", "csv")
    assert found.exit_code == 0, found.output
    head, first, second = csv.reader(io.StringIO(found.stdout))
    assert head == ["workflow", *FIGURES, "output_bytes"]
    assert first[0].startswith("'=cmd()")
    assert "\x1b" not in found.stdout
    assert second == ["graph", "12.5", "3", "2", "1", "0", "0", "0"]


def test_a_table_for_people_and_json_for_programs(canned: Canned) -> None:
    canned.on("GET", "/api/v1/usage", ANSWER)
    shown = run(canned, "usage", "--since", "30d", "--until", "1d")
    assert "2.0 KiB" in shown.stdout
    assert "12.5" in shown.stdout
    assert json.loads(run(canned, "usage", "--format", "json").stdout) == ANSWER
    assert "must be a time" in str(run(canned, "usage", "--since", "soon").exception)
