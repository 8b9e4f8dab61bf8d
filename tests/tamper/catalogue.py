"""Who names a change of each column behind the product's back, a line each; ``test_catalogue.py`` makes every one of them.

    <table>.<column>  <by>  <code, or why not>

``<table>.+`` is a row put in, ``<table>.-`` one taken out. ``by``:

    verify       `audit verify` names it by this code
    reconcile    `vectors reconcile` names it, and the verifier says that it leaves that to it
    free         nothing shows it, or nobody needs to know, for the reason given
    refused      the table's own constraints let no other value in
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Line(NamedTuple):
    by: str
    what: str


TABLE: Final = """
access_log.at                         verify     LOG_TABLE_MISMATCH
access_log.request_id                 verify     LOG_TABLE_MISMATCH
access_log.tenant                     verify     LOG_TABLE_MISMATCH
access_log.actor                      verify     LOG_TABLE_MISMATCH
access_log.method                     verify     LOG_TABLE_MISMATCH
access_log.route                      verify     LOG_TABLE_MISMATCH
access_log.status                     verify     LOG_TABLE_MISMATCH
access_log.node_ids                   verify     LOG_TABLE_MISMATCH
access_log.audit_seqs                 verify     LOG_TABLE_MISMATCH
access_log.+                          verify     LOG_TABLE_MISMATCH

api_keys.tenant                       verify     LOG_TABLE_MISMATCH
api_keys.id                           verify     LOG_TABLE_MISMATCH
api_keys.principal                    verify     LOG_TABLE_MISMATCH
api_keys.key_sha256                   verify     LOG_TABLE_MISMATCH
api_keys.scopes                       verify     LOG_TABLE_MISMATCH
api_keys.created_at                   verify     LOG_TABLE_MISMATCH
api_keys.expires_at                   verify     LOG_TABLE_MISMATCH
api_keys.revoked_at                   verify     LOG_TABLE_MISMATCH
api_keys.name                         verify     LOG_TABLE_MISMATCH
api_keys.hint                         verify     LOG_TABLE_MISMATCH
api_keys.replaced_by                  verify     LOG_TABLE_MISMATCH
api_keys.last_used_at                 free       the hour of its last use, written without an entry
api_keys.+                            verify     LOG_TABLE_MISMATCH
api_keys.-                            verify     LOG_TABLE_MISMATCH

archive_segments.log                  verify     LOG_TABLE_MISMATCH
archive_segments.number               verify     LOG_TABLE_MISMATCH
archive_segments.first_seq            verify     LOG_TABLE_MISMATCH
archive_segments.last_seq             verify     LOG_TABLE_MISMATCH
archive_segments.checkpoint_size      verify     LOG_TABLE_MISMATCH
archive_segments.attempt              verify     LOG_TABLE_MISMATCH
archive_segments.tool                 free       the version of the program that wrote it; the manifest in the archive says which
archive_segments.begun_at             free       when it was begun, up to when it was finished; the manifest in the archive says when
archive_segments.lock_until           verify     LOG_TABLE_MISMATCH
archive_segments.finished_at          verify     LOG_TABLE_MISMATCH
archive_segments.manifest_key         verify     LOG_TABLE_MISMATCH
archive_segments.manifest_version     verify     LOG_TABLE_MISMATCH
archive_segments.manifest_sha256      verify     LOG_TABLE_MISMATCH
archive_segments.bytes                verify     LOG_TABLE_MISMATCH
archive_segments.tail                 verify     LOG_TABLE_MISMATCH
archive_segments.audit_id             verify     LOG_TABLE_MISMATCH
archive_segments.+                    verify     LOG_TABLE_MISMATCH
archive_segments.-                    verify     LOG_TABLE_MISMATCH

artifact_manifests.id                 verify     LOG_TABLE_MISMATCH
artifact_manifests.object_key         verify     LOG_TABLE_MISMATCH
artifact_manifests.version_id         verify     LOG_TABLE_MISMATCH
artifact_manifests.sha256             verify     LOG_TABLE_MISMATCH
artifact_manifests.artifacts          verify     LOG_TABLE_MISMATCH
artifact_manifests.signature          verify     LOG_TABLE_MISMATCH
artifact_manifests.key_id             verify     LOG_TABLE_MISMATCH
artifact_manifests.previous           verify     LOG_TABLE_MISMATCH
artifact_manifests.created_at         verify     LOG_TABLE_MISMATCH
artifact_manifests.+                  verify     LOG_TABLE_MISMATCH
artifact_manifests.-                  verify     LOG_TABLE_MISMATCH

