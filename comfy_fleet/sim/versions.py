"""The versions of ComfyUI that a simulated node can be, and everything in which they differ.

The node classes of each version are in ``catalogue-VERSION.json``. All facts were seen on real servers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMON_FEATURES = {"supports_preview_metadata": True, "max_upload_size": 104_857_600}
EARLY_FOLDERS = (
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision"),
    *("style_models", "embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models"),
)


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of ComfyUI.

    Attributes:
        name: As ComfyUI gives it.
        system: Further facts of ``/system_stats``.
        features: What ``/features`` answers, and the ``feature_flags`` frame.
        folders: Every model folder, in the order of ``/models``.
        parts: Parts of the API that not every version has: ``jobs``, ``assets`` (switched off, as they
            are by default), ``blueprints``, ``model_extensions`` and ``node_replacements``.
        canonical_ids: Whether a ``prompt_id`` must be a UUID in canonical lower case.
        stamps_prompts: Whether ``extra_data`` gets the time of the post and the client's kind.
        checks_combos: Whether a value must be among the options of a ``COMBO``.
        explains_cycles: Whether a cycle is named under each of its nodes.
        class_error: Type of the refusal of a node whose class is unknown or missing.
        unknown_class: Its message for a class that is not installed.
        no_class: Its message for a node without a class.
        explains_class: Whether it says of which node it speaks in ``extra_info`` too.
        listed_file: How ``/internal/files`` shows a file.
        view_headers: Headers of every file.
        unsafe_types: Types of files that browsers might run: they go out as unknown bytes.
        attaches_unsafe: Whether these are also to be saved instead of shown.
        refuses_cross_site: Whether requests that a browser marks as another site's get 403.
    """

    name: str
    system: Mapping[str, Any]
    features: Mapping[str, Any]
    folders: tuple[str, ...]
    parts: frozenset[str] = frozenset()
    canonical_ids: bool = False
    stamps_prompts: bool = False
    checks_combos: bool = False
    explains_cycles: bool = False
    class_error: str
    unknown_class: str
    no_class: str
    explains_class: bool = False
    listed_file: str = "{name}"
    view_headers: Mapping[str, str] = field(default_factory=dict)
    unsafe_types: frozenset[str]
    attaches_unsafe: bool = False
    refuses_cross_site: bool = False


def _package(name: str, version: str) -> dict[str, str]:
    return {"name": name, "installed": version, "required": version}


V0_3_64 = Version(
    name="0.3.64",
    system={
        "required_frontend_version": "1.27.10",
        "installed_templates_version": "0.1.95",
        "required_templates_version": "0.1.95",
    },
    features=COMMON_FEATURES,
    folders=(
        *EARLY_FOLDERS,
        *("custom_nodes", "hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
    ),
    class_error="invalid_prompt",
    unknown_class="Cannot execute because node {class_type} does not exist.",
    no_class="Cannot execute because a node is missing the class_type property.",
    unsafe_types=frozenset(
        {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"}
    ),
)

V0_33_0 = Version(
    name="0.33.0",
    system={
        "required_frontend_version": "1.49.6",
        "installed_templates_version": "0.11.44",
        "required_templates_version": "0.11.44",
        "comfy_package_versions": [
            _package("comfyui-frontend-package", "1.49.6"),
            _package("comfyui-workflow-templates", "0.11.44"),
            _package("comfyui-embedded-docs", "0.5.10"),
            _package("comfy-kitchen", "0.2.31"),
            _package("comfy-aimdo", "0.4.13"),
        ],
        "deploy_environment": "simulated",
    },
    features={
        **COMMON_FEATURES,
        "supports_model_type_tags": True,
        "extension": {"manager": {"supports_v4": True}},
        "node_replacements": True,
        "assets": False,
    },
    folders=(
        *EARLY_FOLDERS,
        *("latent_upscale_models", "custom_nodes", "datasets", "hypernetworks", "photomaker", "classifiers"),
        *("model_patches", "audio_encoders", "background_removal", "frame_interpolation"),
        *("geometry_estimation", "optical_flow", "detection"),
    ),
    parts=frozenset({"jobs", "assets", "blueprints", "model_extensions", "node_replacements"}),
    canonical_ids=True,
    stamps_prompts=True,
    checks_combos=True,
    explains_cycles=True,
    class_error="missing_node_type",
    unknown_class="Node '{title}' not found. The custom node may not be installed.",
    no_class="Node '{title}' has no class_type. The workflow may be corrupted or a custom node is missing.",
    explains_class=True,
    listed_file="{name} [{kind}]",
    view_headers={"X-Content-Type-Options": "nosniff"},
    unsafe_types=V0_3_64.unsafe_types | {"image/svg+xml", "text/xml", "application/xml"},
    attaches_unsafe=True,
    refuses_cross_site=True,
)

VERSIONS: Mapping[str, Version] = {version.name: version for version in (V0_33_0, V0_3_64)}
DEFAULT = V0_33_0.name


def find(name: str) -> Version:
    """Return the version with this name; ``0.33`` also finds 0.33.0.

    Raises:
        ValueError: There is none; the message names those that there are.
    """
    for known, version in VERSIONS.items():
        if f"{known}.".startswith(f"{name}."):
            return version
    raise ValueError(f"no simulated ComfyUI {name!r}; there are: {', '.join(VERSIONS)}")
