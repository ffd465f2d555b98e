"""The file of `fleet autoscale`: what it may say, and what is told about the rest."""

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.scaling.rules import GROW, GrowRule, GrowSignal, ShrinkRule
from comfy_fleet.domain.scaling.scaling_file import ProviderKind, read_scaling_file

LOCAL = 'provider = { kind = "local", simulated = true }'
WAIT = "more = [{ when = 'wait', for_s = 1"


def of(provider: str, maximum: int = 1) -> str:
    """Return a file with a provider."""
    return f"[pools.default]\nmaximum = {maximum}\nprovider = {{ {provider} }}\n"


LEAST = f"[pools.default]\nmaximum = 4\n{LOCAL}\n"


def test_little_has_to_be_said() -> None:
    found = read_scaling_file(LEAST, "f.toml")
    spec = found.pools["default"]
    assert (spec.rules.minimum, spec.rules.maximum, spec.prefix) == (0, 4, "auto-default")
    assert (spec.rules.grow, spec.rules.shrink) == (GROW, ShrinkRule())
    assert spec.provider.kind is ProviderKind.LOCAL and spec.provider.simulated


def test_everything_can_be_said() -> None:
    text = """
    every_s = 10
    [pools.big]
    minimum = 2
    maximum = 8
    cool_down_s = 60
    boot_s = 300
    least_busy = 0
    prefix = "gpu"
    fewer = { busy_below = 0.2, for_s = 900 }
    [[pools.big.more]]
    when = "backlog"
    above = 10
    for_s = 30
    add = 3
    [pools.big.provider]
    kind = "command"
    add = ["cloud", "create", "{name}", "--tag={pool}"]
    remove = ["cloud", "delete", "{name}"]
    limit_s = 30
    [pools.swarm]
    maximum = 2
    fewer = { enabled = false }
    provider = { kind = "swarm", services = ["gpu-a", "gpu-b"] }
    """
    found = read_scaling_file(text, "f.toml")
    big, swarm = found.pools["big"], found.pools["swarm"]
    assert found.every_s == 10
    assert big.rules.grow == (GrowRule(signal=GrowSignal.BACKLOG, above=10, for_s=30, add=3),)
    assert big.rules.shrink == ShrinkRule(busy_below=0.2, for_s=900)
    assert big.provider.add == ("cloud", "create", "{name}", "--tag={pool}")
    assert swarm.rules.shrink is None
    assert swarm.provider.services == ("gpu-a", "gpu-b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "f.toml is not TOML"),
        ("", "pools: needs 1 to 100 pools, each as [pools.NAME]"),
        ("pools = 3", "pools: must be a table"),
        ("[pools.'Big!']\nmaximum = 1\n" + LOCAL, "pool 'Big!' must be 1 to 63 of a-z"),
        (LEAST + "[other]\n", "other: is unknown here; there are every_s, pools"),
        (LEAST + "maximun = 3\n", "pools.default.maximun: is unknown here; there are boot_s"),
        ("[pools.default]\n" + LOCAL, "pools.default.maximum: must be a whole number from 1 to 1000"),
        ("[pools.default]\nmaximum = 1001\n" + LOCAL, "must be a whole number from 1 to 1000"),
        ("[pools.default]\nmaximum = true\n" + LOCAL, "must be a whole number from 1 to 1000"),
        (LEAST + "minimum = 5\n", "pools.default.minimum: must be a whole number from 0 to 4"),
        (LEAST + "cool_down_s = nan\n", "pools.default.cool_down_s: must be a number from 0 to 86400"),
        (LEAST + "boot_s = -1\n", "pools.default.boot_s: must be a number from 1 to 86400"),
        (LEAST + 'prefix = "A"\n', "pools.default.prefix: prefix 'A' must be"),
        (LEAST + "prefix = 'a" + 50 * "b" + "'\n", "prefix: may have 40 characters"),
        (
            LEAST + "more = [{ when = 'load' }]\n",
            'more[0].when: must be "wait" (seconds) or "backlog" (jobs)',
        ),
        (LEAST + WAIT + "}]\n", "more[0].above: must be a number from 0"),
        (LEAST + WAIT + ", above = 1, add = 5 }]\n", "add: must be a whole number from 1 to 4"),
        (LEAST + "more = 3\n", "more: must be at most 20 tables, each as [[pools.NAME.more]]"),
        (LEAST + "fewer = { busy_below = 2 }\n", "fewer.busy_below: must be a number from 0 to 1"),
        ("[pools.default]\nmaximum = 1\n", "pools.default.provider: is missing: for example"),
        (of("kind = 'aws'"), "provider.kind: must be one of local, command, swarm"),
        (of("kind = 'local'"), "provider.comfyui: name either a ComfyUI's folder, or simulated = true"),
        (
            of("kind = 'local', comfyui = '/x', gpus = ['0']", maximum=2),
            "provider.gpus: needs one for each of 2 nodes",
        ),
        (of("kind = 'command', add = ['x', '{name}']"), "provider.remove: is missing"),
        (of("kind = 'command', add = ['x']"), "provider.add: must have {name}"),
        (of("kind = 'command', add = ['x', '{id}']"), "only {name} and {pool} can be filled in, not '{id}'"),
        (of("kind = 'command', add = ['{name}', 'x']"), "the program itself can't depend"),
        (of("kind = 'command', add = 'x {name}'"), "provider.add: must be a list of texts"),
        (
            of("kind = 'swarm', services = ['a']", maximum=2),
            "provider.services: needs one for each of 2 nodes",
        ),
        (of("kind = 'swarm', services = ['a', 'a']", maximum=2), "service a is named twice"),
        (
            LEAST + "prefix = 'a'\n[pools.b]\nprefix = 'a'\nmaximum = 1\n" + LOCAL,
            "pools.b.prefix: 'a' is that of pool default, too",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_it_may_be(text: str, told: str) -> None:
    with pytest.raises(BadInput) as raised:
        read_scaling_file(text, "f.toml")
    assert told in raised.value.message
    assert raised.value.message.startswith("f.toml")
