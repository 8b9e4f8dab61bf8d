"""A snapshot is whole and signed or not there; it comes back into any store; what was tampered with is refused by name."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_layer.errors import ChecksumMismatch, NotFound, UsageError, VectorStoreUnavailable
from memory_layer.filters import parse
from memory_layer.ops.manifests import MANIFEST, SIGNATURE, Signed, manifest_key
from memory_layer.ops.vectors import reconcile as comparing
from memory_layer.ops.vectors import snapshot as ops
from memory_layer.ops.vectors.digest import Digest, total
from memory_layer.ops.vectors.manifest import File, Shard, paths, read_manifest, read_shard
from memory_layer.ops.vectors.reconcile import compare
from memory_layer.ops.vectors.restore import Restored, check, restore
from memory_layer.ops.vectors.snapshot import prune, snapshot
from memory_layer.ops.vectors.spaces import Scope
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.stores.logs import find_trust_root
from memory_layer.stores.protocols import VectorStore
from memory_layer.stores.vectors.milvus import open_milvus
from memory_layer.stores.vectors.pinecone import open_pinecone
from tests.drills.conftest import DIMENSION, NAMESPACE, TENANT, DrilledInstallation, fresh_environment
from tests.support.pinecone_server import KEY, PineconeServer
from tests.support.product import clean_environment
from tests.support.service import delete, patch, rows, verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MOMENT", 0.05)


async def take(installation: DrilledInstallation, out: Path, sides: Installation | None = None) -> Signed:
    return await snapshot(sides or installation.sides, Scope(), out, manifest_key(installation.folder))


async def bring_back(installation: DrilledInstallation, folder: Path, sides: Installation | None = None) -> Restored:
    manifest = read_manifest(folder, find_trust_root(installation.folder)).manifest
    await check(folder, manifest)
    return await restore(sides or installation.sides, folder, manifest, Scope(), within=30)


async def test_a_snapshot_can_be_read_with_numpy_and_json_alone(
    installation: DrilledInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "SHARD_BYTES", 10 * DIMENSION * 4)
    nodes = await installation.fill(25)
    done = await take(installation, tmp_path / "s")
    told = json.loads((tmp_path / "s" / "manifest.json").read_text())
    (space,) = told["spaces"]
    assert (space["tenant"], space["namespace"], space["count"], space["metric"]) == (TENANT, NAMESPACE, 25, "cosine")
    assert (space["model"], space["dimension"], told["dirty"]) == ("test-model", DIMENSION, False)
    assert told["provider"] == installation.sides.vectors.provider
    assert [shard["rows"] for shard in space["shards"]] == [10, 10, 5]
    held: dict[str, tuple[int, Any]] = {}
    digest = Digest()
    for shard in space["shards"]:
        vectors = np.load(tmp_path / "s" / shard["vectors"]["path"], allow_pickle=False)
        assert (vectors.dtype, vectors.shape) == (np.float32, (shard["rows"], DIMENSION))
        lines = (tmp_path / "s" / shard["ids"]["path"]).read_text().splitlines()
        for line, vector in zip(map(json.loads, lines), vectors, strict=True):
            held[line["id"]] = line["version"], vector
            digest.add(uuid.UUID(line["id"]).bytes, line["version"])
    assert set(held) == {str(node) for node in nodes}
    records = await installation.sides.vectors.fetch(TENANT, NAMESPACE, nodes)
    for record in records:
        version, vector = held[str(record.node_id)]
        assert version == record.version
        assert np.array_equal(vector, record.vector)
    assert (digest.buckets(), total(space["buckets"])) == (space["buckets"], space["digest"])
    ((seq, hash_),) = rows(installation.dsn, "SELECT last_seq, head FROM audit_seals ORDER BY batch_no DESC LIMIT 1")
    assert told["log"] == {"seq": seq, "hash": hash_}
    root = find_trust_root(installation.folder)
    assert root is not None
    assert done.key in {key.key_id for key in root.keys if key.purpose == "manifest"}
    with pytest.raises(UsageError, match="is there already"):
        await take(installation, tmp_path / "s")


async def test_what_the_index_should_not_have_held_is_named(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(12)
    installation.broken.lose(TENANT, NAMESPACE, [nodes[0]])
    installation.broken.put(TENANT, NAMESPACE, nodes[1], 1, [1] * DIMENSION)
    stranger = uuid.uuid4()
    installation.broken.put(TENANT, NAMESPACE, stranger, 1, [1] * DIMENSION)
    done = await take(installation, tmp_path / "s")
    (space,) = done.manifest.spaces
    assert (done.manifest.dirty, space.differences) == (True, {"missing": 1, "extra": 1, "wrong": 1})
    named = {kind: found[0]["node"] for kind, found in space.examples.items()}
    assert named == {"missing": str(nodes[0]), "extra": str(stranger), "wrong": str(nodes[1])}
    assert ops.findings_of(done)[0].id == "vectors.dirty"
    # What was wrong in it does not come back.
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    back = await bring_back(installation, tmp_path / "s")
    assert back.counts == Counter(written=10, changed=1, wrong=1)
    assert (back.before[0].counts, back.after[0].state) == (Counter(missing=2), "equal")


async def test_a_lost_index_comes_back_as_it_was(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(30)
    await take(installation, tmp_path / "s")
    await delete(installation.memory, nodes[0], TENANT)
    await patch(installation.memory, nodes[1], TENANT, metadata={"a": 1})
    (late,) = await installation.fill(1, seed=9)
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    back = await bring_back(installation, tmp_path / "s")
    assert back.counts == Counter(written=28, changed=2)
    assert (back.before[0].counts, back.after[0].state) == (
        Counter(missing=2),
        "equal",
    )  # the patched one, the late one
    done = await compare(installation.sides, await installation.space(), vectors="all")
    assert (done.state, done.index) == ("equal", 30)
    held = await installation.sides.vectors.fetch(TENANT, NAMESPACE, [nodes[0], nodes[1], late])
    assert {record.node_id: record.version for record in held} == {nodes[1]: 2, late: 1}
    assert verify(installation.dsn, installation.folder).findings == ()


async def test_filters_work_after_a_restore(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(5)
    await patch(installation.memory, nodes[1], TENANT, metadata={"colour": "blue"})
    await installation.settle()
    await take(installation, tmp_path / "s")
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    await bring_back(installation, tmp_path / "s")
    query = np.ones(DIMENSION, np.float32)
    found = await installation.sides.vectors.search(TENANT, NAMESPACE, query, 10, parse({"metadata.colour": "blue"}))
    assert [hit.node_id for hit in found.hits] == [nodes[1]]


async def test_over_an_index_that_is_in_use_versions_decide(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(10)
    await take(installation, tmp_path / "s")
    for node in nodes[:3]:
        await patch(installation.memory, node, TENANT, metadata={"a": 1})
    await delete(installation.memory, nodes[4], TENANT)
    await installation.settle()
    back = await bring_back(installation, tmp_path / "s")
    assert back.counts == Counter(written=6, changed=4)
    assert (back.before[0].state, back.before[0].counts) == ("equal", Counter())
    assert (await compare(installation.sides, await installation.space(), vectors="all")).state == "equal"


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
@pytest.mark.parametrize("provider", ["pinecone", pytest.param("milvus", marks=pytest.mark.real)])
async def test_from_one_provider_to_another_and_back(
    installation: DrilledInstallation, tmp_path: Path, request: pytest.FixtureRequest, provider: str
) -> None:
    url = request.getfixturevalue(provider).url
    store: VectorStore
    if provider == "milvus":
        store = await open_milvus(url, lambda: None, fresh_environment())
    else:
        store = await open_pinecone(url, lambda: KEY)
    nodes = await installation.fill(40)
    await patch(installation.memory, nodes[1], TENANT, metadata={"a": 1})
    await installation.settle()
    first = await take(installation, tmp_path / "pgvector")
    stores = installation.memory.with_parts(vectors=store)
    there = stores.with_parts(work=partial(work_once, stores))
    back = await bring_back(installation, tmp_path / "pgvector", there)
    assert (back.counts, back.before[0].state) == (Counter(written=40), "equal")
    assert rows(installation.dsn, "SELECT DISTINCT provider FROM memory_vectors") == [(provider,)]
    assert rows(installation.dsn, "SELECT provider FROM namespaces") == [(provider,)]
    assert (await compare(there, await installation.space(), vectors="all")).state == "equal"
    second = await take(installation, tmp_path / "there", there)
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    back = await bring_back(installation, tmp_path / "there")
    assert (back.counts, back.before[0].state) == (Counter(written=40), "equal")
    third = await take(installation, tmp_path / "again")
    assert [one.manifest.provider for one in (first, second, third)] == ["pgvector", provider, "pgvector"]
    assert len({one.manifest.spaces[0].digest for one in (first, second, third)}) == 1
    assert (await compare(installation.sides, await installation.space(), vectors="all")).state == "equal"
    await store.close()


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
async def test_every_file_is_covered(installation: DrilledInstallation, tmp_path: Path) -> None:
    await installation.fill(6)
    whole = tmp_path / "whole"
    await take(installation, whole)
    root = find_trust_root(installation.folder)
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    assert [str(path.relative_to(whole)) for path in files] == [
        "00000/rows-00000.jsonl", "00000/vectors-00000.npy", MANIFEST, SIGNATURE,
    ]  # fmt: skip

    async def attempt(folder: Path, **how: Any) -> None:
        await check(folder, read_manifest(folder, root, **how).manifest)

    await attempt(whole)
    for path in files:
        for change in ("flip", "cut", "more", "gone"):
            copy = tmp_path / "copy"
            shutil.copytree(whole, copy)
            target = copy / path.relative_to(whole)
            data = target.read_bytes()
            if change == "gone":
                target.unlink()
            else:
                flipped = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
                target.write_bytes({"flip": flipped, "cut": data[:-1], "more": data + b"\n"}[change])
            with pytest.raises((ChecksumMismatch, NotFound), match=path.name) as refused:
                await attempt(copy)
            assert refused.value.exit_code == 1
            shutil.rmtree(copy)
    # A manifest that is changed along with the files it vouches for has nobody's signature.
    shutil.copytree(whole, tmp_path / "forged")
    (tmp_path / "forged" / SIGNATURE).unlink()
    with pytest.raises(ChecksumMismatch, match=r"manifest\.sig is missing"):
        await attempt(tmp_path / "forged")
    await attempt(tmp_path / "forged", unsigned=True)
    # Nor is another installation's signature this one's.
    assert root is not None
    with pytest.raises(ChecksumMismatch, match="of the log"):
        read_manifest(whole, dataclasses.replace(root, origin="elsewhere/audit/1"))
    with pytest.raises(ChecksumMismatch, match="does not name for manifests"):
        read_manifest(whole, dataclasses.replace(root, keys=tuple(k for k in root.keys if k.purpose != "manifest")))


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
async def test_the_manifest_leads_to_no_file_outside(installation: DrilledInstallation, tmp_path: Path) -> None:
    await installation.fill(2)
    await take(installation, tmp_path / "s")
    (tmp_path / "s" / SIGNATURE).unlink()
    text = (tmp_path / "s" / MANIFEST).read_text()
    (tmp_path / "s" / MANIFEST).write_text(text.replace("00000/rows-00000.jsonl", "../rows-00000.jsonl"))
    with pytest.raises(ChecksumMismatch, match="one form"):
        read_manifest(tmp_path / "s", None, unsigned=True)


@pytest.mark.parametrize("installation", ["pinecone"], indirect=True)
async def test_a_killed_restore_leaves_nothing_wrong_and_goes_on(
    installation: DrilledInstallation, tmp_path: Path, pinecone: PineconeServer
) -> None:
    await installation.fill(250)
    await take(installation, tmp_path / "s")
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    settings = {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": pinecone.url, "VECTOR_DB_API_KEY": KEY}
    environment = clean_environment() | settings | {"DATABASE_URL": installation.memory.postgres.dsn}
    words = ["vectors", "restore", str(tmp_path / "s"), "--data", str(installation.folder)]
    writes = pinecone.calls.count("POST /vectors/upsert")
    pinecone.slow = 0.02
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memory_layer.cli", *words, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    give_up = asyncio.get_running_loop().time() + 60
    while pinecone.calls.count("POST /vectors/upsert") == writes:
        assert process.returncode is None
        assert asyncio.get_running_loop().time() < give_up
        await asyncio.sleep(0.005)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    pinecone.slow = 0.0
    half = await compare(installation.sides, await installation.space(), vectors="all")
    assert set(half.counts) == {"missing"}
    assert half.index < 250
    back = await bring_back(installation, tmp_path / "s")
    assert (back.counts, back.before[0].state) == (Counter(written=250), "equal")
    assert (await compare(installation.sides, await installation.space(), vectors="all")).state == "equal"


async def test_a_snapshot_beside_writers_is_not_dirty(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(20)
    stop = asyncio.Event()

    async def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            await patch(installation.memory, nodes[turn % 20], TENANT, metadata={"turn": turn})
            if turn % 5 == 0:
                await installation.fill(1, seed=turn)

    async def work() -> None:
        while not stop.is_set():
            await installation.settle()
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(write()), asyncio.create_task(work())]
    for number in range(3):
        done = await take(installation, tmp_path / str(number))
        assert (done.manifest.dirty, done.manifest.rows >= 20) == (False, True)
    stop.set()
    await asyncio.gather(*tasks)
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    back = await bring_back(installation, tmp_path / "2")
    assert back.after[0].state == "equal"


@pytest.mark.parametrize("installation", ["pinecone"], indirect=True)
async def test_a_store_that_stumbles_ends_no_restore(
    installation: DrilledInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.fill(3)
    await take(installation, tmp_path / "s")
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    real = installation.sides.vectors.upsert
    left = [VectorStoreUnavailable("not now"), VectorStoreUnavailable("not now")]

    async def stumbling(entries: Any) -> None:
        if left:
            raise left.pop()
        await real(entries)

    async def no_pause(_seconds: float) -> None: ...

    monkeypatch.setattr(installation.sides.vectors, "upsert", stumbling)
    monkeypatch.setattr("memory_layer.ops.vectors.restore.asyncio.sleep", no_pause)
    back = await bring_back(installation, tmp_path / "s")
    assert (back.counts["written"], back.before[0].state, left) == (3, "equal", [])


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from memory_layer import config
from memory_layer.ops.vectors import snapshot as ops
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.vectors.spaces import Scope
from memory_layer.service.installation import open_installation

ops.SHARD_BYTES = 5 * 8 * 4
write, left = ops._write, int(sys.argv[3])

def dying(folder, path, fill):
    global left
    left -= 1
    if left == 0:
        (folder / path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, path, fill)

ops._write = dying

async def main():
    folder = Path(sys.argv[2])
    settings = config.load({}, database_url=sys.argv[1], embeddings_provider="none")
    async with open_installation(settings, folder, "postgres", "vectors") as installation:
        await ops.snapshot(installation, Scope(), Path(sys.argv[4]), manifest_key(folder))

asyncio.run(main())
"""


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
@pytest.mark.parametrize("at", [1, 4, 7, 8])
async def test_a_killed_snapshot_leaves_nothing_that_looks_like_one(
    installation: DrilledInstallation, tmp_path: Path, at: int
) -> None:
    """Killed at its first file, in the midst, at the manifest and at the signature."""
    await installation.fill(15)  # three shards, so six files
    out = tmp_path / "out" / "s"
    dsn = installation.memory.postgres.dsn
    words = [sys.executable, "-c", KILLED, dsn, str(installation.folder), str(at), str(out)]
    done = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1  # what it left, under a name that is no snapshot's
    with ops._partial(out.parent / "other") as beside:  # one that is being written is not taken for a dead one's
        await take(installation, out)
        assert beside.exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["other", "s"]
    await check(out, read_manifest(out, find_trust_root(installation.folder)).manifest)


