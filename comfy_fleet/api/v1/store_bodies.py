"""Requests and answers about stores."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from comfy_fleet.domain.stores.named_store import (
    LEAST_SIGNED_S,
    MOST_SECRET,
    MOST_SIGNED_S,
    MOST_URL,
    OnDelete,
)

StoreName = Annotated[str, Field(min_length=1, max_length=63)]
_Tenant = Annotated[str, Field(min_length=1, max_length=64)]
_Url = Annotated[str, Field(max_length=MOST_URL)]


class StoreBody(BaseModel):
    """A store: a bucket or a folder, and who may use it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "shop",
                "url": "s3://shop-pictures/products",
                "region": "eu-central-1",
                "credentials": {"access_key_id": "AKIA...", "secret_access_key": "..."},
                "tenants": ["shop"],
                "default_for": ["shop"],
            }
        },
    )

    name: StoreName = Field(description="What requests call it.")
    url: _Url = Field(
        description="`s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`, or "
        "`file:///FOLDER` in a folder that FLEET_STORE_FOLDERS allows."
    )
    endpoint: _Url = Field("", description="Where its service answers, if not at the provider's.")
    region: str = Field("", max_length=64, description="Of S3; `us-east-1` if there is none.")
    account: str = Field("", max_length=64, description="Of Azure.")
    virtual_host: bool = Field(
        False, description="Whether the bucket's name is part of the endpoint's host instead of the path."
    )
    credentials: (
        Annotated[dict[str, Annotated[str, Field(min_length=1, max_length=MOST_SECRET)]], Field(max_length=4)]
        | None
    ) = Field(
        None,
        description="`access_key_id` and `secret_access_key`, with `session_token`, of S3; `account_key` or "
        "`sas_token` of Azure; `service_account_key` of Google. None: those of the machine; with `replace`, "
        "those that the store has. No answer shows them.",
    )
    public_url: _Url = Field(
        "", description="Base of the URLs under which everybody can read its objects, such as that of a CDN."
    )
    signed_s: float = Field(
        3600.0, ge=LEAST_SIGNED_S, le=MOST_SIGNED_S, description="Life of signed URLs, in seconds."
    )
    tenants: list[_Tenant] = Field(
        default_factory=list, max_length=1000, description="Who may use it; empty: all tenants."
    )
    default_for: list[_Tenant] = Field(
        default_factory=list,
        max_length=1000,
        description="Tenants whose jobs' outputs it gets where a request names no store.",
    )
    inputs: bool = Field(False, description="Whether jobs may read inputs from it.")
    redirect: bool = Field(
        False,
        description="Whether downloads of outputs that are stored there as they are answer 302 with a URL "
        "that it has signed, unless their query says `redirect=false`.",
    )
    on_delete: OnDelete = Field(
        OnDelete.KEEP,
        description="Whether the objects of a job stay once the job is deleted, or its retention is over.",
    )
    replace: bool = Field(False, description="Whether it may take the place of a store of this name.")
    probe: bool = Field(
        True, description="Whether it is tried first: an object is written, read and deleted."
    )


class StoreAnswer(TypedDict):
    """A store, without what opens it."""

    name: str
    url: str
    endpoint: str
    region: str
    account: str
    virtual_host: bool
    credentials: bool
    public_url: str
    signed_s: float
    tenants: list[str]
    default_for: list[str]
    inputs: bool
    redirect: bool
    on_delete: OnDelete
    created_at: str | None
    waiting: Annotated[int, Field(description="Jobs whose outputs wait for it.")]
    waiting_bytes: int
    not_stored: Annotated[int, Field(description="Jobs some of whose outputs it did not take.")]
    error: Annotated[str | None, Field(description="Why it takes nothing now.")]
    failing_since: str | None


class StoreListAnswer(TypedDict):
    """All stores, by name."""

    stores: list[StoreAnswer]


class RemoveStoreQuery(BaseModel):
    """What becomes of outputs that wait for it."""

    force: bool = Field(False, description="They are given up.")


class StoreRetryAnswer(TypedDict):
    """What was begun again."""

    jobs: Annotated[int, Field(description="Whose outputs are put there once more.")]


class StoreTestAnswer(TypedDict):
    """What came of a try."""

    name: str
    ok: bool
    error: str | None
