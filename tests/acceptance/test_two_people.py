"""Two people with keys, who call everything by the same names: none sees, hears or touches the other's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.acceptance.up import Up
from tests.acceptance.wire import BOB, CLEO, DAN, graph, signed_in

pytestmark = pytest.mark.timeout(180)
SAME = "00000000-0000-4000-8000-000000000001"


class Person:
    """Somebody whose program takes an address only, and so has the key in the path."""

    def __init__(self, http: httpx.Client, socket: ClientConnection) -> None:
        self.http = http
        self.socket = socket

    def prompt(self, color: int) -> None:
        made = graph(color)
        made["2"]["inputs"]["filename_prefix"] = "same"
        body = {"prompt": made, "client_id": "same", "prompt_id": SAME}
        answer = self.http.post("/prompt", content=json.dumps(body))  # no type at all, as scripts send it
        assert (answer.status_code, answer.json()["prompt_id"]) == (200, SAME), answer.text

    def heard(self) -> list[dict[str, Any]]:
        """Return the messages until the prompt's end."""
        found = []
        while True:
            message = self.socket.recv(30)
            if isinstance(message, bytes):
                continue
            found.append(json.loads(message))
            data = found[-1]["data"]
            if found[-1]["type"] == "executing" and data["node"] is None and data["prompt_id"] == SAME:
                return found

    def picture(self) -> tuple[str, bytes]:
        """Return the name and bytes of the prompt's picture."""
        (output,) = self.http.get(f"/history/{SAME}").json()[SAME]["outputs"].values()
        (image,) = output["images"]
        answer = self.http.get("/view", params=image)
        assert answer.status_code == 200
        return image["filename"], answer.content


@contextmanager
def person(fleet: Up, key: str) -> Iterator[Person]:
    place = fleet.url.removeprefix("http://")
    with (
        httpx.Client(base_url=f"http://{place}/k/{key}", timeout=30) as http,
        connect(f"ws://{place}/k/{key}/ws?clientId=same", proxy=None) as socket,
    ):
        yield Person(http, socket)


def test_the_same_names_mean_each_ones_own(keyed: Up) -> None:
    with person(keyed, CLEO) as cleo, person(keyed, DAN) as dan:
        cleo.prompt(0xFF0000)
        dan.prompt(0x00FF00)
        for one in (cleo, dan):
            heard = one.heard()
            assert [message["type"] for message in heard].count("execution_success") == 1
            remaining = [
                message["data"]["status"]["exec_info"]["queue_remaining"]
                for message in heard
                if message["type"] == "status"
            ]
            assert max(remaining) <= 1
        (name, red), (other, green) = cleo.picture(), dan.picture()
        assert name == other and red != green
        assert list(dan.http.get("/history").json()) == [SAME]
        assert dan.http.get("/queue").json() == {"queue_running": [], "queue_pending": []}
        assert dan.http.post("/history", json={"clear": True}).status_code == 200
        assert dan.http.get("/history").json() == {}
        assert list(cleo.http.get("/history").json()) == [SAME]
        assert cleo.picture() == (name, red)
        missing = dan.http.get(f"/view?filename={quote(name)}&type=output&subfolder=nobodys")
        assert missing.status_code == 404


def test_a_browser_that_has_signed_in_uses_it_and_another_sites_page_does_not(keyed: Up) -> None:
    with httpx.Client() as browser:
        signed_in(browser, keyed, BOB)
        cookie = {"Cookie": f"fleet_session={browser.cookies['fleet_session']}"}
    own = {**cookie, "Origin": keyed.url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=keyed.url) as http:
        answer = http.post("/api/prompt", json={"prompt": graph(5)}, headers=own)
        assert answer.status_code == 200, answer.text
        for headers in (
            {**cookie, "Origin": "https://evil.test"},
            {**cookie, "Sec-Fetch-Site": "cross-site"},
            {**cookie, "Sec-Fetch-Site": "same-site"},
        ):
            for path in ("/prompt", "/api/interrupt", "/queue", "/history", "/free", "/upload/image"):
                tried = http.post(path, json={"prompt": graph(5), "clear": True}, headers=headers)
                assert tried.status_code == 403, (path, headers)
        typed = {**own, "Content-Type": "text/plain"}
        form = http.post("/prompt", content=json.dumps({"prompt": graph(5)}), headers=typed)
        assert form.status_code == 415
    place = keyed.url.removeprefix("http://")
    with connect(f"ws://{place}/ws", proxy=None, additional_headers=cookie, origin=None) as socket:
        assert json.loads(socket.recv(10))["type"] == "status"
