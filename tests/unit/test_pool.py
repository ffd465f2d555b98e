"""What is set for a pool, what holds where it is not, and settings that once named pools."""

from typing import Any

import pytest
from pydantic import ValidationError

from comfy_fleet.cli.variables import sentences
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.former_pools import orders
from comfy_fleet.domain.nodes.pool import PATIENCE_S, Pool, PoolDefaults
from comfy_fleet.settings import Settings


def test_a_pool_s_own_comes_first_then_the_former_form_then_the_fleet_s() -> None:
    former = {"big": Pool(name="big", free_idle_s=120), "small": Pool(name="small", free_on_oom=False)}
    defaults = PoolDefaults(free_idle_s=600, free_on_oom=True, former=former)
    assert [defaults.idle_s(name, None) for name in ("default", "big", "small")] == [600, 120, 600]
    assert [defaults.idle_s(name, 0.0) for name in ("default", "big")] == [0, 0]
    assert [defaults.on_oom(Pool(name=name)) for name in ("default", "big", "small")] == [True, True, False]
    assert defaults.on_oom(Pool(name="small", free_on_oom=True))
    assert not defaults.on_oom(Pool(name="default", free_on_oom=False))


def test_a_pool_s_own_patience_comes_first() -> None:
    defaults = PoolDefaults(patience_s=30)
    assert [defaults.patience_of(Pool(name="big", patience_s=own)) for own in (None, 0.0, 5.0)] == [30, 0, 5]
    assert PoolDefaults().patience_of(Pool(name="big")) == PATIENCE_S == Settings().pool_defaults.patience_s


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 86400.5])
def test_a_patience_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(BadInput, match=r"patience_s .* must be seconds, from 0 to 86400"):
        Pool(name="big", patience_s=seconds)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e12])
def test_seconds_that_are_none_are_refused(seconds: float) -> None:
    with pytest.raises(BadInput, match=r"free_idle_s .* must be seconds"):
        Pool(name="big", free_idle_s=seconds)


def test_a_name_that_haproxy_could_not_take_is_refused() -> None:
    with pytest.raises(BadInput, match="pool 'Big' must be 1 to 63 of a-z"):
        Pool(name="Big")


def test_settings_in_their_former_form_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_FREE_IDLE_S", "600, big = 120,small=0")
    monkeypatch.setenv("FLEET_FREE_OOM", "1,big=0")
    settings = Settings()
    assert (settings.free_idle_s, settings.free_oom) == (600, True)
    defaults = settings.pool_defaults
    assert defaults.former == {
        "big": Pool(name="big", free_idle_s=120, free_on_oom=False),
        "small": Pool(name="small", free_idle_s=0),
    }
    assert Settings(free_idle_s="0.8").pool_defaults == PoolDefaults(free_on_oom=True, former={
        "big": Pool(name="big", free_on_oom=False)}, free_idle_s=0.8)  # fmt: skip


def test_a_former_form_is_told_once_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_FREE_IDLE_S", "600,big=120,small=0")
    monkeypatch.setenv("FLEET_FREE_OOM", "1, big=0")
    monkeypatch.setenv("FLEET_WARNED", "")
    told = list(sentences())
    assert [words.split("Instead type: ")[1].split("; ") for words in told] == [
        [
            "fleet pool set big --free-idle-s 120",
            "fleet pool set small --free-idle-s 0",
            "then set FLEET_FREE_IDLE_S=600",
        ],
        ["fleet pool set big --free-on-oom no", "then set FLEET_FREE_OOM=1"],
    ]
    assert list(sentences()) == []
    assert orders({"FLEET_FREE_IDLE_S": "600"}) == {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"free_idle_s": "600,big"}, "'big' must be POOL=NUMBER"),
        ({"free_idle_s": "600,big=-1"}, "'big=-1' must be POOL=NUMBER, with a number of 0 or more"),
        ({"free_idle_s": "600,big=nan"}, "'big=nan' must be"),
        ({"free_idle_s": "600,Big=1"}, "pool 'Big' must be 1 to 63 of a-z"),
        ({"free_idle_s": "600,big=1,big=2"}, "pool big is named twice"),
        ({"free_oom": "1,big=2"}, "2 must be 1 or 0"),
        ({"free_idle_s": "600,big=1e12"}, "free_idle_s 1e+12 must be seconds"),
    ],
)
def test_what_can_t_be_read_is_refused_with_what_to_type(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**values)
    assert told in str(refused.value) and "`fleet pool set POOL --free-" in str(refused.value)


@pytest.mark.parametrize("values", [{"free_idle_s": "big=120"}, {"free_idle_s": "inf"}, {"free_oom": "0.5"}])
def test_a_figure_that_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)