artifact_progress.job                 free       how far a scan is: without it the next one begins anew
artifact_progress.state               free       how far a scan is: without it the next one begins anew
artifact_progress.updated_at          free       how far a scan is: without it the next one begins anew
artifact_progress.+                   free       how far a scan is: without it the next one begins anew
artifact_progress.-                   free       how far a scan is: without it the next one begins anew

artifact_sweeps.tenant                verify     STATE_RECONCILE_MISMATCH
artifact_sweeps.object_key            free       a mark of an object that no artifact names: one that is named is found
artifact_sweeps.version_id            free       a mark of an object that no artifact names: one that is named is found
artifact_sweeps.marked_at             free       a mark of an object that no artifact names: one that is named is found
artifact_sweeps.deleted_at            verify     STATE_RECONCILE_MISMATCH
artifact_sweeps.+                     verify     STATE_RECONCILE_MISMATCH
artifact_sweeps.-                     free       without its mark an object that no artifact names is marked again

artifacts.tenant                      verify     STATE_RECONCILE_MISMATCH
artifacts.id                          verify     STATE_RECONCILE_MISMATCH
artifacts.memory_node_id              verify     STATE_RECONCILE_MISMATCH
artifacts.name                        verify     STATE_RECONCILE_MISMATCH
artifacts.url                         verify     STATE_RECONCILE_MISMATCH
artifacts.object_key                  verify     STATE_RECONCILE_MISMATCH
artifacts.version_id                  verify     STATE_RECONCILE_MISMATCH
artifacts.sha256                      verify     STATE_RECONCILE_MISMATCH
artifacts.size_bytes                  verify     STATE_RECONCILE_MISMATCH
artifacts.content_type                verify     STATE_RECONCILE_MISMATCH
artifacts.manifest_signature_id       verify     STATE_RECONCILE_MISMATCH
artifacts.created_by                  verify     STATE_RECONCILE_MISMATCH
artifacts.metadata                    verify     STATE_RECONCILE_MISMATCH
artifacts.legal_hold                  verify     STATE_RECONCILE_MISMATCH
artifacts.retain_until                verify     STATE_RECONCILE_MISMATCH
artifacts.verified_at                 verify     STATE_RECONCILE_MISMATCH
artifacts.fault                       verify     STATE_RECONCILE_MISMATCH
artifacts.storage_class               free       repeats what the object store last answered
artifacts.hold_due                    free       whether the object store has yet to hear of a hold: once more changes nothing
artifacts.created_at                  verify     STATE_RECONCILE_MISMATCH
artifacts.+                           verify     STATE_RECONCILE_MISMATCH
artifacts.-                           verify     STATE_RECONCILE_MISMATCH

audit_checkpoints.log                 verify     FOREIGN_LOG
audit_checkpoints.size                verify     PROJECTION_MISMATCH
audit_checkpoints.root                verify     PROJECTION_MISMATCH
audit_checkpoints.note                verify     NONCANONICAL_ENCODING
audit_checkpoints.created_at          verify     LOG_TABLE_MISMATCH
audit_checkpoints.+                   verify     LOG_TABLE_MISMATCH
audit_checkpoints.-                   free       nothing counts checkpoints; where it matters an anchor elsewhere holds one

