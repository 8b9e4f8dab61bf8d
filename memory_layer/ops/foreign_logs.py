"""Logs in the database that the trust root does not know: each is a finding, for its entries could be mistaken for evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.sql import SQL, Identifier

from memory_layer.audit.verdict import Finding
from memory_layer.ops.tables.found import payload_of
from memory_layer.sql import queries

_SQL = queries("audit")
# The tables whose rows belong to a log.
_TABLES: Final = (
    "audit_events",
    "audit_payloads",
    "audit_seals",
    "audit_keys",
    "audit_checkpoints",
    "audit_tiles",
    "audit_trees",
    "archive_segments",
)
_MAX_NAMED = 100  # numbers of a table that are named; somebody may have made any number of them up


class Held(NamedTuple):
    """A row of ``audit_logs``. ``imported``: a copy that was brought back from an archive."""

    log: int
    origin: str
    imported: bool

    @property
    def kind(self) -> str:
        return "a copy that was brought back from an archive" if self.imported else "a log that is written to"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The log to judge. ``misplaced``: the finding when it is not there as what it is to be judged as. ``ended``: a later incarnation of it
    is there, whose entries are the evidence for the rows."""

    log: int
    origin: str
    misplaced: tuple[Finding, ...] = ()
    ended: bool = False


def held(connection: Connection[Any]) -> list[Held]:
    """The logs of ``audit_logs``, the newest first."""
    return [Held(*row) for row in connection.execute(_SQL["held_logs"]).fetchall()]


def choose(logs: Iterable[Held], origin: str, *, imported: bool) -> Chosen:
    """The log of that name; where there is none another one, which the verifier then finds to be of another origin."""
    logs = list(logs)
    own = next((log for log in logs if log.origin == origin), None)
    if own is None:
        return Chosen(logs[0].log, logs[0].origin) if logs else Chosen(0, origin)
    if own.imported == imported and (own.log < 0) == imported:
        later = [log for log in logs if log.log > own.log and not log.imported]
        return Chosen(own.log, origin, ended=any(family(log.origin) == family(origin) for log in later))
    wanted = "a copy that was brought back from an archive (--imported)" if imported else "the log that is written to"
    finding = Finding("FOREIGN_LOG", f"{origin} as {wanted}", f"{own.kind}, log {own.log}", file="audit_logs")
    return Chosen(own.log, origin, (finding,))


def family(origin: str) -> str:
    """The name of a log without its incarnation."""
    return re.sub(r"/e[0-9]+$", "", origin)


def before(connection: Connection[Any], chosen: Chosen) -> list[str]:
    """The logs that the one to be judged goes on from, as its own first entry says; that entry is judged with all others."""
    for entry, salt, payload in connection.execute(_SQL["opening"], {"log": chosen.log}).fetchall():
        opening = payload_of(entry, salt, payload) or {}
        names = [opening.get("origin"), *(opening.get("earlier") or ())]
        return [name for name in names if isinstance(name, str) and family(name) == family(chosen.origin)]
    return []


def findings(
    connection: Connection[Any], logs: Iterable[Held], chosen: Chosen, allowed: Iterable[str] = ()
) -> tuple[list[Finding], list[str]]:
    """(FOREIGN_LOG for each log number that is found anywhere and is not the chosen one; what was allowed and is not judged).

    ``allowed``: names of logs that are known to lie in this database too. Their entries are no evidence for rows either.
    """
    known = {log.log: log for log in logs}
    seen: dict[int, list[str]] = {number: [] for number in known}
    for table in _TABLES:
        query = SQL(_SQL["log_numbers"]).format(table=Identifier(table))
        for (number,) in connection.execute(query, {"limit": _MAX_NAMED}).fetchall():
            seen.setdefault(number, []).append(table)
    found, passed, names = [], [], set(allowed)
    for number, relations in sorted(seen.items()):
        log = known.get(number)
        if number == chosen.log:
            if log is None and relations:  # rows of a log that no row of audit_logs names
                found.append(_foreign(chosen.origin, number, "no log of audit_logs", relations))
        elif log is not None and log.origin in names:
            passed.append(f"log: the entries of {log.origin}, which this database holds too")
        else:
            what = "no log of audit_logs" if log is None else f"{log.origin}, {log.kind}"
            found.append(_foreign(chosen.origin, number, what, relations))
    return found, passed


def _foreign(origin: str, number: int, what: str, relations: list[str]) -> Finding:
    where = ", ".join(sorted(relations)) or "audit_logs alone"
    return Finding("FOREIGN_LOG", f"the log {origin} and no other", f"log {number} ({what}) in {where}")
