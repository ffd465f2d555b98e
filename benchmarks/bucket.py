"""A bucket for measurements: moto's server of S3's protocol, in a process of its own."""

import sys
from collections.abc import Mapping
from typing import Any

import boto3
import httpx

from benchmarks.stage import Served, Stage
from comfy_fleet.cli.up import ports

NAME, KEY, SECRET = "bench", "AKIABENCHBENCH", "not-a-secret"
_STAGE = 0
_SERVE = (
    "import sys, logging; logging.getLogger('werkzeug').setLevel(logging.ERROR); "
    "from moto.server import main; main(sys.argv[1:])"
)


class BenchBucket:
    """A running bucket.

    Attributes:
        served: Its process, and where it answers.
    """

    def __init__(self, served: Served) -> None:
        self.served = served
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=served.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @classmethod
    async def start(cls, stage: Stage) -> "BenchBucket":
        """Start a server, and make the bucket."""
        port = ports.draw(1)[0]
        argv = [sys.executable, "-c", _SERVE, "-H", "127.0.0.1", "-p", str(port)]
        child = await stage.child("bucket", argv, stage=_STAGE)
        url = f"http://127.0.0.1:{port}"
        await stage.until_200(f"{url}/moto-api/")
        made = cls(Served(url=url, child=child))
        made._client.create_bucket(Bucket=NAME)
        return made

    def objects(self) -> Mapping[str, int]:
        """Return the objects' sizes by name."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}

    def port(self) -> int:
        """Return where it answers."""
        return int(httpx.URL(self.served.url).port or 0)


def record(url: str) -> dict[str, Any]:
    """Return what operators send to add the bucket at an address as a store."""
    credentials = {"access_key_id": KEY, "secret_access_key": SECRET}
    return {"name": "bench", "url": f"s3://{NAME}", "endpoint": url, "credentials": credentials}