audit_events.log                      verify     SEQ_GAP
audit_events.seq                      verify     SEQ_GAP
audit_events.id                       verify     PROJECTION_MISMATCH
audit_events.batch_no                 verify     PROJECTION_MISMATCH
audit_events.tenant                   verify     PROJECTION_MISMATCH
audit_events.memory_node_id           verify     PROJECTION_MISMATCH
audit_events.artifact_id              verify     PROJECTION_MISMATCH
audit_events.event_type               verify     PROJECTION_MISMATCH
audit_events.manifest_signature_id    verify     PROJECTION_MISMATCH
audit_events.created_at               verify     PROJECTION_MISMATCH
audit_events.entry                    verify     NONCANONICAL_ENCODING
audit_events.hash                     verify     PROJECTION_MISMATCH
audit_events.prev_hash                verify     PROJECTION_MISMATCH
audit_events.signature                verify     NONCANONICAL_ENCODING
audit_events.+                        verify     SEQ_GAP
audit_events.-                        verify     SEQ_GAP

audit_keys.log                        verify     LOG_TABLE_MISMATCH
audit_keys.from_seq                   verify     LOG_TABLE_MISMATCH
audit_keys.key_id                     verify     LOG_TABLE_MISMATCH
audit_keys.algorithm                  verify     LOG_TABLE_MISMATCH
audit_keys.public_key                 verify     LOG_TABLE_MISMATCH
audit_keys.created_at                 verify     LOG_TABLE_MISMATCH
audit_keys.+                          verify     LOG_TABLE_MISMATCH
audit_keys.-                          verify     LOG_TABLE_MISMATCH

audit_logs.log                        verify     LOG_TABLE_MISMATCH
audit_logs.origin                     verify     ORIGIN_MISMATCH
audit_logs.incarnation                verify     LOG_TABLE_MISMATCH
audit_logs.key_id                     verify     LOG_TABLE_MISMATCH
audit_logs.created_at                 free       when the log was opened, up to its first entry: nothing signs it
audit_logs.imported_at                refused    a log from 0 is no copy, and one below 0 is
audit_logs.-                          verify     FOREIGN_LOG

audit_payloads.log                    verify     FOREIGN_LOG
audit_payloads.seq                    verify     PAYLOAD_ORPHAN
audit_payloads.tenant                 verify     LOG_TABLE_MISMATCH
audit_payloads.salt                   verify     PAYLOAD_COMMITMENT_MISMATCH
audit_payloads.payload                verify     PAYLOAD_COMMITMENT_MISMATCH
audit_payloads.+                      verify     PAYLOAD_ORPHAN
audit_payloads.-                      verify     PAYLOAD_MISSING_UNAUTHORISED

audit_seals.log                       verify     SEAL_MISSING
audit_seals.batch_no                  verify     SEAL_MISSING
audit_seals.first_seq                 verify     SEAL_ROW_MISMATCH
audit_seals.last_seq                  verify     SEAL_ROW_MISMATCH
audit_seals.head                      verify     SEAL_ROW_MISMATCH
audit_seals.seal_text                 verify     NONCANONICAL_ENCODING
audit_seals.signature                 verify     NONCANONICAL_ENCODING
audit_seals.key_id                    verify     SEAL_ROW_MISMATCH
audit_seals.algorithm                 verify     SEAL_ROW_MISMATCH
audit_seals.system_identifier         verify     SEAL_ROW_MISMATCH
audit_seals.timeline                  verify     SEAL_ROW_MISMATCH
audit_seals.created_at                verify     SEAL_ROW_MISMATCH
audit_seals.+                         verify     SEAL_ROW_MISMATCH
audit_seals.-                         verify     SEAL_MISSING

audit_tiles.log                       verify     LOG_TABLE_MISMATCH
audit_tiles.level                     verify     LOG_TABLE_MISMATCH
audit_tiles.tile                      verify     LOG_TABLE_MISMATCH
audit_tiles.data                      verify     LOG_TABLE_MISMATCH
audit_tiles.+                         verify     LOG_TABLE_MISMATCH
audit_tiles.-                         verify     LOG_TABLE_MISMATCH

audit_trees.log                       verify     LOG_TABLE_MISMATCH
audit_trees.size                      verify     LOG_TABLE_MISMATCH
audit_trees.edge                      verify     LOG_TABLE_MISMATCH
audit_trees.key_id                    verify     LOG_TABLE_MISMATCH
audit_trees.updated_at                free       when the tree was last extended: nothing reads it
audit_trees.+                         verify     FOREIGN_LOG
audit_trees.-                         verify     LOG_TABLE_MISMATCH

