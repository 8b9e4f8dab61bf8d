"""`memoryctl audit archive`, `audit verify --archive`, `audit replay` and `drill audit-restore` on a running product."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer.client import MemoryClient
from memory_layer.ops import embedded
from tests.support.databases import new_database
from tests.support.product import Product, run_ctl, running_product


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with running_product() as running:
        with MemoryClient(running.url, running.token) as memory:
            memory.create_many([{"owner": "ann", "content": f"note {n}"} for n in range(20)])
        yield running


@pytest.fixture
def other(cluster: embedded.Cluster) -> Iterator[str]:
    with new_database(cluster) as made:
        yield made("memory_owner")


def ctl(product: Product, *words: str) -> tuple[int, Any]:
    done = run_ctl(*words, "--data", str(product.data), "--json")
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, done.stdout + done.stderr


def archive(product: Product) -> dict[str, Any]:
    """Archive until something was: the checkpoint comes a second after the write."""
    for _ in range(100):
        code, report = ctl(product, "audit", "archive")
        assert code == 0, report
        if report["facts"]["segments"]:
            found: dict[str, Any] = report["facts"]
            return found
    raise AssertionError("no checkpoint came")


@pytest.mark.slow
def test_an_archive_and_the_way_back(product: Product, other: str, tmp_path: Path) -> None:
    facts = archive(product)
    assert facts["segments"][0]["first"] == 0
    code, verdict = ctl(product, "audit", "verify", "--from-s3")
    assert (code, verdict["findings"]) == (10, [])
    assert verdict["counts"]["payloads_matched"] == verdict["counts"]["entries"] > 0
    folder = tmp_path / "downloaded"
    shutil.copytree(product.data / "archive", folder)
    code, offline = ctl(product, "audit", "verify", "--archive", str(folder))
    assert (code, offline["counts"]["root"]) == (10, verdict["counts"]["root"])
    assert any(line.startswith("locks:") for line in offline["notChecked"])
    code, done = ctl(product, "audit", "replay", "--from-file", str(folder), "--dry-run")
    assert (code, done["replay"]["entries"]) == (0, 0)
    code, done = ctl(product, "audit", "replay", "--from-s3", "--into", other)
    assert (code, done["replay"]["entries"]) == (0, verdict["counts"]["entries"]), done
    assert done["replay"]["root"] == verdict["counts"]["root"]


def test_usage_and_refusals(product: Product, tmp_path: Path) -> None:
    archive(product)
    assert ctl(product, "audit", "replay", "--from-s3")[0] == 2
    assert ctl(product, "audit", "replay", "--into", "postgresql:///x")[0] == 2
    assert ctl(product, "audit", "verify", "--from-s3", "--archive", str(tmp_path))[0] == 2
    assert ctl(product, "audit", "verify", "--archive", str(tmp_path))[0] == 2
    assert ctl(product, "audit", "archive", "--until", "100000")[0] == 1
    dsn = json.loads((product.data / "up.json").read_text())["database"]
    assert ctl(product, "audit", "replay", "--from-s3", "--into", dsn)[0] == 4


def test_a_newest_segment_that_is_gone_is_missed(product: Product) -> None:
    """Nothing in the store tells that there was one; the database does."""
    archive(product)
    newest = max((product.data / "archive").rglob("segments/*"))
    away = product.data / "away"
    newest.rename(away)
    try:
        code, verdict = ctl(product, "audit", "verify", "--from-s3")
        assert (code, [finding["code"] for finding in verdict["findings"]]) == (40, ["ARCHIVE_TRUNCATED"])
    finally:
        away.rename(newest)
    assert ctl(product, "audit", "verify", "--from-s3")[0] == 10


@pytest.mark.slow
def test_the_drill_outlives_its_processes(product: Product) -> None:
    archive(product)
    code, started = ctl(product, "drill", "audit-restore", "start")
    assert (code, started["verdict"]) == (0, "ok")
    code, state = ctl(product, "drill", "audit-restore", "status")
    assert (code, state["state"], state["drill"]) == (0, "ready", started["runId"])
    code, done = ctl(product, "drill", "audit-restore", "finish")
    assert (code, done["verdict"]) == (0, "ok"), done
    facts = done["facts"]
    assert facts["objectKey"].endswith("/manifest.json")
    assert len(facts["sha256"]) == 64
    assert (facts["versionId"], facts["entries"] > 0, facts["seconds"] > 0) == ("1", True, True)
    assert ctl(product, "drill", "audit-restore", "status")[1]["state"] == "finished"
    # What comes back changed is an incident.
    assert ctl(product, "drill", "audit-restore", "start", "--entry", "0")[0] == 0
    first = min((product.data / "archive").rglob("entries.ndjson.gz"))
    whole = first.read_bytes()
    first.chmod(0o600)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        code, failed = ctl(product, "drill", "audit-restore", "finish")
        assert (code, failed["verdict"]) == (1, "findings")
        assert [(f["id"], "incident" in f["hint"]) for f in failed["findings"]] == [("audit.archive-malformed", True)]
    finally:
        first.write_bytes(whole)
