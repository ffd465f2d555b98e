"""What users do with a fleet all day, one job at a time, each in another way."""

import asyncio
import io
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import orjson
from PIL import Image

from benchmarks.operations import FINAL
from comfy_fleet.timeouts import Timeout

SIZE = 16
PROMPTS = 50
"""Different prompts of the stored workflow: more jobs than that repeat each other."""
IDEMPOTENCY_KEYS = 200
"""Keys are kept for a day: a soak draws from so many, so that their number stays what it is."""
POLL_S = (0.1, 1.0)
END_S = 300.0
FULL_S = 60.0
"""For so long a submit is repeated that is told to come again."""


class WentWrong(Exception):
    """A visit met what no user should; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that its user has seen end.

    Attributes:
        way: What its user did.
        user: Whose it is.
        status: In which state it ended.
        reason: The code of its error; empty without one.
        removed: Whether its user has removed it since.
        hooked: Whether its end is told to a webhook.
    """

    id: str
    way: str
    user: str
    status: str
    reason: str = ""
    removed: bool = False
    hooked: bool = False


@dataclass(kw_only=True)
class Diary:
    """What visits came to, since it was read last.

    Attributes:
        accepted: Jobs that were accepted.
        ended: Those that were seen to end.
        told_to_wait: How often a submit was told to come again.
        wrong: What no user should meet.
    """

    accepted: list[str] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    told_to_wait: int = 0
    wrong: Counter[str] = field(default_factory=Counter)


def _graph() -> dict[str, Any]:
    """Return a graph that makes one tiny picture, never equal to an earlier one."""
    color = {"width": SIZE, "height": SIZE, "batch_size": 1, "color": secrets.randbelow(1 << 24)}
    save = {"images": ["1", 0], "filename_prefix": f"soak/{uuid4().hex[:8]}"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": color},
        "2": {"class_type": "SaveImage", "inputs": save},
    }


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), secrets.randbelow(1 << 24)).save(file, "PNG")
    return file.getvalue()


