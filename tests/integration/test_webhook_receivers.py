"""The receivers in docs/howto/webhooks.md take what the fleet sends, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from comfy_fleet.domain.webhooks.webhook import Webhook
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import running

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "webhooks.md"
LANGUAGES = {
    "python": ("receiver.py", [sys.executable, "receiver.py"], ""),
    "javascript": ("receiver.cjs", ["node", "receiver.cjs"], "nodejs"),
    "php": ("receiver.php", ["php", "-S", "127.0.0.1:PORT", "receiver.php"], "php-cli"),
}


def receivers() -> dict[str, str]:
    return dict(re.findall(r"```(\w+) receiver\n(.*?)```", PAGE.read_text(), re.DOTALL))


def test_the_page_has_a_receiver_in_each_language() -> None:
    assert receivers().keys() == LANGUAGES.keys()
    assert Webhook(url="https://shop.test/").events  # what the page says of the usual ones
    assert all(event in PAGE.read_text() for event in Webhook(url="https://shop.test/").events)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_receiver_takes_signed_messages_alone(
    redis_port: int, redis: object, tmp_path: Path, language: str
) -> None:
    name, command, package = LANGUAGES[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}: install the package {package}")
    (tmp_path / name).write_text(receivers()[language])
    port = free_port()
    url = f"http://127.0.0.1:{port}/hooks"
    async with running(redis_port, tmp_path / "data", webhook_allow="127.0.0.1") as api:
        await api.add_node()
        secret = (await api.client.get("/api/v1/webhooks/secret")).json()["secret"]
        with (tmp_path / "told").open("wb") as told, (tmp_path / "errors").open("wb") as errors:
            process = subprocess.Popen(
                mortal([one.replace("PORT", str(port)) for one in command]),
                cwd=tmp_path,
                env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
                stdout=told,
                stderr=errors,
            )
        try:
            async with httpx.AsyncClient() as stranger:

                async def up() -> bool:
                    assert process.poll() is None, (tmp_path / "errors").read_text()
                    try:
                        return (await stranger.post(url, content=b"{}")).status_code == 400
                    except httpx.TransportError:
                        return False

                await until(up, what="it listens, and refuses what is not signed", timeout_s=40)
                now = str(int(time.time()))
                forged = {"webhook-id": "msg_x", "webhook-timestamp": now, "webhook-signature": "v1,AAAA v1,"}
                assert (await stranger.post(url, content=b"{}", headers=forged)).status_code == 400
            tried = (await api.client.post("/api/v1/webhooks/test", json={"url": url})).json()
            assert tried["delivered"] and tried["status"] == 204, tried  # it names no job
            job = await api.submit(GRAPH, webhook_url=url)
            await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
            line = f"msg_{job['id']}_canceled job.canceled {job['id']}"
            await until(lambda: line in (tmp_path / "told").read_text(), what="it is told", timeout_s=40)
            (row,) = (await api.client.get("/api/v1/webhooks")).json()["webhooks"]
            await api.client.post("/api/v1/webhooks/secret/rotate")  # the one before signs, too
            await api.client.post(f"/api/v1/webhooks/{row['id']}/redeliver")
            await until(lambda: (tmp_path / "told").read_text().count(line) == 2, what="it is told again")
        finally:
            process.kill()
            process.wait()
