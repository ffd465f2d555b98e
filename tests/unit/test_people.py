"""Tenants, users and keys: the rules of their changes, the keys file, and tokens of the fleet's machine."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.system.keys_file import KeysOnDisk
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.wrong_keys import AT_ONCE, EVERY_S, LONGEST_S, WrongKeys
from comfy_fleet.domain.errors import BadInput, ConfigError, Conflict, NotFound
from comfy_fleet.domain.limits import parse_role_limits
from comfy_fleet.domain.machine_token import GOOD_S, is_machine_token, machine_token
from comfy_fleet.domain.people import (
    AccessKey,
    People,
    Tenant,
    TenantSharing,
    User,
    digest_of,
    parse_keys,
)
from comfy_fleet.domain.principal import PrincipalLimits
from comfy_fleet.domain.roles import Role
from comfy_fleet.services.key_ring import KeyRing
from tests.key_files import write_keys

LIMITS = PrincipalLimits(streams=1, sockets=1)
TEXT = "ann ann-key-0123456789 artist\nbob bob-key-0123456789\n"


def key(id_: str = "k1", user: str = "ada", *, ends: float | None = None) -> AccessKey:
    return AccessKey(
        id=id_, user=user, digest=digest_of(id_), roles=frozenset({Role.ARTIST}), expires_at=ends, note="n"
    )


@pytest.fixture
def people() -> People:
    made = People().add_tenant(Tenant(name="studio", sharing=TenantSharing.SHARED))
    return made.add_user(User(name="ada", tenant="studio")).add_user(User(name="bob")).add_key(key())


def test_what_is_there_already_or_not_there_is_refused(people: People) -> None:
    refused: list[Callable[[], People]] = [
        lambda: people.add_tenant(Tenant(name="studio")),
        lambda: people.add_user(User(name="ada")),
        lambda: people.drop_tenant("studio"),
    ]
    missing: list[Callable[[], People]] = [
        lambda: people.add_user(User(name="eve", tenant="nowhere")),
        lambda: people.add_key(key("k2", "nobody")),
        lambda: people.drop_key("k2"),
        lambda: people.drop_user("nobody"),
        lambda: people.change_tenant(Tenant(name="nowhere")),
    ]
    for changes, error in ((refused, Conflict), (missing, NotFound)):
        for change in changes:
            with pytest.raises(error):
                change()


def test_a_user_goes_with_all_keys_and_a_tenant_after_its_users(people: People) -> None:
    gone = people.add_key(key("k2", "bob")).drop_user("ada")
    assert set(gone.users) == {"bob"} and set(gone.keys) == {"k2"}
    assert "studio" not in gone.drop_tenant("studio").tenants
    assert people.tenant("default").sharing is TenantSharing.PRIVATE  # it need not be stored


def test_a_rotated_key_keeps_everything_but_itself(people: People) -> None:
    new = AccessKey(id="k9", user="", digest=digest_of("k9"), created_at=5)
    at_once = people.rotate_key("k1", new, now=100, grace_s=0)
    assert set(at_once.keys) == {"k9"}
    made = at_once.keys["k9"]
    assert (made.user, set(made.roles), made.note, made.created_at) == ("ada", {Role.ARTIST}, "n", 5.0)
    later = people.rotate_key("k1", new, now=100, grace_s=60)
    assert later.keys["k1"].expires_at == 160 and later.keys["k9"].expires_at is None
    ending = People(users=people.users).add_key(key(ends=120))
    assert ending.rotate_key("k1", new, now=100, grace_s=60).keys["k1"].expires_at == 120
    with pytest.raises(Conflict):
        ending.rotate_key("k1", new, now=120, grace_s=60)


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", ":x", "-" * 65, "x" * 65, "a\n", "é", "@a", "+", "a:b", "a\tb"]
)
def test_odd_names_are_refused(name: str) -> None:
    for kind in (Tenant, User):
        with pytest.raises(BadInput):
            kind(name=name)


@pytest.mark.parametrize("name", ["ada", "ada@example.org", "a.b-c_d+e", "9", "x" * 64])
def test_names_of_people_and_their_addresses_are_taken(name: str) -> None:
    assert User(name=name).name == name


def test_a_keys_file_says_who_and_never_what(people: People) -> None:
    keys = parse_keys(TEXT + "ops ops-key-0123456789 admin\nm met-key-0123456789 metrics # graphs\n", "f")
    assert [sorted(one.roles) for one in keys] == [["artist"], [], ["operator"], ["metrics"]]
    assert "ann-key" not in repr(keys)
    ids = [[one.id for one in parse_keys(TEXT, "f", secret=secret)] for secret in (b"a", b"a", b"b")]
    assert ids[0] == ids[1] and not set(ids[0]) & set(ids[2])  # nobody can try guesses by them
    assert not any(one.id.removeprefix("file-") in one.digest for one in parse_keys(TEXT, "f", secret=b"a"))
    for wrong in (TEXT + "eve ann-key-0123456789\n", TEXT + "eve eve-key-0123456789 boss\n", "eve short\n"):
        with pytest.raises(BadInput) as caught:
            parse_keys(wrong, "f")
        assert "-key-" not in caught.value.message


def test_a_keys_file_must_be_its_owners_alone_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", TEXT)
    file = KeysOnDisk(path)
    ring = KeyRing(LIMITS, file=file)
    ring.read_file()
    assert file.read() is None  # nothing has changed
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=re.escape(f"chmod 600 {path}")):
        ring.read_file()
    ring.read_file()  # it is told once
    assert ring.find("ann-key-0123456789")
    write_keys(path, "ann\n")
    with pytest.raises(ConfigError, match="line 1"):
        ring.read_file()
    assert ring.find("ann-key-0123456789")
    path.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        ring.read_file()
    ring.read_file()
    assert ring.find("ann-key-0123456789")
    write_keys(path, "bob other-key-0123456789\n")
    ring.read_file()
    assert ring.find("ann-key-0123456789") is None and ring.find("other-key-0123456789")


def test_a_key_ends_in_time_and_its_id_with_it(tmp_path: Path) -> None:
    now = [100.0]
    ring = KeyRing(LIMITS, clock=lambda: now[0])
    ring.take(People(users={"ada": User(name="ada")}, keys={"k1": key(ends=160)}))
    found = ring.find("k1")
    assert found and (found.owner, found.key) == ("ada", "k1")
    assert ring.holds("k1") and ring.holds("") and not ring.holds("k2")
    now[0] = 160.0
    assert ring.find("k1") is None and ring.by_id("k1") is None and not ring.holds("k1")


def test_only_members_of_a_shared_tenant_see_each_other(people: People) -> None:
    ring = KeyRing(LIMITS)
    ring.take(
        people.add_user(User(name="eve", tenant="studio")).add_key(key("k2", "bob")).add_key(key("k3", "eve"))
    )
    seen = {who.owner: list(ring.seen_by(who)) for id_ in ("k1", "k2", "k3") if (who := ring.by_id(id_))}
    assert seen == {"ada": ["ada", "eve"], "bob": ["bob"], "eve": ["ada", "eve"]}


def test_a_token_of_the_machine_is_good_for_a_minute_and_for_one_secret() -> None:
    token = machine_token(b"secret", 1000.4)
    assert is_machine_token(token, b"secret", 1000 + GOOD_S) and is_machine_token(token, b"secret", 990)
    assert not is_machine_token(token, b"secret", 1001 + GOOD_S)
    assert not is_machine_token(token, b"other", 1000)
    assert not is_machine_token(machine_token(b"", 1000), b"", 1000)  # a fleet without a secret takes none
    start, at, mac = token.split(".")
    for wrong in (
        f"{start}.{int(at) + 1}.{mac}",
        f"{start}.{at}.",
        f"{start}.{at}",
        f"x.{at}.{mac}",
        "",
        "é.1.é",
    ):
        assert not is_machine_token(wrong, b"secret", 1000)


def test_many_wrong_keys_of_one_address_are_slowed_and_no_other_address_is() -> None:
    now = [0.0]
    wrong = WrongKeys(lambda: now[0])
    assert [wrong.wait_s("192.0.2.1") for _ in range(AT_ONCE)] == [0.0] * AT_ONCE
    assert wrong.wait_s("192.0.2.1") == pytest.approx(EVERY_S)
    assert wrong.wait_s("192.0.2.1") == pytest.approx(2 * EVERY_S)
    assert wrong.wait_s("192.0.2.2") == 0
    for _ in range(round(LONGEST_S / EVERY_S) - 3):
        wrong.wait_s("192.0.2.1")
    now[0] -= EVERY_S / 2  # between two of them, whatever is rounded how
    for _ in range(3):  # who is refused waits no longer for it
        with pytest.raises(HttpError) as caught:
            wrong.wait_s("192.0.2.1")
        assert (caught.value.status, caught.value.error_code) == (429, "too_many_wrong_keys")
    now[0] += EVERY_S
    assert wrong.wait_s("192.0.2.1") == pytest.approx(LONGEST_S - EVERY_S / 2)
    for number in range(AT_ONCE):  # one customer's addresses are one
        assert wrong.wait_s(f"2001:db8::{number:x}") == 0
    assert wrong.wait_s("2001:db8::1") > 0
    assert wrong.wait_s("2001:db8:0:1::1") == 0
    now[0] += 1000
    assert wrong.wait_s("192.0.2.1") == 0


class Counted(dict[str, Any]):
    """Counts how often somebody looks through all of it."""

    looks = 0

    def values(self) -> Any:
        self.looks += 1
        return super().values()


def test_who_has_no_key_has_their_tenants_limits(people: People) -> None:
    ring = KeyRing(LIMITS, by_role=parse_role_limits("submit: stored=1; artist: stored=2"))
    limited = people.change_tenant(Tenant(name="studio", limits={"stored": "5"}))
    ring.take(limited.add_user(User(name="eve", tenant="studio")))
    assert [(one.scope, one.limits.stored) for one in ring.quotas_of("ada")] == [("user", 2), ("tenant", 5)]
    assert [(one.scope, one.limits.stored) for one in ring.quotas_of("eve")] == [("tenant", 5)]
    assert ring.quotas_of("bob") == ()


def test_a_list_of_everybody_looks_through_all_users_and_keys_once() -> None:
    users = Counted({f"u{n}": User(name=f"u{n}", tenant=f"t{n % 7}") for n in range(50)})
    keys = Counted({f"k{n}": key(f"k{n}", f"u{n % 50}") for n in range(100)})
    people = People(users=users, keys=keys)
    assert {name: [one.id for one in people.keys_of(name)] for name in users} == {
        f"u{n}": sorted((f"k{n}", f"k{n + 50}")) for n in range(50)
    }
    assert sum(len(people.members(f"t{n}")) for n in range(7)) == 50
    assert (users.looks, keys.looks) == (1, 1)
    fewer = people.drop_user("u0")
    assert "u0" not in fewer.members("t0") and not fewer.keys_of("u0")
