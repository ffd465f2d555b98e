"""keepalived reads the example for two edges with one address; what it then does needs two machines."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.children import mortal
from tests.integration.proxy_kit import PATH, SHIPPED, changed


def complaints(folder: Path, text: str) -> str:
    """What keepalived says of a configuration; its exit status says nothing."""
    program = shutil.which("keepalived", path=PATH)
    assert program, "keepalived is missing: scripts/setup --tests installs it"
    # This machine need not have the interface.
    text = changed(text, {"global_defs {": "global_defs {\n    dynamic_interfaces"})
    config, said = folder / "keepalived.conf", folder / "said"
    config.write_text(text)
    command = [program, f"--config-test={said}", f"--use-file={config}"]
    subprocess.run(mortal(command), timeout=30, check=False, start_new_session=True, capture_output=True)
    assert said.exists(), "it did not read the file"
    lines = said.read_text().splitlines()
    # Only root can tell whose script it is.
    return "\n".join(line for line in lines if os.getuid() == 0 or not line.endswith("due to insecure"))


def test_the_example_is_understood(tmp_path: Path) -> None:
    assert complaints(tmp_path, (SHIPPED / "keepalived.conf").read_text()) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [("    fall 3", "    fal 3"), ("priority 150", "priority 999"), ("192.0.2.10/24", "192.0.2.300")],
)
def test_a_mistake_is_told(tmp_path: Path, old: str, new: str) -> None:
    text = changed((SHIPPED / "keepalived.conf").read_text(), {old: new})
    assert complaints(tmp_path, text) != ""
