"""`memoryctl jobs` as a shell sees it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx2

from tests.api.door import connect, create_indexed, embedding, eventually
from tests.support.product import Product


def ctl_json(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl("jobs", *words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def given_up(product: Product, http: httpx2.Client, namespace: str) -> str:
    """A job that was tried in vain; its id."""
    node = create_indexed(http, embedding=embedding(1, 0), namespace=namespace)
    job = str(http.get(f"/v1/memory/nodes/{node}").json()["vector"]["jobId"])
    with product.owner() as owner:
        owner.execute(
            "UPDATE memory_vectors SET status = 'dead', attempts = 8, error = 'too\ttired', error_class = 'retryable'"
            " WHERE id = %s",
            [job],
        )
    return job


def test_list_show_retry_and_cancel(product: Product, tenant: str) -> None:
    namespace = f"n-{uuid.uuid4().hex[:8]}"
    with connect(product, tenant) as http:
        job, other = given_up(product, http, namespace), given_up(product, http, namespace)
        create_indexed(http, embedding=embedding(0, 1), namespace=namespace)
        listed = ctl_json(product, "list", "--namespace", namespace)
        assert {found["jobId"] for found in listed} == {job, other}  # not the one that is done
        assert {found["tenant"] for found in listed} == {tenant}
        assert ctl_json(product, "list", "--namespace", namespace, "--status", "failed") == []
        assert len(ctl_json(product, "list", "--tenant", tenant, "--status", "dead,succeeded")) == 3
        assert len(ctl_json(product, "list", "--tenant", tenant, "--limit", "1")) == 1

        cancelled = ctl_json(product, "cancel", job)
        assert (cancelled["verdict"], cancelled["facts"]["jobs"]) == ("ok", [job])
        shown = ctl_json(product, "show", job)
        assert (shown["status"], shown["errorClass"], shown["tenant"]) == ("failed", "cancelled", tenant)
        assert cancelled["runId"] in shown["error"]
        table = product.ctl("jobs", "list", "--namespace", namespace, "--data", str(product.data))
        header, *lines = table.stdout.splitlines()
        assert header.split("\t")[:4] == ["job", "tenant", "namespace", "status"]
        assert {line.split("\t")[0]: line.split("\t")[3] for line in lines} == {job: "cancelled", other: "dead"}
        assert all(len(line.split("\t")) == 8 for line in lines)
        assert "cancelled" in product.ctl("jobs", "show", job, "--data", str(product.data)).stdout

        unknown = str(uuid.uuid4())
        report = ctl_json(product, "retry", job, other, unknown, code=1)
        assert report["facts"]["jobs"] == [job, other]
        assert [finding["status"] for finding in report["findings"]] == ["fail", "pass"]
        for which in (job, other):
            eventually(lambda which=which: ctl_json(product, "show", which)["status"], lambda s: s == "succeeded")
        assert ctl_json(product, "list", "--namespace", namespace) == []
        ctl_json(product, "cancel", other, code=1)  # it is done

        # Each is in the history of its node, under the run's id; the run has an entry of its own.
        history = http.get(f"/v1/memory/nodes/{shown['memoryNodeId']}/history").json()["items"]
        told = [(item["type"], item["requestId"]) for item in history[1:]]
        assert told == [
            ("ops.job-cancel.succeeded", cancelled["runId"]),
            ("ops.job-retry.succeeded", report["runId"]),
        ]
    runs = json.loads(
        product.ctl("runs", "list", "--verb", "jobs-cancel", "--data", str(product.data), "--json").stdout
    )
    assert cancelled["runId"] in [run["runId"] for run in runs]


def test_what_cannot_be_meant_is_refused(product: Product) -> None:
    for words in (
        ("list", "--status", "asleep"),
        ("list", "--status", ","),
        ("list", "--limit", "0"),
        ("show", "7"),
        ("retry",),
        ("cancel", "x"),
    ):
        done = product.ctl("jobs", *words, "--data", str(product.data))
        assert done.returncode == 2, (words, done.stderr)
        assert done.stdout == ""
    assert product.ctl("jobs", "show", str(uuid.uuid4()), "--data", str(product.data)).returncode == 1
