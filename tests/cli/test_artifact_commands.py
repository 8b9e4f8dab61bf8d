"""`memoryctl artifacts scan / verify / sweep / manifest` as an operator runs them, beside a product that goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, connect, create, eventually
from tests.support.product import Product, run_ctl, running_product

ARTIFACTS = "/v1/memory/artifacts"


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A product of its own: scans look at everybody's files."""
    with running_product() as running:
        yield running


@pytest.fixture(autouse=True)
def empty(product: Product) -> Iterator[None]:
    yield
    with product.owner() as connection:
        connection.execute("DELETE FROM artifacts")
        connection.execute("DELETE FROM artifact_progress")
    shutil.rmtree(product.data / "objects" / "default", ignore_errors=True)


@pytest.fixture
def http(product: Product) -> Iterator[httpx2.Client]:
    with connect(product, "default") as client:
        yield client


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl("artifacts", *words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


def store(http: httpx2.Client, content: bytes, **params: str) -> str:
    stored = http.put(ARTIFACTS, content=content, params=params)
    assert stored.status_code == 201, stored.text
    return str(stored.json()["artifactId"])


def file_of(product: Product, content: bytes) -> Path:
    (path,) = (product.data / "objects" / "default").rglob(hashlib.sha256(content).hexdigest())
    return path


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def test_a_scan_says_what_it_found(product: Product, http: httpx2.Client) -> None:
    fine, bad = store(http, b"fine"), store(http, b"about to rot")
    report = ctl(product, "scan")
    assert (report["verdict"], report["facts"]["right"]) == ("ok", 2)
    flip(file_of(product, b"about to rot"))
    report = ctl(product, "scan", code=1)
    assert report["facts"]["faults"] == {"corrupt": 1}
    (finding,) = (f for f in report["findings"] if f["status"] == "fail")
    assert (finding["id"], finding["evidence"]["artifactId"]) == ("artifacts.corrupt", bad)
    assert http.get(f"{ARTIFACTS}/{bad}").json()["fault"] == "corrupt"
    shown = http.get(f"{ARTIFACTS}/{fine}").json()
    assert (shown["fault"], shown["verifiedAt"] is not None) == (None, True)
    kinds = [e["type"] for e in http.get("/v1/audit/events", params={"artifactId": bad}).json()["items"]]
    assert kinds == ["memory.artifact.corrupt", "memory.artifact.created"]
    # As people read it, and once more from what was kept.
    done = product.ctl("artifacts", "scan", "--data", str(product.data))
    assert (done.returncode, bad in done.stdout, "verdict findings   exit 1" in done.stdout) == (1, True, True)
    again = product.ctl("runs", "show", report["runId"], "--data", str(product.data))
    assert bad in again.stdout
    assert (
        product.ctl("audit", "verify", "--data", str(product.data)).returncode == 10
    )  # all that it says holds; unanchored


def test_a_sample_and_the_rate(product: Product, http: httpx2.Client) -> None:
    for n in range(5):
        store(http, bytes([n]) * 100_000)
    assert ctl(product, "scan", "--sample", "2")["facts"]["artifacts"] == 2
    started = time.monotonic()
    assert ctl(product, "scan", "--rate", "400k")["facts"]["bytes"] == 500_000
    assert time.monotonic() - started > 1
    report = ctl(product, "scan", "--resume")
    assert (report["facts"]["resumed"], report["facts"]["artifacts"]) == (False, 5)


@pytest.mark.parametrize(
    "words",
    [
        ("scan", "--sample", "0"),
        ("scan", "--sample", "3", "--resume"),
        ("scan", "--rate", "fast"),
        ("scan", "--rate", "0"),
        ("verify", "nonsense"),
        ("sweep", "--older-than", "1"),
        ("manifest", "rebuild"),
        ("manifest", "list", "--limit", "0"),
    ],
)
def test_what_makes_no_sense_is_usage(product: Product, words: tuple[str, ...]) -> None:
    done = product.ctl("artifacts", *words, "--data", str(product.data))
    assert done.returncode == 2, done.stderr


def test_one_alone(product: Product, http: httpx2.Client) -> None:
    artifact = store(http, b"one alone")
    report = ctl(product, "verify", artifact)
    assert (report["verdict"], report["facts"]["bytes"]) == ("ok", 9)
    file_of(product, b"one alone").unlink()
    report = ctl(product, "verify", artifact, code=1)
    assert report["findings"][0]["id"] == "artifacts.missing"
    kinds = [e["type"] for e in http.get("/v1/audit/events", params={"artifactId": artifact}).json()["items"]]
    assert kinds == ["memory.artifact.corrupt", "memory.artifact.verified", "memory.artifact.created"]
    done = product.ctl("artifacts", "verify", str(uuid.uuid4()), "--data", str(product.data))
    assert done.returncode == 1
    assert "There is no artifact" in done.stderr


def test_a_sweep(product: Product, http: httpx2.Client) -> None:
    store(http, b"named")
    path = product.data / "objects" / "default" / "ab" / ("ab" + "0" * 62)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"an orphan")
    assert ctl(product, "sweep")["facts"]["orphans"] == 0
    past = time.time() - 7200
    os.utime(path, (past, past))
    report = ctl(product, "sweep")
    assert (report["facts"]["orphans"], report["facts"]["deleted"]) == (1, 1)
    assert not path.exists()
    assert file_of(product, b"named").exists()


