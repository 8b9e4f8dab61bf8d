"""What the worker does with the buckets each week: a run on record with its entry in the log, and figures for alerts."""

from __future__ import annotations

import datetime as dt
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory_layer.errors import DependencyUnavailable
from memory_layer.model import uuid7
from memory_layer.ops import runs
from memory_layer.ops.provision import bucket_weekly
from memory_layer.telemetry import metrics
from tests.support.s3_server import REGION, S3Server
from tests.support.service import rows, running_memory

Database = Callable[[str], str]


def told(database: Database) -> list[Any]:
    query = "SELECT e.event_type FROM ops_runs r JOIN audit_events e ON e.id = r.audit_id ORDER BY r.started_at"
    return [type_ for (type_,) in rows(database("postgres"), query)]


@pytest.fixture
def bucket_settings(moto_s3: S3Server, aws: None) -> dict[str, str]:
    prefix = f"t-{uuid.uuid4().hex[:8]}"
    for name in ("memory", "audit-archive"):
        moto_s3.client().create_bucket(Bucket=f"{prefix}-{name}-dev", ObjectLockEnabledForBucket=True)
    return {
        "s3_endpoint": moto_s3.endpoint,
        "s3_region": REGION,
        "s3_access_key": moto_s3.access_key,
        "s3_secret": moto_s3.secret,
        "bucket_prefix": prefix,
    }


async def test_a_week(database: Database, tmp_path: Path, moto_s3: S3Server, bucket_settings: dict[str, str]) -> None:
    client, prefix = moto_s3.client(), bucket_settings["bucket_prefix"]
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until, "ChecksumAlgorithm": "SHA256"}
    client.put_object(Bucket=f"{prefix}-audit-archive-dev", Key="audit/1", Body=b"1", **lock)
    versions = {
        key: client.put_object(Bucket=f"{prefix}-memory-dev", Key=key, Body=b"1", **more)["VersionId"]
        for key, more in (("locked", lock), ("loose", {}), ("weak", lock | {"ObjectLockMode": "GOVERNANCE"}))
    }
    for key, version in versions.items():
        rows(
            database("postgres"),
            "INSERT INTO artifacts (tenant, id, url, object_key, version_id, sha256, size_bytes, content_type, created_by,"
            " retain_until, created_at) VALUES ('ann', %s, 's3://x', %s, %s, repeat('0', 64), 1, 'text/plain', %s, %s, now())",
            (uuid7(), key, version, uuid7(), until - dt.timedelta(days=1)),
        )
    async with running_memory(database("memory_app"), tmp_path, **bucket_settings) as memory:
        await bucket_weekly.weekly(memory)
        await bucket_weekly.weekly(memory)  # which reads where the first one left off

    (newest, first) = runs.recent(database("memory_app"), bucket_weekly.VERB)
    assert (first["verdict"], newest["verdict"]) == ("findings", "findings")
    kept = runs.find(database("memory_app"), uuid.UUID(newest["runId"]))
    assert kept["evidence"] == "ok"
    found = {f["id"]: f for f in kept["report"]["findings"]}
    assert found["buckets.archive.probe.shorten"]["evidence"]["state"] == "broken"  # moto
    assert found["buckets.archive.sample.lock"]["status"] == "pass"
    wrong = found["buckets.artifacts.sample.lock"]
    assert (wrong["status"], sorted(o["key"] for o in wrong["evidence"]["objects"])) == ("fail", ["loose", "weak"])
    assert told(database) == ["ops.buckets-weekly.failed"] * 2
    assert metrics.lock_probe.labels("archive")._value.get() == 0
    assert metrics.lock_sample.labels("archive")._value.get() == 1
    assert metrics.lock_sample.labels("artifacts")._value.get() == 0


async def test_where_artifacts_lie_in_a_directory_there_is_nothing_to_do(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await bucket_weekly.weekly(memory)
    assert runs.recent(database("memory_app"), bucket_weekly.VERB) == []


async def test_a_week_in_which_s3_does_not_answer_is_tried_again(
    database: Database, tmp_path: Path, bucket_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_layer.stores.objects.s3_client.TRIES", 1)
    async with running_memory(database("memory_app"), tmp_path, **bucket_settings) as memory:
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
            stores = msgspec.structs.replace(memory.settings, s3_endpoint=gone)
            changed = memory.with_parts(settings=stores)
            with pytest.raises(DependencyUnavailable, match="did not answer"):
                await bucket_weekly.weekly(changed)
    assert metrics.lock_probe.labels("archive")._value.get() == 0
