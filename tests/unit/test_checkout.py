"""How a ComfyUI is started: its own folders, its GPU, and what older versions don't know."""

from pathlib import Path

import pytest

from comfy_fleet.adapters.comfyui.checkout import Checkout
from tests.factories import bare_checkout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return bare_checkout(tmp_path, database=True)


def test_everyone_has_folders_and_a_gpu_of_its_own(home: Path, tmp_path: Path) -> None:
    found = Checkout.find(home, python="python3", args=["--fast"], custom_nodes=False)
    one, two = (
        found.launch(port=8200 + number, folder=tmp_path / f"g{number}", gpu=str(number), args=["--lowvram"])
        for number in (1, 2)
    )
    assert one.cwd == two.cwd == home
    assert one.env == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert "--cpu" not in one.argv
    assert one.argv[-3:] == ("--disable-all-custom-nodes", "--fast", "--lowvram")
    folders = [word for word in one.argv if f"{tmp_path}/g1" in word]
    assert len(folders) == 5  # output, input, user, temp, database
    assert not set(folders) & set(two.argv)
    assert (tmp_path / "g2" / "output").is_dir()


def test_on_the_cpu_with_an_older_version(tmp_path: Path) -> None:
    home = bare_checkout(tmp_path)
    launch = Checkout.find(home, python="python3").launch(port=8200, folder=tmp_path / "c", gpu=None)
    assert launch.argv[-1] == "--cpu"
    assert launch.env == {}
    assert "--database-url" not in launch.argv
    assert "--disable-all-custom-nodes" not in launch.argv
