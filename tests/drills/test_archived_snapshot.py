"""Snapshots of the index in the archive: locked, put once, and brought back by the versions that were put."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory_layer.errors import Conflict, NotFound
from memory_layer.ops import runs
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.vectors import archived, nightly
from memory_layer.ops.vectors import restore as restoring
from memory_layer.ops.vectors.manifest import read_manifest
from memory_layer.ops.vectors.snapshot import snapshot
from memory_layer.ops.vectors.spaces import Scope
from memory_layer.stores.logs import find_trust_root
from memory_layer.stores.objects import open_archive
from memory_layer.stores.protocols import ObjectStore
from tests.drills.conftest import NAMESPACE, TENANT, DrilledInstallation
from tests.support.s3_server import S3Server
from tests.support.service import rows

pytestmark = pytest.mark.parametrize("installation", ["pgvector"], indirect=True)


@pytest.fixture(params=["files", "moto", pytest.param("ceph", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """An archive of its own; ``server`` and ``bucket`` of one in S3 are at hand to whoever changes it."""
    from memory_layer import config

    if request.param == "files":
        settings = config.load({})
    else:
        server: S3Server = request.getfixturevalue(f"{request.param}_s3")
        settings = server.settings(server.make_bucket())
    opened = open_archive(settings, tmp_path / "store")
    yield opened
    await opened.close()


async def test_a_snapshot_goes_into_the_archive_and_comes_back(
    installation: DrilledInstallation, store: ObjectStore, tmp_path: Path
) -> None:
    nodes = await installation.fill(20)
    out = tmp_path / "vectors-1"
    done = await snapshot(installation.sides, Scope(), out, manifest_key(installation.folder))
    kept = await archived.keep(store, out, 30)
    again = await archived.keep(store, out, 30)
    assert (
        (again["key"], again["version"])
        == (kept["key"], kept["version"])
        == ("vectors/vectors-1/manifest.json", kept["version"])
    )
    page = await store.versions("vectors/vectors-1/")
    assert len(page.versions) == len([path for path in out.rglob("*") if path.is_file()])
    for version in page.versions:
        lock = (await store.stat(version.key, version.version_id)).lock
        assert lock is not None
        assert lock.mode == "COMPLIANCE"
        assert 29 <= (lock.until - dt.datetime.now(dt.UTC)).days <= 30
    back = await archived.fetch(store, "vectors-1", tmp_path / "back")
    read = read_manifest(back, find_trust_root(installation.folder))
    assert read.digest == done.digest
    await restoring.check(back, read.manifest)
    installation.broken.lose(TENANT, NAMESPACE, nodes)
    restored = await restoring.restore(installation.sides, back, read.manifest, Scope(), within=30)
    assert restored.counts["written"] == 20


async def test_a_name_is_given_once(installation: DrilledInstallation, store: ObjectStore, tmp_path: Path) -> None:
    await installation.fill(3)
    key = manifest_key(installation.folder)
    await snapshot(installation.sides, Scope(), tmp_path / "one" / "vectors-1", key)
    await archived.keep(store, tmp_path / "one" / "vectors-1", 1)
    await installation.fill(3, seed=2)
    await snapshot(installation.sides, Scope(), tmp_path / "two" / "vectors-1", key)
    with pytest.raises(Conflict):
        await archived.keep(store, tmp_path / "two" / "vectors-1", 1)
    with pytest.raises(NotFound):
        await archived.fetch(store, "vectors-2", tmp_path / "back")


async def test_what_is_put_over_a_snapshot_is_not_what_comes_back(
    installation: DrilledInstallation, tmp_path: Path, moto_s3: S3Server
) -> None:
    await installation.fill(5)
    out = tmp_path / "vectors-1"
    done = await snapshot(installation.sides, Scope(), out, manifest_key(installation.folder))
    bucket = moto_s3.make_bucket()
    store = open_archive(moto_s3.settings(bucket), tmp_path / "store")
    try:
        await archived.keep(store, out, 30)
        for version in (await store.versions("vectors/")).versions[::2]:
            moto_s3.client().put_object(Bucket=bucket, Key=version.key, Body=b"another")
        for version in (await store.versions("vectors/")).versions[1::2]:
            moto_s3.client().delete_object(Bucket=bucket, Key=version.key)
        back = await archived.fetch(store, "vectors-1", tmp_path / "back")
    finally:
        await store.close()
    read = read_manifest(back, find_trust_root(installation.folder))
    assert read.digest == done.digest
    await restoring.check(back, read.manifest)


async def test_each_night_where_days_are_set(installation: DrilledInstallation, tmp_path: Path) -> None:
    await installation.fill(3)
    memory = installation.memory
    changed: Any = {"vector_snapshot_dir": str(tmp_path / "snapshots"), "vector_snapshot_lock_days": 5}
    settings = msgspec.structs.replace(memory.settings, **changed)
    await nightly.nightly(memory.with_parts(settings=settings))
    ((run_id,),) = rows(installation.dsn, "SELECT id FROM ops_runs")
    facts = runs.find(installation.dsn, run_id)["report"]["facts"]
    name = Path(facts["snapshot"]["folder"]).name
    assert facts["archived"]["key"] == f"vectors/{name}/manifest.json"
    assert (await memory.archive.stat(facts["archived"]["key"])).lock is not None
