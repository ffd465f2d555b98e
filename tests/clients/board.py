"""Who tries what: every client on a server, and a look at what the server kept of it."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.clients.caller import Caller
from tests.clients.graphs import color_of
from tests.clients.servers import Server

WORKS, ALONE, FAILS = "works", "alone", "fails"
Use = Callable[[Caller, int, Path], Awaitable[bytes]]
"""Makes a picture of a color as one person; the folder is for its files."""


@dataclass(frozen=True)
class Client:
    """A client that can be tried.

    Attributes:
        name: What tables show.
        use: What it is used for.
        saves: Whether the picture that it gets is a saved file, byte for byte.
        one_prompt: Whether it stops when its person has a second prompt at work.
    """

    name: str
    use: Use
    saves: bool = True
    one_prompt: bool = False


@dataclass
class Board:
    """Tries clients on servers and keeps what came of it.

    Attributes:
        folder: For what clients write.
        tell: Gets a line about each try as it ends.
        failures: What went wrong, each with its client and server.
    """

    folder: Path
    tell: Callable[[str], None]
    failures: list[str] = field(default_factory=list)
    _colors: "itertools.count[int]" = field(default_factory=lambda: itertools.count(0x112233, 0x010203))

    async def column(self, server: Server, clients: Sequence[Client]) -> dict[str, str]:
        """Try every client on a server, one after the other; returns a word for each client's name.

        Two people try it at once. Where they are the same to the server and the client can't be two, and
        where that fails, one tries it alone.
        """
        words = {}
        for client in clients:
            began = time.monotonic()
            if client.one_prompt and not server.keyed:
                word = ALONE if await self._try(client, server, server.people[:1]) else FAILS
            elif await self._try(client, server, server.people):
                word = WORKS
            else:
                word = ALONE if await self._try(client, server, server.people[:1]) else FAILS
            words[client.name] = word
            self.tell(
                f"{client.name} on {' '.join(server.name.split())}: {word}, {time.monotonic() - began:.1f} s"
            )
        return words

    async def _try(self, client: Client, server: Server, people: Sequence[Caller]) -> bool:
        before = [set(await _history(me)) for me in people]
        colors = [next(self._colors) & 0xFFFFFF for _ in people]

        async def one(number: int) -> bytes:
            slug = "".join(letter if letter.isalnum() else "-" for letter in client.name)
            folder = self.folder / "-".join(server.name.split()) / f"{slug}-{len(people)}{number}"
            picture = await client.use(people[number], colors[number], folder)
            found = color_of(picture)
            assert found == colors[number], f"it got {found:06x}, not its own {colors[number]:06x}"
            return picture

        done = await asyncio.gather(*(one(number) for number in range(len(people))), return_exceptions=True)
        errors = [error for error in done if isinstance(error, BaseException)]
        if not errors:
            pictures = [picture for picture in done if isinstance(picture, bytes)]
            try:
                await _look(server, people, before, pictures if client.saves else [])
            except (AssertionError, httpx.HTTPError) as error:
                errors.append(error)
        where = f"{client.name} on {' '.join(server.name.split())}"
        how = "alone" if len(people) == 1 else "two at once"
        self.failures += [f"{where}, {how}: {type(error).__name__}: {error}" for error in errors]
        return not errors


async def _look(
    server: Server, people: Sequence[Caller], before: list[set[str]], pictures: list[bytes]
) -> None:
    """Compare what people got with what the server has for them under its names.

    Raises:
        AssertionError: A picture is not a file of its person's, or one person finds another's.
    """
    made = []
    for me, old in zip(people, before, strict=True):
        new = {prompt: entry for prompt, entry in (await _history(me)).items() if prompt not in old}
        made.append((new, await _files(me, new)))
    for (_, files), picture in zip(made, pictures, strict=False):
        assert picture in files.values(), f"its picture is none of its files: {sorted(files)}"
    if server.keyed and len(people) == 2:
        for me, (prompts, theirs) in ((people[0], made[1]), (people[1], made[0])):
            assert not set(prompts) & set(await _history(me)), f"{me.key} finds somebody else's prompts"
            for name, file in theirs.items():
                assert await _view(me, name) != file, f"{me.key} finds somebody else's {name}"


async def _history(me: Caller) -> dict[str, Any]:
    async with httpx.AsyncClient(headers=me.bearer, timeout=60) as http:
        found = (await http.get(f"{me.url}/history")).raise_for_status().json()
    return dict(found)


async def _files(me: Caller, history: dict[str, Any]) -> dict[tuple[str, str, str], bytes]:
    """Return the pictures of prompts by folder type, subfolder and name."""
    names = {
        (image["type"], image["subfolder"], image["filename"])
        for entry in history.values()
        for output in entry["outputs"].values()
        for image in output.get("images", ())
    }
    files = {}
    for name in names:
        file = await _view(me, name)
        assert file is not None, f"the history names {name}, and /view has no such file"
        files[name] = file
    return files


async def _view(me: Caller, name: tuple[str, str, str]) -> bytes | None:
    kind, subfolder, filename = name
    wanted = {"type": kind, "subfolder": subfolder, "filename": filename}
    async with httpx.AsyncClient(headers=me.bearer, timeout=60) as http:
        answer = await http.get(f"{me.url}/view", params=wanted)
    return answer.content if answer.status_code == 200 else None
