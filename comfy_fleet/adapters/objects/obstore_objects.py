"""Objects in stores, through ``obstore`` (port :class:`comfy_fleet.ports.stores.ObjectStorage`)."""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import obstore
import orjson
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from comfy_fleet.domain.errors import ConfigError, ObjectError, ObjectTaken
from comfy_fleet.domain.stores.named_store import NamedStore, StoreKind
from comfy_fleet.ports.stores import ObjectContent, ObjectSource
from comfy_fleet.timeouts import Timeout

if TYPE_CHECKING:  # these exist for type checkers alone
    from obstore.store import ClientConfig, RetryConfig

MULTIPART_BYTES = 16 * 2**20
"""Files above go in parts, each of which may be repeated alone."""
PART_BYTES = 8 * 2**20
AT_ONCE = 16
"""Calls to one store that one process makes at a time."""
CONNECT_S = 5.0
LEAST_S, LEAST_RATE = 30.0, 256 * 1024
"""A call takes at most so long, and so many bytes a second more."""
CHECKED_PARTS = 4
_MOST_CLIENTS = 200
_CHUNK = 256 * 1024
_WORDS = 300
_QUERY = re.compile(r"\?[^\s'\"<>]*")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")

_OF_DISK = re.compile(r"os error (\d+)")
_FULL = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
"""Errors of a folder that say nothing of a name, though a small file may be taken."""
_LATER = frozenset({"408", "425", "429"})
"""Answers that say nothing of a name, though the next request may be taken."""

_AWAY = (
    (re.compile(r"ConnectionRefused"), "nothing listens at its endpoint"),
    (re.compile(r"dns error"), "the name of its endpoint's host is not known here"),
    (
        re.compile(r"UnknownIssuer|NotValidForName|Expired|invalid peer certificate"),
        "the certificate of its endpoint is not one that is trusted here for that name",
    ),
    (
        re.compile(r"InvalidContentType|InvalidMessage|CorruptMessage"),
        "its endpoint does not speak TLS: is it http?",
    ),
    (re.compile(r"TimedOut|kind: Timeout|operation timed out"), "its endpoint does not answer in time"),
    (re.compile(r"kind: Connect\b"), "its endpoint can't be reached"),
    (re.compile(r"kind: (?:Interrupted|Request)\b"), "its endpoint ended the connection without an answer"),
)
"""What the library's account of a request that got no answer holds, the first that fits; and our words."""

ObjectClient = S3Store | AzureStore | GCSStore | LocalStore


class _Doubtful(ObjectError):
    """It was refused, and whether for its name alone only another object can tell."""


