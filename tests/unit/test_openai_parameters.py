"""What a request for pictures means for a stored workflow, case by case."""

from typing import Any

import pytest

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.openai import errors
from comfy_fleet.api.openai.bodies import PictureRequestBody, body_of
from comfy_fleet.api.openai.parameters import (
    image_parameters,
    mask_parameter,
    params_of,
    reads_alpha,
    seeds_of,
)
from comfy_fleet.api.openai.pictures import form_of, outputs_of, wants_urls
from comfy_fleet.domain.errors import LimitReached, StoreDown
from comfy_fleet.domain.graphs.workflow import (
    Choice,
    Parameter,
    ParameterTarget,
    ParameterType,
    Workflow,
)
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.moderation import ContentRefused
from tests.factories import an_output, running_job

TEXT, SEED, IMAGE, NUMBER = (
    *(ParameterType.STRING, ParameterType.SEED, ParameterType.IMAGE, ParameterType.INTEGER),
)


def choice(name: str, *names: str, role: str = "") -> Parameter:
    choices = tuple(Choice(name=one, value=one) for one in names)
    return Parameter(name=name, type=ParameterType.CHOICE, choices=choices, role=role)


def workflow(*parameters: Parameter, graph: dict[str, Any] | None = None) -> Workflow:
    prompt = Parameter(name="text", type=TEXT, role="prompt")
    return Workflow(name="w", graph=graph or {}, version="v", parameters=(prompt, *parameters))


def asked(**fields: Any) -> PictureRequestBody:
    return PictureRequestBody.model_validate({"prompt": "a fox", **fields})


SIZES = choice("size", "square", "1024x1024", "1792x1024")
SIDES = (
    Parameter(name="width", type=NUMBER, minimum=256, maximum=2048, multiple_of=16),
    Parameter(name="height", type=NUMBER, maximum=2048),
)
QUALITY, STYLE = choice("quality", "standard", "hd"), choice("look", "vivid", "comic", role="style")


@pytest.mark.parametrize(
    ("parameters", "fields", "values"),
    [
        ((), {}, {}),
        ((), {"size": "auto", "quality": "auto", "style": "natural", "background": "auto"}, {}),
        ((SIZES,), {"size": "1792x1024"}, {"size": "1792x1024"}),
        (SIDES, {"size": "512x300"}, {"width": 512, "height": 300}),
        (SIDES, {"size": "512x300", "width": 512}, {"width": 512, "height": 300}),
        ((QUALITY,), {"quality": "hd"}, {"quality": "hd"}),
        ((QUALITY,), {"quality": "standard"}, {"quality": "standard"}),
        ((QUALITY,), {"quality": "auto"}, {}),
        ((STYLE,), {"style": "vivid"}, {"look": "vivid"}),
        ((STYLE,), {"style": "natural"}, {}),
        ((STYLE,), {"style": "comic"}, {"look": "comic"}),
        ((), {"negative_prompt": "rain", "seed": -1}, {"negative_prompt": "rain", "seed": -1}),
        ((), {"n": None, "stream": None, "size": None, "user": "u"}, {}),
    ],
)
def test_fields_become_values(
    parameters: tuple[Parameter, ...], fields: dict[str, Any], values: dict[str, Any]
) -> None:
    assert params_of(asked(**fields), workflow(*parameters)) == {"text": "a fox", **values}


