"""Signed lists of all artifacts: written under the lock, chained, checked, and good for making the table anew."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from memory_layer.errors import ChecksumMismatch, DependencyUnavailable, MemoryLayerError, NotFound, PolicyRefused
from memory_layer.ops.artifacts import jobs
from memory_layer.ops.artifacts.manifest import Exported, Read, export, read
from memory_layer.ops.artifacts.rebuild import compare, findings_of, findings_of_store, rebuild
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.tamper import look
from memory_layer.service import artifacts
from memory_layer.service.actions.artifacts import JudgeArtifact
from memory_layer.service.actions.tampered import ResolveRow
from memory_layer.service.commit import Change
from memory_layer.service.installation import Installation
from memory_layer.stores.logs import find_trust_root
from memory_layer.telemetry import metrics
from tests.support.artifacts import register, upload
from tests.support.service import caller, create, delete, hold, rows, running_memory, verify

Database = Callable[[str], str]
TABLE = "SELECT to_jsonb(a) - 'hold_due' - 'verified_at' FROM artifacts a ORDER BY tenant, id"


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


async def exported(memory: Installation, folder: Path) -> Exported:
    return await export(memory, manifest_key(folder))


async def read_back(memory: Installation, folder: Path, which: str | None = None) -> Read:
    return await read(memory, which, find_trust_root(folder))


def in_archive(folder: Path, key: str) -> Path:
    return folder / "archive" / key


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


async def fill(memory: Installation) -> list[uuid.UUID]:
    """Artifacts of two tenants: attached, held, kept, registered, alone."""
    node, held_node = await create(memory), await create(memory, legal_hold=True)
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=90)
    return [
        await upload(memory, b"attached", node=node, name="report of Ann Example.pdf"),
        await upload(memory, b"held", node=held_node),
        await upload(memory, b"kept", retain_until=until),
        await register(memory, "ann/models/a", b"registered", manifest_signature_id="m-1"),
        await upload(memory, b"bob's", tenant="bob", name="b.txt"),
    ]


async def test_what_is_written(memory: Installation, database: Database, tmp_path: Path) -> None:
    ids = await fill(memory)
    done = await exported(memory, tmp_path)
    assert done.manifest.artifacts == len(ids)
    assert done.manifest.bytes == sum(map(len, (b"attached", b"held", b"kept", b"registered", b"bob's")))
    lines = [
        json.loads(line)
        for line in gzip.decompress(in_archive(tmp_path, done.manifest.rows.key).read_bytes()).splitlines()
    ]
    assert {uuid.UUID(line["id"]) for line in lines} == set(ids)
    assert [(line["tenant"], line["id"]) for line in lines] == sorted((line["tenant"], line["id"]) for line in lines)
    first = next(line for line in lines if line["id"] == str(ids[0]))
    assert (first["sha256"], first["size"]) == (hashlib.sha256(b"attached").hexdigest(), 8)
    assert first["key"] == f"ann/{first['sha256']}"
    # Locked for a year: nothing in it that somebody may ask to have erased.
    assert b"Example" not in gzip.decompress(in_archive(tmp_path, done.manifest.rows.key).read_bytes())
    locked = dt.datetime.now(dt.UTC) + dt.timedelta(days=364)
    for key in (done.key, done.manifest.rows.key):
        state = await memory.archive.stat(key)
        assert state.lock is not None
        assert (state.lock.mode, state.lock.until > locked) == ("COMPLIANCE", True)
    found = await read_back(memory, tmp_path)
    assert (found.digest, found.manifest) == (done.digest, done.manifest)
    assert found.signer == manifest_key(tmp_path).key_id  # type: ignore[union-attr]
    assert rows(database("postgres"), "SELECT id, artifacts, sha256, previous FROM artifact_manifests") == [
        (done.id, 5, done.digest, None)
    ]
    done_compared = await compare(memory, found)
    assert (done_compared.artifacts, done_compared.missing, done_compared.differs) == (5, [], [])
    assert await findings_of_store(memory, found) == []


async def test_manifests_are_chained(memory: Installation, database: Database, tmp_path: Path) -> None:
    await fill(memory)
    done = [await exported(memory, tmp_path) for _ in range(3)]
    assert [d.manifest.previous for d in done] == [None, done[0].digest, done[1].digest]
    assert (await read_back(memory, tmp_path)).digest == done[2].digest
    assert (await read_back(memory, tmp_path, str(done[0].id))).digest == done[0].digest
    assert (await read_back(memory, tmp_path, done[1].key)).digest == done[1].digest
    rows(database("postgres"), "DELETE FROM artifact_manifests WHERE id = %s", [done[1].id])
    found = await read_back(memory, tmp_path)
    (finding,) = await findings_of_store(memory, found)
    assert (finding.id, finding.status) == ("manifest.chain", "fail")
    with pytest.raises(NotFound):
        await read_back(memory, tmp_path, str(uuid.uuid4()))


async def test_no_artifacts_are_a_manifest_too_and_without_a_key_there_is_none(
    memory: Installation, tmp_path: Path
) -> None:
    await create(memory)
    done = await exported(memory, tmp_path)
    assert done.manifest.artifacts == 0
    assert (await compare(memory, await read_back(memory, tmp_path))).artifacts == 0
    with pytest.raises(DependencyUnavailable, match="manifest key"):
        await export(memory, None)


@pytest.mark.parametrize(
    "damage", ["manifest", "signature", "rows", "rows cut", "swapped rows", "swapped manifests", "gone"]
)
async def test_a_manifest_that_was_tampered_with_is_refused(memory: Installation, tmp_path: Path, damage: str) -> None:
    await upload(memory, b"one")
    old = await exported(memory, tmp_path)
    await upload(memory, b"two")
    new = await exported(memory, tmp_path)
    path, rows_path = in_archive(tmp_path, new.key), in_archive(tmp_path, new.manifest.rows.key)
    signature = path.with_name("manifest.sig")
    match damage:
        case "manifest":
            overwrite(path, path.read_bytes().replace(b'"artifacts":2', b'"artifacts":1'))
        case "signature":
            text = signature.read_bytes()
            overwrite(signature, text[:-10] + bytes([text[-10] ^ 1]) + text[-9:])
        case "rows":
            data = rows_path.read_bytes()
            overwrite(rows_path, data[:20] + bytes([data[20] ^ 1]) + data[21:])
        case "rows cut":
            overwrite(rows_path, rows_path.read_bytes()[:-5])
        case "swapped rows":
            overwrite(rows_path, in_archive(tmp_path, old.manifest.rows.key).read_bytes())
        case "swapped manifests":
            overwrite(path, in_archive(tmp_path, old.key).read_bytes())
            overwrite(signature, in_archive(tmp_path, old.key).with_name("manifest.sig").read_bytes())
        case "gone":
            rows_path.unlink()
    place = memory
    with pytest.raises((ChecksumMismatch, NotFound)) as refused:
        await compare(place, await read(place, None, find_trust_root(tmp_path)))
    assert "manifest" in refused.value.message or "signature" in refused.value.message
    assert (await read_back(memory, tmp_path, str(old.id))).digest == old.digest  # the one before is what it was


async def test_a_table_that_differs_is_named(memory: Installation, database: Database, tmp_path: Path) -> None:
    ids = await fill(memory)
    await exported(memory, tmp_path)
    dsn = database("postgres")
    rows(dsn, "UPDATE artifacts SET object_key = 'ann/other' WHERE id = %s", [ids[0]])
    rows(dsn, "UPDATE artifacts SET sha256 = %s WHERE id = %s", ["0" * 64, ids[2]])
    rows(dsn, "DELETE FROM artifacts WHERE id = %s", [ids[4]])
    done = await compare(memory, await read_back(memory, tmp_path))
    assert (sorted(done.differs), done.missing) == (sorted(map(str, (ids[0], ids[2]))), [str(ids[4])])
    assert [f.id for f in findings_of(done)] == ["manifest.missing", "manifest.differs"]


async def test_the_table_comes_back_as_it_was(memory: Installation, database: Database, tmp_path: Path) -> None:
    await fill(memory)
    dsn = database("postgres")
    await exported(memory, tmp_path)
    # After the manifest: another one, and a longer time for one that is in it.
    later = await upload(memory, b"later", name="later.txt")
    ((kept,),) = rows(dsn, "SELECT id FROM artifacts WHERE retain_until IS NOT NULL")
    until = dt.datetime(2090, 1, 1, tzinfo=dt.UTC)
    await artifacts.extend(memory, caller("ann"), kept, until)
    before = rows(dsn, TABLE)
    with pytest.raises(PolicyRefused, match="not empty"):
        await rebuild(memory, await read_back(memory, tmp_path))
    assert rows(dsn, TABLE) == before
    rows(dsn, "DELETE FROM artifacts")
    done = await rebuild(memory, await read_back(memory, tmp_path))
    assert (done.restored, done.named, done.from_log, done.missing) == (5, 5, 1, 0)
    assert rows(dsn, TABLE) == before
    assert (
        rows(dsn, "SELECT name, retain_until FROM artifacts WHERE id IN (%s, %s) ORDER BY name", [later, kept])[0][0]
        == "later.txt"
    )
    assert verify(dsn, tmp_path).findings == ()
    # The store may have been restored as well: what is held is told to it again.
    assert rows(dsn, "SELECT count(*) FROM artifacts WHERE legal_hold AND hold_due") == [(1,)]


async def test_a_fault_and_what_an_operator_accepted_come_back(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    """Neither is in the manifest: the log says them."""
    ids = await fill(memory)
    dsn = database("postgres")
    await exported(memory, tmp_path)
    await memory.committer.submit(Change(caller("ann"), JudgeArtifact(ids[0], "corrupt", {})))
    rows(dsn, "UPDATE artifacts SET name = 'renamed.txt' WHERE id = %s", [ids[1]])
    compared = await look(memory, ids[1], None)
    act = ResolveRow("accept", "artifact", ids[1], "meant", compared.story.recorded, compared.nodes)
    await memory.committer.submit(Change(caller(compared.tenant), act))
    before = rows(dsn, "SELECT id, name, fault, retain_until, metadata FROM artifacts ORDER BY id")
    rows(dsn, "DELETE FROM artifacts")
    await rebuild(memory, await read_back(memory, tmp_path))
    assert rows(dsn, "SELECT id, name, fault, retain_until, metadata FROM artifacts ORDER BY id") == before
    assert verify(dsn, tmp_path).findings == ()


async def test_the_archive_is_enough(memory: Installation, database: Database, tmp_path: Path) -> None:
    """Postgres has forgotten its manifests as well; the newest one in the archive is taken, and checked by its signature alone."""
    await fill(memory)
    await exported(memory, tmp_path)
    newest = await exported(memory, tmp_path)
    dsn = database("postgres")
    before = rows(dsn, TABLE)
    rows(dsn, "DELETE FROM artifacts")
    rows(dsn, "DELETE FROM artifact_manifests")
    found = await read_back(memory, tmp_path)
    assert (found.digest, found.known) == (newest.digest, None)
    await rebuild(memory, found)
    assert rows(dsn, TABLE) == before


async def test_what_went_since_is_reported(memory: Installation, database: Database, tmp_path: Path) -> None:
    node, held_node = await create(memory), await create(memory)
    artifact, other = await upload(memory, b"one", node=node), await upload(memory, b"two", node=held_node)
    await exported(memory, tmp_path)
    await upload(memory, b"erased", name="erased.txt")
    await hold(memory, held_node)
    await delete(memory, node)
    dsn = database("postgres")
    rows(dsn, "DELETE FROM artifacts")
    rows(
        dsn,
        "DELETE FROM audit_payloads p USING audit_events e WHERE e.log = p.log AND e.seq = p.seq AND e.event_type = 'memory.artifact.created'",
    )
    rows(dsn, "DELETE FROM memory_vectors")
    rows(dsn, "DELETE FROM memory_nodes WHERE id = %s", [node])
    done = await rebuild(memory, await read_back(memory, tmp_path))
    assert (done.restored, done.named, done.from_log, done.missing) == (2, 0, 0, 1)
    found = rows(dsn, "SELECT id, memory_node_id, legal_hold, name FROM artifacts ORDER BY id")
    assert found == [(artifact, None, False, None), (other, held_node, True, None)]


async def test_a_rebuild_that_fails_leaves_the_table_empty(
    memory: Installation, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memory_layer.ops.artifacts import manifest

    monkeypatch.setattr(manifest, "PAGE", 2)
    await fill(memory)
    done = await exported(memory, tmp_path)
    dsn = database("postgres")
    rows(dsn, "DELETE FROM artifacts")
    found = await read_back(memory, tmp_path)

    def die(what: str, at: int, _total: int) -> None:
        if at >= 4:
            raise MemoryLayerError("killed")

    with pytest.raises(MemoryLayerError, match="killed"):
        await rebuild(memory, found, progress=die)
    assert rows(dsn, "SELECT count(*) FROM artifacts") == [(0,)]
    await rebuild(memory, found)
    assert rows(dsn, "SELECT count(*) FROM artifacts") == [(done.manifest.artifacts,)]


async def test_the_nightly_job(memory: Installation, database: Database, tmp_path: Path) -> None:
    await upload(memory, b"one")
    await jobs.nightly_manifest(memory)
    assert rows(database("postgres"), "SELECT verb, verdict FROM ops_runs") == [("artifacts-manifest-export", "ok")]
    assert metrics.artifact_manifest._value.get() > 0
    assert (await read_back(memory, tmp_path)).manifest.artifacts == 1
