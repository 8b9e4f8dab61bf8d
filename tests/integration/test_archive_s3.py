"""The archive in a bucket: locks on the PUT, objects read by version, and what is done to it there by others."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from moto.s3.models import s3_backends

from memory_layer.audit.archive import verify_archive
from memory_layer.audit.report import render
from memory_layer.audit.segment import ENTRIES, MANIFEST, SEALS
from memory_layer.audit.trust_root import TrustRoot, load
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops.archive import drill, job, read
from memory_layer.ops.archive.write import Written
from memory_layer.ops.operate import Run, operate
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.objects import open_archive
from tests.integration.test_archive import other as other  # noqa: PLC0414 - a fixture
from tests.support.real_archive import archive_all, archive_small
from tests.support.s3_server import REGION, S3Server
from tests.support.service import create, rows, running_memory

Database = Callable[[str], str]


@dataclasses.dataclass
class Bucket:
    """An installation whose archive lies in a bucket; ``client`` is an administrator's."""

    memory: Installation
    data: Path
    dsn: str
    server: S3Server
    name: str
    written: list[Written]

    @property
    def client(self) -> Any:
        return self.server.client()

    @property
    def root(self) -> TrustRoot:
        return load((self.data / "trust-root.json").read_bytes())

    def key(self, number: int, name: str) -> str:
        return self.written[number].key.replace(MANIFEST, name)

    async def judge(self, **how: Any) -> Verdict:
        store = self.memory.archive
        found = await read.find_segments(store, self.root.origin)
        return await read.in_thread(store, found, lambda s: verify_archive(s(), self.root, pinned=True, **how))


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.real)])
async def bucket(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> AsyncIterator[Bucket]:
    server: S3Server = request.getfixturevalue(f"{request.param}_s3")
    name = server.make_bucket()
    where = {
        "s3_endpoint": server.endpoint, "s3_bucket": name, "archive_bucket": name, "s3_region": REGION,
        "s3_access_key": server.access_key, "s3_secret": server.secret,
    }  # fmt: skip
    data = tmp_path / "installation"
    async with running_memory(database("memory_app"), data, **where) as memory:
        made = Bucket(memory, data, database("postgres"), server, name, [])
        for _ in range(4):
            await asyncio.gather(*(create(memory, content=f"note {n}") for n in range(4)))
        made.written = await archive_all(memory, entries=5)
        yield made


async def test_what_lies_in_the_bucket_is_locked_and_verifies(bucket: Bucket) -> None:
    assert len(bucket.written) >= 2
    verdict = await bucket.judge()
    assert verdict.findings == (), render(verdict)
    for written in bucket.written:
        for name in (MANIFEST, ENTRIES, SEALS):
            (version,) = bucket.client.list_object_versions(
                Bucket=bucket.name, Prefix=bucket.key(written.number, name)
            )["Versions"]
            lock = bucket.client.head_object(Bucket=bucket.name, Key=version["Key"], VersionId=version["VersionId"])
            assert lock["ObjectLockMode"] == "COMPLIANCE"
            assert 364 <= (lock["ObjectLockRetainUntilDate"] - dt.datetime.now(dt.UTC)).days <= 365
        assert written.version not in ("", "null")


async def test_archived_again_it_adds_no_version(bucket: Bucket) -> None:
    """A run that was cut off after its objects were written: the row says that it was begun."""
    before = bucket.client.list_object_versions(Bucket=bucket.name)["Versions"]
    rows(
        bucket.dsn,
        "UPDATE archive_segments SET finished_at = NULL, manifest_sha256 = NULL, manifest_version = NULL, audit_id = NULL WHERE number = "
        f"{bucket.written[-1].number}",
    )
    again = await archive_small(bucket.memory, entries=5)
    assert [(w.sha256, w.version) for w in again] == [(bucket.written[-1].sha256, bucket.written[-1].version)]
    after = bucket.client.list_object_versions(Bucket=bucket.name)["Versions"]
    assert {(v["Key"], v["VersionId"]) for v in before} == {(v["Key"], v["VersionId"]) for v in after}
    assert rows(bucket.dsn, "SELECT count(*) FROM audit_events WHERE event_type = 'audit.archived'") == [
        (len(bucket.written),)
    ]


@pytest.mark.parametrize("name", [ENTRIES, MANIFEST])
async def test_a_newer_version_over_it(bucket: Bucket, name: str) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.key(1, name), Body=b"nothing happened")
    verdict = await bucket.judge()
    assert [finding.code for finding in verdict.findings] == ["ARCHIVE_VERSION_SHADOWED"], render(verdict)
    assert verdict.exit_code == 40


@pytest.mark.parametrize("name", [SEALS, MANIFEST])
async def test_a_delete_marker_over_it(bucket: Bucket, name: str) -> None:
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.key(0, name))
    verdict = await bucket.judge()
    assert [finding.code for finding in verdict.findings] == ["ARCHIVE_VERSION_SHADOWED"], render(verdict)
    assert "a delete marker" in verdict.findings[0].found


