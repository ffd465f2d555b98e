"""Requests and answers about tenants, users and keys."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.class_rules import ClassRules
from comfy_fleet.domain.people import (
    LONGEST_S,
    MOST_NOTE,
    TenantSharing,
)
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.schedule.owner_weights import LEAST, MOST

Word = Annotated[str, Field(min_length=1, max_length=64)]
RoleWord = Literal["submit", "artist", "operator", "metrics"]


LimitsField = Annotated[
    dict[str, Annotated[str, Field(max_length=8000)]],
    Field(
        max_length=12,
        description="By name, as people write them: `submits` and `requests` (`10/1s,100/1m`), `queued`, "
        "`live`, `running`, `stored` (`20GB`), `streams`, `sockets`, `body`, `workflows`, "
        "`raw_graphs` (`no`), `priority`.",
    ),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _check_classes(value: str) -> str:
    try:
        ClassRules.parse(value, value)
    except BadInput as error:
        raise ValueError(error.message) from error
    return value


Classes = Annotated[str, Field(max_length=4000), AfterValidator(_check_classes)]
_DENY = "Classes and groups that their jobs may not use, separated by commas, as in FLEET_DENY_CLASSES."
_ALLOW = "Classes and groups that their jobs may use, and no others, as in FLEET_ALLOW_CLASSES; empty: all."
ModerationWord = Literal["", "open", "closed", "off"]
_MODERATION = (
    "While nobody judges: `closed`: nothing passes; `open`: all does. `off`: nobody is asked. "
    "Empty: as FLEET_MODERATION says."
)


TenantRetention = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]
_RETENTION = (
    "How long a job and its files stay after its end, of jobs that are submitted from then on; at most "
    "FLEET_MAX_RETENTION_S. 0: as FLEET_RETENTION_S says."
)
TenantShare = Annotated[float, Field(ge=LEAST, le=MOST, allow_inf_nan=False)]
_SHARE = (
    "Its part of the GPUs' time compared with 1, that of any other tenant, while all have jobs waiting. "
    "It counts as soon as one of its users submits the next job."
)


class TenantBody(_Body):
    """A tenant."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "studio", "sharing": "shared"}})

    name: Word = Field(description="A-Z a-z 0-9 _ . @ + and -, at most 64.")
    sharing: TenantSharing = Field(
        TenantSharing.PRIVATE,
        description="What its users see of each other: `private`: nothing; `shared`: jobs.",
    )
    limits: LimitsField = Field(default_factory=dict)
    deny_classes: Classes = Field("", description=_DENY)
    allow_classes: Classes = Field("", description=_ALLOW)
    moderation: ModerationWord = Field("", description=_MODERATION)
    share: TenantShare = Field(1.0, description=_SHARE)
    retention_s: TenantRetention = Field(0.0, description=_RETENTION)


class TenantChangeBody(_Body):
    """What changes. What is left out stays."""

    model_config = ConfigDict(json_schema_extra={"example": {"sharing": "private"}})

    sharing: TenantSharing | None = Field(None, description="As for a new one.")
    limits: LimitsField | None = Field(None, description="All of its limits: those that are left out go.")
    deny_classes: Classes | None = Field(None, description=_DENY)
    allow_classes: Classes | None = Field(None, description=_ALLOW)
    moderation: ModerationWord | None = Field(None, description=_MODERATION)
    share: TenantShare | None = Field(None, description=_SHARE)
    retention_s: TenantRetention | None = Field(None, description=_RETENTION)


class UserBody(_Body):
    """A user."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "ada", "tenant": "studio"}})

    name: Word = Field(description="A-Z a-z 0-9 _ . @ + and -, at most 64. Jobs and files are kept under it.")
    tenant: Word = Field(DEFAULT_TENANT, description="Their tenant, which stays.")
    adopt: bool = Field(False, description="Whether they get the jobs and files that are there of this name.")


class KeyBody(_Body):
    """A key that is to be made."""

    model_config = ConfigDict(json_schema_extra={"example": {"user": "ada", "roles": ["artist"]}})

    user: Word = Field(description="Whose it is.")
    roles: list[RoleWord] = Field(
        default_factory=list, max_length=4, description="What it may do; without any, `submit`."
    )
    expires_in_s: float | None = Field(
        None,
        ge=0.001,
        le=LONGEST_S,
        allow_inf_nan=False,
        description="How long it is good for; null: always.",
    )
    note: str = Field("", max_length=MOST_NOTE, description="What it is for.")
    limits: LimitsField = Field(default_factory=dict)


class RotateBody(_Body):
    """How a key is replaced."""

    model_config = ConfigDict(json_schema_extra={"example": {"grace_s": 3600}})

    grace_s: float = Field(
        0.0, ge=0, le=LONGEST_S, allow_inf_nan=False, description="How long the old one is good for yet."
    )


class KeysQuery(BaseModel):
    """Which keys."""

    user: str | None = Field(None, description="Only this user's.")


class TenantAnswer(TypedDict):
    """A tenant."""

    name: str
    sharing: TenantSharing
    deny_classes: str
    allow_classes: str
    moderation: str
    share: float
    retention_s: float
    created_at: str | None
    limits: dict[str, str]
    users: Annotated[list[str], Field(description="Their names.")]


class TenantListAnswer(TypedDict):
    """The tenants."""

    tenants: list[TenantAnswer]


class UserAnswer(TypedDict):
    """A user."""

    name: str
    tenant: str
    created_at: str | None
    stored: Annotated[bool, Field(description="False: only a name in the keys file.")]
    keys: Annotated[int, Field(description="How many keys they have.")]


class UserListAnswer(TypedDict):
    """The users."""

    users: list[UserAnswer]


class KeyAnswer(TypedDict):
    """A key, without what opens anything."""

    id: str
    user: str
    tenant: str
    roles: list[RoleWord]
    note: str
    created_at: str | None
    expires_at: str | None
    expired: bool
    limits: dict[str, str]
    from_file: Annotated[bool, Field(description="Whether it is a line of the keys file.")]


class KeyListAnswer(TypedDict):
    """The keys."""

    keys: list[KeyAnswer]


class NewKeyAnswer(KeyAnswer):
    """A key that was just made."""

    key: Annotated[str, Field(description="What is shown to the fleet. It is told this once.")]


class MeAnswer(TypedDict):
    """Who asks."""

    user: str
    tenant: str
    roles: list[str]
    key: Annotated[str | None, Field(description="The id of the key; null without one.")]
    live_jobs: Annotated[int, Field(description="Jobs of theirs that wait or run.")]