class ObstoreObjects:
    """One client for each store, made anew when its record changes.

    Args:
        opened: Decrypts credentials.
        folders: The folders in which stores may be.
    """

    def __init__(self, opened: Callable[[bytes], bytes], *, folders: tuple[Path, ...] = ()) -> None:
        self._opened = opened
        self._folders = folders
        self._clients: dict[NamedStore, ObjectClient] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def put(self, store: NamedStore, key: str, source: ObjectSource, *, replace: bool) -> None:
        """Write an object; see the port."""
        try:
            await self._put(store, key, source, replace=replace)
        except _Doubtful as error:
            # Whoever chooses names must not bring a store to a halt for others.
            if not await self._takes_others(store):
                raise
            raise ObjectError(error.message, alone=True) from None

    async def _takes_others(self, store: NamedStore) -> bool:
        try:
            await self.probe(store, write=True)
        except ObjectError:
            return False
        return True

    async def _put(self, store: NamedStore, key: str, source: ObjectSource, *, replace: bool) -> None:
        async with self._asked(store, key, size=source.size) as client:
            if replace:
                await _write(client, key, source)
                return
            if source.size > MULTIPART_BYTES and await _found(client, key) is None:
                # No store takes a condition for a file in parts: what comes in between is replaced.
                await _write(client, key, source)
                return
            if source.size <= MULTIPART_BYTES:
                try:
                    await _write(client, key, source, mode="create")
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                    pass
                else:
                    return
            if not await _is_ours(client, key, source):
                raise ObjectTaken(
                    f"store {store.name}: there is another object {key!r}, and on_conflict is 'fail'"
                )

    @asynccontextmanager
    async def read(
        self, store: NamedStore, key: str, *, etag: str, within_s: float
    ) -> AsyncIterator[ObjectContent | None]:
        """Read an object; see the port."""
        async with self._asked(store, key, within_s=within_s) as client:
            options: Any = {"if_none_match": etag} if etag else None
            try:
                found = await obstore.get_async(client, key, options=options)
            except FileNotFoundError:
                yield None
                return
            except exceptions.NotModifiedError:
                yield ObjectContent(size=0, etag=etag, unchanged=True, chunks=_nothing())
                return
            meta = found.meta
            yield ObjectContent(
                size=meta["size"],
                etag=meta.get("e_tag") or "",
                unchanged=False,
                chunks=_chunks(store, found),
            )

    async def delete(self, store: NamedStore, key: str) -> None:
        """Delete an object; see the port."""
        async with self._asked(store, key) as client:
            try:
                await obstore.delete_async(client, key)
            except FileNotFoundError:
                return

    async def holds(
        self, store: NamedStore, key: str, *, metadata: Mapping[str, str], size: int | None = None
    ) -> bool:
        """Return whether there is such an object; see the port."""
        async with self._asked(store, key) as client:
            found = await _found(client, key)
            return found is not None and size in (None, found.meta["size"]) and _says(found, metadata)

    async def signed_url(
        self, store: NamedStore, key: str, *, method: Literal["GET", "HEAD"] = "GET", most_s: float = inf
    ) -> str | None:
        """Return a URL that is good for a while; see the port."""
        async with self._asked(store, key) as client:
            if isinstance(client, LocalStore):
                return None
            life = timedelta(seconds=min(store.signed_s, most_s))
            return await obstore.sign_async(client, method, key, life)

    async def probe(self, store: NamedStore, *, write: bool) -> None:
        """See if a store answers; see the port."""
        key, content = f".comfy-fleet-probe-{uuid4().hex[:12]}", b"written by comfy_fleet to try this store\n"
        async with self._asked(store, key) as client:
            if not write:
                await _found(client, key)
                return
            await obstore.put_async(client, key, content)
            try:
                read = await (await obstore.get_async(client, key)).bytes_async()
            finally:
                await obstore.delete_async(client, key)
            if bytes(read) != content:
                raise ObjectError(f"store {store.name}: what was written was read back as something else")

    @asynccontextmanager
    async def _asked(
        self, store: NamedStore, key: str, *, size: int = 0, within_s: float | None = None
    ) -> AsyncIterator[ObjectClient]:
        """Yield a store's client; what goes wrong with it becomes an error in our words."""
        turns = self._turns.setdefault(store.name, asyncio.Semaphore(AT_ONCE))
        async with turns:
            try:
                client = await self._client(store, key)
                async with Timeout(LEAST_S + size / LEAST_RATE if within_s is None else within_s):
                    yield client
            except ObjectError:
                raise
            except TimeoutError:
                raise ObjectError(f"store {store.name} does not answer in time") from None
            except ConfigError as error:
                raise ObjectError(
                    f"store {store.name}: its credentials can't be read: {error.message}"
                ) from error
            except (exceptions.BaseError, OSError, ValueError, NotImplementedError) as error:
                raise _told(store, error) from None

    async def _client(self, store: NamedStore, key: str) -> ObjectClient:
        if store.kind is StoreKind.FOLDER:
            await asyncio.to_thread(self._check_folder, store, key)
        found = self._clients.get(store)
        if found is None:
            if len(self._clients) >= _MOST_CLIENTS:
                self._clients.clear()
            found = self._clients[store] = self._made(store)
        return found

    def _made(self, store: NamedStore) -> ObjectClient:
        secrets: dict[str, str] = orjson.loads(self._opened(store.sealed.encode())) if store.sealed else {}
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=LEAST_S),
            "timeout": timedelta(seconds=LEAST_S + PART_BYTES / LEAST_RATE),
            "allow_http": store.over_http,
            "user_agent": "comfy_fleet",
        }
        # A store that is away is waited for by whoever asks, which knows what else waits for it.
        retry: RetryConfig = {"max_retries": 1, "retry_timeout": timedelta(seconds=LEAST_S)}
        config: dict[str, Any]
        match store.kind:
            case StoreKind.S3:
                config = {"virtual_hosted_style_request": store.virtual_host}
                if store.endpoint:
                    config["endpoint"] = store.endpoint
                config["region"] = store.region or "us-east-1"
                provider: Any = None
                if secrets:
                    # Not as settings: what of these is missing would come from the process's environment.
                    credentials = {
                        "access_key_id": secrets["access_key_id"],
                        "secret_access_key": secrets["secret_access_key"],
                        "token": secrets.get("session_token"),
                        "expires_at": None,
                    }
                    provider = lambda: credentials  # noqa: E731 - the library asks for a function
                return S3Store(
                    store.bucket,
                    prefix=store.prefix or None,
                    config=config,  # type: ignore[arg-type]  # made above
                    client_options=client,
                    retry_config=retry,
                    credential_provider=provider,
                )
            case StoreKind.AZURE:
                config = {"account_name": store.account}
                if "account_key" in secrets:
                    config["account_key"] = secrets["account_key"]
                elif "sas_token" in secrets:
                    config["sas_key"] = secrets["sas_token"].removeprefix("?")
                if store.endpoint:
                    config["endpoint"] = store.endpoint
                return AzureStore(
                    store.bucket,
                    prefix=store.prefix or None,
                    config=config,  # type: ignore[arg-type]
                    client_options=client,
                    retry_config=retry,
                )
            case StoreKind.GCS:
                config = {}
                if "service_account_key" in secrets:
                    config["service_account_key"] = secrets["service_account_key"]
                if store.endpoint:
                    config["base_url"] = store.endpoint
                return GCSStore(
                    store.bucket,
                    prefix=store.prefix or None,
                    config=config,  # type: ignore[arg-type]
                    client_options=client,
                    retry_config=retry,
                )
            case StoreKind.FOLDER:
                return LocalStore(store.prefix, mkdir=True)

    def _check_folder(self, store: NamedStore, key: str) -> None:
        """Refuse what leads out of a store's folder, or of those that the operator allows: by links, too."""
        root = Path(store.prefix).resolve()
        if not any(root.is_relative_to(one.resolve()) for one in self._folders):
            raise ObjectError(
                f"store {store.name}: {store.prefix} is in none of the folders of FLEET_STORE_FOLDERS",
                refused=True,
            )
        if not (root / key).resolve().is_relative_to(root):
            raise ObjectError(f"store {store.name}: {key!r} leads out of its folder", alone=True)