def test_what_others_left_beside_a_snapshot_stays(tmp_path: Path) -> None:
    """A snapshot may be made in anybody's folder, and .partial is not our name alone."""
    dead = tmp_path / f".nightly.{'0' * 12}.partial"
    for folder in (others := [tmp_path / ".download.partial", tmp_path / ".partial"]) + [dead]:
        folder.mkdir()
        (folder / "data").write_text("x")
    with ops._partial(tmp_path / "out"):
        pass
    assert not dead.exists()
    assert all((folder / "data").exists() for folder in others)


def test_only_the_workers_own_snapshots_are_pruned(tmp_path: Path) -> None:
    def made(name: str, *, dirty: bool = False) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({"dirty": dirty}))

    made("vectors-20261101T023000Z")
    made("vectors-20261102T023000Z")
    for day in (3, 4, 5):
        made(f"vectors-2026110{day}T023000Z", dirty=True)
    made("mine")
    (tmp_path / "vectors-20261001T023000Z").mkdir()  # holds no snapshot
    assert prune(tmp_path, 2) == ["vectors-20261103T023000Z", "vectors-20261101T023000Z"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine", "vectors-20261001T023000Z", "vectors-20261102T023000Z", "vectors-20261104T023000Z",
        "vectors-20261105T023000Z",
    ]  # fmt: skip


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    shard = ops._Open(2, [(uuid.UUID(int=1), 1)], [np.array([1, 0], np.float32)])
    (tmp_path / "00000").mkdir()
    written = ops._write_shard(tmp_path, 0, 0, shard)
    assert read_shard(tmp_path, written)[0] == [(str(uuid.UUID(int=1)), 1)]
    with pytest.raises(ChecksumMismatch, match="2 rows together"):
        read_shard(tmp_path, Shard(2, 2, written.vectors, written.ids))


