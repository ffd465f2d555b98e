"""What is posted to a node: what was checked, as that node spells it. Simulated nodes, a real broker."""

import threading
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.bootstrap import open_secrets
from comfy_fleet.domain.errors import InvalidWorkflow
from comfy_fleet.domain.graphs import graph as graphs
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.services.large_graphs import LARGE_BYTES
from comfy_fleet.sim import SimNode
from tests.factories import GRAPH, sampled, with_model
from tests.fleet import fleet_of


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def posted(sim: SimNode, job: Job) -> dict[str, Any]:
    """Return the graph of the job's prompt as the node has it in its history."""
    entries = (entry["prompt"][2] for entry in sim.engine.history.values())
    return next(
        graph
        for graph in entries
        if any(f"fleet/{job.id}/" in str(node["inputs"].get("filename_prefix")) for node in graph.values())
    )


@pytest.mark.parametrize("wanted", ["sub/m.safetensors", "sub\\m.safetensors"])
async def test_each_node_gets_the_spelling_that_it_lists(redis_port: int, wanted: str) -> None:
    async with fleet_of(redis_port) as fleet:
        spellings = {"linux": "sub/m.safetensors", "windows": "sub\\m.safetensors"}
        for name, spelling in spellings.items():
            await fleet.add_sim(name, models=with_model(1, spelling))
            await fleet.verdict(name)
        known = await fleet.refresher()
        for name, spelling in spellings.items():
            other = Placement(without=frozenset(spellings) - {name})
            job = await fleet.submit(sampled(file=wanted), placement=other)
            done = await fleet.ended(job.id)
            assert (done.status, done.node, done.attempt) == (JobStatus.SUCCEEDED, name, 0)
            graph = posted(fleet.sims[name], done)
            assert graph["1"]["inputs"]["ckpt_name"] == spelling
        assert (await known.placement(check(sampled(file=wanted)), PlacementRequest())).needs == ""


async def test_what_no_output_reads_is_neither_checked_nor_posted(redis_port: int) -> None:
    orphans = {
        "7": {"class_type": "ImageInvert", "inputs": {"image": ["77", 0]}},
        "8": {"class_type": "ImageInvert", "inputs": {"image": ["9", 0]}},
        "9": {"class_type": "ImageInvert", "inputs": {"image": ["8", 0]}},
        "10": {"class_type": "ImageScale", "inputs": {"crop": "nonsense"}},
    }
    async with fleet_of(redis_port, "a") as fleet:
        known = await fleet.refresher()
        graph = check({**GRAPH, **orphans}, read=known.read)
        job = await fleet.submit(graph, placement=await known.placement(graph, PlacementRequest()))
        done = await fleet.ended(job.id)
        assert done.status is JobStatus.SUCCEEDED
        assert posted(fleet.sims["a"], done).keys() == GRAPH.keys()
        # What is read stays refused, by an undeclared input as well: it would kill the prompt thread.
        for name, link in (("images", "77"), ("undeclared", "77"), ("undeclared", "8")):
            save = {"class_type": "SaveImage", "inputs": {**GRAPH["2"]["inputs"], name: [link, 0]}}
            with pytest.raises(InvalidWorkflow):
                check({**GRAPH, **orphans, "2": save}, read=known.read)


async def test_an_asset_that_names_none_ends_the_job_where_only_its_node_reads_it(redis_port: int) -> None:
    broken = {"class_type": "LoadImage", "inputs": {"image": {"__type": "core/ASSET", "info": {}}}}
    async with fleet_of(redis_port, "a") as fleet:
        done = await fleet.ended((await fleet.submit({**GRAPH, "9": broken})).id)
        assert (done.status, done.error and done.error.code) == (JobStatus.FAILED, "missing_asset")
        assert done.error is not None and "node 9" in done.error.message


async def test_a_prompt_that_nobody_can_make_ready_uses_its_attempts_up(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def for_run(*_: Any, **__: Any) -> Any:
        raise ValueError("odd")

    monkeypatch.setattr(graphs, "for_run", for_run)
    async with fleet_of(redis_port, "a") as fleet:
        done = await fleet.ended((await fleet.submit(GRAPH)).id)
        assert (done.status, done.attempt) == (JobStatus.FAILED, done.max_attempts)
        assert done.error is not None
        assert done.error.code == "internal_error"
        assert "ValueError" in done.error.message


async def test_what_pictures_are_to_carry_reaches_the_node(redis_port: int) -> None:
    info = {"workflow": {"nodes": [{"id": 1, "type": "Orphan", "title": "é"}], "links": []}}
    async with fleet_of(redis_port, "a") as fleet:
        box = open_secrets(fleet.settings)
        sealed = box.seal(orjson.dumps({"extra_pnginfo": info, "api_key_comfy_org": "geheim"}))
        done = await fleet.ended((await fleet.submit(secret=sealed)).id)
        assert done.status is JobStatus.SUCCEEDED
        prompts = [entry["prompt"] for entry in fleet.sims["a"].engine.history.values()]
        assert [prompt[3]["extra_pnginfo"] for prompt in prompts] == [info]
        assert await fleet.stores.redis.get(f"fleet:job:{done.id}:secret") is None


async def test_a_class_that_a_node_replaces_runs_there(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        files = {"controlnet": {"sub\\depth.pth": 10**6}}
        for name, version in (("old", "0.3.64"), ("new", "0.33.0")):
            await fleet.add_sim(name, models=files, comfyui=version)
            await fleet.verdict(name)
        known = await fleet.refresher()
        graph = {
            "1": {"class_type": "T2IAdapterLoader", "inputs": {"t2i_adapter_name": "sub/depth.pth"}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        }
        done = await fleet.ended((await fleet.send(known, graph, PlacementRequest())).id)
        assert (done.status, done.node, done.attempt) == (JobStatus.SUCCEEDED, "new", 0), done.error
        (entry,) = fleet.sims["new"].engine.history.values()
        assert entry["prompt"][2]["1"]["class_type"] == "ControlNetLoader"
        assert entry["prompt"][2]["1"]["inputs"] == {"control_net_name": "sub\\depth.pth"}
        graph["1"]["inputs"] = {"t2i_adapter_name": "nothing.pth"}
        with pytest.raises(InvalidWorkflow, match=r"nothing\.pth"):
            await known.placement(check(graph), PlacementRequest())


async def test_a_large_graph_is_made_ready_while_the_dispatcher_does_other_things(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[bool] = []
    made = graphs.for_run

    def for_run(*args: Any, **options: Any) -> Any:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return made(*args, **options)

    monkeypatch.setattr(graphs, "for_run", for_run)
    save = {"class_type": "SaveImage", "inputs": {**GRAPH["2"]["inputs"], "undeclared": "x" * LARGE_BYTES}}
    async with fleet_of(redis_port, "a") as fleet:
        for graph in (GRAPH, {**GRAPH, "2": save}):
            done = await fleet.ended((await fleet.submit(check(graph))).id)
            assert done.status is JobStatus.SUCCEEDED
    assert on_loop == [True, False]
