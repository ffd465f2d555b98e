"""``workflow.toml``: its format, and how it is resolved against the graph beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from comfy_fleet.domain.errors import ConfigError, InvalidParameter
from comfy_fleet.domain.graphs import marked_parameters, selector, title_parameters
from comfy_fleet.domain.graphs.binding import check_value
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.merging import (
    MOST_MEMBERS,
    MOST_WINDOW_S,
    MergeMode,
    MergeRule,
    batch_source,
    has_member_ids,
    seed_place,
)
from comfy_fleet.domain.graphs.stored import MarkedInput, WorkflowContent
from comfy_fleet.domain.graphs.version_conditions import version_allows
from comfy_fleet.domain.graphs.workflow import (
    FILES,
    NO_EFFECT,
    NUMBERS,
    Bypass,
    CacheMode,
    Choice,
    Effect,
    ManifestRequirements,
    ModelFile,
    Parameter,
    ParameterTarget,
    ParameterType,
    TargetForm,
    Workflow,
)
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.domain.nodes.pool import LEAST_SILENCE_S, LONGEST_S
from comfy_fleet.domain.text import wrong_value

T = TypeVar("T")
MAX_FILE_BYTES = 50 * 1024 * 1024


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Selector(_Table):
    title: str | None = None
    class_: str | None = Field(None, alias="class")

    @model_validator(mode="after")
    def _named(self) -> "_Selector":
        if self.title is None and self.class_ is None:
            raise ValueError("needs 'title', 'class' or both")
        return self


class _Target(_Selector):
    input: str
    form: Literal["value", "hash"] = "value"


class _Set(_Target):
    value: str | int | float | bool


class _Bypass(_Selector):
    through: list[str] = Field(min_length=1)


class _Effect(_Table):
    set: list[_Set] = []
    wrap: dict[str, str] = {}
    bypass: list[_Bypass] = []


class _Choice(_Effect):
    value: str | int | float | bool | None = None
    label: str = ""


class _Parameter(_Table):
    type: Literal["string", "integer", "number", "boolean", "choice", "seed", "image", "asset"] | None = None
    title: str | None = None
    description: str | None = None
    default: str | int | float | bool | None = None
    required: bool | None = None
    min: int | float | None = None
    max: int | float | None = None
    multiple_of: int | float | None = Field(None, gt=0)
    min_length: int | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=1)
    format: Literal["xml"] | None = None
    choices: dict[str, _Choice] | None = None
    on: _Effect | None = None
    off: _Effect | None = None
    accept: list[str] | None = None
    max_bytes: int | None = Field(None, ge=1)
    role: Literal["prompt", "negative_prompt", "style", "seed"] | None = None
    target: _Target | None = None
    targets: list[_Target] | None = None

    @field_validator("choices", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        """Read ``["a", "b"]`` as ``{a = {}, b = {}}``."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return {item: {} for item in value}
        return value

    @model_validator(mode="after")
    def _one_way(self) -> "_Parameter":
        if self.target is not None and self.targets is not None:
            raise ValueError("has both 'target' and 'targets'; use one")
        return self


class _Model(_Table):
    file: str
    folder: str
    source: str = ""
    optional: bool = False


class _Requires(_Table):
    comfyui: str = ""
    vram_gb: float | None = Field(None, ge=0, strict=False)
    pool: str | None = None
    prefer_pool: str | None = None
    spill_to: list[str] = []
    zone: str = ""
    labels: dict[str, str] = {}
    note: str = ""
    models: list[_Model] = []


class _Merge(_Table):
    mode: Literal["exact", "batch"]
    most: int = Field(MOST_MEMBERS, ge=2, le=MOST_MEMBERS)
    window_s: float = Field(2.0, ge=0, le=MOST_WINDOW_S)


class _Manifest(_Table):
    title: str = ""
    description: str = ""
    cache: bool | str = "exact"
    parameters: dict[str, _Parameter] = {}
    requires: _Requires = Field(default_factory=lambda: _Requires.model_validate({}))
    merge: _Merge | None = None
    silence_s: float | None = Field(None, ge=LEAST_SILENCE_S, le=LONGEST_S, strict=False)

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_known(cls, value: Any) -> Any:
        if not isinstance(value, bool) and value not in tuple(CacheMode):
            raise ValueError("must be 'off', 'exact', 'any-seed', true or false")
        return CacheMode.OFF if value is False else value