def _npy(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def _saved(save: Any, array: Any) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


_LINE = b'{"id":"00000000-0000-0000-0000-000000000001","version":1}\n'
_ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("vectors", "ids"),
    [
        pytest.param(_saved(np.savez, _ONE), _LINE, id="archive"),
        pytest.param(_saved(np.save, np.array([[{}, {}]], dtype=object)), _LINE, id="pickle"),
        pytest.param(b"hello", _LINE, id="text"),
        pytest.param(b"", _LINE, id="empty"),
        pytest.param(_npy("(1, 2)"), _LINE, id="cut-off"),
        pytest.param(_npy("(10000000000000000, 2)"), _LINE, id="huge"),
        pytest.param(_npy("(1, 2)", "<f8") + bytes(8), _LINE, id="another-type"),
        pytest.param(_saved(np.save, _ONE), _LINE.replace(b"00000000-0", b"../../../x"), id="no-id"),
        pytest.param(_saved(np.save, _ONE), _LINE.replace(b":1}", b":99999999999}"), id="no-version"),
        pytest.param(_saved(np.save, _ONE), b"[" * 100_000 + b"\n", id="deep"),
        pytest.param(_saved(np.save, _ONE), b"\xff\xfe\n", id="no-text"),
        pytest.param(_saved(np.save, _ONE), _LINE * 2, id="too-many"),
    ],
)
def test_files_that_an_unsigned_manifest_lists_are_not_trusted(tmp_path: Path, vectors: bytes, ids: bytes) -> None:
    (tmp_path / "00000").mkdir()
    files = []
    for path, data in zip(paths(0, 0), (vectors, ids), strict=True):
        (tmp_path / path).write_bytes(data)
        files.append(File(path, len(data), hashlib.sha256(data).hexdigest()))
    with pytest.raises(ChecksumMismatch, match=r"rows-00000\.jsonl are not 1 rows together"):
        read_shard(tmp_path, Shard(1, 2, *files))
