"""Artifacts in S3: registered, held, locked, covered, lost, swept; on moto, and what needs a server that enforces on Ceph."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from botocore.exceptions import ClientError
from moto.s3.models import s3_backends

from memory_layer.errors import Conflict, NotFound, ObjectStoreUnavailable, ValidationError
from memory_layer.ops.artifacts.manifest import export, read
from memory_layer.ops.artifacts.rebuild import compare, findings_of_store
from memory_layer.ops.artifacts.scan import Scanned, findings_of, scan
from memory_layer.ops.manifests import manifest_key
from memory_layer.service import artifacts, holds, orphans, reading, registration
from memory_layer.service.installation import Installation
from memory_layer.service.registration import Registration
from memory_layer.service.system import system_caller
from memory_layer.stores.logs import find_trust_root
from tests.support.artifacts import eraser_of, key_of, upload
from tests.support.s3_server import S3Server
from tests.support.service import caller, create, hold, rows, running_memory

Database = Callable[[str], str]


@dataclass
class InS3:
    """An installation whose artifacts lie in a bucket of its own."""

    memory: Installation
    server: S3Server
    bucket: str
    folder: Path
    dsn: str

    @property
    def s3(self) -> Any:
        return self.server.client()

    def lay(self, key: str, content: bytes) -> str:
        """Put an object there as somebody else would; its version."""
        return str(self.s3.put_object(Bucket=self.bucket, Key=key, Body=content)["VersionId"])

    def told(self, key: str, content: bytes, version: str | None = None, **facts: Any) -> Registration:
        url = f"s3://{self.bucket}/{key}" + ("" if version is None else f"?versionId={version}")
        return Registration(url, hashlib.sha256(content).hexdigest(), len(content), **facts)

    async def register(self, new: Registration) -> uuid.UUID:
        outcome = await registration.register(self.memory, caller("ann"), new)
        return uuid.UUID(outcome.answer["artifactId"])

    async def content(self, artifact: uuid.UUID) -> bytes:
        found = await artifacts.find(self.memory, caller("ann"), artifact)
        return b"".join([block async for block in reading.content(self.memory, found, 0, found.size_bytes)])

    async def retention(self, key: str, version: str) -> tuple[str, dt.datetime]:
        """As the server says; moto's GetObjectRetention fails, so there as the store reads it from the object's headers."""
        if self.server.kind == "ceph":
            found = self.s3.get_object_retention(Bucket=self.bucket, Key=key, VersionId=version)["Retention"]
            return found["Mode"], found["RetainUntilDate"]
        lock = (await self.memory.objects.stat(key, version)).lock
        assert lock is not None
        return lock.mode, lock.until

    async def scan(self) -> Scanned:
        return await scan(self.memory, await system_caller(self.memory, "worker"), sample=None, rate=None, resume=False)

    def version_of(self, artifact: uuid.UUID) -> tuple[str, str]:
        ((key, version),) = rows(self.dsn, "SELECT object_key, version_id FROM artifacts WHERE id = %s", [artifact])
        return key, version


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.real)])
async def there(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> AsyncIterator[InS3]:
    server: S3Server = request.getfixturevalue(f"{request.param}_s3")
    bucket = server.make_bucket()
    asked = {
        "s3_endpoint": server.endpoint,
        "s3_bucket": bucket,
        "archive_bucket": bucket,
        "s3_region": "us-east-1",
        "s3_access_key": server.access_key,
        "s3_secret": server.secret,
        "s3_eraser_access_key": server.access_key,
        "s3_eraser_secret": server.secret,
    }
    async with running_memory(database("memory_app"), tmp_path, **asked) as memory:
        yield InS3(memory, server, bucket, tmp_path, database("postgres"))


async def test_an_object_of_the_bucket_is_registered_and_its_version_pinned(there: InS3) -> None:
    old = there.lay("ann/models/a", b"the first")
    there.lay("ann/models/a", b"the second one")
    newest = await there.register(there.told("ann/models/a", b"the second one"))
    assert await there.content(newest) == b"the second one"
    # An older version is there, but covered: whoever scanned it would take that for tampering.
    with pytest.raises(Conflict, match="covers"):
        await there.register(there.told("ann/models/a", b"the first", old))
    by_version = there.lay("ann/models/b", b"by its version")
    named = await there.register(there.told("ann/models/b", b"by its version", by_version))
    there.lay("ann/models/b", b"written over")
    assert await there.content(named) == b"by its version"
    with pytest.raises(NotFound):
        await there.register(there.told("ann/models/none", b"x"))
    with pytest.raises(ValidationError):
        await there.register(Registration(f"s3://{there.bucket}-other/ann/models/a", "0" * 64, 1))
    with pytest.raises(ValidationError):
        await there.register(there.told("bob/models/a", b"x"))


@pytest.mark.parametrize("key", ["ann/ünïcödé 🐕.bin", "ann/with space & more?#%41", "ann/" + "k" * 1000])
async def test_keys_of_others_making(there: InS3, key: str) -> None:
    there.lay(key, b"strange")
    artifact = await there.register(there.told(key, b"strange"))
    assert await there.content(artifact) == b"strange"
    assert (await there.scan()).right == 1


async def test_what_is_done_behind_the_products_back_is_named(there: InS3) -> None:
    covered = await upload(there.memory, b"written over")
    marked = await upload(there.memory, b"marked deleted")
    gone = await upload(there.memory, b"deleted for good")
    fine = await upload(there.memory, b"fine")
    over = there.lay(key_of(b"written over"), b"by a thief")
    there.s3.delete_object(Bucket=there.bucket, Key=key_of(b"marked deleted"))
    key, version = there.version_of(gone)
    there.s3.delete_object(Bucket=there.bucket, Key=key, VersionId=version)
    done = await there.scan()
    assert done.faults == {"shadowed": 2, "missing": 1}
    assert done.right == 1
    found = {uuid.UUID(str(f.evidence["artifactId"])): f for f in findings_of(done)}
    assert {artifact: f.id for artifact, f in found.items()} == {
        covered: "artifacts.shadowed",
        marked: "artifacts.shadowed",
        gone: "artifacts.missing",
    }
    assert found[covered].evidence["coveredBy"] == f"version {over}"
    assert found[marked].evidence["coveredBy"] == "a delete marker"
    # What is asked for is still the version that was stored.
    for artifact, content in ((covered, b"written over"), (marked, b"marked deleted"), (fine, b"fine")):
        assert await there.content(artifact) == content
    kinds = rows(there.dsn, "SELECT artifact_id FROM audit_events WHERE event_type = 'memory.artifact.corrupt'")
    assert {artifact for (artifact,) in kinds} == {covered, marked, gone}


async def test_a_hold_reaches_the_object_and_its_tag(there: InS3) -> None:
    node = await create(there.memory)
    artifact = await upload(there.memory, b"evidence", node=node)
    key, version = there.version_of(artifact)
    place = {"Bucket": there.bucket, "Key": key, "VersionId": version}

    def held() -> bool:
        return bool(there.s3.get_object_legal_hold(**place)["LegalHold"]["Status"] == "ON")

    def tags() -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in there.s3.get_object_tagging(**place)["TagSet"]}

    await hold(there.memory, node)
    assert await holds.converge(there.memory) == 1
    assert held()
    assert tags().get("legal_hold") == "true"
    if there.server.kind == "ceph":
        with pytest.raises(ClientError, match="AccessDenied"):
            there.s3.delete_object(**place)
    later = await upload(there.memory, b"later", node=node)
    key, version = there.version_of(later)
    assert (
        there.s3.get_object_legal_hold(Bucket=there.bucket, Key=key, VersionId=version)["LegalHold"]["Status"] == "ON"
    )
    await hold(there.memory, node, on=False)
    assert await holds.converge(there.memory) == 2
    assert not held()
    assert tags().get("legal_hold") != "true"
    there.s3.delete_object(**place)


async def test_retention_is_on_the_put_and_only_moves_on(there: InS3) -> None:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    until, longer = now + dt.timedelta(days=30), now + dt.timedelta(days=60)
    artifact = await upload(there.memory, b"kept", retain_until=until)
    key, version = there.version_of(artifact)
    place = {"Bucket": there.bucket, "Key": key, "VersionId": version}

    async def retention() -> tuple[str, dt.datetime]:
        return await there.retention(key, version)

    assert await retention() == ("COMPLIANCE", until)
    await artifacts.extend(there.memory, caller("ann"), artifact, longer)
    assert await retention() == ("COMPLIANCE", longer)
    with pytest.raises(Conflict):
        await artifacts.extend(there.memory, caller("ann"), artifact, until)
    assert await retention() == ("COMPLIANCE", longer)
    if there.server.kind == "ceph":
        with pytest.raises(ClientError, match="AccessDenied"):
            there.s3.delete_object(**place, BypassGovernanceRetention=True)
        with pytest.raises(ClientError, match="AccessDenied"):
            there.s3.put_object_retention(**place, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until})
    # A registered object is locked too, before its row is there.
    there.lay("ann/models/a", b"registered")
    registered = await there.register(there.told("ann/models/a", b"registered", retain_until=until))
    key, version = there.version_of(registered)
    assert await there.retention(key, version) == ("COMPLIANCE", until)
    assert (await there.scan()).right == 2


async def test_a_row_that_promises_what_the_bucket_does_not_keep(there: InS3) -> None:
    artifact = await upload(there.memory, b"not locked")
    rows(there.dsn, "UPDATE artifacts SET retain_until = now() + interval '1 day' WHERE id = %s", [artifact])
    assert (await there.scan()).faults == {"unlocked": 1}


async def test_a_link_gives_the_bytes(there: InS3) -> None:
    artifact = await upload(there.memory, b"through a link", name='a "strange" name é.txt')
    found = await artifacts.find(there.memory, caller("ann"), artifact)
    url = artifacts.link(there.memory, found)
    assert url is not None
    answer = httpx2.get(url)
    assert (answer.status_code, answer.content) == (200, b"through a link")
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_orphans_go_and_evidence_stays(there: InS3) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"an orphan"

    orphan = await there.memory.objects.put("ann", chunks())
    await upload(there.memory, b"named")
    thief = there.lay(key_of(b"named"), b"by a thief")
    there.lay("ann/to-be-registered", b"later")
    stores = there.memory
    done = await orphans.sweep(stores.postgres, stores.objects, None, age=dt.timedelta(days=-1))
    assert (done.orphans, done.refused, done.beside) == (1, 1, 1)
    async with eraser_of(there.memory, there.folder) as eraser:
        done = await orphans.sweep(stores.postgres, stores.objects, eraser, age=dt.timedelta(days=-1))
    assert (done.orphans, done.deleted, done.beside) == (1, 1, 1)
    assert f"{key_of(b'named')}?versionId={thief}" in done.examples
    with pytest.raises(NotFound):
        await stores.objects.stat(orphan.key, orphan.version_id)
    listed = there.s3.list_object_versions(Bucket=there.bucket).get("Versions", [])
    assert len([v for v in listed if v["Key"].startswith("ann/")]) == 3


async def test_a_manifest_in_the_bucket(there: InS3) -> None:
    await upload(there.memory, b"one")
    place = there.memory
    done = await export(place, manifest_key(there.folder))
    found = await read(place, None, find_trust_root(there.folder))
    assert (await compare(place, found)).missing == []
    assert await findings_of_store(place, found) == []
    assert (await there.retention(done.key, done.version_id))[0] == "COMPLIANCE"
    there.s3.put_object(Bucket=there.bucket, Key=done.key, Body=b"{}")
    there.s3.delete_object(Bucket=there.bucket, Key=done.manifest.rows.key)
    found = await read(place, None, find_trust_root(there.folder))  # by its own version
    assert (await compare(place, found)).artifacts == 1
    covered = await findings_of_store(place, found)
    assert [f.id for f in covered] == ["manifest.shadowed", "manifest.shadowed"]


def rot(there: InS3, artifact: uuid.UUID, content: bytes) -> None:
    """Other bytes under a version that says nothing of it, as a disk of the server's would have them."""
    if there.server.kind != "moto":
        pytest.skip("no way into the bytes of this server")
    key, version = there.version_of(artifact)
    buckets = next(iter(s3_backends.values()))["aws"].buckets
    (stored,) = (found for found in buckets[there.bucket].keys.getlist(key) if found.version_id == version)
    stored.value = content