def put_again(bucket: Bucket, **lock: Any) -> None:
    """An archive whose objects somebody without our code wrote: the same bytes under another lock, in another bucket."""
    client, source = bucket.client, bucket.name
    name = bucket.server.make_bucket()
    for version in client.list_object_versions(Bucket=source)["Versions"]:
        body = client.get_object(Bucket=source, Key=version["Key"], VersionId=version["VersionId"])["Body"].read()
        md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        client.put_object(Bucket=name, Key=version["Key"], Body=body, ContentMD5=md5, **lock)
    bucket.name = name


async def in_another(bucket: Bucket) -> list[tuple[str, str]]:
    """What the locks of a copy come to; its versions are others, which only the manifests' own do not know."""
    store = open_archive(bucket.server.settings(bucket.name), bucket.data)
    try:
        (found, *_) = await read.find_segments(store, bucket.root.origin)
        held = await read.download(store, found, bucket.data / "scratch", dt.datetime.now(dt.UTC))
        return [(problem.code, problem.found) for problem in held.problems if problem.code == "WORM_POLICY_VIOLATION"]
    finally:
        await store.close()


async def test_a_lock_of_another_mode_or_none(bucket: Bucket) -> None:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    put_again(bucket, ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
    assert await in_another(bucket) == [("WORM_POLICY_VIOLATION", "GOVERNANCE")]


async def test_no_lock(bucket: Bucket) -> None:
    put_again(bucket)
    assert await in_another(bucket) == [("WORM_POLICY_VIOLATION", "none")]


async def test_a_lock_that_is_over(bucket: Bucket) -> None:
    store = bucket.memory.archive
    (found, *_) = await read.find_segments(store, bucket.root.origin)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=367)
    held = await read.download(store, found, bucket.data / "scratch", later)
    assert {problem.code for problem in held.problems} == {"WORM_POLICY_VIOLATION"}
    assert all("ended" in problem.found for problem in held.problems)
    assert len(held.problems) == 5


async def test_the_store_refuses_to_delete_or_shorten(bucket: Bucket) -> None:
    if bucket.server.kind == "moto":
        pytest.skip("moto lets COMPLIANCE be shortened")
    (version,) = bucket.client.list_object_versions(Bucket=bucket.name, Prefix=bucket.written[0].key)["Versions"]
    where = {"Bucket": bucket.name, "Key": version["Key"], "VersionId": version["VersionId"]}
    with pytest.raises(Exception, match="AccessDenied"):
        bucket.client.delete_object(**where)
    with pytest.raises(Exception, match="AccessDenied"):
        bucket.client.put_object_retention(
            **where, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": dt.datetime.now(dt.UTC) + dt.timedelta(days=1)}
        )


async def test_a_checkpoint_goes_along(bucket: Bucket) -> None:
    await publish_once(bucket.memory)
    key = await job.copy_checkpoint(bucket.memory)
    assert key is not None
    again = await job.copy_checkpoint(bucket.memory)
    (version,) = bucket.client.list_object_versions(Bucket=bucket.name, Prefix=key)["Versions"]
    assert again == key
    lock = bucket.client.head_object(Bucket=bucket.name, Key=key, VersionId=version["VersionId"])
    assert lock["ObjectLockMode"] == "COMPLIANCE"


async def test_the_drill_waits_for_what_is_cold(bucket: Bucket, other: Database) -> None:
    """moto keeps the storage class that it is told, and restores when it is asked."""
    if bucket.server.kind == "ceph":
        pytest.skip("Ceph has no cold classes")
    store = bucket.memory.archive
    keys = [version["Key"] for version in bucket.client.list_object_versions(Bucket=bucket.name)["Versions"]]
    cold = [key for key in keys if f"/{bucket.written[0].key.split('/')[-2]}/" in key and not key.endswith(MANIFEST)]
    for key in cold:
        s3_backends["123456789012"]["aws"].get_object(bucket.name, key).set_storage_class("DEEP_ARCHIVE")
    with pytest.raises(DependencyUnavailable, match="drill audit-restore"):
        await bucket.judge()

    async def begin(run: Run) -> None:
        await drill.start(run, store, bucket.root, 0, bucket.memory.postgres.dsn)

    report = await operate(bucket.memory, drill.START, {}, begin, lock=drill.LOCK)
    assert (report.exit, report.facts["restoresAsked"]) == (0, len(cold))
    found = await asyncio.to_thread(drill.newest, bucket.memory.postgres.dsn)
    assert (found.id, found.finished) == (report.run_id, None)

    async def end(run: Run) -> None:
        await drill.finish(run, store, bucket.root, found, other("memory_owner"), bucket.memory.postgres.dsn)

    for key in cold[1:]:  # one of them is not back yet
        assert (await store.stat(key)).readable
    done = await operate(bucket.memory, drill.FINISH, {"drill": str(found.id)}, end, lock=drill.LOCK)
    assert (done.exit, done.facts["objectKey"]) == (0, bucket.written[0].key), done.to_json()
    assert done.facts["versionId"] == bucket.written[0].version
    assert (await asyncio.to_thread(drill.newest, bucket.memory.postgres.dsn)).finished == str(done.run_id)
