"""Which node classes jobs may use: an operator's lists, by name or by what classes do.

Groups follow from how nodes declare their classes in ``/object_info``, so classes of node packs, and of
versions that nobody has read yet, are in them as well:

- ``@folders``: reads or writes folders that the graph names;
- ``@network``: calls services on the internet, or takes a URL;
- ``@code``: runs code, expressions, shaders or regular expressions of the graph's;
- ``@core``: comes with ComfyUI; a class that any node has from a node pack does not count.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs import file_access
from comfy_fleet.domain.graphs.file_access import DENIED, KNOWN, Use
from comfy_fleet.domain.graphs.inventory import ClassInfo

FOLDERS, NETWORK, CODE, CORE = "@folders", "@network", "@code", "@core"
GROUPS: Mapping[str, str] = {
    FOLDERS: "it reads or writes folders",
    NETWORK: "it calls the internet",
    CODE: "it runs code",
    CORE: "it comes with ComfyUI",
}
"""The groups, and what each class of them does."""

_URL = re.compile(r"(?:.*[_.])?(?:url|uri|link|endpoint|webhook)s?_?\d*", re.IGNORECASE)
_CODE = re.compile(
    r"(?!.*(?:lang|language|country|color)_code)(?:.*[_.])?(?:code|script|expression|expr|formula|lambda|python|javascript|shader|regexp?|command|cmd)"
    r"(?:_?(?:code|string|text|pattern))?_?\d*",
    re.IGNORECASE,
)
_TEXTS = frozenset({"STRING", "*"})


def groups_of(class_type: str, infos: Sequence[ClassInfo]) -> frozenset[str]:
    """Return the groups that a class is in, by how any node declares it.

    Args:
        class_type: Its name.
        infos: The nodes' different declarations.
    """
    found = set()
    uses = [KNOWN.get(class_type, {}), *(info.files for info in infos)]
    if any(
        use in (Use.PATH, Use.TARGET) and file_access.names_folder(name)
        for used in uses
        for name, use in used.items()
    ):
        found.add(FOLDERS)
    texts = {
        name
        for info in infos
        for name, spec in info.everything()
        if not _TEXTS.isdisjoint(spec.type.split(","))
    }
    if any(info.api_node for info in infos) or any(_URL.fullmatch(name) for name in texts):
        found.add(NETWORK)
    if any(_CODE.fullmatch(name) for name in texts):
        found.add(CODE)
    if infos and not any(info.pack for info in infos):
        found.add(CORE)
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class ClassRules:
    """Lists of names and groups. Of the two, a name says more than a group, and a refusal more than a leave.

    Attributes:
        denied: What no job may use, and why.
        allowed: What jobs may use; None: everything that is not denied.
        exempt: Names that are not denied with their groups.
        deny_setting: Where ``denied`` comes from, for messages.
        allow_setting: Where ``allowed`` comes from.
    """

    denied: Mapping[str, str] = field(default_factory=lambda: DENIED)
    allowed: frozenset[str] | None = None
    exempt: frozenset[str] = frozenset()
    deny_setting: str = "FLEET_DENY_CLASSES"
    allow_setting: str = "FLEET_ALLOW_CLASSES"

    @classmethod
    def parse(
        cls,
        deny: str,
        allow: str,
        *,
        shipped: Mapping[str, str] = DENIED,
        deny_setting: str = "FLEET_DENY_CLASSES",
        allow_setting: str = "FLEET_ALLOW_CLASSES",
    ) -> "ClassRules":
        """Read two lists separated by commas; ``-NAME`` in the first takes a class out of what is denied.

        Args:
            deny: Classes and groups that are denied.
            allow: Those that are allowed; empty: all others.
            shipped: What is denied from the start.
            deny_setting: The first list's setting.
            allow_setting: The second one's.

        Raises:
            BadInput: A group is unknown.
        """
        denied, exempt = dict(shipped), set()
        for name in _names(deny):
            if name.startswith("-"):
                exempt.add(name[1:].strip())
                denied.pop(name[1:].strip(), None)
            else:
                denied.setdefault(_known(name), GROUPS.get(name, "this fleet's operator does not allow it"))
        allowed = frozenset(map(_known, _names(allow)))
        return cls(
            denied=denied,
            allowed=allowed or None,
            exempt=frozenset(exempt),
            deny_setting=deny_setting,
            allow_setting=allow_setting,
        )

    @property
    def asks_groups(self) -> bool:
        """Whether the groups of a class matter."""
        return any(name in GROUPS for name in (*self.denied, *(self.allowed or ())))

    def why_not(self, class_type: str, groups: Collection[str]) -> str | None:
        """Return why a class may not be used, with the setting in brackets; None if it may."""
        if (why := self.denied.get(class_type)) is not None:
            return f"{why} ({self.deny_setting})"
        named = self.allowed is not None and class_type in self.allowed
        if self.allowed is not None and not named and self.allowed.isdisjoint(groups):
            return f"it is not among the classes that are allowed ({self.allow_setting})"
        if named or class_type in self.exempt:
            return None
        for group in GROUPS:
            if group in groups and group in self.denied:
                return f"{self.denied[group]} ({self.deny_setting} has {group})"
        return None


def _names(text: str) -> list[str]:
    return list(filter(None, map(str.strip, text.split(","))))


def _known(name: str) -> str:
    if name.startswith("@") and name not in GROUPS:
        raise BadInput(f"{name!r} is no group of classes: there are {', '.join(GROUPS)}")
    return name
