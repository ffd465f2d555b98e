"""Uploads and outputs in memory."""

from collections.abc import AsyncIterator

from blake3 import blake3

from comfy_fleet.domain.errors import NoRoom
from comfy_fleet.domain.graphs.pictures.parsing import applied
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.blobs import Corrections
from tests.fakes.base import Fake, unplayed
from tests.fakes.runs import FakeRunStore


class FakeAssetStore(Fake):
    """Outputs of jobs.

    Attributes:
        runs: Where they are committed.
        outputs: The bytes of each output by its name.
        room: Bytes left on the disk; None: there is no end of them.
    """

    def __init__(self, runs: FakeRunStore) -> None:
        super().__init__()
        self.runs = runs
        self.outputs: dict[str, bytes] = {}
        self.room: int | None = None

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        if self.room is not None and size_bytes > self.room:
            raise NoRoom("the fleet's disk is full")

    async def put_output(
        self,
        *,
        owner: str,
        job_id: str,
        chunks: AsyncIterator[bytes],
        name: str,
        content_type: str,
        expires_at: float,
        corrections: Corrections | None = None,
    ) -> Asset:
        data = b""
        async for chunk in chunks:
            data += chunk
            self.check_room(len(data), output=True)
            if corrections is not None:
                corrections.feed(chunk)
        if corrections is not None:
            data = b"".join(applied(corrections.edits(), [data]))
        self.answer("put_output")
        self.outputs[name] = data
        return Asset(
            id=f"a-{name}",
            owner=owner,
            hash=f"blake3:{blake3(data).hexdigest()}",
            size_bytes=len(data),
            content_type=content_type,
            file_path=name,
            path=name,
            created_at=0,
            expires_at=expires_at,
            job_id=job_id,
        )

    async def get(self, asset_id: str) -> Asset | None:
        self.answer("get")
        return self.runs.files.get(asset_id)

    receive = open_received = keep = upload = from_hash = has_hash = by_path = by_hash = uploads = unplayed
    delete = hold = release = forget_job = open = file = url = replace_output = discard_output = unplayed
