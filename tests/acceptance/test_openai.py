"""OpenAI's client at a whole fleet: with simulated nodes, and with a real ComfyUI."""

import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import ImagesResponse
from PIL import Image

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.openai_workflows import store

REAL = [pytest.mark.comfyui, pytest.mark.timeout(240)]
PAINT = (0, 0, 255)
"""The colour with the number 255, which the seed says."""


@pytest.fixture(scope="module", params=["simulated", pytest.param("real", marks=REAL)])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("openai")
    store(folder / "workflows")
    nodes = ["--nodes", "2", "--job-seconds", "0.2"]
    if request.param == "real":
        nodes = ["--node", f"real={request.getfixturevalue('comfyui_server').url}"]
    fleet = start_fleet(folder / "data", *nodes, env={"FLEET_WORKFLOWS": str(folder / "workflows")})
    yield fleet
    stop_fleet(fleet)


@pytest.fixture
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key="any", timeout=120) as made:
        yield made


def opened(answer: ImagesResponse) -> list[Image.Image]:
    """Return the pictures of an answer."""
    assert answer.data is not None
    return [Image.open(BytesIO(base64.b64decode(one.b64_json or ""))) for one in answer.data]


def written(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def holed() -> bytes:
    """Return a mask whose left half is transparent."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    return written(picture)


def test_pictures_of_the_size_and_in_the_form_that_is_asked_for(client: OpenAI) -> None:
    assert "image_card" in [one.id for one in client.models.list()]
    made = client.images.generate(model="image_card", prompt="a red fox", size="256x128", n=3)
    pictures = opened(made)
    assert [one.size for one in pictures] == 3 * [(256, 128)]
    assert {one.format for one in pictures} == {"PNG"}
    assert len({one.tobytes() for one in pictures}) == 3
    fox: dict[str, Any] = {"model": "image_card", "prompt": "a red fox", "extra_body": {"seed": 5}}
    webp, jpeg = (opened(client.images.generate(**fox, output_format=kind)) for kind in ("webp", "jpeg"))
    assert (webp[0].format, jpeg[0].format) == ("WEBP", "JPEG")
    assert webp[0].size == jpeg[0].size == (512, 512)
    by_url = client.images.generate(**fox, response_format="url")
    assert by_url.data is not None and by_url.data[0].url is not None
    got = httpx.get(by_url.data[0].url, timeout=30)
    assert Image.open(BytesIO(got.content)).size == (512, 512)


@pytest.mark.parametrize("model", ["redraw", "redraw_mask"])
def test_what_is_transparent_in_the_mask_is_drawn_anew(client: OpenAI, model: str) -> None:
    body = {"seed": 255} if model == "redraw" else {}
    paint = PAINT if model == "redraw" else (0, 255, 0)
    red = written(Image.new("RGB", (64, 64), "red"))
    made = client.images.edit(
        model=model,
        prompt="a hat",
        image=[red] if model == "redraw" else [red, red],
        mask=holed(),
        extra_body=body,
    )
    picture = opened(made)[0].convert("RGB")
    assert (picture.getpixel((8, 32)), picture.getpixel((56, 32))) == (paint, (255, 0, 0))


def test_a_stream_ends_with_the_picture(client: OpenAI) -> None:
    with client.images.generate(model="image_card", prompt="a hen", stream=True, partial_images=1) as stream:
        events: list[Any] = list(stream)
    assert events[-1].type == "image_generation.completed"
    assert Image.open(BytesIO(base64.b64decode(events[-1].b64_json))).size == (512, 512)


def test_what_cannot_be_is_an_exception(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="takes a width from 64 to 2048"):
        client.images.generate(model="image_card", prompt="a fox", size="16x16")
    with pytest.raises(openai.NotFoundError, match="models are the stored workflows"):
        client.images.generate(model="dall-e-2", prompt="a fox")