async def _nothing() -> AsyncIterator[bytes]:
    for chunk in tuple[bytes, ...]():
        yield chunk


async def _chunks(store: NamedStore, found: Any) -> AsyncIterator[bytes]:
    try:
        async for chunk in found.stream(min_chunk_size=_CHUNK):
            yield bytes(chunk)
    except (exceptions.BaseError, OSError) as error:
        raise _told(store, error) from None


async def _write(client: ObjectClient, key: str, source: ObjectSource, *, mode: Any = None) -> None:
    attributes: Any = None
    if not isinstance(client, LocalStore):  # files have none
        attributes = {"Content-Type": source.content_type, **source.metadata}
    large = source.size > MULTIPART_BYTES
    data: Any = source.content
    if isinstance(data, Path) and not large:
        data = await asyncio.to_thread(data.read_bytes)
    await obstore.put_async(
        client,
        key,
        data,
        attributes=attributes,
        mode=mode,
        use_multipart=large,
        chunk_size=PART_BYTES,
        max_concurrency=CHECKED_PARTS,
    )


async def _found(client: ObjectClient, key: str) -> Any:
    """Return an object without its bytes; None if there is none."""
    try:
        return await obstore.get_async(client, key, options={"head": True})
    except FileNotFoundError:
        return None


def _says(found: Any, metadata: Mapping[str, str]) -> bool:
    """Return whether this is written beside an object; one with nothing beside it may be anybody's."""
    told = {name.lower(): value for name, value in found.attributes.items()}
    return bool(metadata) and all(told.get(name) == said for name, said in metadata.items())


async def _is_ours(client: ObjectClient, key: str, source: ObjectSource) -> bool:
    """Return whether an object is what we would write: it was written, and that was not noted."""
    found = await _found(client, key)
    if found is None:
        return False
    if not isinstance(client, LocalStore):
        return _says(found, source.metadata)
    if found.meta["size"] != source.size:
        return False
    stored = await obstore.get_async(client, key)
    if isinstance(source.content, bytes):
        return bytes(await stored.bytes_async()) == source.content
    file = await asyncio.to_thread(source.content.open, "rb")
    try:
        async for chunk in stored.stream():
            ours = await asyncio.to_thread(file.read, len(chunk))
            if ours != bytes(chunk):
                return False
    finally:
        file.close()
    return True


def _told(store: NamedStore, error: Exception) -> ObjectError:
    """Return an error in our words: what the library says may repeat a URL with a signature in it."""
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text)
    refused = isinstance(
        error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError
    ) or (code is not None and code[1] in ("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch"))
    if status is not None:
        words = f"it answered {status[1]}" + (f" {code[1]}" if code else "")
        refused = refused or status[1] in ("401", "403")
    else:
        first = _QUERY.sub("", text.splitlines()[0] if text else type(error).__name__)
        away = (said for found, said in _AWAY if found.search(text)) if "HttpError" in text else iter(())
        words = next(away, first[:_WORDS])
    alone = isinstance(error, ValueError | exceptions.InvalidPathError)
    if store.kind is StoreKind.FOLDER:
        number = _OF_DISK.search(text)
        doubtful = number is None or int(number[1]) not in _FULL
    else:
        doubtful = refused or (status is not None and status[1][0] == "4" and status[1] not in _LATER)
    kind = _Doubtful if doubtful and not alone else ObjectError
    return kind(f"store {store.name}: {words}", refused=refused, alone=alone)
