"""Bodies of `/v1/admin`; the rest as ``schemas.py``."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from memory_layer.api.schemas import Answer, Body, Id, Query, Receipt, Timestamp
from memory_layer.model import TENANT

_TENANT: Final = rf"^{TENANT.pattern}$(?!\n)"
TenantName = Annotated[str, Meta(pattern=_TENANT, description="the caller's own when absent")]
ServiceName = Annotated[
    str,
    Meta(pattern=r"^[!#-\[\]-~]{1,128}$(?!\n)", description="what acts: `sub` of its tokens, owner of its API keys"),
]
ScopeName = Literal[  # those of model.SCOPES
    "memory:read",
    "memory:write",
    "memory:delete",
    "read:pii",
    "memory:legal_hold",
    "memory:erase",
    "audit:read",
    "audit:all",
    "admin",
]
Reason = Annotated[str, Meta(min_length=1, max_length=500, description="one line, kept in the audit log")]


class ReasonBody(Body):
    reason: Reason


class CreateTenantBody(Body):
    tenant: Annotated[str, Meta(pattern=_TENANT)]


class TenantsQuery(Query):
    cursor: Annotated[str, Meta(max_length=63, description="nextCursor of the page before")] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class TenantAnswer(Answer):
    tenant: str
    created_at: Timestamp
    revoked_at: Annotated[Timestamp | None, Meta(description="since when its credentials are refused")]


class TenantPage(Answer):
    items: list[TenantAnswer]
    next_cursor: str | None


class CreatedTenant(TenantAnswer):
    audit_id: Id
    audit: Receipt


class RevokedTenant(Answer):
    tenant: str
    revoked_at: Timestamp | None
    audit_id: Id
    audit: Receipt


class CreatePrincipalBody(Body):
    service: ServiceName
    tenant: TenantName | None = None


class PrincipalsQuery(Query):
    tenant: TenantName | None = None
    cursor: Annotated[str, Meta(max_length=128, description="nextCursor of the page before")] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class PrincipalAnswer(Answer):
    principal_id: Annotated[Id, Meta(description="under which the audit log knows the service")]
    tenant: str
    service: str
    created_at: Timestamp
    revoked_at: Annotated[Timestamp | None, Meta(description="since when its credentials are refused")]


class PrincipalPage(Answer):
    items: list[PrincipalAnswer]
    next_cursor: str | None


class ChangedPrincipal(PrincipalAnswer):
    audit_id: Id
    audit: Receipt


class RevokeTokenBody(Body):
    jti: Annotated[str, Meta(pattern=r"^[!#-\[\]-~]{1,128}$(?!\n)", description="the token's claim of that name")]
    reason: Reason
    tenant: TenantName | None = None


class RevokedToken(Answer):
    tenant: str
    jti: str
    revoked_at: Timestamp
    audit_id: Id
    audit: Receipt


class CreateApiKeyBody(Body):
    service: ServiceName
    scopes: Annotated[list[ScopeName], Meta(min_length=1, max_length=20)]
    name: Annotated[str, Meta(min_length=1, max_length=200, description="what it is for; one line")] | None = None
    expires_at: Annotated[Timestamp, Meta(description="never when absent")] | None = None
    tenant: TenantName | None = None


class RotateApiKeyBody(Body):
    overlap_seconds: Annotated[
        int, Meta(ge=0, le=7_776_000, description="for how long the old key goes on beside the new one")
    ] = 86_400


class ApiKeysQuery(Query):
    tenant: TenantName | None = None
    service: ServiceName | None = None
    cursor: Annotated[Id, Meta(description="nextCursor of the page before")] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class ApiKeyAnswer(Answer):
    """What is known of a key, which is never shown again."""

    api_key_id: Id
    tenant: str
    service: str
    principal_id: Annotated[Id, Meta(description="under which the audit log knows the service")]
    name: str | None
    hint: Annotated[str | None, Meta(description="how the key begins")]
    scopes: list[ScopeName]
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    replaced_by: Annotated[Id | None, Meta(description="the key that a rotation put in its place")]


class ListedApiKey(ApiKeyAnswer):
    last_used_at: Annotated[Timestamp | None, Meta(description="the hour of it, some minutes late")]


class ApiKeyPage(Answer):
    items: list[ListedApiKey]
    next_cursor: str | None


class RevokedApiKey(ApiKeyAnswer):
    audit_id: Id
    audit: Receipt


class ReplacedApiKey(Answer):
    api_key_id: Id
    expires_at: Timestamp
    replaced_by: Id


class CreatedApiKey(RevokedApiKey):
    key: Annotated[str | None, Meta(description="shown once: null where the answer is a repeated one")]
    replaces: (
        Annotated[ReplacedApiKey, Meta(description="of a rotation: the old key, and until when it counts")] | UnsetType
    ) = UNSET
