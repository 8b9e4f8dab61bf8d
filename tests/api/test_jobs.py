"""Indexing jobs over HTTP: status, cancel, retry, and who may."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, connect, create, create_indexed, embedding, eventually, fingerprint
from tests.support.product import Product

JOBS = "/v1/memory/vectors/jobs"


@pytest.fixture(scope="module", autouse=True)
def an_index_that_refuses_a_namespace(product: Product) -> Iterator[None]:
    with product.owner() as owner:
        owner.execute(
            "CREATE OR REPLACE FUNCTION refuse_namespace() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.namespace LIKE 'refused-%' THEN RAISE data_exception; END IF; RETURN NEW; END $$"
        )
        owner.execute(
            "CREATE OR REPLACE TRIGGER refuse_namespace BEFORE INSERT ON vector_entries"
            " FOR EACH ROW EXECUTE FUNCTION refuse_namespace()"
        )
    yield
    with product.owner() as owner:
        # What this file left waiting, or in nobody's hand, would be a backlog to other files.
        owner.execute(
            "UPDATE memory_vectors SET status = 'failed', lease_id = NULL, lease_until = NULL"
            " WHERE namespace LIKE 'refused-%' AND status IN ('pending', 'in_flight')"
        )
        owner.execute("DROP FUNCTION refuse_namespace CASCADE")


def job_of(http: httpx2.Client, node: str) -> dict[str, Any]:
    found = http.get(f"{JOBS}/{http.get(f'/v1/memory/nodes/{node}').json()['vector']['jobId']}")
    assert found.status_code == 200, found.text
    job: dict[str, Any] = found.json()
    return job


def failed(http: httpx2.Client) -> dict[str, Any]:
    """A job that the index refuses for good."""
    node = create(http, embedding=embedding(1, 0), namespace=f"refused-{uuid.uuid4().hex[:8]}")
    return eventually(lambda: job_of(http, node), lambda job: job["status"] == "failed")


def waiting(product: Product, http: httpx2.Client) -> dict[str, Any]:
    """A job in the midst of its tries, an hour before the next."""
    job = failed(http)
    with product.owner() as owner:
        owner.execute(
            "UPDATE memory_vectors SET status = 'pending', attempts = 5, error = 'tired', error_class = 'retryable',"
            " next_attempt_at = now() + interval '1 hour' WHERE id = %s",
            [job["jobId"]],
        )
    return job


def put(product: Product, job: dict[str, Any], status: str) -> None:
    with product.owner() as owner:
        owner.execute("UPDATE memory_vectors SET status = %s WHERE id = %s", [status, job["jobId"]])


def test_a_job_tells_where_it_stands(http: httpx2.Client) -> None:
    made = http.post(
        "/v1/memory/nodes?wait=indexed", json={"owner": "ann", "embedding": embedding(1, 0), "namespace": "here"}
    ).json()
    job = http.get(f"{JOBS}/{made['embeddingJobId']}").json()
    assert job["createdAt"] <= job["updatedAt"]
    assert {k: v for k, v in job.items() if not k.endswith("At")} == {
        "jobId": made["embeddingJobId"],
        "memoryNodeId": made["memoryNodeId"],
        "version": 1,
        "namespace": "here",
        "provider": "pgvector",
        "model": "test-model",
        "dimension": 2,
        "status": "succeeded",
        "textRead": None,
        "attempts": 1,
        "error": None,
        "errorClass": None,
        "leasedUntil": None,
    }
    job = failed(http)
    assert (job["attempts"], job["errorClass"], job["nextAttemptAt"]) == (1, "permanent", None)
    assert "dimension differs" in job["error"]


def test_retry_makes_it_due_at_once_with_all_its_attempts(product: Product, http: httpx2.Client) -> None:
    for job in (waiting(product, http), failed(http)):
        retried = http.post(f"{JOBS}/{job['jobId']}/retry")
        assert retried.status_code == 200, retried.text
        assert retried.json()["version"] == job["version"]
        assert int(retried.headers["X-Audit-Seq"]) > 0
        again = eventually(lambda job=job: job_of(http, job["memoryNodeId"]), lambda now: now["status"] == "failed")
        assert again["attempts"] == 1  # tried again, from the beginning
        assert "dimension differs" in again["error"]


def test_what_was_repaired_is_indexed_when_it_is_retried(product: Product, http: httpx2.Client) -> None:
    node = create_indexed(http, embedding=embedding(1, 0))
    job = job_of(http, node)
    with product.owner() as owner:
        owner.execute(
            "UPDATE memory_vectors SET status = 'dead', attempts = 8, error = 'x', error_class = 'retryable' WHERE id = %s",
            [job["jobId"]],
        )
    assert http.post(f"{JOBS}/{job['jobId']}/retry").status_code == 200
    after = eventually(lambda: job_of(http, node), lambda now: now["status"] == "succeeded")
    assert (after["attempts"], after["error"], after["errorClass"]) == (1, None, None)


@pytest.mark.parametrize("status", ["pending", "failed", "dead"])
def test_cancel_stops_this_version_and_no_other(product: Product, http: httpx2.Client, status: str) -> None:
    job = waiting(product, http)
    put(product, job, status)
    answer = http.post(f"{JOBS}/{job['jobId']}/cancel")
    assert answer.status_code == 200, answer.text
    cancelled = answer.json()
    assert (cancelled["status"], cancelled["errorClass"], cancelled["nextAttemptAt"]) == ("failed", "cancelled", None)
    assert "tester" in cancelled["error"]
    check_error(http.post(f"{JOBS}/{job['jobId']}/cancel"), 409, "CONFLICT")
    # A new version is a new job.
    patched = http.patch(f"/v1/memory/nodes/{job['memoryNodeId']}", json={"metadata": {"a": 1}})
    assert patched.json()["embeddingJobId"] == job["jobId"]
    after = eventually(lambda: job_of(http, job["memoryNodeId"]), lambda now: now["version"] == 2 and now["error"])
    assert (after["errorClass"], after["status"]) == ("permanent", "failed")


def test_a_cancelled_job_can_be_retried(product: Product, http: httpx2.Client) -> None:
    job = waiting(product, http)
    assert http.post(f"{JOBS}/{job['jobId']}/cancel").json()["errorClass"] == "cancelled"
    assert http.post(f"{JOBS}/{job['jobId']}/retry").status_code == 200
    after = eventually(lambda: job_of(http, job["memoryNodeId"]), lambda now: now["status"] == "failed")
    assert (after["errorClass"], after["attempts"]) == ("permanent", 1)


def test_a_removal_is_never_cancelled_and_what_is_done_is_left_alone(product: Product, http: httpx2.Client) -> None:
    node = create_indexed(http, embedding=embedding(1, 0))
    job = job_of(http, node)
    for verb in ("cancel", "retry"):
        check_error(http.post(f"{JOBS}/{job['jobId']}/{verb}"), 409, "CONFLICT")
    assert http.delete(f"/v1/memory/nodes/{node}").status_code == 204
    url = f"{JOBS}/{job['jobId']}"
    assert eventually(lambda: http.get(url).json()["status"], lambda now: now == "deleted")
    for verb in ("cancel", "retry"):
        check_error(http.post(f"{url}/{verb}"), 409, "CONFLICT")
    with product.owner() as owner:
        owner.execute(
            "UPDATE memory_vectors SET status = 'deleting', next_attempt_at = now() + interval '1 hour' WHERE id = %s",
            [job["jobId"]],
        )
    before = fingerprint(product)
    refused = check_error(http.post(f"{url}/cancel"), 409, "CONFLICT")
    assert "never cancelled" in refused["message"]
    assert fingerprint(product) == before
    assert http.post(f"{url}/retry").status_code == 200
    assert eventually(lambda: http.get(url).json()["status"], lambda now: now == "deleted")


def test_what_a_worker_has_in_hand_is_left_to_it(product: Product, http: httpx2.Client) -> None:
    job = waiting(product, http)
    with product.owner() as owner:
        owner.execute(
            "UPDATE memory_vectors SET status = 'in_flight', lease_id = gen_random_uuid(),"
            " lease_until = now() + interval '1 minute' WHERE id = %s",
            [job["jobId"]],
        )
    assert http.get(f"{JOBS}/{job['jobId']}").json()["leasedUntil"] is not None
    for verb in ("cancel", "retry"):
        check_error(http.post(f"{JOBS}/{job['jobId']}/{verb}"), 409, "CONFLICT")


def test_another_tenants_job_and_a_missing_scope(product: Product, http: httpx2.Client) -> None:
    job = waiting(product, http)
    before = fingerprint(product)
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as other:
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
            check_error(other.request(method, f"{JOBS}/{job['jobId']}{path}"), 404, "NOT_FOUND")
    check_error(http.get(f"{JOBS}/{uuid.uuid4()}"), 404, "NOT_FOUND")
    check_error(http.get(f"{JOBS}/7"), 422, "VALIDATION_ERROR")
    tenant = http.get(f"/v1/memory/nodes/{job['memoryNodeId']}")
    assert tenant.status_code == 200
    assert fingerprint(product) == before


def test_scopes(product: Product, tenant: str, http: httpx2.Client) -> None:
    job = waiting(product, http)
    with connect(product, tenant, ["memory:read"]) as reader:
        assert reader.get(f"{JOBS}/{job['jobId']}").status_code == 200
        for verb in ("cancel", "retry"):
            check_error(reader.post(f"{JOBS}/{job['jobId']}/{verb}"), 403, "FORBIDDEN")
    with connect(product, tenant, ["memory:write"]) as writer:
        check_error(writer.get(f"{JOBS}/{job['jobId']}"), 403, "FORBIDDEN")
        assert writer.post(f"{JOBS}/{job['jobId']}/cancel").status_code == 200


def test_both_stand_in_the_nodes_history_and_repeat_by_key(product: Product, http: httpx2.Client) -> None:
    job = waiting(product, http)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = http.post(f"{JOBS}/{job['jobId']}/cancel", headers=key)
    again = http.post(f"{JOBS}/{job['jobId']}/cancel", headers=key)
    assert again.status_code == 200
    assert (again.headers["Idempotency-Replayed"], again.headers["X-Audit-Seq"]) == (
        "true",
        first.headers["X-Audit-Seq"],
    )
    assert again.json() == first.json()
    check_error(http.post(f"{JOBS}/{job['jobId']}/retry", headers=key), 422, "IDEMPOTENCY_MISMATCH")
    http.post(f"{JOBS}/{job['jobId']}/retry")
    history = http.get(f"/v1/memory/nodes/{job['memoryNodeId']}/history").json()["items"]
    assert [item["type"] for item in history] == [
        "memory.node.created",
        "ops.job-cancel.succeeded",
        "ops.job-retry.succeeded",
    ]
    shown = http.get(f"/v1/audit/events/{history[1]['auditId']}").json()
    assert shown["payload"]["value"] == {"jobId": job["jobId"], "namespace": job["namespace"], "was": "pending"}
    assert (shown["version"], shown["seq"]) == (1, int(first.headers["X-Audit-Seq"]))
    done = product.ctl("audit", "verify", "--data", str(product.data), "--json")
    found = json.loads(done.stdout)["findings"]
    assert {finding["code"] for finding in found} == {"SCHEMA_DRIFT"}, done.stdout  # of this file's own trigger
    assert all("refuse_namespace" in finding["found"] for finding in found), done.stdout
