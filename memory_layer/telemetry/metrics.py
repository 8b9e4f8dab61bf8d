"""Every metric, a row each. The objects and docs/reference/metrics.md are made from this table; nothing else defines a metric.

A counter is exported as ``name_total``, a histogram as ``name_bucket``, ``name_sum`` and ``name_count``. Where several processes answer at
one port, counters and histograms are their sum; ``across`` says what a gauge is then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector

from memory_layer.config import environment

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Across = Literal["all", "max", "livemax", "mostrecent", "livemostrecent"]


class Metric(NamedTuple):
    """A row of the table."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds
    across: Across | None = None

    @property
    def exported(self) -> str:
        """Its name in queries and alerts; of a histogram how the names of its three series begin."""
        return self.name + "_total" if self.kind == "counter" else self.name


TABLE: Final[list[Metric]] = []
registry: Final = CollectorRegistry()
ProcessCollector(registry=registry)


def counter(name: str, meaning: str, *labels: str) -> Counter:
    TABLE.append(Metric("counter", name, meaning, labels))
    return Counter(name, meaning, labels, registry=registry)


def gauge(name: str, meaning: str, *labels: str, across: Across) -> Gauge:
    TABLE.append(Metric("gauge", name, meaning, labels, across=across))
    return Gauge(name, meaning, labels, registry=registry, multiprocess_mode=across)


def histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    TABLE.append(Metric("histogram", name, meaning, labels, buckets))
    return Histogram(name, meaning, labels, registry=registry, buckets=buckets)


# --- Requests --------------------------------------------------------------------------------------------------

requests = counter("memory_http_requests", "HTTP requests answered", "method", "route", "status")
request_seconds = histogram(
    "memory_http_request_seconds", "Time to answer an HTTP request", "method", "route",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
search_seconds = histogram(
    "memory_search_seconds", "Time of one stage of a search", "stage",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)  # fmt: skip
stale_hits = counter(
    "memory_search_dropped_hits", "Index hits that are not answered, because of what their row in Postgres is", "reason"
)
tampered_rows = counter(
    "memory_tampered_rows", "Rows that are not what their last audit entry says, each time one was met", "door", "kind"
)

# --- The commit and the log ------------------------------------------------------------------------------------

commit_batch_size = histogram(
    "memory_commit_batch_size", "Changes per committed batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
commit_seconds = histogram(
    "memory_commit_seconds", "Time of one batch, lock to commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)  # fmt: skip
signer_failures = counter("memory_signer_failures", "Batches the signer did not sign")
writes_frozen = gauge(
    "memory_writes_frozen",
    "1 while an operator's freeze refuses all writes, as this process last saw",
    across="mostrecent",
)
rollback_detected = gauge(
    "memory_rollback_detected",
    "1 while writes are refused because the log lacks a checkpoint that is kept outside the database",
    across="livemax",
)
rollback_proved = gauge(
    "memory_rollback_proof_timestamp_seconds",
    "When the log was last found to contain the newest checkpoint of every place that keeps them",
    across="mostrecent",
)
log_tampered = gauge(
    "memory_log_tampered",
    "1 while the log does not end as its keys sealed it, as this process last saw",
    across="mostrecent",
)
log_refusals = counter("memory_log_refusals", "How often the log's end was found changed; each time writes are refused")

# --- The index -------------------------------------------------------------------------------------------------

index_searches = counter("memory_index_searches", "Searches of the pgvector index by the way they took", "way")
index_fallbacks = counter(
    "memory_index_fallbacks",
    "Searches of an approximate index that came out short and were done again exactly",
    "reason",
)
index_recall = gauge(
    "memory_index_recall", "Recall@10 as last measured, of the namespace where it is lowest", across="livemax"
)
indexed = counter("memory_index_rows", "Vector rows that the worker finished, by what came of them", "outcome")
index_late = counter(
    "memory_index_late_results", "Results that came after their row had changed or its lease was another's"
)
index_seconds = histogram(
    "memory_index_seconds", "Time from a write to its vector being searchable",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
)  # fmt: skip
index_rows = gauge(
    "memory_index_queue_rows", "Vector rows that are not finished, or given up", "status", across="livemostrecent"
)
index_oldest = gauge(
    "memory_index_queue_oldest_seconds", "Age of the oldest of them", "status", across="livemostrecent"
)
index_pending = gauge("memory_index_pending", "Vector rows waiting for the worker", across="livemax")
index_lag = gauge("memory_index_lag_seconds", "Age of the oldest waiting vector row", across="livemax")
breaker_state = gauge(
    "memory_breaker_state",
    "Whether indexing asks a service: 0 closed (it does), 1 half-open, 2 open (it does not)",
    "service",
    across="livemostrecent",
)
breaker_opened = counter("memory_breaker_opened", "Outages that kept rows from being claimed", "service")
queue_messages = counter("memory_queue_messages", "Messages that wake workers, by what became of them", "outcome")
queue_rows_unnamed = counter(
    "memory_queue_rows_unnamed", "Changed rows that no message names, because too many came at once"
)
vector_differences = gauge(
    "memory_vector_differences",
    "Differences between the index and Postgres that last night's comparison could not repair",
    "kind",
    across="mostrecent",
)
vector_snapshot = gauge(
    "memory_vector_snapshot_timestamp_seconds",
    "When this process last wrote a snapshot of the vector index",
    across="max",
)

# --- Buckets, artifacts, periodic jobs -------------------------------------------------------------------------

lock_probe = gauge(
    "memory_lock_probe_held",
    "1: the last probe of this bucket was refused everything that an object lock must refuse; 0: not, or it could not be tried",
    "bucket",
    across="mostrecent",
)
lock_sample = gauge(
    "memory_lock_sample_right",
    "1: every object that was last sampled in this bucket was under the lock that it should be",
    "bucket",
    across="mostrecent",
)
replication_lag = gauge(
    "memory_replication_lag_seconds",
    "How long the last canary took from this bucket to its replica; if it had not come, how long it was waited for",
    "bucket",
    across="mostrecent",
)
artifact_bytes = counter("memory_artifact_bytes", "Artifact bytes moved", "direction")
artifact_checks = counter(
    "memory_artifact_checks", "Artifacts whose bytes were read again, by what was found", "outcome"
)
artifact_faults = gauge(
    "memory_artifact_faults", "Artifacts whose last check found something wrong", "fault", across="mostrecent"
)
artifact_scan = gauge(
    "memory_artifact_scan_timestamp_seconds", "When this process last checked all artifacts to the end", across="max"
)
artifact_manifest = gauge(
    "memory_artifact_manifest_timestamp_seconds",
    "When this process last wrote a manifest of all artifacts",
    across="max",
)
artifact_orphans = gauge(
    "memory_artifact_orphans", "Objects that no artifact names, as the last sweep left them", across="mostrecent"
)
job_success = gauge(
    "memory_job_last_success_timestamp_seconds", "When this process last ran a periodic job well", "job", across="all"
)
job_failures = counter("memory_job_failures", "Runs of a periodic job that failed", "job")

# ---------------------------------------------------------------------------------------------------------------


def render() -> bytes:
    """The Prometheus text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in environment():
        return generate_latest(registry)
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together)


@contextlib.contextmanager
def serving(host: str, port: int) -> Iterator[int]:
    """Answer /metrics for a process that has no HTTP door of its own; its port, a free one for 0."""
    server, thread = start_http_server(port, host, registry)
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
