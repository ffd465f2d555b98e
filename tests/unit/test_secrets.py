"""Keys at rest."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.domain.errors import ConfigError


def test_sealed_under_one_key_for_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret.key"
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(lambda _: SecretBox.open(path), range(8)))
    sealed = boxes[0].seal(b"partner key")
    assert b"partner" not in sealed
    assert {box.open_sealed(sealed) for box in boxes} == {b"partner key"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert "***" in repr(boxes[0])


def test_another_key_can_not_read_it(tmp_path: Path) -> None:
    sealed = SecretBox.open(tmp_path / "a").seal(b"x")
    with pytest.raises(ConfigError, match="FLEET_SECRET_FILE"):
        SecretBox.open(tmp_path / "b").open_sealed(sealed)


@pytest.mark.parametrize("place", [".", "file/secret.key", "file"])
def test_a_place_where_no_key_can_be_is_refused_with_the_way_out(place: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("nonsense")
    file.chmod(0o600)
    with pytest.raises(
        ConfigError, match=r"^FLEET_SECRET_FILE: .*(set FLEET_SECRET_FILE or|base64; remove it)"
    ):
        SecretBox.open(tmp_path / place)


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="base64"):
        SecretBox.open(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        SecretBox.open(path)