def resolve_content(name: str, content: WorkflowContent) -> Workflow:
    """Return the stored workflow for what a version consists of; see :func:`resolve`.

    Raises:
        ConfigError: ``details["problems"]`` has all problems, each with its key.
    """
    return resolve(name, content.graph, content.manifest, content.marked)


def resolve(
    name: str, graph: Graph, manifest: Mapping[str, Any], marked: Sequence[MarkedInput] = ()
) -> Workflow:
    """Return the stored workflow for a checked graph and a manifest.

    Titles in the graph declare parameters, too, and so do inputs that App mode marks; if the manifest names
    one of these, it overrides single keys.

    Raises:
        ConfigError: ``details["problems"]`` has all problems, each with its key.
    """
    try:
        read = _Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        raise _refused(_readable(error)) from None
    resolver = _Resolver(graph, read, marked)
    parameters = resolver.parameters()
    requires = resolver.requires()
    merge = resolver.merge(parameters)
    if resolver.problems:
        raise _refused(resolver.problems)
    return Workflow(
        name=name,
        graph=graph,
        version=WorkflowContent(graph=graph, manifest=manifest, marked=tuple(marked)).version,
        title=read.title or name,
        description=read.description.strip(),
        parameters=parameters,
        requires=requires,
        merge=merge,
        cache=CacheMode(read.cache) if isinstance(read.cache, str) else CacheMode.EXACT,
        vouched=read.cache is True,
        silence_s=read.silence_s,
    )


def _refused(problems: list[str]) -> ConfigError:
    return ConfigError("; ".join(problems), details={"problems": problems})


_SCALARS = frozenset({"str", "int", "float", "bool"})


def _readable(error: ValidationError) -> list[str]:
    """Return one line per key; pydantic has one per member of a union, with the member in the key."""
    lines: dict[str, str] = {}
    for entry in error.errors():
        location = [str(part) for part in entry["loc"]]
        if location and location[-1] in _SCALARS and entry["type"] != "extra_forbidden":
            lines[".".join(location[:-1])] = "must be text, a number, true or false"
        else:
            unknown = entry["type"] == "extra_forbidden"
            message = "is unknown" if unknown else wrong_value(entry["type"], entry["msg"])
            lines.setdefault(".".join(location), message)
    return [f"{key or 'the manifest'}: {message}" for key, message in lines.items()]