deleted_artifacts.tenant               verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.id                   verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.memory_node_id       verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.sha256               verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.object_key           verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.version_id           verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.deleted_at           verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.+                    verify     STATE_RECONCILE_MISMATCH
deleted_artifacts.-                    verify     STATE_RECONCILE_MISMATCH

idempotency_keys.tenant               verify     STATE_RECONCILE_MISMATCH
idempotency_keys.actor                verify     STATE_RECONCILE_MISMATCH
idempotency_keys.key                  free       the caller's own word: another one lets the request run again, as after 24 hours
idempotency_keys.request_hash         free       of a request that is not kept: another one is answered with IDEMPOTENCY_MISMATCH
idempotency_keys.status               verify     STATE_RECONCILE_MISMATCH
idempotency_keys.answer               verify     STATE_RECONCILE_MISMATCH
idempotency_keys.created_at           verify     STATE_RECONCILE_MISMATCH
idempotency_keys.+                    verify     STATE_RECONCILE_MISMATCH
idempotency_keys.-                    free       lets the request run again, as after 24 hours

index_rounds.lease                    free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.worker                   free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.tenants                  free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.ids                      free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.versions                 free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.begun_at                 free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.ended_at                 free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.gone_at                  free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.+                        free       what workers have in hand: it changes all the time, and says what is to be done again
index_rounds.-                        free       what workers have in hand: `vectors reconcile` finds what a late one wrote

legal_holds.tenant                    verify     LOG_TABLE_MISMATCH
legal_holds.id                        verify     LOG_TABLE_MISMATCH
legal_holds.scope                     verify     LOG_TABLE_MISMATCH
legal_holds.target                    verify     LOG_TABLE_MISMATCH
legal_holds.reason                    verify     LOG_TABLE_MISMATCH
legal_holds.case_id                   verify     LOG_TABLE_MISMATCH
legal_holds.set_by                    verify     LOG_TABLE_MISMATCH
legal_holds.set_at                    verify     LOG_TABLE_MISMATCH
legal_holds.released_by               verify     LOG_TABLE_MISMATCH
legal_holds.released_at               verify     LOG_TABLE_MISMATCH
legal_holds.approvals                 verify     LOG_TABLE_MISMATCH
legal_holds.+                         verify     LOG_TABLE_MISMATCH

memory_nodes.tenant                   verify     STATE_RECONCILE_MISMATCH
memory_nodes.id                       verify     STATE_RECONCILE_MISMATCH
memory_nodes.owner                    verify     STATE_RECONCILE_MISMATCH
memory_nodes.namespace                verify     STATE_RECONCILE_MISMATCH
memory_nodes.embedding_id             verify     STATE_RECONCILE_MISMATCH
memory_nodes.content                  verify     STATE_RECONCILE_MISMATCH
memory_nodes.metadata                 verify     STATE_RECONCILE_MISMATCH
memory_nodes.pii_flags                verify     STATE_RECONCILE_MISMATCH
memory_nodes.subjects                 verify     STATE_RECONCILE_MISMATCH
memory_nodes.legal_hold               verify     STATE_RECONCILE_MISMATCH
memory_nodes.legal_hold_reason        verify     STATE_RECONCILE_MISMATCH
memory_nodes.ttl_seconds              verify     STATE_RECONCILE_MISMATCH
memory_nodes.expires_at               verify     STATE_RECONCILE_MISMATCH
memory_nodes.occurred_at              verify     STATE_RECONCILE_MISMATCH
memory_nodes.derived_from             verify     STATE_RECONCILE_MISMATCH
memory_nodes.language                 verify     STATE_RECONCILE_MISMATCH
memory_nodes.thread                   verify     STATE_RECONCILE_MISMATCH
memory_nodes.position                 verify     STATE_RECONCILE_MISMATCH
memory_nodes.version                  verify     STATE_RECONCILE_MISMATCH
memory_nodes.created_at               verify     STATE_RECONCILE_MISMATCH
memory_nodes.updated_at               verify     STATE_RECONCILE_MISMATCH
memory_nodes.deleted_at               verify     STATE_RECONCILE_MISMATCH
memory_nodes.+                        verify     STATE_RECONCILE_MISMATCH
memory_nodes.-                        verify     STATE_RECONCILE_MISMATCH

