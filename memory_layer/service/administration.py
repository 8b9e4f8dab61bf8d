"""Who may administer whom: an admin's own tenant, and for admins of ADMIN_TENANT every tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_layer.errors import Forbidden, NotFound
from memory_layer.model import Caller

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation


def administers_all(installation: Installation, caller: Caller) -> bool:
    return caller.tenant == installation.settings.admin_tenant


def administered(installation: Installation, caller: Caller, tenant: str | None) -> str:
    """The tenant that a request is about, the caller's own where it names none. Raises NotFound for one that is not the caller's to
    administer, in the same words whether it is there or not."""
    if tenant is None or tenant == caller.tenant or administers_all(installation, caller):
        return tenant or caller.tenant
    raise NotFound(f"There is no tenant {tenant} that you administer.")


def require_operator(installation: Installation, caller: Caller) -> None:
    """Raise Forbidden for who may not make and end tenants, whichever is named."""
    if not administers_all(installation, caller):
        raise Forbidden("Tenants are made and ended by admins of ADMIN_TENANT alone.")


def refuse_wider(installation: Installation, caller: Caller, scopes: Sequence[str]) -> None:
    """Raise Forbidden for a scope that reaches beyond the caller's tenant, where the caller does not."""
    if "audit:all" in scopes and not administers_all(installation, caller):
        raise Forbidden("The scope audit:all reads every tenant's entries: only admins of ADMIN_TENANT give it.")
