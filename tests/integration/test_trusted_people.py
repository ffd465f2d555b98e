"""People whom a proxy in front names: only the edge is believed that a trusted proxy has said it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.domain.edge_word import edge_word
from comfy_fleet.services.editor_ticket import PURPOSE
from comfy_fleet.settings import Settings
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running
from tests.integration.edge_kit import edge_of
from tests.integration.haproxy_kit import TICKETS
from tests.integration.test_edge_forwarded import TRUSTED, seen
from tests.key_files import write_keys

ANN = "ann-key-0123456789"
NAMES: dict[str, Any] = {"trusted_user_header": "Remote-User", "trusted_groups_header": "Remote-Groups"}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = write_keys(tmp_path / "keys", f"ann {ANN}\n")
    table = "admins=operator, artists=artist, staff=submit"
    async with running(redis_port, tmp_path / "data", keys_file=keys, group_roles=table, **NAMES) as started:
        await started.add_node()
        yield started


def named(api: Api, user: str, groups: str = "staff", origin: str = "console", **more: str) -> dict[str, str]:
    """Return what the edge sends for somebody whom a trusted proxy names."""
    word = edge_word(SecretBox.open(api.deps.settings.secret_key_file).derive(PURPOSE))
    told = {"Remote-User": user, "Remote-Groups": groups, "X-Fleet-Edge": word, "X-Fleet-Origin": origin}
    return told | more


async def test_whom_a_trusted_proxy_names_owns_jobs_and_has_a_groups_role(api: Api) -> None:
    head = named(api, "ada@example.org")
    made = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=head)
    assert made.status_code == 201 and made.json()["user"] == "ada@example.org"
    for groups, roles in (
        ("staff", ["submit"]),
        ("artists,other", ["artist"]),
        ("x, admins ,artists", ["artist", "operator"]),
    ):
        me = (await api.client.get("/api/v1/me", headers=named(api, "ada@example.org", groups))).json()
        assert (me["user"], me["roles"], me["key"]) == ("ada@example.org", roles, None)
    assert (await api.client.get("/api/v1/nodes", headers=head)).status_code == 403
    assert (await api.client.get("/api/v1/nodes", headers=named(api, "ada", "admins"))).status_code == 200
    url = api.url.replace("http", "ws") + "/ws"
    async with connect(url, additional_headers=head, proxy=None) as socket:
        await socket.recv()


async def test_the_editors_pages_make_nobody_an_operator_by_it(api: Api) -> None:
    head = named(api, "ada", "admins", origin="editor")
    assert code(await api.client.get("/api/v1/nodes", headers=head)) == (403, "console_only")
    assert (await api.client.get("/api/v1/jobs", headers=head)).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"X-Fleet-Edge": ""},
        {"X-Fleet-Edge": "0" * 64},
        {"X-Fleet-Edge": "é"},
        {"Remote-User": ""},
    ],
)
async def test_nobody_but_the_edge_is_believed(api: Api, change: dict[str, str]) -> None:
    said = named(api, "ada", "admins", **change)
    head = [(name.encode(), value.encode("latin-1")) for name, value in said.items()]
    answer = await api.client.get("/api/v1/jobs", headers=head)
    assert code(answer) == (401, "unauthorized")


async def test_a_listed_page_of_another_site_acts_for_nobody_by_it(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    shop = "https://shop.example"
    keys = write_keys(tmp_path / "keys", f"ann {ANN}\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys, cors_origins=shop, **NAMES) as started:
        head = named(started, "ada", origin="editor")
        assert (await started.client.get("/api/v1/jobs", headers=head)).status_code == 200
        page = head | {"Origin": shop, "Sec-Fetch-Site": "cross-site"}
        form = {"image": ("a.png", b"\x89PNG", "image/png")}
        for answer in (
            await started.client.get("/api/v1/jobs", headers=page),
            await started.client.post("/upload/image", files=form, headers=page),
        ):
            assert answer.status_code == 401, answer.text
        by_key = page | {"Authorization": f"Bearer {ANN}"}
        assert (await started.client.get("/api/v1/me", headers=by_key)).json()["user"] == "ann"


async def test_no_group_no_name_no_entry_and_a_key_decides(api: Api) -> None:
    for user, groups in (("ada", ""), ("ada", "others"), ("a b", "staff"), ("../x", "staff")):
        answer = await api.client.get("/api/v1/jobs", headers=named(api, user, groups))
        assert code(answer) == (403, "forbidden"), user
    by_key = named(api, "ada", Authorization=f"Bearer {ANN}")
    assert (await api.client.get("/api/v1/me", headers=by_key)).json()["user"] == "ann"
    wrong = named(api, "ada", Authorization="Bearer wrong-key-0123456789")
    assert (await api.client.get("/api/v1/me", headers=wrong)).status_code == 401


async def test_the_edge_shows_its_word_and_nobody_can_say_it_from_outside(tmp_path: Path) -> None:
    async with edge_of(tmp_path, trusted_proxies=TRUSTED, **NAMES) as edge:
        found = await seen(edge, "Remote-User: ada", "X-Fleet-Edge: mine")
        assert (found["remote-user"], found["x-fleet-edge"]) == ("ada", edge_word(TICKETS.key))
    async with edge_of(tmp_path, trusted_proxies="192.0.2.0/24", **NAMES) as edge:
        found = await seen(edge, "Remote-User: ada", "Remote-Groups: admins")
        assert "remote-user" not in found and "remote-groups" not in found
    async with edge_of(tmp_path, trusted_proxies=TRUSTED) as edge:
        assert "x-fleet-edge" not in await seen(edge, "X-Fleet-Edge: mine")


def test_a_table_of_groups_that_can_t_be_read_is_refused() -> None:
    for table in ("admins", "admins=boss", "=operator", "a=submit,a=artist"):
        with pytest.raises(ValueError, match="GROUP=ROLE"):
            Settings(group_roles=table)
