"""The names of a job's outputs in its store, and what has become of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.stores.object_key import OutputFacts, object_keys
from comfy_fleet.domain.stores.output_plan import (
    EXTENSIONS,
    OutputPlace,
    OutputPlan,
    StoredObject,
    StoreState,
)


def place_of(output: Output) -> OutputPlace:
    """Return what identifies an output within its job."""
    return output.node_id, output.key, output.index


def planned_keys(plan: OutputPlan, outputs: Sequence[Output]) -> dict[OutputPlace, str]:
    """Return the keys of those outputs that go to the store, in the outputs' order."""
    going = [one for one in outputs if not one.temporary and not one.withheld]
    facts = [
        OutputFacts(
            index=number,
            name=one.name,
            node_id=one.node_id,
            extension=EXTENSIONS.get(plan.converts(one.kind, one.content_type), ""),
        )
        for number, one in enumerate(going, 1)
    ]
    return dict(zip(map(place_of, going), object_keys(plan.key, facts), strict=True))


def stored_objects(
    plan: OutputPlan,
    outputs: Sequence[Output],
    notes: Mapping[OutputPlace, Mapping[str, Any]],
    *,
    error: str = "",
) -> dict[OutputPlace, StoredObject]:
    """Return what has become of a job's outputs.

    Args:
        plan: What the job's client has asked for.
        outputs: Its outputs.
        notes: What was noted about some of them.
        error: Why the others are not there yet, if that is known.
    """
    found = {}
    for place, key in planned_keys(plan, outputs).items():
        note = notes.get(place, {})
        found[place] = StoredObject(
            store=plan.store,
            key=str(note.get("key") or key),
            state=StoreState(note.get("state", StoreState.WAITING)),
            url=note.get("url"),
            error=note.get("error") or (None if note else error or None),
        )
    return found