class _Resolver:
    """Turns the manifest's entries into targets and collects problems."""

    def __init__(self, graph: Graph, manifest: _Manifest, marked: Sequence[MarkedInput]) -> None:
        self.graph = graph
        self.manifest = manifest
        self.marked = marked
        self.problems: list[str] = []

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the manifest's parameters in order, then what only titles declare or App mode marks."""
        declared = {parameter.name: parameter for parameter in title_parameters.declared(self.graph)}
        for marked in marked_parameters.declared(self.graph, self.marked, self.taken(declared)):
            declared.setdefault(marked.name, marked)
        made: dict[str, Parameter] = {}
        for name, read in self.manifest.parameters.items():
            if parameter := self.parameter(name, read, declared.get(name)):
                made[name] = parameter
        for name, parameter in declared.items():
            made.setdefault(name, parameter)
        self.check_wraps(made)
        self.check_overlaps(made)
        return tuple(made.values())

    def taken(self, by_title: Mapping[str, Parameter]) -> dict[tuple[str, str], str]:
        """Return the inputs that titles or the manifest itself bind, and to which parameter."""
        found = {
            (target.node_id, target.input): name
            for name, parameter in by_title.items()
            for target in parameter.targets
        }
        for name, read in self.manifest.parameters.items():
            for entry in read.targets or ([read.target] if read.target else []):
                try:
                    target = self.target(entry)
                except ConfigError:  # reported when its parameter is made
                    continue
                found[target.node_id, target.input] = name
        return found

    def parameter(self, name: str, read: _Parameter, declared: Parameter | None) -> Parameter | None:
        key = f"parameters.{name}"
        if not title_parameters.NAME.fullmatch(name):
            self.problems.append(f"{key}: a name consists of a-z 0-9 _ and begins with a letter")
        before = len(self.problems)
        wanted = (
            read.targets if read.targets is not None else [read.target] if read.target is not None else None
        )
        if wanted is not None:
            found = [self.attempt(f"{key}.target", self.target, entry) for entry in wanted]
            targets = tuple(target for target in found if target)
        else:
            targets = declared.targets if declared else ()
        if len(self.problems) > before:
            return None
        base = declared
        if targets and (base is None or base.targets != targets):
            # A number derived from the value says nothing about the value.
            shown = next((target for target in targets if target.form is TargetForm.VALUE), targets[0])
            node = self.graph[shown.node_id]
            value = node["inputs"][shown.input]
            base = title_parameters.inferred(
                name, targets, title_parameters.type_of(node["class_type"], shown.input, value), value
            )
        type_ = ParameterType(read.type) if read.type else base.type if base else None
        if type_ is None:
            self.problems.append(
                f"{key}: no node of the graph is titled '${name}', and it has no target: title a node, give "
                "it a target, or leave it out (one with choices that set inputs needs only a type)"
            )
            return None
        choices = self.choices(key, read)
        parameter = self.build(name, type_, targets, read, base, choices)
        self.check(key, parameter, read)
        return parameter

    def build(
        self,
        name: str,
        type_: ParameterType,
        targets: tuple[ParameterTarget, ...],
        read: _Parameter,
        base: Parameter | None,
        choices: tuple[Choice, ...],
    ) -> Parameter:
        default = read.default
        if default is None and base is not None and read.required is not True:
            default = base.default if type_ is base.type else None
            if type_ is ParameterType.CHOICE:
                default = next((choice.name for choice in choices if choice.value == base.default), None)
            elif type_ is ParameterType.NUMBER and isinstance(base.default, int):
                default = base.default
        required = read.required
        if required is None:
            required = type_ in FILES and default is None
        accept = tuple(read.accept) if read.accept is not None else ()
        return Parameter(
            name=name,
            type=type_,
            targets=targets,
            title=read.title or "",
            description=(read.description or (base.description if base else "")).strip(),
            default=default,
            required=required,
            minimum=read.min,
            maximum=read.max,
            multiple_of=read.multiple_of,
            min_length=read.min_length,
            max_length=read.max_length,
            format=read.format,
            choices=choices,
            on=self.effect(f"parameters.{name}.on", read.on),
            off=self.effect(f"parameters.{name}.off", read.off),
            accept=accept or (("image/*",) if type_ is ParameterType.IMAGE else ()),
            max_bytes=read.max_bytes or (MAX_FILE_BYTES if type_ in FILES else None),
            role=read.role or "",
        )

    def choices(self, key: str, read: _Parameter) -> tuple[Choice, ...]:
        return tuple(
            Choice(
                name=name,
                value=name if entry.value is None else entry.value,
                label=entry.label,
                effect=self.effect(f"{key}.choices.{name}", entry),
            )
            for name, entry in (read.choices or {}).items()
        )

    def effect(self, key: str, read: _Effect | None) -> Effect:
        if read is None or not (read.set or read.wrap or read.bypass):
            return NO_EFFECT
        targets = [(self.attempt(f"{key}.set", self.target, entry), entry.value) for entry in read.set]
        bypasses = [self.attempt(f"{key}.bypass", self.bypass, entry) for entry in read.bypass]
        return Effect(
            set=tuple((target, value) for target, value in targets if target),
            wrap=dict(read.wrap),
            bypass=tuple(bypass for bypass in bypasses if bypass),
        )

    def target(self, entry: _Target) -> ParameterTarget:
        return selector.target(
            self.graph,
            input_=entry.input,
            title=entry.title,
            class_type=entry.class_,
            form=TargetForm(entry.form),
        )

    def bypass(self, entry: _Bypass) -> Bypass:
        return selector.bypass(self.graph, through=entry.through, title=entry.title, class_type=entry.class_)

    def requires(self) -> ManifestRequirements:
        read = self.manifest.requires
        self.attempt("requires.comfyui", version_allows, "0", read.comfyui)
        for pool in (read.pool, read.prefer_pool, *read.spill_to):
            if pool is not None:
                self.attempt("requires", check_name, "pool", pool)
        if read.pool is not None and read.prefer_pool is not None:
            self.problems.append("requires: has both 'pool' and 'prefer_pool'; use one")
        if read.spill_to and read.pool is None:
            self.problems.append("requires.spill_to: needs 'pool'; 'prefer_pool' spills to every pool")
        return ManifestRequirements(
            comfyui=read.comfyui,
            vram_gb=read.vram_gb,
            pool=read.pool,
            prefer_pool=read.prefer_pool,
            spill_to=tuple(read.spill_to),
            zone=read.zone,
            labels=dict(read.labels),
            note=read.note.strip(),
            models=tuple(ModelFile(**model.model_dump()) for model in read.models),
        )

    def merge(self, parameters: Sequence[Parameter]) -> MergeRule | None:
        read = self.manifest.merge
        if read is None:
            return None
        if has_member_ids(self.graph):
            self.problems.append("merge: the graph has nodes with ids like m1:..., which merging uses itself")
        elif read.mode == "batch":
            self.check_batch(parameters)
        return MergeRule(mode=MergeMode(read.mode), most=read.most, window_s=read.window_s)

    def check_batch(self, parameters: Sequence[Parameter]) -> None:
        """Refuse a graph whose jobs could never be one batch."""
        try:
            batch_source(self.graph)
        except ValueError as error:
            self.problems.append(f"merge.mode: 'batch' does not go with this graph: {error}; use 'exact'")
            return
        node_id, name = seed_place(self.graph)
        seeds = (one for one in parameters if one.type is ParameterType.SEED)
        if not any((node_id, name) in {(to.node_id, to.input) for to in one.targets} for one in seeds):
            self.problems.append(
                f"merge.mode: 'batch' needs a parameter of type 'seed' for input {name!r} of node {node_id}"
            )

    def check(self, key: str, parameter: Parameter, read: _Parameter) -> None:
        """Refuse contradictions, and a default that the parameter would not accept."""
        kind = parameter.type
        say = self.problems.append
        if kind is ParameterType.CHOICE and not parameter.choices:
            say(f"{key}.choices: a choice needs them")
        if kind is not ParameterType.CHOICE and read.choices is not None:
            say(f"{key}.choices: only for type 'choice', not {kind.value!r}")
        for name, given, kinds in (
            ("min", read.min, NUMBERS),
            ("max", read.max, NUMBERS),
            ("multiple_of", read.multiple_of, NUMBERS),
            ("min_length", read.min_length, {ParameterType.STRING}),
            ("max_length", read.max_length, {ParameterType.STRING}),
            ("format", read.format, {ParameterType.STRING}),
            ("on", read.on, {ParameterType.BOOLEAN}),
            ("off", read.off, {ParameterType.BOOLEAN}),
            ("accept", read.accept, FILES),
            ("max_bytes", read.max_bytes, FILES),
        ):
            if given is not None and kind not in kinds:
                say(f"{key}.{name}: has no meaning for type {kind.value!r}")
        if read.min is not None and read.max is not None and read.min > read.max:
            say(f"{key}: min {read.min} is above max {read.max}")
        others = (other for name, other in self.manifest.parameters.items() if name != parameter.name)
        if parameter.role and any(other.role == parameter.role for other in others):
            say(f"{key}.role: another parameter is {parameter.role!r} already")
        if not parameter.targets and not self.acts(parameter):
            say(f"{key}: it sets nothing; give it a target, or title a node '${parameter.name}'")
        if parameter.default is not None and not parameter.required:
            try:
                check_value(parameter, parameter.default)
            except InvalidParameter as error:
                say(f"{key}.default: {error}")

    def acts(self, parameter: Parameter) -> bool:
        """Return whether the parameter has an effect without a target."""
        effects = [choice.effect for choice in parameter.choices] + [parameter.on, parameter.off]
        return any(effect != NO_EFFECT for effect in effects)

    def check_wraps(self, made: Mapping[str, Parameter]) -> None:
        """Refuse a wrap around something other than a text parameter, or one that loses the text."""
        for parameter in made.values():
            for effect in (*(choice.effect for choice in parameter.choices), parameter.on, parameter.off):
                for name, text in effect.wrap.items():
                    other = made.get(name)
                    if other is None or other.type is not ParameterType.STRING:
                        self.problems.append(
                            f"parameters.{parameter.name}: wrap.{name} names no text parameter"
                        )
                    if text.count("{}") != 1:
                        self.problems.append(
                            f"parameters.{parameter.name}: wrap.{name} must hold {{}} once, for the text"
                        )

    def check_overlaps(self, made: Mapping[str, Parameter]) -> None:
        """Refuse two parameters with the same target: one of them would have no effect."""
        owners: dict[tuple[str, str], str] = {}
        for parameter in made.values():
            for target in parameter.targets:
                place = (target.node_id, target.input)
                other = owners.setdefault(place, parameter.name)
                if other != parameter.name:
                    self.problems.append(
                        f"parameters.{parameter.name}: input {target.input!r} of node {target.node_id} "
                        f"belongs to parameter {other!r} already"
                    )

    def attempt(self, key: str, action: Callable[..., T], *arguments: object) -> T | None:
        """Return the action's result, or note its error under the manifest's key."""
        try:
            return action(*arguments)
        except ConfigError as error:
            self.problems.append(f"{key}: {error}")
            return None