class Visitor:
    """One user's client, with connections of its own.

    Args:
        http: Calls the fleet.
        url: The public port.
        user: Whose key it shows.
        key: That key.
        hooks: Where webhooks go.
        diary: Gets what happens.
        rng: Chooses.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        *,
        url: str,
        user: str,
        key: str,
        hooks: str,
        diary: Diary,
        rng: random.Random,
    ) -> None:
        self._http = http
        self._url = url
        self._user = user
        self._headers = {"Authorization": f"Bearer {key}"}
        self._hooks = hooks
        self._diary = diary
        self._rng = rng
        self._way = ""
        self._ways: Mapping[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "graph": (20, self._plain),
            "event stream": (15, self._stream),
            "stored workflow": (10, self._stored),
            "ComfyUI's interface": (10, self._native),
            "upload": (8, self._upload),
            "webhook": (12, self._webhook),
            "cancel": (7, self._cancel),
            "signed URLs": (5, self._signed),
            "left stream": (4, self._left_stream),
            "left websocket": (3, self._left_socket),
            "idempotency key": (3, self._idempotent),
            "removed": (3, self._removed),
        }

    async def visit(self) -> None:
        """Have one job made in some way, and see it end."""
        names = list(self._ways)
        name = self._rng.choices(names, [self._ways[one][0] for one in names])[0]
        self._way = name
        try:
            async with Timeout(END_S):
                await self._ways[name][1]()
        except WentWrong as error:
            self._diary.wrong[f"{name}: {error}"] += 1
        except TimeoutError:
            self._diary.wrong[f"{name}: not over after {END_S:g} s"] += 1
        except (aiohttp.ClientError, OSError) as error:
            self._diary.wrong[f"{name}: {type(error).__name__} {str(error)[:120]}"] += 1

    async def end(self, job_id: str) -> None:
        """Cancel a job that need not end by itself, and see it end."""
        self._way = "hostile node"
        async with self._http.post(f"{self._url}/api/v2/jobs/{job_id}/cancel", headers=self._headers):
            pass
        await self._until_ended(job_id)

    # -- ways ------------------------------------------------------------------------------------------

    async def _plain(self) -> None:
        job = await self._submit(_graph())
        ended = await self._until_ended(job["id"])
        await self._read_outputs(ended, self._headers)

    async def _stream(self) -> None:
        job = await self._submit(_graph())
        async with self._http.get(job["urls"]["events"], headers=self._headers) as answer:
            if answer.status != 200:
                raise WentWrong(f"an event stream was answered {answer.status}")
            async for _ in answer.content.iter_any():
                pass
        await self._until_ended(job["id"])

    async def _stored(self) -> None:
        params = {"prompt": f"prompt {self._rng.randrange(PROMPTS)}"}
        job = await self._post("/api/v1/workflows/image_card/jobs", {"params": params})
        await self._until_ended(job["id"])

    async def _native(self) -> None:
        client = uuid4().hex
        url = f"{self._url}/ws?clientId={client}"
        async with self._http.ws_connect(url, headers=self._headers, max_msg_size=0) as socket:
            prompt = await self._post("/prompt", {"prompt": _graph(), "client_id": client})
            job_id = str(prompt["prompt_id"])
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    continue
                message = orjson.loads(frame.data)
                data = message.get("data") or {}
                if data.get("prompt_id") != job_id:
                    continue
                if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        await self._until_ended(job_id)
        async with self._http.get(f"{self._url}/history/{job_id}", headers=self._headers) as answer:
            await answer.read()
            if answer.status != 200:
                raise WentWrong(f"the history was answered {answer.status}")

    async def _upload(self) -> None:
        name = f"soak-{uuid4().hex}.png"
        form = aiohttp.FormData()
        form.add_field("file", _picture(), filename=name, content_type="image/png")
        form.add_field("file_path", name)
        async with self._http.post(f"{self._url}/api/v2/assets", data=form, headers=self._headers) as answer:
            text = await answer.text()
            if answer.status not in (200, 201):
                raise WentWrong(f"an upload was answered {answer.status} {text[:200]}")
        graph = _graph()
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        job = await self._submit(graph)
        await self._until_ended(job["id"])

    async def _webhook(self) -> None:
        job = await self._submit(_graph(), webhook_url=f"{self._hooks}/{self._user}")
        await self._until_ended(job["id"], hooked=True)

    async def _cancel(self) -> None:
        hooked = self._rng.random() < 0.3
        more = {"webhook_url": f"{self._hooks}/{self._user}"} if hooked else {}
        job = await self._submit(_graph(), **more)
        await asyncio.sleep(self._rng.uniform(0, 0.3))
        url = f"{self._url}/api/v2/jobs/{job['id']}/cancel"
        async with self._http.post(url, headers=self._headers) as answer:
            if answer.status != 200:
                raise WentWrong(f"a cancel was answered {answer.status} {(await answer.text())[:200]}")
        await self._until_ended(job["id"], hooked=hooked)

    async def _signed(self) -> None:
        job = await self._submit(_graph())
        await self._until_ended(job["id"])
        url = f"{self._url}/api/v1/jobs/{job['id']}?signed=60"
        async with self._http.get(url, headers=self._headers) as answer:
            if answer.status != 200:
                raise WentWrong(f"signed URLs were answered {answer.status}")
            signed = await answer.json()
        await self._read_outputs(signed, {})
        for output in signed["outputs"]:
            async with self._http.get(output["url"][:-1] + "0" + output["url"][-1:]) as answer:
                if answer.status != 403:
                    raise WentWrong(f"a forged signature was answered {answer.status}")

    async def _left_stream(self) -> None:
        job = await self._submit(_graph())
        async with self._http.get(job["urls"]["events"], headers=self._headers) as answer:
            await answer.content.readany()
            answer.close()
        await self._until_ended(job["id"])

    async def _left_socket(self) -> None:
        client = uuid4().hex
        url = f"{self._url}/ws?clientId={client}"
        async with self._http.ws_connect(url, headers=self._headers):
            prompt = await self._post("/prompt", {"prompt": _graph(), "client_id": client})
        await self._until_ended(str(prompt["prompt_id"]))

    async def _idempotent(self) -> None:
        key = f"soak-{self._rng.randrange(IDEMPOTENCY_KEYS)}"
        job = await self._post("/api/v2/jobs", {"workflow": _graph()}, {"Idempotency-Key": key}, reused=True)
        if job:  # else the key has made a job before
            await self._until_ended(job["id"])

    async def _removed(self) -> None:
        job = await self._submit(_graph())
        await self._until_ended(job["id"], removed=True)
        # At the public port, a key in a header is enough.
        url = f"{self._url}/api/v1/jobs/{job['id']}"
        async with self._http.delete(url, headers=self._headers) as answer:
            if answer.status != 204:
                raise WentWrong(f"a removal was answered {answer.status} {(await answer.text())[:200]}")

    # -- steps -----------------------------------------------------------------------------------------

    async def _submit(self, graph: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return await self._post("/api/v2/jobs", {"workflow": graph, **more})

    async def _post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None, *, reused: bool = False
    ) -> dict[str, Any]:
        """Submit until it is accepted; return the answer, or nothing if its key was used before."""
        waited = 0.0
        while True:
            async with self._http.post(
                f"{self._url}{path}",
                data=orjson.dumps(body),
                headers={**self._headers, "Content-Type": "application/json", **(headers or {})},
            ) as answer:
                text = await answer.read()
                status, after = answer.status, answer.headers.get("Retry-After", "")
            if status in (200, 201):
                found: dict[str, Any] = orjson.loads(text)
                self._diary.accepted.append(str(found.get("id") or found["prompt_id"]))
                return found
            if reused and b"idempotency_key_reuse" in text:
                return {}
            if status not in (429, 503) or waited > FULL_S:
                raise WentWrong(f"POST {path} was answered {status} {text[:200].decode(errors='replace')}")
            if not after.isdecimal():
                raise WentWrong(f"POST {path} was answered {status} without Retry-After")
            self._diary.told_to_wait += 1
            waited += int(after)
            await asyncio.sleep(int(after))

    async def _until_ended(
        self, job_id: str, *, removed: bool = False, hooked: bool = False
    ) -> dict[str, Any]:
        pause_s, most_s = POLL_S
        job: dict[str, Any] = {}
        while True:
            async with self._http.get(f"{self._url}/api/v2/jobs/{job_id}", headers=self._headers) as answer:
                text = await answer.read()
            if answer.status == 200:
                job = orjson.loads(text)
                if job["status"] in FINAL:
                    break
            elif answer.status != 503:
                raise WentWrong(f"a job was answered {answer.status} {text[:200].decode(errors='replace')}")
            await asyncio.sleep(pause_s)
            pause_s = min(most_s, 1.5 * pause_s)
        self._diary.ended.append(
            Ended(
                id=job_id,
                way=self._way,
                user=self._user,
                status=str(job["status"]),
                reason=str((job.get("error") or {}).get("code", "")),
                removed=removed,
                hooked=hooked,
            )
        )
        return job

    async def _read_outputs(self, job: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        if job["status"] != "succeeded":
            return
        outputs: Sequence[Mapping[str, Any]] = job["outputs"]
        if not outputs:
            raise WentWrong("a job succeeded without an output")
        for output in outputs:
            async with self._http.get(str(output["url"]), headers=headers) as answer:
                data = await answer.read()
                if answer.status != 200 or not data.startswith(b"\x89PNG"):
                    raise WentWrong(f"an output was answered {answer.status}")
