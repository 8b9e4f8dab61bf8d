"""The language of a namespace's texts: set by an operator, used for the words of nodes that declare none."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from memory_layer.errors import Problem, ValidationError
from memory_layer.model import TENANT, Caller
from memory_layer.service.actions.languages import SetLanguage
from memory_layer.service.commit import Change
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation

_SQL = queries("text_index")
_LANGUAGE: Final = re.compile("[a-z]{2,3}")


async def set_language(
    installation: Installation, caller: Caller, tenant: str, namespace: str, language: str | None
) -> dict[str, Any]:
    """Commit the language of a namespace, None: that each text tells its own. It need not have any texts yet. ``caller``: the installation.
    Raises ValidationError, and what a write raises."""
    problems = []
    for name, value in (("tenant", tenant), ("namespace", namespace)):
        if TENANT.fullmatch(value) is None:
            problems.append(Problem(name, f"must match {TENANT.pattern}"))
    if language is not None and _LANGUAGE.fullmatch(language) is None:
        problems.append(Problem("language", "must be an ISO 639 code of two or three small letters, such as de"))
    if problems:
        raise ValidationError(
            "Nothing was changed: " + "; ".join(f"{one.path} {one.problem}" for one in problems) + ".", details=problems
        )
    outcome = await installation.committer.submit(
        Change(replace(caller, tenant=tenant), SetLanguage(namespace, language))
    )
    return outcome.answer


async def language_of(postgres: Postgres, tenant: str, namespace: str) -> str | None:
    """What was set for a namespace."""
    (rows,) = await postgres.fetch(tenant, (_SQL["language"], {"tenant": tenant, "name": namespace}))
    return rows[0]["language"] if rows else None


async def languages_of(
    postgres: Postgres, tenants: Sequence[str], nodes: Sequence[uuid.UUID]
) -> dict[tuple[str, uuid.UUID], str]:
    """The languages of these nodes' namespaces, where one was set and the node declares none."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["languages"], {"tenants": list(tenants), "ids": list(nodes)}))
    return {(row["tenant"], row["id"]): row["language"] for row in rows}
