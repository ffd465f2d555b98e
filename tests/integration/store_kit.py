"""A store for tests: S3 as `moto` has it, on a port of its own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

ACCESS, SECRET = "AKIATESTTESTTEST", "a-secret-that-nobody-sees-0123456789"


class Bucket:
    """One bucket of a running server.

    Attributes:
        name: Its name.
        url: Where its server answers.
    """

    def __init__(self, name: str = "shop") -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.name = name
        self._port = 0
        self._server: ThreadedMotoServer | None = None
        self.start()
        self.url = f"http://127.0.0.1:{self._port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=name)

    def start(self) -> None:
        """Answer, at the same place as before, if it does not; what was stored is there."""
        if self._server is not None:
            return
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Answer nobody."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def names(self) -> list[str]:
        """Return the names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def about(self, key: str) -> dict[str, Any]:
        """Return an object's content type and metadata."""
        found = self.client.head_object(Bucket=self.name, Key=key)
        return {"type": found["ContentType"], **found["Metadata"]}

    def put(self, key: str, data: bytes) -> None:
        """Write an object, as somebody else would."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def empty(self) -> None:
        """Delete all objects."""
        for key in self.names():
            self.client.delete_object(Bucket=self.name, Key=key)

    def record(self, name: str = "shop", **more: Any) -> dict[str, Any]:
        """Return what operators send to add it as a store."""
        credentials = {"access_key_id": ACCESS, "secret_access_key": SECRET}
        return {
            "name": name,
            "url": f"s3://{self.name}/pictures",
            "endpoint": self.url,
            "credentials": credentials,
            **more,
        }


@contextmanager
def served_bucket() -> Iterator[Bucket]:
    """Yield a bucket, and stop its server."""
    bucket = Bucket()
    try:
        yield bucket
    finally:
        bucket.stop()