memory_terms.tenant                   reconcile  stray
memory_terms.node_id                  reconcile  stray
memory_terms.namespace                reconcile  wrong
memory_terms.version                  reconcile  wrong
memory_terms.terms                    reconcile  wrong
memory_terms.language                 reconcile  wrong
memory_terms.analyser                 reconcile  wrong
memory_terms.+                        reconcile  stray
memory_terms.-                        reconcile  missing

memory_vectors.tenant                 verify     STATE_RECONCILE_MISMATCH
memory_vectors.id                     verify     STATE_RECONCILE_MISMATCH
memory_vectors.memory_node_id         verify     STATE_RECONCILE_MISMATCH
memory_vectors.namespace              verify     STATE_RECONCILE_MISMATCH
memory_vectors.provider               free       the vector store that was configured when it was written: no entry says which
memory_vectors.embedding_model        verify     STATE_RECONCILE_MISMATCH
memory_vectors.dimension              verify     STATE_RECONCILE_MISMATCH
memory_vectors.external_vector_id     verify     STATE_RECONCILE_MISMATCH
memory_vectors.status                 verify     STATE_RECONCILE_MISMATCH
memory_vectors.error                  verify     STATE_RECONCILE_MISMATCH
memory_vectors.error_class            verify     STATE_RECONCILE_MISMATCH
memory_vectors.version                verify     STATE_RECONCILE_MISMATCH
memory_vectors.metadata               verify     STATE_RECONCILE_MISMATCH
memory_vectors.vector_data            verify     STATE_RECONCILE_MISMATCH
memory_vectors.attempts               free       how often the worker tried: it changes without an entry
memory_vectors.bulk                   free       whether it waits behind single writes: when, not what, is indexed
memory_vectors.next_attempt_at        free       when the worker tries again: it changes without an entry
memory_vectors.lease_id               verify     STATE_RECONCILE_MISMATCH
memory_vectors.lease_until            refused    a lease has an id and an end, or neither
memory_vectors.created_at             verify     STATE_RECONCILE_MISMATCH
memory_vectors.updated_at             free       when the worker last had it: it changes without an entry
memory_vectors.+                      verify     STATE_RECONCILE_MISMATCH
memory_vectors.-                      verify     STATE_RECONCILE_MISMATCH

namespace_languages.tenant            verify     LOG_TABLE_MISMATCH
namespace_languages.name              verify     LOG_TABLE_MISMATCH
namespace_languages.language          verify     LOG_TABLE_MISMATCH
namespace_languages.set_at            verify     LOG_TABLE_MISMATCH
namespace_languages.applied           free       whether words wait to be written again; `vectors reconcile` compares the words
namespace_languages.+                 verify     LOG_TABLE_MISMATCH
namespace_languages.-                 verify     LOG_TABLE_MISMATCH

namespaces.tenant                     verify     STATE_RECONCILE_MISMATCH
namespaces.name                       verify     STATE_RECONCILE_MISMATCH
namespaces.index_namespace            verify     STATE_RECONCILE_MISMATCH
namespaces.embedding_model            verify     STATE_RECONCILE_MISMATCH
namespaces.dimension                  verify     STATE_RECONCILE_MISMATCH
namespaces.metric                     refused    there is one metric
namespaces.provider                   free       the vector store that was configured when it was made: no entry says which
namespaces.state                      verify     STATE_RECONCILE_MISMATCH
namespaces.generations                verify     STATE_RECONCILE_MISMATCH
namespaces.beside                     verify     STATE_RECONCILE_MISMATCH
namespaces.beside_model               verify     STATE_RECONCILE_MISMATCH
namespaces.beside_dimension           verify     STATE_RECONCILE_MISMATCH
namespaces.beside_state               verify     STATE_RECONCILE_MISMATCH
namespaces.created_at                 verify     STATE_RECONCILE_MISMATCH
namespaces.updated_at                 verify     STATE_RECONCILE_MISMATCH
namespaces.+                          verify     STATE_RECONCILE_MISMATCH
namespaces.-                          verify     STATE_RECONCILE_MISMATCH

