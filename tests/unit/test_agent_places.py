"""Which ComfyUIs run where, and under which names."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.gpu_places import GpuPlace, places_of, slots_of
from comfy_fleet.agent.host import HostAgent
from comfy_fleet.agent.supervisor import Supervision, Supervisor
from comfy_fleet.cli.agent import beside
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Nvml
from comfy_fleet.domain.nodes.host import Joining
from tests.factories import bare_checkout

TWO = Gpus(why=Nvml.OK, gpus=(Gpu(index=0, uuid="GPU-aa"), Gpu(index=1, uuid="GPU-bb")))
NONE = Gpus(why=Nvml.NO_LIBRARY)


def short(places: list[GpuPlace]) -> list[tuple[str, str | None]]:
    return [(place.label, place.device) for place in places]


def test_gpus_are_named_by_index_and_chosen_by_uuid() -> None:
    both = [("gpu0", "GPU-aa"), ("gpu1", "GPU-bb")]
    assert short(places_of("all", TWO)) == both
    assert short(places_of("0, 1", TWO)) == both
    assert short(places_of("GPU-b", TWO)) == both[1:]
    assert short(places_of("cpu", TWO)) == [("cpu0", None)]


def test_of_a_divided_gpu_only_the_instances_are_used() -> None:
    parts = tuple(Gpu(index=index, uuid=f"MIG-{index}", parent="GPU-aa") for index in (0, 2))
    divided = Gpus(why=Nvml.OK, gpus=(Gpu(index=0, uuid="GPU-aa", mig=True, instances=parts),))
    assert short(places_of("all", divided)) == [("gpu0m0", "MIG-0"), ("gpu0m2", "MIG-2")]


def test_what_is_named_twice_gets_two_and_names_stay_the_same_for_the_others() -> None:
    slots = slots_of("h", "0,1,GPU-aa,cpu", TWO)
    assert {name: place.device for name, place in slots.items()} == {
        "h-gpu0-0": "GPU-aa",
        "h-gpu1": "GPU-bb",
        "h-gpu0-1": "GPU-aa",
        "h-cpu0": None,
    }
    assert list(slots_of("h", "1", TWO, per_gpu=2)) == ["h-gpu1-0", "h-gpu1-1"]


def test_a_gpu_may_have_arguments_and_variables_of_its_own(tmp_path: Path) -> None:
    def planned(**more: Any) -> dict[str, Any]:
        home = bare_checkout(tmp_path)
        wanted = Supervision(checkout=Checkout(home=home, python="python3"), **more)
        supervisor = Supervisor(wanted, HostAgent("h"), address="127.0.0.1", data=tmp_path)
        join = partial(Joining, agent="127.0.0.1:1")
        made = supervisor.plan(TWO, lambda *, cleans_up, **given: join(cleans_up=cleans_up, **given))
        return {member.name: member.process.spec for member in made if member.process}

    specs = planned(
        env={"A": "all", "B": "all"}, envs={"1": {"B": "one"}}, overrides={"GPU-aa": ["--lowvram"]}
    )
    first, second = specs["h-gpu0"], specs["h-gpu1"]
    assert (first.env["A"], first.env["B"], first.argv[-1]) == ("all", "all", "--lowvram")
    assert (second.env["A"], second.env["B"]) == ("all", "one")
    assert "--lowvram" not in second.argv
    for more in ({"overrides": {"7": ["--lowvram"]}}, {"envs": {"7": {"A": "b"}}}):
        with pytest.raises(ConfigError, match="GPU 7; there are: 0, 1, GPU-aa, GPU-bb, gpu0, gpu1"):
            planned(**more)


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(ConfigError, match=r"no GPU 2; there are: 0 \(GPU-aa\), 1 \(GPU-bb\)"):
        places_of("2", TWO)
    with pytest.raises(ConfigError, match="--gpus cpu"):
        places_of("all", NONE)
    assert short(places_of("0", NONE)) == [("gpu0", "0")]  # AMD: NVML knows nothing of it
    amd = "GPU-4f1a2b3c4d5e6f70"
    assert short(places_of(amd, NONE)) == [("gpu4f1a2b3c4d5e", amd)]


@pytest.mark.parametrize("text", ["", " ", ","])
def test_no_gpu_at_all_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="names no GPU"):
        places_of(text, TWO)


@pytest.mark.parametrize("text", ["bananas", "-1", "0;rm", "all,0", "0-3"])
def test_what_can_be_no_gpu_starts_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="neither an index nor a UUID"):
        places_of(text, NONE)


def test_comfyuis_that_run_already_are_read() -> None:
    (one,) = beside(["g1=http://10.0.0.1:8188@0"], {"g1": "/srv/out"}, {"g1": "/srv/in"})
    assert (one.name, one.url, one.gpu, one.output, one.input) == (
        "g1",
        "http://10.0.0.1:8188",
        "0",
        Path("/srv/out"),
        Path("/srv/in"),
    )
    with pytest.raises(Fail, match="NAME=URL"):
        beside(["http://10.0.0.1:8188"], {}, {})
    with pytest.raises(Fail, match="g2"):
        beside([], {"g2": "/srv"}, {})
    with pytest.raises(Fail, match="g1 is named twice"):
        beside(["g1=http://10.0.0.1:8188", "g1=http://10.0.0.2:8188"], {}, {})
    with pytest.raises(BadInput):
        beside(["g1=https://10.0.0.1"], {}, {})
