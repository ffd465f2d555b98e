"""The calls that the pages print: each one is made, and its answer has the printed form."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from PIL import Image

from tests.acceptance.up import Up
from tests.unit.test_docs import split

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PATH = "/api/v1/workflows/image_card/batches"
PRINTED = "http://127.0.0.1:8188"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def blocks(page: str) -> list[tuple[str, str]]:
    return split((HOWTO / page).read_text())[0]


def curls(block: str) -> list[list[str]]:
    """Return the words of each ``curl`` in a block of shell lines, without what it is piped into."""
    found = []
    for line in block.replace("\\\n", " ").replace("$(curl", "\ncurl").split("\ncurl "):
        line = line.removeprefix("curl ")
        words = shlex.split(line, comments=True)
        ends = [place for place, word in enumerate(words) if word in ("|", ">")]
        found.append(words[: ends[0] if ends else None])
    return [words for words in found if any(word.startswith(("$FLEET", PRINTED)) for word in words)]


class Reader:
    """Makes the printed calls at a fleet, with the ids that it gave in place of the printed ones."""

    def __init__(self, url: str, folder: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._folder = folder
        self._ids: dict[str, str] = {}
        self._job = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, words: list[str]) -> httpx.Response:
        """Do what ``curl`` does with these words."""
        method, url, content, headers, files = "", "", None, {}, {}
        rest = iter(words)
        for word in rest:
            if word == "-X":
                method = next(rest)
            elif word == "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            elif word == "-d":
                content = next(rest)
            elif word == "-F":
                name, _, value = next(rest).partition("=@")
                files[name] = (value, (self._folder / value).read_bytes(), "image/png")
            elif word in ("-o", "--max-time"):
                next(rest)
            elif not word.startswith("-"):
                url = word.replace("$FLEET", "").replace(PRINTED, "").replace("$ID", self._job)
        url = UUID.sub(lambda found: self._ids.get(found[0], self._job), url)
        method = method or ("POST" if content or files else "GET")
        answer = self._http.request(method, url, content=content, headers=headers, files=files or None)
        if answer.headers["content-type"].startswith("application/json"):
            made = answer.json()
            self._job = (made.get("id") if "urls" in made else made.get("task_id")) or self._job
        return answer

    def read(self, words: list[str], printed: Any) -> None:
        """Make a call until its answer is as far as the printed one, and compare both."""
        deadline = time.monotonic() + 60
        while True:
            answer = self.send(words).json()
            if answer.get("status") == printed.get("status") or "-d" in words:
                break
            assert time.monotonic() < deadline, (answer, printed)
            time.sleep(0.05)
        self._compare(printed, answer)

    def _compare(self, printed: Any, answer: Any) -> None:
        if isinstance(printed, dict) and isinstance(answer, dict):
            assert printed.keys() == answer.keys()
            for key, value in printed.items():
                self._compare(value, answer[key])
        elif isinstance(printed, list) and isinstance(answer, list):
            assert bool(printed) == bool(answer)
            for first, second in zip(printed, answer, strict=False):
                self._compare(first, second)
        elif isinstance(printed, str) and isinstance(answer, str):
            for old, new in zip(UUID.findall(printed), UUID.findall(answer), strict=True):
                self._ids[old] = new
        elif printed is not None and answer is not None:
            assert isinstance(answer, type(printed)) or {type(printed), type(answer)} == {int, float}


@pytest.fixture
def reader(fleet: Up, folder: Path) -> Iterator[Reader]:
    with Reader(fleet.url, folder) as reader:
        yield reader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "face.png")
    return tmp_path


def test_every_call_of_the_page_about_http(reader: Reader) -> None:
    made = compared = events = 0
    page = blocks("http.md")
    for (language, block), (after, printed) in zip(page, [*page[1:], ("", "")], strict=True):
        if language != "sh" or "openapi-generator" in block:
            continue
        for words in curls(block):
            made += 1
            if after == "json":
                reader.read(words, json.loads(printed))
                compared += 1
            else:
                answer = reader.send(words)
                assert answer.is_success, answer.text
                if "text/event-stream" in answer.headers["content-type"]:
                    assert answer.text.rstrip().endswith('data: {"status":"succeeded","queue_position":null}')
                    events += 1
    assert (made, compared, events) == (19, 6, 1)


def test_the_calls_of_the_page_about_batches(fleet: Up, reader: Reader) -> None:
    page = blocks("batches.md")
    (first,) = (block for language, block in page if language == "sh" and "/batches" in block)
    (words,) = curls(first)
    made = reader.send(words)
    assert made.status_code == 201, made.text
    batch = made.json()
    url = f"/api/v1/batches/{batch['id']}"
    with httpx.Client(base_url=fleet.url, timeout=60) as http:
        (table,) = (block for language, block in page if language == "csv")
        sent = http.post(PATH, content=table, headers={"Content-Type": "text/csv"})
        assert sent.status_code == 201, sent.text
        deadline = time.monotonic() + 60
        while http.get(url).json()["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (item, _) = http.get(url).json()["items"]
        (told,) = (block for language, block in page if "event: item" in block)
        printed = json.loads(told.partition("data: ")[2])
        assert printed.keys() == {"item", "job_id", "status", "custom_id"} <= item.keys()
        (message,) = (json.loads(block) for language, block in page if '"batch.completed"' in block)
        assert message["data"].keys() >= {"id", "round", "round_counts", "counts", "url"}
        (refused,) = (json.loads(block) for language, block in page if '"invalid_batch"' in block)
        wrong = http.post(PATH, json={"items": [{"params": {"prompt": "x", "width": 9999}}]})
        assert wrong.status_code == 422
        error, shown = wrong.json()["error"], refused["error"]
        assert (error["code"], error["details"].keys()) == (shown["code"], shown["details"].keys())


def test_the_call_that_waits(fleet: Up, reader: Reader) -> None:
    page = blocks("coming-from.md")
    at = next(place for place, (_, block) in enumerate(page) if "/api/v1/generate" in block)
    *before, last = curls(page[at][1])
    for words in before:
        assert reader.send(words).is_success
    answer, printed = reader.send(last).json(), json.loads(page[at + 1][1])
    assert answer["status"] == printed["status"]
    assert answer["error"] is None and answer["image_url"].startswith(fleet.url)
    assert answer.keys() >= printed.keys()


@pytest.mark.parametrize(
    ("page", "begins", "argv", "says"),
    [
        ("http.md", '"""Submit a job', ["a paper boat"], r"saved image_card_\d{5}_\.png \d+ bytes"),
        ("http.md", "import httpx", [], r"[0-9a-f-]{36} queued"),
        ("capacity.md", '"""Send jobs', ["36000", "3", "image_card"], r"execution_ms: median \d+, .*"),
    ],
)
def test_every_program_of_the_pages(
    fleet: Up, folder: Path, page: str, begins: str, argv: list[str], says: str
) -> None:
    (program,) = (text for language, text in blocks(page) if language == "python" and text.startswith(begins))
    assert PRINTED in program
    done = subprocess.run(
        [sys.executable, "-c", program.replace(PRINTED, fleet.url), *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(says, done.stdout.splitlines()[-1])


def test_the_page_about_the_python_client(fleet: Up, folder: Path) -> None:
    """Each of its pieces goes on from those before."""
    pieces = [text for language, text in blocks("python-client.md") if language == "python"]
    assert len(pieces) == 8
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(pieces)],
        cwd=folder,
        env={**os.environ, "FLEET_API_URL": fleet.console},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "status succeeded" in said and "3 of 3" in said and re.search("^width .* 64$", said, re.MULTILINE)
    assert len(list((folder / "cards").glob("SKU-?.png"))) == 3
    assert len(list((folder / "pictures").iterdir())) == 3
    with Image.open(folder / "inverted.png") as inverted:
        assert inverted.getpixel((0, 0)) == (0, 255, 255)