@pytest.mark.parametrize(
    ("parameters", "fields", "words"),
    [
        ((SIZES,), {"size": "512x512"}, "takes square, 1024x1024, 1792x1024"),
        (SIDES, {"size": "100x100"}, "a width from 256 to 2048 in multiples of 16, and a height up to 2048"),
        (SIDES, {"size": "300x300"}, "in multiples of 16"),
        (SIDES[:1], {"size": "512x512"}, "a size of its own"),
        ((), {"quality": "high"}, "send auto or standard"),
    ],
)
def test_what_is_not_taken_is_refused_with_what_is(
    parameters: tuple[Parameter, ...], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(HttpError, match=words) as caught:
        params_of(asked(**fields), workflow(*parameters))
    assert caught.value.details["field"] in fields


def test_seeds_stay_within_the_workflows_bounds() -> None:
    named = workflow(Parameter(name="chance", type=SEED, minimum=10, maximum=12))
    found = [one["chance"] for one in seeds_of(named, {}, 3, 2**60)]
    assert sorted(found) == [10, 11, 12]
    assert [one["chance"] for one in seeds_of(named, {"chance": 12}, 2, 0)] == [12, 10]
    assert seeds_of(named, {"a": 1}, 1, 5) == [{"a": 1}]
    fixed = workflow(Parameter(name="seed", type=SEED, default=7))
    assert [one["seed"] for one in seeds_of(fixed, {}, 2, 99)] == [7, 8]
    with pytest.raises(HttpError, match="must be -1 or from 10 to 12"):
        seeds_of(named, {"chance": 13}, 2, 0)
    with pytest.raises(HttpError, match="has no seed"):
        seeds_of(workflow(), {}, 2, 0)


def test_the_parameter_called_image_comes_first_and_the_mask_is_none() -> None:
    names = ("style_image", "mask", "image", "other")
    made = workflow(*(Parameter(name=name, type=IMAGE) for name in names))
    assert [one.name for one in image_parameters(made)] == ["image", "style_image", "other"]
    mask = mask_parameter(made)
    assert mask is not None and mask.name == "mask"
    assert mask_parameter(workflow(Parameter(name="mask", type=NUMBER))) is None


@pytest.mark.parametrize(("slot", "reads"), [(0, False), (1, True)])
def test_only_the_second_output_of_a_picture_is_what_is_transparent(slot: int, reads: bool) -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "Any", "inputs": {"mask": ["1", slot]}},
    }
    image = Parameter(name="image", type=IMAGE, targets=(ParameterTarget(node_id="1", input="image"),))
    assert reads_alpha(workflow(image, graph=graph), image) is reads


def test_a_form_is_read_as_json_would_be() -> None:
    body = body_of(
        {
            "prompt": ["5"],
            "n": ["2"],
            "stream": ["true"],
            "seed": ["7"],
            "ttl_s": ["60"],
            "metadata[order]": ["1"],
            "webhook_url": ["https://example.org/"],
            "webhook_events[]": ["job.succeeded", "job.failed"],
            "pool": ["123"],
            "steps": ["8"],
            "size": [""],
        }
    )
    assert (body.prompt, body.n, body.stream, body.seed, body.ttl_s, body.size) == ("5", 2, True, 7, 60, None)
    assert (body.metadata, body.pool) == ({"order": "1"}, "123")
    assert body.webhook_events == ("job.succeeded", "job.failed")
    steps = Parameter(name="steps", type=NUMBER)
    assert params_of(body, workflow(steps), texts=True)["steps"] == 8
    texts = Parameter(name="steps", type=TEXT)
    assert params_of(body, workflow(texts), texts=True)["steps"] == "8"


@pytest.mark.parametrize(
    ("fields", "kind", "quality"),
    [
        ({}, None, 0),
        ({"output_compression": 100}, None, 0),
        ({"output_format": "png", "output_compression": 100}, "png", 100),
        ({"output_format": "webp"}, "webp", 100),
        ({"output_format": "jpeg", "output_compression": 0}, "jpeg", 1),
    ],
)
def test_forms(fields: dict[str, Any], kind: str | None, quality: int) -> None:
    form = form_of(asked(**fields))
    assert (form.kind if form else None, form.quality if form else 0) == (kind, quality)


def test_by_url_or_not() -> None:
    assert wants_urls(asked(), "dall-e-3") and not wants_urls(asked(), "image_card")
    assert wants_urls(asked(response_format="url"), "image_card")
    assert not wants_urls(asked(response_format="b64_json"), "dall-e-3")


def test_what_may_not_be_given_out_is_no_answer() -> None:
    outputs = (an_output(withheld=True), an_output(withheld=True))
    with pytest.raises(ContentRefused) as caught:
        outputs_of(running_job(status=JobStatus.SUCCEEDED, outputs=outputs))
    answer = errors.refusal(caught.value)
    assert answer.status_code == 400
    assert b'"type":"image_generation_user_error"' in bytes(answer.body)
    assert b'"code":"moderation_blocked"' in bytes(answer.body)
    some = (an_output(withheld=True), an_output())
    assert len(outputs_of(running_job(status=JobStatus.SUCCEEDED, outputs=some))) == 2


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (LimitReached("submits", "key", most=1, used=1, wait_s=5), 429, True),
        (StoreDown("away"), 503, False),
        (HttpError(504, "timeout", "late"), 504, False),
        (HttpError(409, "canceled", "gone"), 409, False),
    ],
)
def test_what_must_not_be_sent_again_says_so(error: Any, status: int, again: bool) -> None:
    answer = errors.refusal(error)
    assert answer.status_code == status
    assert (answer.headers.get("x-should-retry") != "false") is again
