"""Credentials against what entries say of them: API keys, and tokens that are refused."""

from __future__ import annotations

from typing import Final

from memory_layer.ops.tables.found import LOG_TABLE, Look, differing_columns, later, moment
from memory_layer.ops.tables.statements import Statements


def check_api_keys(look: Look, stated: Statements) -> None:
    """Each API key against the entries that made and ended it; a log that goes on from another one knows those since it was opened."""
    opened = None if stated.opening is None else stated.opening.ts
    there, before = set(), 0
    for id_, tenant, principal, digest, hint, name, scopes, created, expires, revoked, replaced in look.stream(
        "api_keys"
    ):
        there.add(id_)
        seq, said = stated.api_keys.get(id_, (None, {}))
        if "keySha256" not in said:
            if opened is not None and not later(moment(created), opened):
                before += 1
            else:
                look.found.add(LOG_TABLE, f"api_keys: the entry that made {id_}", "none")
            continue
        stored = {
            "tenant": tenant, "principal": principal, "key_sha256": digest, "hint": hint, "name": name, "scopes": scopes,
            "created_at": moment(created), "expires_at": moment(expires), "revoked_at": moment(revoked),
            "replaced_by": replaced,
        }  # fmt: skip
        expected = {column: said.get(member) for column, member in _API_KEY.items()}
        look.found.differ(
            LOG_TABLE, f"api_keys, {id_}", f"entry {seq} says", differing_columns(stored, expected), seq=seq
        )
    for id_, (seq, _) in stated.api_keys.items():
        if id_ not in there:
            look.found.add(LOG_TABLE, f"api_keys: {id_}", "no such row", seq=seq)
    if before:
        look.found.not_checked.append(f"tables: {before} rows of api_keys that the log before made")


_API_KEY: Final = {
    "tenant": "tenant", "principal": "principalId", "key_sha256": "keySha256", "hint": "hint", "name": "name", "scopes": "scopes",
    "created_at": "createdAt", "expires_at": "expiresAt", "revoked_at": "revokedAt", "replaced_by": "replacedBy",
}  # fmt: skip


def check_revoked_tokens(look: Look, stated: Statements) -> None:
    """Each refused token against its entry; a log that goes on from another one knows those since it was opened."""
    opened = None if stated.opening is None else stated.opening.ts
    there, before = set(), 0
    for tenant, jti, revoked in look.stream("revoked_tokens"):
        there.add((tenant, jti))
        statement = stated.revoked_tokens.get((tenant, jti))
        if statement is None and opened is not None and not later(moment(revoked), opened):
            before += 1
        elif statement is None:
            look.found.add(LOG_TABLE, "revoked_tokens: an entry about each", "none about one")
        elif moment(revoked) != statement.ts:
            look.found.differ(
                LOG_TABLE, "revoked_tokens, one", f"entry {statement.seq} says", ["revoked_at"], seq=statement.seq
            )
    for key, statement in stated.revoked_tokens.items():
        if key not in there:
            look.found.add(LOG_TABLE, "revoked_tokens: the one that the entry names", "no such row", seq=statement.seq)
    if before:
        look.found.not_checked.append(f"tables: {before} rows of revoked_tokens that the log before made")
