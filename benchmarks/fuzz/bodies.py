"""ComfyUI's own routes, and an agent's, of a fleet that runs: bodies, paths, queries, headers and frames."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import httpx
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from benchmarks.fuzz import recordings, values
from benchmarks.fuzz.target import Target, right
from benchmarks.fuzz.uploads import FORMS

_WITHIN_S = 30.0
_FORM = "multipart/form-data; boundary=b"
_ROUTES = [
    *(("POST", "/prompt"), ("POST", "/api/prompt"), ("POST", "/queue"), ("POST", "/history")),
    *(("POST", "/interrupt"), ("POST", "/free"), ("POST", "/upload/image"), ("POST", "/upload/mask")),
    *(
        ("POST", "/userdata/"),
        ("GET", "/userdata"),
        ("GET", "/view"),
        ("GET", "/history/"),
        ("GET", "/queue"),
    ),
    *(("GET", "/object_info/"), ("GET", "/models/"), ("POST", "/settings"), ("POST", "/settings/")),
    *(("GET", "/api/jobs"), ("GET", "/api/jobs/"), ("DELETE", "/userdata/"), ("POST", "/v2/userdata")),
    *(("POST", "/api/v2/jobs"), ("POST", "/api/v2/assets"), ("POST", "/api/v1/generate")),
]
_BEAT = {
    "instance": "i1",
    "gpus": [{"uuid": "GPU-1", "memory_total": 10}],
    "nodes": [{"name": "g1", "word": "ready", "weight": 7, "facts": {"a": [1]}, "runs": ["r"]}],
    "join": [{"name": "g9", "url": "http://127.0.0.1:1", "agent": "127.0.0.1:2", "labels": {"a": "b"}}],
    "seen": ["r"],
    "deleted": ["g1 job run stray"],
}
_BODIES = [
    {"prompt": recordings.graphs()[0], "client_id": "c", "prompt_id": recordings.RUN, "extra_data": {"a": 1}},
    {"prompt": {}, "partial_execution_targets": ["1"], "front": True, "number": -1},
    {"delete": [recordings.RUN], "clear": False},
    {"workflow": recordings.graphs()[0], "metadata": {"a": "b"}, "priority": 3},
    {"Comfy.X": 1},
]
_QUERY = st.dictionaries(
    st.sampled_from(["filename", "subfolder", "type", "preview", "channel", "dir", "recurse", "limit", "x"]),
    st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(["output", "../x", "webp;90", "-1"]),
    max_size=4,
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        ["If-None-Match", "Range", "Accept", "Content-Type", "Origin", "Accept-Encoding", "Cookie"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
    max_size=2,
)
_SAID = [
    {"type": "feature_flags", "data": {"supports_preview_metadata": True}},
    {"type": "x", "data": {}},
]


@contextmanager
def targets(url: str, console: str, key: str, agent: str) -> Iterator[list[Target]]:
    """Return what asks a fleet, for as long as its connections are open.

    Args:
        url: Its edge.
        console: The same for operators.
        key: A user's key; empty: the fleet has none.
        agent: The agents' token.
    """
    own = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=_WITHIN_S, trust_env=False, headers=own) as http:
        yield _targets(http, url, console, own, agent)


def _targets(http: httpx.Client, url: str, console: str, own: Mapping[str, str], agent: str) -> list[Target]:

    def ask(case: tuple[tuple[str, str], str, bytes, Mapping[str, str], Mapping[str, str]]) -> None:
        (method, path), name, body, query, headers = case
        whole = url + path + (quote(name, safe="") if path.endswith("/") else "")
        kind = {"Content-Type": _FORM if body.startswith(b"--") else "application/json"}
        sent = {one.encode(): value.encode("latin-1") for one, value in {**kind, **headers}.items()}
        answer = http.request(method, whole, content=body, params=query, headers=sent)
        _fine(answer)

    def beat(body: bytes) -> None:
        headers = {"Authorization": f"Bearer {agent}", "Content-Type": "application/json"}
        answer = http.post(f"{console}/api/v1/agents/h1/heartbeat", content=body, headers=headers)
        _fine(answer)

    def say(case: tuple[str, list[bytes | str]]) -> None:
        where = f"{url.replace('http', 'ws', 1)}/ws?clientId={quote(case[0])}"
        try:
            with connect(where, additional_headers=own, proxy=None) as socket:
                for one in case[1]:
                    socket.send(one)
                right(socket.ping().wait(_WITHIN_S), "no answer to a ping")
        except ConnectionClosed as closed:
            right(closed.rcvd is not None and closed.rcvd.code != 1011, f"closed: {closed}")
        except InvalidStatus as refused:
            right(refused.response.status_code < 500, f"{refused}")

    text = st.text(st.characters(codec="utf-8"), max_size=20)
    return [
        Target(
            name="native-routes",
            group="bodies",
            cases=st.tuples(
                st.sampled_from(_ROUTES),
                text | st.sampled_from(["..", "a/b", recordings.RUN, "x.json"]),
                values.changed_json(_BODIES) | values.changed_bytes(FORMS),
                _QUERY,
                _HEADERS,
            ),
            check=ask,
        ),
        Target(name="heartbeats", group="bodies", cases=values.changed_json([_BEAT]), check=beat),
        Target(
            name="client-frames",
            group="bodies",
            cases=st.tuples(text, st.lists(text | values.changed_json(_SAID), max_size=3)),
            check=say,
        ),
    ]


def _fine(answer: httpx.Response) -> None:
    status = answer.status_code
    # 503: nobody is there, or it is too much; then it says when to ask again.
    right(
        status < 500 or (status == 503 and "retry-after" in answer.headers), f"{status} {answer.text[:300]}"
    )
    if "json" in answer.headers.get("content-type", "") and answer.content:
        json.loads(answer.content)
    right("Traceback" not in answer.text[:100_000], answer.text[:300])
