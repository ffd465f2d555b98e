"""The table of what the tests run: modules are summed up by folder."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "coverage_table.py"


def module(lines: int, missed: int, branches: int = 0, half: int = 0) -> dict[str, dict[str, int]]:
    counts = (lines, missed, branches, half)
    names = ("num_statements", "missing_lines", "num_branches", "missing_branches")
    return {"summary": dict(zip(names, counts, strict=True))}


def test_modules_are_summed_up_by_folder_and_large_folders_by_their_parts(tmp_path: Path) -> None:
    files = {
        "comfy_fleet/settings.py": module(10, 0),
        "comfy_fleet/api/v1/jobs.py": module(30, 15, 10, 5),
        "comfy_fleet/api/app.py": module(10, 0),
        "comfy_fleet/domain/jobs/run.py": module(100, 0, 100, 10),
        "comfy_fleet/domain/errors.py": module(0, 0),
    }
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"files": files}))
    told = subprocess.run([sys.executable, SCRIPT, data], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in told.splitlines()[1:]]
    assert rows == [
        [".", "10", "0", "0", "0", "100.0%"],
        ["api", "40", "15", "10", "5", "60.0%"],
        ["domain", "0", "0", "0", "0", "100.0%"],
        ["domain/jobs", "100", "0", "100", "10", "95.0%"],
        ["all", "150", "15", "110", "15", "88.5%"],
    ]
