"""All tables beside nodes and artifacts, in the verifier's snapshot: what is compared by whom stands in docs/audit-format.md, "Tables"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from psycopg import Connection

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.ops.tables import archive_tables, credentials, log_tables, own_tables, projections
from memory_layer.ops.tables.found import Found, Look
from memory_layer.ops.tables.statements import read_statements

# Each line says why.
NOT_CHECKED: Final = (
    "index: the vector index, memory_terms and vector_entries: copies of what rows say; `memoryctl vectors reconcile` compares them",
    "vectors: the numbers that an embedder made: only embedding again would show it. Those that callers gave are compared",
    "files: the bytes in the object store; `memoryctl artifacts scan` reads them",
    "settings: provider in namespaces and memory_vectors: the vector store that was configured, which no entry says",
    "queue: in memory_vectors attempts, next_attempt_at, leases, updated_at, and errors of rows that wait: they change without an entry",
    "progress: applied in namespace_languages, index_rounds, worker_breakers, ops_schedule, artifact_progress, and when an object was marked in artifact_sweeps: the same",
    "data keys: wrapped_key, key_id, handle and created_at in subjects: only unwrapping shows what they are, as reading the archive does",
    "answers: key, request_hash and texts in idempotency_keys; a row that is gone lets a request run again, as after 24 hours",
    "checkpoints: rows that are gone but for the newest, and times within what entries allow: nothing signs them",
    "server: system_identifier and timeline of seals where they are the same all along, and when the log was opened: nothing signs them",
    "archive: tool, begun_at and finished_at in archive_segments within what entries allow: the objects in the archive show it",
    "manifests: of artifact_manifests version_id, created_at and count where no run reports them: the objects in the archive show it",
)


ENDED: Final = (
    "tables: the others of this database, for the log has ended: the one that goes on from it is the evidence for them"
)

IMPORTED: Final = (
    "tables: the others of this database, for the log was brought back from an archive: it is about another one's"
)

_NODE: Final = re.compile(r"node ([0-9a-f-]{36})")


def check_tables(
    connection: Connection[Any],
    log: int,
    root: TrustRoot,
    verdict: Verdict,
    rows: Sequence[Finding],
    *,
    ended: bool = False,
) -> Found:
    """Findings about every table beside ``memory_nodes`` and ``artifacts``; ``verdict`` is on the log itself, ``rows`` is on those two.

    ``ended``: another log goes on from this one, and is the evidence for the rows.
    ``connection`` is the verifier's, inside its read-only snapshot. Memory grows with runs, principals and namespaces, and by a hash
    for each 256 entries.
    """
    found = Found()
    look = Look(connection, log, root, found, intact=not verdict.findings)
    log_tables.check_seals(look)
    if look.imported:
        found.not_checked.append(IMPORTED)
        return found
    if ended:
        found.not_checked.append(ENDED)
        return found
    stated = read_statements(look)
    log_tables.check_log(look)
    log_tables.check_keys(look, stated)
    log_tables.check_payloads(look)
    log_tables.check_checkpoints(look)
    segments = archive_tables.segments_of(look)
    trees: dict[int, bytes] = {}
    if look.intact:
        trees = log_tables.check_tree(look, [row.last + 1 for row in segments if row.tail is not None])
    else:
        found.not_checked.append(log_tables.TREE_NOT_CHECKED)
    archive_tables.check_archive(look, stated, segments, trees)
    archive_tables.check_manifests(look, stated)
    own_tables.check_runs(look, stated)
    own_tables.check_freeze(look, stated)
    own_tables.check_languages(look, stated)
    own_tables.check_principals(look, stated)
    own_tables.check_tenants(look, stated)
    credentials.check_api_keys(look, stated)
    credentials.check_revoked_tokens(look, stated)
    own_tables.check_subjects(look, stated)
    own_tables.check_unused(look)
    spaces = projections.check_namespaces(look, stated)
    nodes = {match[1] for one in rows if (match := _NODE.search(f"{one.expected} {one.found}"))}
    projections.check_vectors(look, nodes, spaces)
    projections.check_answers(look, stated)
    projections.check_deleted_artifacts(look, stated)
    projections.check_sweeps(look)
    found.not_checked.extend(NOT_CHECKED)
    return found
