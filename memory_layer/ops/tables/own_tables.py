"""The installation's own tables against what its entries say: runs, freeze, languages, principals, tenants, data keys."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from memory_layer.ops.report import dumps
from memory_layer.ops.tables.carried import check_carried
from memory_layer.ops.tables.found import LOG_TABLE, Look, differing_columns, later, moment, plain
from memory_layer.ops.tables.statements import Statements


def check_runs(look: Look, stated: Statements) -> None:
    """Each run against its entry, which names the SHA-256 of its report."""
    found, owed, there = look.found, 0, set()
    before: list[tuple[Any, ...]] = []
    for id_, verb, arguments, started, finished, verdict, code, report, audit in look.stream("runs"):
        there.add(id_)
        entries = stated.runs.get(id_, [])
        if stated.opening is not None and not entries and audit is not None:
            before.append((id_, verb, arguments, started, finished, verdict, code, report, audit))
            continue
        statement = next((one for one in entries if one.id == audit), None)
        if audit is None:
            ended = [one for one in entries if one.payload is not None and one.payload.get("finishedAt") is not None]
            if not ended:
                owed += 1
                continue
            statement = ended[-1]
        if statement is None or statement.payload is None:
            found.add(LOG_TABLE, f"ops_runs: the entry that run {id_} names", "none that is about it")
            continue
        stored = {
            "verb": verb, "arguments": plain(arguments), "startedAt": moment(started), "finishedAt": moment(finished),
            "verdict": verdict or "interrupted", "exit": code, "reportSha256": _digest(report),
        }  # fmt: skip
        expected: dict[str, Any] = {name: statement.payload.get(name) for name in stored}
        expected["arguments"] = plain(expected["arguments"])
        differs = [_RUN.get(name, name) for name in differing_columns(stored, expected)]
        found.differ(LOG_TABLE, f"ops_runs, run {id_}", f"entry {statement.seq} says", differs, seq=statement.seq)
    check_carried(look, stated, "ops_runs", before)
    for id_, entries in stated.runs.items():
        if id_ not in there:
            found.add(LOG_TABLE, f"ops_runs: run {id_}", "no such row", seq=entries[-1].seq)
    if owed:
        found.not_checked.append(f"tables: {owed} rows of ops_runs: under way, or their entry is not written yet")


_RUN: Final = {
    "startedAt": "started_at", "finishedAt": "finished_at", "exit": "exit_code", "reportSha256": "report",
}  # fmt: skip


def _digest(report: Any) -> str | None:
    return None if report is None else hashlib.sha256(dumps(report).encode()).hexdigest()


def check_freeze(look: Look, stated: Statements) -> None:
    """The freeze that is in force, or was until its time was over, against the last entry about one."""
    statement, rows = stated.freeze, look.rows("freeze")
    if statement is not None and statement.payload is None:
        look.found.not_checked.append("tables: write_freeze, as the payload of the last entry about it is gone")
        return
    stored = [{"reason": reason, "since": moment(since), "until": moment(until)} for reason, since, until in rows]
    frozen = [statement.payload] if statement is not None and statement.type.startswith("ops.writes-frozen.") else []
    if stored == frozen:
        return
    columns = (
        differing_columns(stored[0], frozen[0])
        if len(stored) == len(frozen) == 1 and frozen[0] is not None
        else ["a row more or less"]
    )
    look.found.differ(
        LOG_TABLE,
        "write_freeze",
        "the last entry about it says",
        columns or ["other members"],
        seq=statement.seq if statement else None,
    )


def check_languages(look: Look, stated: Statements) -> None:
    """The language of each namespace against the last entry about it; a log that goes on from another one knows those since it was
    opened."""
    opened = None if stated.opening is None else stated.opening.ts
    there, before = set(), 0
    for tenant, name, language, at in look.stream("languages"):
        there.add((tenant, name))
        statement = stated.languages.get((tenant, name))
        if statement is None and opened is not None and not later(moment(at), opened):
            before += 1
        elif statement is None:
            look.found.add(LOG_TABLE, "namespace_languages: an entry about each", "none about one")
        elif statement.payload is not None:
            stored = {"language": language, "set_at": moment(at)}
            said = {"language": statement.payload.get("language"), "set_at": statement.ts}
            differs = differing_columns(stored, said)
            look.found.differ(
                LOG_TABLE, "namespace_languages, one", f"entry {statement.seq} says", differs, seq=statement.seq
            )
    for key, statement in stated.languages.items():
        if key not in there:
            look.found.add(
                LOG_TABLE, "namespace_languages: the one that the entry names", "no such row", seq=statement.seq
            )
    if before:
        look.found.not_checked.append(f"tables: {before} rows of namespace_languages that the log before made")


def check_principals(look: Look, stated: Statements) -> None:
    """Who stands behind each actor of an entry: rows against the entries that made them, and actors without a row."""
    found, rows = look.found, {row[2]: row for row in look.rows("principals")}
    before = 0
    for id_, (tenant, service, _, created, audit, revoked) in rows.items():
        statement = stated.principals.get(id_)
        if statement is None:
            if stated.bound:
                found.add(LOG_TABLE, f"principals: an entry that says who {id_} is", "none")
            before += 1
            continue
        stored = {"tenant": tenant, "service": service, "created_at": moment(created), "audit_id": audit}
        entry = {
            "tenant": statement.tenant,
            "service": statement.service,
            "created_at": statement.created,
            "audit_id": statement.entry,
        }
        stored["revoked_at"], entry["revoked_at"] = moment(revoked), stated.revoked.get(id_)
        found.differ(
            LOG_TABLE,
            f"principals, {id_}",
            f"entry {statement.seq} says",
            differing_columns(stored, entry),
            seq=statement.seq,
        )
    for id_, statement in stated.principals.items():
        if id_ not in rows:
            found.add(LOG_TABLE, f"principals: {id_}", "no such row", seq=statement.seq)
    for seq, id_ in stated.repeated:
        found.add(LOG_TABLE, "principals: one id for each service, named once", f"{id_} again or anew", seq=seq)
    if stated.bound:
        for actor, seq in look.rows("actors"):
            if actor not in stated.principals and actor not in rows:
                found.add(LOG_TABLE, f"principals: who {actor} is, who acts in entry {seq}", "no such row", seq=seq)
    if before and not stated.bound:
        found.not_checked.append(
            f"tables: {before} rows of principals and their tenants: made before the log said who acts, and adopted at the next start"
        )
    if stated.adopted:
        seqs = ", ".join(str(seq) for seq in stated.adopted)
        found.not_checked.append(
            f"tables: principals and tenants that entries {seqs} adopted: what their rows were before those"
        )


def check_tenants(look: Look, stated: Statements) -> None:
    """When each tenant was first seen, and that none was switched off by a hand alone."""
    rows = {row[0]: row for row in look.rows("tenants")}
    for tenant, created, disabled in rows.values():
        statement = stated.tenants.get(tenant)
        if statement is None:
            if stated.bound:
                look.found.add(LOG_TABLE, "tenants: an entry about each", "none about one")
            continue
        stored = {"created_at": moment(created), "disabled_at": moment(disabled)}
        differs = differing_columns(stored, {"created_at": statement[1], "disabled_at": statement[2]})
        look.found.differ(LOG_TABLE, "tenants, the row", f"entry {statement[0]} says", differs, seq=statement[0])
    for tenant, statement in stated.tenants.items():
        if tenant not in rows:
            look.found.add(LOG_TABLE, "tenants: the tenant that the entry names", "no such row", seq=statement[0])


def check_subjects(look: Look, stated: Statements) -> None:
    """Data keys of people: columns that fit together, and no erasure without its entry. What a key is only its use shows."""
    for (handle,) in look.rows("subjects"):
        look.found.add(LOG_TABLE, f"subjects, {handle}: columns that fit together", "others")
    for (handle,) in look.rows("erased_subjects"):
        if handle not in stated.erased:
            look.found.add(LOG_TABLE, f"subjects: a memory.subject.erased about {handle}", "none")


def check_unused(look: Look) -> None:
    """Tables that nothing writes to yet: whatever stands there somebody put there."""
    for table, count in look.rows("unused"):
        look.found.add(LOG_TABLE, f"{table}: no rows, as nothing writes any yet", f"{count}")