def test_a_sweep_ends_what_ended_with_its_node(product: Product, http: httpx2.Client) -> None:
    node = create(http)
    artifact = store(http, b"of a deleted node", memoryNodeId=node)
    assert ctl(product, "sweep", "--older-than", "60")["facts"]["ended"] == 0
    assert http.delete(f"/v1/memory/nodes/{node}").status_code == 204
    assert ctl(product, "sweep", "--older-than", "60")["facts"]["ended"] == 1
    events = http.get("/v1/audit/events", params={"artifactId": artifact}).json()["items"]
    assert [event["type"] for event in events] == ["memory.artifact.deleted", "memory.artifact.created"]
    os.utime(file_of(product, b"of a deleted node"), (0, 0))
    report = ctl(product, "sweep", "--older-than", "60")
    assert (report["facts"]["ended"], report["facts"]["deleted"]) == (0, 1)


def test_a_hold_reaches_the_store_by_the_worker(product: Product, http: httpx2.Client) -> None:
    node = create(http)
    artifact = store(http, b"evidence", memoryNodeId=node)
    hold = {"legalHold": True, "reason": "case 7"}
    assert http.post(f"/v1/memory/nodes/{node}/legal-hold", json=hold).status_code == 204
    assert http.get(f"{ARTIFACTS}/{artifact}").json()["legalHold"] is True

    def due() -> object:
        with product.owner() as connection:
            return connection.execute("SELECT hold_due FROM artifacts WHERE id = %s", [artifact]).fetchone()

    eventually(due, lambda found: found == (False,), within=30)


def test_manifests(product: Product, http: httpx2.Client) -> None:
    artifact = store(http, b"one", name="one.txt")
    first = ctl(product, "manifest", "export")
    assert first["facts"]["artifacts"] == 1
    second = ctl(product, "manifest", "export")
    assert second["facts"]["previous"] == first["facts"]["sha256"]
    listed = ctl(product, "manifest", "list")
    assert [m["id"] if "id" in m else m["manifest"] for m in listed[:2]] == [
        second["facts"]["manifest"],
        first["facts"]["manifest"],
    ]
    assert ctl(product, "manifest", "verify")["verdict"] == "ok"
    done = product.ctl("artifacts", "manifest", "rebuild", "--yes", "--data", str(product.data), "--json")
    assert done.returncode == 4  # there is a row
    before = http.get(f"{ARTIFACTS}/{artifact}").json()
    with product.owner() as connection:
        connection.execute("DELETE FROM artifacts")
    check_error(http.get(f"{ARTIFACTS}/{artifact}"), 409, "TAMPERED")  # the log knows of it
    report = ctl(product, "manifest", "rebuild", "--yes")
    assert (report["verdict"], report["facts"]["restored"]) == ("ok", 1)
    assert http.get(f"{ARTIFACTS}/{artifact}").json() == before
    assert http.get(f"{ARTIFACTS}/{artifact}/content").content == b"one"
    with product.owner() as connection:
        kinds = connection.execute(
            "SELECT event_type FROM audit_events WHERE event_type LIKE 'ops.artifacts-manifest%%' ORDER BY seq"
        ).fetchall()
    assert ("ops.artifacts-manifest-rebuild.failed",) in kinds
    assert ("ops.artifacts-manifest-rebuild.succeeded",) in kinds


def test_a_manifest_that_was_changed(product: Product, http: httpx2.Client) -> None:
    store(http, b"one")
    done = ctl(product, "manifest", "export")
    path = product.data / "archive" / done["facts"]["key"]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"artifacts":1', b'"artifacts":7'))
    refused = product.ctl("artifacts", "manifest", "verify", "--data", str(product.data))
    assert refused.returncode == 1
    assert "was changed" in refused.stderr
    assert run_ctl("artifacts", "manifest", "verify", "nonsense", "--data", str(product.data)).returncode in (1, 2)