ops_runs.id                           verify     LOG_TABLE_MISMATCH
ops_runs.verb                         verify     LOG_TABLE_MISMATCH
ops_runs.arguments                    verify     LOG_TABLE_MISMATCH
ops_runs.started_at                   verify     LOG_TABLE_MISMATCH
ops_runs.finished_at                  verify     LOG_TABLE_MISMATCH
ops_runs.verdict                      verify     LOG_TABLE_MISMATCH
ops_runs.exit_code                    verify     LOG_TABLE_MISMATCH
ops_runs.report                       verify     LOG_TABLE_MISMATCH
ops_runs.audit_id                     verify     LOG_TABLE_MISMATCH
ops_runs.+                            verify     LOG_TABLE_MISMATCH
ops_runs.-                            verify     LOG_TABLE_MISMATCH

ops_schedule.job                      free       when workers did what: without it they do it again
ops_schedule.leader                   free       when workers did what: without it they do it again
ops_schedule.last_started             free       when workers did what: without it they do it again
ops_schedule.last_finished            free       when workers did what: without it they do it again
ops_schedule.last_success             free       when workers did what: without it they do it again
ops_schedule.last_error               free       when workers did what: without it they do it again
ops_schedule.failures                 free       when workers did what: without it they do it again
ops_schedule.next_due                 free       when workers did what: without it they do it again
ops_schedule.+                        free       when workers did what: without it they do it again
ops_schedule.-                        free       when workers did what: without it they do it again

principals.tenant                     verify     LOG_TABLE_MISMATCH
principals.service                    verify     LOG_TABLE_MISMATCH
principals.id                         verify     LOG_TABLE_MISMATCH
principals.created_at                 verify     LOG_TABLE_MISMATCH
principals.audit_id                   verify     LOG_TABLE_MISMATCH
principals.revoked_at                 verify     LOG_TABLE_MISMATCH
principals.+                          verify     LOG_TABLE_MISMATCH
principals.-                          verify     LOG_TABLE_MISMATCH

schema_migrations.version             verify     SCHEMA_UNKNOWN
schema_migrations.checksum            verify     SCHEMA_DRIFT
schema_migrations.applied_at          free       when a migration ran: nothing reads it
schema_migrations.+                   verify     SCHEMA_UNKNOWN
schema_migrations.-                   verify     SCHEMA_UNKNOWN

subjects.tenant                       free       a data key under another name: reading the archive fails for want of it
subjects.subject                      free       a data key under another name: reading the archive fails for want of it
subjects.handle                       free       binds the wrapped key, which then no longer unwraps; archives name it
subjects.wrapped_key                  free       only unwrapping shows it, with a key that the verifier does not have
subjects.key_id                       free       only unwrapping shows it, with a key that the verifier does not have
subjects.created_at                   free       when a data key was made: nothing reads it
subjects.erased_at                    verify     LOG_TABLE_MISMATCH
subjects.+                            free       a data key that nothing was encrypted with
subjects.-                            free       a data key that is gone: reading the archive fails for want of it

revoked_tokens.tenant                 verify     LOG_TABLE_MISMATCH
revoked_tokens.jti                    verify     LOG_TABLE_MISMATCH
revoked_tokens.revoked_at             verify     LOG_TABLE_MISMATCH
revoked_tokens.+                      verify     LOG_TABLE_MISMATCH
revoked_tokens.-                      verify     LOG_TABLE_MISMATCH

tenants.tenant                        verify     LOG_TABLE_MISMATCH
tenants.created_at                    verify     LOG_TABLE_MISMATCH
tenants.disabled_at                   verify     LOG_TABLE_MISMATCH
tenants.+                             verify     LOG_TABLE_MISMATCH
tenants.-                             verify     LOG_TABLE_MISMATCH

vector_entries.tenant                 reconcile  missing
vector_entries.namespace              reconcile  missing
vector_entries.node_id                reconcile  missing
vector_entries.version                reconcile  ahead
vector_entries.embedding              reconcile  wrong
vector_entries.fields                 reconcile  fields
vector_entries.removed_at             refused    an entry has a vector or is removed
vector_entries.+                      reconcile  extra
vector_entries.-                      reconcile  missing

