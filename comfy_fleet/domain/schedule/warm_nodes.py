"""Which prompt each idle node runs to be warm, before a real job comes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_fleet.domain.text import natural


@dataclass(frozen=True, kw_only=True)
class CommonPrompt:
    """A prompt that jobs often are, and that may be run to load its models.

    Attributes:
        workflow: The stored workflow that it is made of.
        files: The model files that it loads.
        work_s: How many seconds nodes spent on such jobs; only the proportions matter.
        able: The nodes that can run it.
    """

    workflow: str
    files: frozenset[str]
    work_s: float
    able: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class WarmNode:
    """What an idle node is to run.

    Attributes:
        prompt: The prompt.
        loaded: Whether its models are on the card already: then it need not run.
    """

    prompt: CommonPrompt
    loaded: bool


def spread(
    prompts: Iterable[CommonPrompt], idle: Iterable[str], cards: Mapping[str, frozenset[str]]
) -> Mapping[str, WarmNode]:
    """Return what idle nodes are to run, by node; nodes that can run none of it are left out.

    Each set of models is to be on about as many nodes as its part of the work, and on one at least while
    there are enough. A node gets one prompt only: ComfyUI keeps what the last one loaded. Prompts without
    models are for nodes that can run no other.

    Args:
        prompts: The common prompts.
        idle: The idle nodes.
        cards: The files on all nodes' cards, busy ones included, by node.
    """
    sets: dict[frozenset[str], list[CommonPrompt]] = {}
    for prompt in sorted(prompts, key=lambda one: -one.work_s):
        sets.setdefault(prompt.files, []).append(prompt)
    left = dict.fromkeys(sorted(idle, key=natural))
    found: dict[str, WarmNode] = {}
    holders = Counter[frozenset[str]]()
    for node, card in cards.items():
        held = next((files for files in sets if files and files <= card), None)
        if held is None:
            continue
        holders[held] += 1
        if node in left:
            found[node] = WarmNode(prompt=_of(sets[held], node) or sets[held][0], loaded=True)
            del left[node]
    for models in (True, False):
        _share({files: some for files, some in sets.items() if bool(files) is models}, left, holders, found)
    return found


def _share(
    sets: Mapping[frozenset[str], Sequence[CommonPrompt]],
    left: dict[str, None],
    holders: Counter[frozenset[str]],
    found: dict[str, WarmNode],
) -> None:
    """Give nodes that are left a set each, the set that has the fewest for its work first."""
    work = {files: sum(one.work_s for one in some) for files, some in sets.items()}
    able = {files: [node for node in left if _of(some, node)] for files, some in sets.items()}
    choices = Counter(node for nodes in able.values() for node in nodes)
    for nodes in able.values():  # those that can run little else first; they are taken from the end
        nodes.sort(key=lambda node: choices[node])
        nodes.reverse()
    while True:
        for nodes in able.values():
            while nodes and nodes[-1] not in left:
                nodes.pop()
        open_sets = [files for files, nodes in able.items() if nodes]
        if not open_sets:
            return
        files = max(open_sets, key=lambda one: (not holders[one], work[one] / (holders[one] + 1)))
        node = able[files].pop()
        del left[node]
        holders[files] += 1
        if (prompt := _of(sets[files], node)) is not None:
            found[node] = WarmNode(prompt=prompt, loaded=False)


def _of(prompts: Sequence[CommonPrompt], node: str) -> CommonPrompt | None:
    """Return the first of some prompts that a node can run."""
    return next((one for one in prompts if node in one.able), None)
