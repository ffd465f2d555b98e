"""Figures by pool, as operators write them."""

import pytest
from pydantic import ValidationError

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.by_pool import ByPool
from comfy_fleet.settings import Settings


def test_one_figure_for_all_and_other_ones_for_some() -> None:
    found = ByPool.parse("600, big = 120,small=0")
    assert [found.of(pool) for pool in ("default", "big", "small")] == [600, 120, 0]
    assert ByPool.parse("0.5").of("any") == 0.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' must be a number of 0 or more"),
        ("big=120", "'big=120' must be a number of 0 or more"),
        ("600,big", "'big' must be POOL=FIGURE"),
        ("600,big=-1", "'-1' must be a number of 0 or more"),
        ("600,big=nan", "'nan' must be a number"),
        ("inf", "'inf' must be a number"),
        ("600,Big=1", "pool 'Big' must be 1 to 63 of a-z"),
        ("600,big=1,big=2", "pool big is named twice"),
    ],
)
def test_what_can_t_be_read_is_refused_with_the_way_out(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=r"(?s).*") as refused:
        ByPool.parse(text)
    assert told in str(refused.value)
    with pytest.raises(ValidationError, match="free_idle_s"):
        Settings(free_idle_s=text)


def test_settings_take_it_as_text_or_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_FREE_IDLE_S", "600,big=120")
    assert ByPool.parse(Settings().free_idle_s).of("big") == 120
    assert Settings.model_validate({"free_idle_s": 0.8}).free_idle_s == "0.8"
    with pytest.raises(ValidationError, match="must say 1 or 0"):
        Settings(free_oom="0.5")
    with pytest.raises(ValidationError, match="from 0 to 1"):
        Settings(free_oom="1,big=2")
