"""Probes, metrics, and the documentation that the server serves."""

from __future__ import annotations

import re

import httpx2

from memory_layer.telemetry.metrics import TABLE
from tests.api.door import create_indexed, eventually, search
from tests.support.product import Product


def test_probes_need_no_token(product: Product) -> None:
    with httpx2.Client(base_url=product.url) as http:
        assert http.get("/livez").json() == {"status": "ok"}
        health = http.get("/healthz")
        assert health.status_code == 200
        assert health.json()["status"] == "ok"
        assert health.json()["checks"] == {"database": "ok", "log": "ok", "vectors": "ok", "objects": "ok"}
        ready = http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "checks": {"migrations": "ok", "signer": "ok", "log": "ok"}}
        for path in ("/livez", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert http.head(path).status_code == 200


def test_metrics_count_and_tell_nothing_of_the_tenants(product: Product, tenant: str, http: httpx2.Client) -> None:
    node = create_indexed(http, owner="owner-of-a-secret", content="secret words", embeddingId="secret-id")
    search(http, query="secret words")
    http.get(f"/v1/memory/nodes/{node}")
    http.get("/v1/memory/nodes/secret-path")
    http.get("/secret-path")
    http.put("/v1/memory/artifacts", content=b"12345", params={"name": "secret-name"})
    answer = httpx2.get(product.url + "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    for name in (
        'memory_http_requests_total{method="POST",route="/v1/memory/nodes",status="201"}',
        'memory_http_requests_total{method="GET",route="/v1/memory/nodes/{id}",status="422"}',
        "memory_http_request_seconds_bucket",
        "memory_commit_batch_size_sum",
        "memory_commit_seconds_count",
        'memory_search_seconds_count{stage="keyword"}',
        'memory_artifact_bytes_total{direction="in"}',
        "memory_index_pending",
        'memory_index_queue_rows{status="dead"}',
        'memory_index_queue_oldest_seconds{status="pending"}',
        'memory_breaker_state{service="vectors"} 0.0',
        "memory_signer_failures_total 0.0",
        "process_resident_memory_bytes",
    ):
        assert name in text, name
    for told in (tenant, node, "secret", "tester", product.issue(tenant=tenant)):
        assert told not in text
    # One series per route, however many ids are asked for.
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", text)


def test_the_backlog_empties(product: Product, http: httpx2.Client) -> None:
    create_indexed(http, content="something to index")
    eventually(
        lambda: httpx2.get(product.url + "/healthz").json()["indexing"], lambda indexing: indexing["pending"] == 0
    )


def test_metrics_from_elsewhere_need_a_token(product: Product, http: httpx2.Client) -> None:
    """A proxy on this machine speaks for callers on others."""
    elsewhere = {"X-Forwarded-For": "203.0.113.9"}
    refused = httpx2.get(product.url + "/metrics", headers=elsewhere)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "UNAUTHENTICATED"
    assert http.get("/metrics", headers=elsewhere).status_code == 200


def test_the_docs_page_stands_alone(product: Product) -> None:
    page = httpx2.get(product.url + "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    assert httpx2.get(product.url + "/").text == page.text


def test_every_metric_of_the_table_is_exported(product: Product) -> None:
    text = httpx2.get(product.url + "/metrics").text
    assert [row for row in TABLE if f"# TYPE {row.exported} {row.kind}\n" not in text] == []
