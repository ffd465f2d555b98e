"""An API with workflows for OpenAI's clients; the dispatcher's part is played by tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from PIL import Image

from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.ports.runs import Claim
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys
from tests.openai_workflows import store

ANN, BOB, OPS = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789"
FOX: dict[str, Any] = {"model": "image_card", "prompt": "a fox"}


@dataclass
class Pictured:
    """An API, and clients of OpenAI's that ask it."""

    api: Api
    clients: AsyncExitStack

    async def client(self, key: str = ANN, url: str = "", **more: Any) -> AsyncOpenAI:
        """Return a client that sends nothing again by itself."""
        made = AsyncOpenAI(
            base_url=f"{url or self.api.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60, **more}
        )
        return await self.clients.enter_async_context(made)

    async def jobs(self, number: int) -> list[str]:
        """Return the ids of ann's jobs once there are so many, the oldest first."""
        found: list[str] = []

        async def made() -> bool:
            listed = (await self.api.client.get("/api/v1/jobs?limit=100")).json()["jobs"]
            found[:] = [one["id"] for one in listed]
            return len(found) >= number

        await until(made, what=f"{number} jobs are there")
        return found[::-1]

    async def run(self, job_id: str, *outputs: bytes, **more: Any) -> None:
        """Let a job succeed with these pictures."""
        await self.end(await self.api.claim(job_id), *outputs, **more)

    async def end(self, claim: Claim, *outputs: bytes, **more: Any) -> None:
        """Let a job that runs succeed with these pictures."""
        for number, data in enumerate(outputs or (png(),), 1):
            await self.api.output(claim, data, name=f"out_{number:05}_.png", node=str(number), **more)
        await self.api.finish(claim)

    async def fail(self, job_id: str, code: str) -> None:
        """Let a job fail."""
        claim = await self.api.claim(job_id)
        await self.api.stores.runs.left(claim, [])
        error = JobError(code=code, message="it broke")
        await self.api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1)

    async def params(self, job_id: str) -> dict[str, Any]:
        """Return the values of a job's parameters."""
        found: dict[str, Any] = (await self.api.client.get(f"/api/v1/jobs/{job_id}")).json()["params"]
        return found

    async def waits(self, number: int) -> None:
        """Return once so many requests wait for pictures."""

        async def waiting() -> bool:
            return self.api.deps.waits.total() == number

        await until(waiting, what=f"{number} requests wait")


@asynccontextmanager
async def pictured(redis_port: int, folder: Path, **settings: Any) -> AsyncIterator[Pictured]:
    """Run an API with a node that has all classes."""
    if not (folder / "workflows").is_dir():
        write_keys(folder / "keys", f"ann {ANN}\nbob {BOB}\nops {OPS} operator\n")
        store(folder / "workflows")
    files: dict[str, Any] = {"keys_file": folder / "keys", "workflows": folder / "workflows"}
    more = {"max_streams": 12, "max_wait_s": 30, **settings}
    async with running(redis_port, folder / "data", **files, **more) as api, AsyncExitStack() as clients:
        api.client.headers["X-API-Key"] = ANN
        await api.add_node(info=True)
        await until(lambda: api.deps.inventories.known, what="the node's classes are known")
        yield Pictured(api, clients)


def png(color: Any = "red", size: tuple[int, int] = (40, 20), mode: str = "RGB") -> bytes:
    """Return a picture of one colour."""
    buffer = BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def noise() -> bytes:
    """Return a picture that compresses badly."""
    buffer = BytesIO()
    Image.effect_noise((64, 64), 100).save(buffer, "PNG")
    return buffer.getvalue()


def holed() -> bytes:
    """Return a mask whose left quarter is transparent."""
    picture = Image.new("RGBA", (40, 20), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 10, 20))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """Return a picture."""
    return Image.open(BytesIO(data))
