import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.graphs.workflow_files import toml_text

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
_LEAVES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | _TEXTS
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(_TEXTS, _VALUES, max_size=4))
def test_what_is_written_is_read_again(manifest: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(manifest)) == manifest


def test_people_can_read_it() -> None:
    manifest = {
        "title": "Wide",
        "parameters": {
            "width": {"min": 8, "max": 512},
            "style": {"choices": {"a": {"label": "A"}, "b": {}}, "type": "choice"},
            "text": {"target": {"title": "Prompt", "input": "text"}},
        },
        "requires": {"comfyui": ">=0.3.0", "models": [{"file": "a", "folder": "vae"}]},
        "none": None,
    }
    assert toml_text(manifest) == (
        'title = "Wide"\n\n'
        "[parameters.width]\nmin = 8\nmax = 512\n\n"
        '[parameters.style]\ntype = "choice"\nchoices = { a = { label = "A" }, b = {} }\n\n'
        '[parameters.text]\ntarget = { title = "Prompt", input = "text" }\n\n'
        '[requires]\ncomfyui = ">=0.3.0"\nmodels = [{ file = "a", folder = "vae" }]\n'
    )
    assert toml_text({}) == ""
