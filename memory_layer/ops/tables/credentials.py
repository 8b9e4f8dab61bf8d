"""Credentials against what entries say of them: tokens that are refused."""

from __future__ import annotations

from memory_layer.ops.tables.found import LOG_TABLE, Look, later, moment
from memory_layer.ops.tables.statements import Statements


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