async def test_bytes_that_rot_are_served_to_nobody_and_come_back_as_a_new_version(there: InS3) -> None:
    data = b"".join(bytes([n]) * 2**20 for n in range(3)) + b"end"
    first = await upload(there.memory, data, retain_until=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    wrong = data[:-1] + b"D"
    rot(there, first, wrong)
    found = await artifacts.find(there.memory, caller("ann"), first)
    for start, stop in ((0, 10), (len(data) - 1, len(data)), (0, len(data))):
        with pytest.raises(ObjectStoreUnavailable, match="damaged"):
            await anext(reading.content(there.memory, found, start, stop, ranged=True))
    second = await upload(there.memory, data)
    assert there.version_of(second) != there.version_of(first)
    assert await there.content(second) == data
    (key, old), (_, new) = there.version_of(first), there.version_of(second)
    assert (await there.retention(key, new))[1] == (await there.retention(key, old))[1]
    with pytest.raises(ObjectStoreUnavailable, match="damaged"):
        artifacts.link(there.memory, await artifacts.find(there.memory, caller("ann"), first))
    told = rows(
        there.dsn,
        "SELECT convert_from(p.payload, 'UTF8')::jsonb FROM audit_events e JOIN audit_payloads p USING (log, seq)"
        " WHERE e.event_type = 'memory.artifact.corrupt' AND e.artifact_id = %s ORDER BY e.seq",
        [first],
    )
    assert [payload["foundBy"] for (payload,) in told] == ["read", "upload"]
    assert told[-1][0]["rightVersion"] == new
    assert told[-1][0]["foundSha256"] == hashlib.sha256(wrong).hexdigest()