worker_breakers.worker                free       which services a worker does without, for a minute
worker_breakers.service               free       which services a worker does without, for a minute
worker_breakers.state                 free       which services a worker does without, for a minute
worker_breakers.reason                free       which services a worker does without, for a minute
worker_breakers.since                 free       which services a worker does without, for a minute
worker_breakers.seen_at               free       which services a worker does without, for a minute
worker_breakers.+                     free       which services a worker does without, for a minute
worker_breakers.-                     free       which services a worker does without, for a minute

write_freeze.singleton                refused    there is one row
write_freeze.reason                   verify     LOG_TABLE_MISMATCH
write_freeze.since                    verify     LOG_TABLE_MISMATCH
write_freeze.until                    verify     LOG_TABLE_MISMATCH
write_freeze.-                        verify     LOG_TABLE_MISMATCH
"""

LINES: Final = {
    name: Line(by, what) for name, by, what in (line.split(maxsplit=2) for line in TABLE.splitlines() if line.strip())
}

# What a read of the row gives while the change stands, for the tables that a read serves from: it is refused as TAMPERED, but for these.
#   unseen   the answer is as before: the column is not in it, and says nothing of it
#   served   the changed value is given out
SERVING: Final = ("memory_nodes", "artifacts", "memory_vectors")
READ: Final[dict[str, str]] = {
    "artifacts.verified_at": "served",  # when its bytes were last found right: no state holds it
    "artifacts.storage_class": "unseen",
    "artifacts.hold_due": "unseen",
    # How far the index is with a node, beside the node itself.
    **dict.fromkeys(
        (f"memory_vectors.{name}" for name in ("id", "namespace", "provider", "embedding_model", "dimension", "status", "error")),
        "served",
    ),
    **dict.fromkeys(
        (
            f"memory_vectors.{name}"
            for name in ("external_vector_id", "error_class", "version", "metadata", "vector_data", "bulk", "attempts", "next_attempt_at",
                         "lease_id", "created_at", "updated_at")
        ),
        "unseen",
    ),
}  # fmt: skip

# A change that the type alone does not give: what to, and of which row.
CHANGED: Final[dict[str, tuple[str, str]]] = {
    "artifacts.fault": ("'corrupt'", "true"),
    "audit_checkpoints.created_at": ("created_at - interval '1 day'", "true"),
    "archive_segments.begun_at": ("begun_at - interval '1 day'", "number = 1"),
    "audit_logs.log": ("7", "true"),
    "audit_payloads.log": ("7", "seq = 20"),
    "memory_nodes.legal_hold_reason": ("'another'", "legal_hold"),
    "memory_nodes.ttl_seconds": ("3601", "ttl_seconds IS NOT NULL"),
    "memory_nodes.expires_at": ("expires_at + interval '1 day'", "ttl_seconds IS NOT NULL"),
    "memory_vectors.status": ("'deleted'", "memory_node_id = (SELECT id FROM memory_nodes WHERE embedding_id = 'e1' AND tenant = 'ann')"),
    "memory_vectors.error_class": ("'permanent'", "status = 'succeeded'"),
    "memory_vectors.lease_id": ("gen_random_uuid(), lease_until = now()", "status = 'succeeded'"),
    "memory_vectors.lease_until": ("now()", "status = 'succeeded'"),
    "memory_nodes.language": ("'tlh'", "true"),
    "namespace_languages.language": ("'tlh'", "true"),
    "memory_nodes.position": ("7, thread = 'another'", "true"),
    "memory_terms.version": ("7", "true"),
    "memory_terms.analyser": ("7", "true"),
    "namespaces.metric": ("'dot'", "true"),
    "namespaces.state": ("'retired'", "true"),
    "namespaces.beside_state": ("'kept'", "beside IS NOT NULL"),
    "schema_migrations.checksum": ("'x'", "checksum IS NOT NULL"),
    "idempotency_keys.answer": ("answer || '{\"version\": 9}'", "key = 'key 1'"),
    "vector_entries.embedding": ("(SELECT array_agg(-x - 1) FROM unnest(embedding::real[]) x)::vector", "embedding IS NOT NULL"),
    "vector_entries.removed_at": ("now()", "true"),
    "vector_entries.fields": ("'{}'", "true"),
    "worker_breakers.state": ("'half_open'", "true"),
    "idempotency_keys.created_at": ("created_at - interval '1 hour'", "true"),
    "write_freeze.singleton": ("false", "true"),
    "write_freeze.until": ("now() + interval '1 day'", "true"),
    "access_log.at": ("at + interval '1 minute'", "true"),
    "legal_holds.scope": ("'owner'", "true"),
    "legal_holds.released_by": ("gen_random_uuid(), released_at = now()", "true"),
    "legal_holds.released_at": ("now(), released_by = gen_random_uuid()", "true"),
}  # fmt: skip

# What makes a copy of a row another one.
COPIED: Final[dict[str, str]] = {
    "archive_segments": '{"number": 9, "first_seq": 5000, "last_seq": 5001, "checkpoint_size": 6000}',
    "artifact_manifests": '{"id": "00000000-0000-4000-8000-000000000001"}',
    "artifact_progress": '{"job": "another"}',
    "artifacts": '{"id": "00000000-0000-4000-8000-000000000001"}',
    "audit_checkpoints": '{"size": 7, "note": null}',
    "audit_events": '{"id": "00000000-0000-4000-8000-000000000001", "seq": 5000}',
    "audit_keys": '{"from_seq": 7}',
    "audit_payloads": '{"seq": 5000}',
    "audit_seals": '{"batch_no": 5000, "first_seq": 5000, "last_seq": 5001}',
    "audit_tiles": '{"tile": 77}',
    "audit_trees": '{"log": 7}',
    "deleted_artifacts": '{"id": "00000000-0000-4000-8000-000000000001"}',
    "idempotency_keys": '{"key": "another", "answer": {"auditId": "00000000-0000-4000-8000-000000000001"}}',
    "index_rounds": '{"lease": "00000000-0000-4000-8000-000000000001"}',
    "memory_nodes": '{"id": "00000000-0000-4000-8000-000000000001", "embedding_id": null}',
    "memory_terms": '{"node_id": "00000000-0000-4000-8000-000000000001"}',
    "memory_vectors": '{"id": "00000000-0000-4000-8000-000000000001", "namespace": "another"}',
    "namespace_languages": '{"name": "another"}',
    "namespaces": '{"name": "another"}',
    "ops_runs": '{"id": "00000000-0000-4000-8000-000000000001"}',
    "ops_schedule": '{"job": "another"}',
    "principals": '{"id": "00000000-0000-4000-8000-000000000001", "service": "another"}',
    "revoked_tokens": '{"jti": "another"}',
    "schema_migrations": '{"version": "999_another"}',
    "subjects": '{"handle": "00000000-0000-4000-8000-000000000001", "subject": "another"}',
    "tenants": '{"tenant": "another"}',
    "vector_entries": '{"node_id": "00000000-0000-4000-8000-000000000001"}',
    "worker_breakers": '{"worker": "another"}',
}

# Rows of tables that the product leaves empty, or that copies would not do for.
INSERTED: Final[dict[str, str]] = {
    "access_log": "INSERT INTO access_log (at, request_id, method, route, status) VALUES (now(), 'r', 'GET', '/', 200)",
    "api_keys": "INSERT INTO api_keys (tenant, id, principal, key_sha256, scopes)"
    " VALUES ('ann', gen_random_uuid(), gen_random_uuid(), sha256('x'), '{admin}')",
    "artifact_sweeps": "INSERT INTO artifact_sweeps SELECT tenant, object_key, version_id, now(), NULL FROM artifacts LIMIT 1",
    "legal_holds": "INSERT INTO legal_holds (tenant, id, scope, target, reason, set_by, set_at)"
    " VALUES ('ann', gen_random_uuid(), 'node', 'x', 'case 7', gen_random_uuid(), now())",
}

# Where one row is as good as another, but not for this: which are taken out.
REMOVED: Final[dict[str, str]] = {"archive_segments": "number = 1", "artifact_manifests": "previous IS NULL"}
