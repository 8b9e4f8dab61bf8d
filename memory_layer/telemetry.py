"""Every metric name, the JSON log, and the request's context in it. Nothing else defines a metric."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

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

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


class Metrics:
    """One instance per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        r = self.registry
        self.requests = Counter(
            "memory_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "memory_http_request_seconds",
            "Time to answer an HTTP request",
            ["method", "route"],
            registry=r,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.commit_batch_size = Histogram(
            "memory_commit_batch_size",
            "Changes per committed batch",
            registry=r,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.commit_seconds = Histogram(
            "memory_commit_seconds",
            "Time of one batch, lock to commit",
            registry=r,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self.signer_failures = Counter("memory_signer_failures", "Batches the signer did not sign", registry=r)
        self.writes_frozen = Gauge(
            "memory_writes_frozen",
            "1 while an operator's freeze refuses all writes, as this process last saw it",
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.rollback_detected = Gauge(
            "memory_rollback_detected",
            "1 while writes are refused because the log lacks a checkpoint that is kept outside the database",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.rollback_proved = Gauge(
            "memory_rollback_proof_timestamp_seconds",
            "When the log was last found to contain the newest checkpoint of every place that keeps them",
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.log_tampered = Gauge(
            "memory_log_tampered",
            "1 while the log does not end as its keys sealed it, as this process last saw it",
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.log_refusals = Counter(
            "memory_log_refusals", "Looks at the log's end that found it changed; each refuses writes", registry=r
        )
        self.search_seconds = Histogram(
            "memory_search_seconds",
            "Time of one stage of a search",
            ["stage"],
            registry=r,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
        )
        self.stale_hits = Counter(
            "memory_search_dropped_hits", "Index hits that Postgres did not vouch for", ["reason"], registry=r
        )
        self.tampered_rows = Counter(
            "memory_tampered_rows",
            "Rows that are not what their last audit entry says, each time one was met",
            ["door", "kind"],
            registry=r,
        )
        self.index_searches = Counter(
            "memory_index_searches", "Searches of the pgvector index by the way they took", ["way"], registry=r
        )
        self.index_fallbacks = Counter(
            "memory_index_fallbacks",
            "Searches of an approximate index that came out short and were done again exactly",
            ["reason"],
            registry=r,
        )
        self.index_recall = Gauge(
            "memory_index_recall",
            "Recall@10 as last measured, of the namespace where it is lowest",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.indexed = Counter("memory_index_rows", "Vector rows settled by the worker", ["outcome"], registry=r)
        self.index_late = Counter(
            "memory_index_late_results",
            "Results that came after their row had changed or its lease was another's",
            registry=r,
        )
        self.index_seconds = Histogram(
            "memory_index_seconds",
            "Time from a write to its vector being searchable",
            registry=r,
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
        )
        self.index_rows = Gauge(
            "memory_index_queue_rows",
            "Vector rows that are not settled, or given up",
            ["status"],
            registry=r,
            multiprocess_mode="livemostrecent",
        )
        self.index_oldest = Gauge(
            "memory_index_queue_oldest_seconds",
            "Age of the oldest of them",
            ["status"],
            registry=r,
            multiprocess_mode="livemostrecent",
        )
        self.breaker_state = Gauge(
            "memory_breaker_state",
            "Whether indexing asks a service: 0 closed (it does), 1 half-open, 2 open (it does not)",
            ["service"],
            registry=r,
            multiprocess_mode="livemostrecent",
        )
        self.breaker_opened = Counter(
            "memory_breaker_opened", "Outages that kept rows from being claimed", ["service"], registry=r
        )
        self.index_pending = Gauge(
            "memory_index_pending", "Vector rows waiting for the worker", registry=r, multiprocess_mode="livemax"
        )
        self.index_lag = Gauge(
            "memory_index_lag_seconds", "Age of the oldest waiting vector row", registry=r, multiprocess_mode="livemax"
        )
        self.queue_messages = Counter(
            "memory_queue_messages", "Messages that wake workers, by what became of them", ["outcome"], registry=r
        )
        self.queue_rows_unnamed = Counter(
            "memory_queue_rows_unnamed", "Changed rows that no message names, because too many came at once", registry=r
        )
        self.vector_differences = Gauge(
            "memory_vector_differences",
            "Differences between the index and Postgres that last night's comparison could not heal",
            ["kind"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.vector_snapshot = Gauge(
            "memory_vector_snapshot_timestamp_seconds",
            "When this process last wrote a snapshot of the vector index",
            registry=r,
            multiprocess_mode="max",
        )
        self.lock_probe = Gauge(
            "memory_lock_probe_held",
            "1: the last probe of this bucket was refused everything that an object lock must refuse; 0: not, or it could not be tried",
            ["bucket"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.lock_sample = Gauge(
            "memory_lock_sample_right",
            "1: every object that was last sampled in this bucket was under the lock that it should be",
            ["bucket"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.replication_lag = Gauge(
            "memory_replication_lag_seconds",
            "How long the last canary took from this bucket to its replica; if it had not come, how long it was waited for",
            ["bucket"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.job_success = Gauge(
            "memory_job_last_success_timestamp_seconds",
            "When this process last ran a periodic job well",
            ["job"],
            registry=r,
        )
        self.job_failures = Counter("memory_job_failures", "Runs of a periodic job that failed", ["job"], registry=r)
        self.artifact_bytes = Counter("memory_artifact_bytes", "Artifact bytes moved", ["direction"], registry=r)
        self.artifact_checks = Counter(
            "memory_artifact_checks",
            "Artifacts whose bytes were read again, by what was found",
            ["outcome"],
            registry=r,
        )
        self.artifact_faults = Gauge(
            "memory_artifact_faults",
            "Artifacts whose last check found something wrong",
            ["fault"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.artifact_scan = Gauge(
            "memory_artifact_scan_timestamp_seconds",
            "When this process last checked all artifacts to the end",
            registry=r,
            multiprocess_mode="max",
        )
        self.artifact_manifest = Gauge(
            "memory_artifact_manifest_timestamp_seconds",
            "When this process last wrote a manifest of all artifacts",
            registry=r,
            multiprocess_mode="max",
        )
        self.artifact_orphans = Gauge(
            "memory_artifact_orphans",
            "Objects that no artifact names, as the last sweep left them",
            registry=r,
            multiprocess_mode="mostrecent",
        )

    def render(self) -> bytes:
        """The Prometheus text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in environment():
            return generate_latest(self.registry)
        # Several processes answer at one port: whichever is asked tells the sum.
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


metrics = Metrics()


@contextlib.contextmanager
def serving_metrics(host: str, port: int) -> Iterator[int]:
    """Answer /metrics for a process that has no HTTP door of its own; its port, a free one for 0."""
    server, thread = start_http_server(port, host, metrics.registry)
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (rid := request_id.get()) is not None:
            line["requestId"] = rid
        if (answered := getattr(record, "answered", None)) is not None:
            line |= answered
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(level: str = "INFO") -> None:
    """Send the process's log to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It tells of every request with its whole URL: tenants and node ids have no place in a log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
