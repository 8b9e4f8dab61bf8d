"""`memoryctl audit anchor push` and `check` against a running product, and the worker's own pushes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer.audit.checkpoint import Checkpoint, check_checkpoint, parse_checkpoint, sign_checkpoint
from memory_layer.audit.trust_root import TrustRoot, load
from memory_layer.client import MemoryClient
from memory_layer.errors import AnchorUnavailable, RollbackDetected
from memory_layer.ops.anchors import push_scheduled
from memory_layer.service.checkpoints import publish_once
from memory_layer.stores.signers.local import open_local_signer
from tests.support.anchor_server import AnchorServer, running_anchor_server
from tests.support.product import Product
from tests.support.service import create, running_memory

Database = Callable[[str], str]


@pytest.fixture
def web() -> Iterator[AnchorServer]:
    with running_anchor_server() as server:
        yield server


@pytest.fixture
def root(product: Product) -> TrustRoot:
    return load((product.data / "trust-root.json").read_bytes())


@pytest.fixture
def written(product: Product) -> int:
    """The place of an entry that a checkpoint covers."""
    with MemoryClient(product.url, product.token) as memory:
        made = memory.remember("anchored", owner="ann")
        memory.proof(made["auditId"])
    return int(made["audit"]["seq"])


def ctl(product: Product, *words: str) -> tuple[int, Any, str]:
    done = product.ctl("audit", "anchor", *words, "--data", str(product.data), "--json")
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def signed(product: Product, root: TrustRoot, size: int, value: bytes = b"\x11" * 32) -> bytes:
    """A checkpoint that the log's own key signed, over a root that this database does not have."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = product.data / "keys" / "checkpoint.pem"
    key: Any = load_pem_private_key(path.read_bytes(), None)
    public = open_local_signer(path).public_key_der
    return sign_checkpoint(root.origin, size, value, public_key_der=public, sign=key.sign)


def kept(folder: Path) -> list[Checkpoint]:
    return [parse_checkpoint(path.read_bytes()) for path in sorted(folder.rglob("[0-9]" * 15))]


def test_what_was_pushed_anchors_the_log(
    product: Product, root: TrustRoot, written: int, tmp_path: Path, web: AnchorServer
) -> None:
    folder, repository = tmp_path / "folder", tmp_path / "repository"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    places = [str(folder), web.url, f"git:{repository}"]
    code, report, said = ctl(product, "push", *places)
    assert code == 0, said
    assert [(p["place"], p["status"]) for p in report["facts"]["places"]] == [(place, "pushed") for place in places]
    assert all(p["size"] > written for p in report["facts"]["places"])
    (checkpoint,) = kept(folder)
    assert check_checkpoint(checkpoint, root) is None
    assert checkpoint.note in web.notes.values()
    assert [c.note for c in kept(repository)] == [checkpoint.note]
    for place in (folder, repository):
        judged = product.ctl("audit", "verify", "--data", str(product.data), "--anchor", str(place), "--json")
        verdict = json.loads(judged.stdout)
        assert (judged.returncode, verdict["verdict"], verdict["findings"]) == (0, "OK_ANCHORED", [])
    code, answer, _ = ctl(product, "check", *places)
    assert (code, [p["problem"] for p in answer["places"]]) == (0, [None] * 3)
    assert all(p["size"] == p["recorded"] > written for p in answer["places"])
    # Each run is an entry, so the next one has a newer checkpoint to send; two runs in a row lose nothing of the first.
    code, report, _ = ctl(product, "push", str(folder))
    assert (code, checkpoint in kept(folder)) == (0, True)


@pytest.mark.parametrize("larger", [True, False])
def test_what_the_log_does_not_contain_is_never_covered(
    product: Product, root: TrustRoot, written: int, tmp_path: Path, web: AnchorServer, larger: bool
) -> None:
    size = 10**6 if larger else max(written, 2)
    place = tmp_path / root.origin / f"{size:015d}"
    place.parent.mkdir(parents=True)
    place.write_bytes(signed(product, root, size))
    web.notes[size] = place.read_bytes()
    for destination in (str(tmp_path), web.url):
        code, report, said = ctl(product, "push", destination)
        (finding,) = [f for f in report["findings"] if f["id"].startswith("anchor")]
        assert (code, finding["id"], report["facts"]["places"][0]["status"]) == (
            4,
            "anchor.rollback-detected",
            "rollback",
        ), said
        assert "ROLLBACK_DETECTED" in finding["finding"]
        code, answer, _ = ctl(product, "check", destination)
        assert code == 1
        assert answer["places"][0]["problem"]
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert list(web.notes) == [size]


def test_what_nobody_signed_is_no_anchor(product: Product, root: TrustRoot, written: int, tmp_path: Path) -> None:
    place = tmp_path / root.origin / f"{10**6:015d}"
    place.parent.mkdir(parents=True)
    place.write_text("not a checkpoint")
    code, report, _ = ctl(product, "push", str(tmp_path))
    assert (code, report["facts"]["places"][0]["status"]) == (1, "failed")
    assert "none that its keys signed" in report["facts"]["places"][0]["error"]
    assert ctl(product, "check", str(tmp_path))[0] == 1


def test_a_place_that_does_not_answer_is_no_matter_to_the_others(
    product: Product, written: int, tmp_path: Path
) -> None:
    gone, folder = "http://127.0.0.1:9/anchors", tmp_path / "there"
    folder.mkdir()
    code, report, said = ctl(product, "push", gone, str(folder))
    assert code == 3, said
    assert [p["status"] for p in report["facts"]["places"]] == ["failed", "pushed"]
    assert ctl(product, "check", gone, str(folder))[0] == 3


def test_nowhere_to_send_it_is_usage(product: Product) -> None:
    code, _, said = ctl(product, "push")
    assert (code, "AUDIT_ANCHORS" in said) == (2, True)
    code, _, said = ctl(product, "push", "ftp://host/x")
    assert (code, "ftp://host/x" in said) == (2, True)


async def test_the_worker_pushes_and_the_guard_reads_what_was_pushed(
    database: Database, tmp_path: Path, web: AnchorServer
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    data = tmp_path / "data"
    async with running_memory(database("memory_app"), data, audit_anchors=f"{folder} {web.url}") as memory:
        await push_scheduled(memory)  # nothing is published yet
        await create(memory, content="x")
        await publish_once(memory)
        await push_scheduled(memory)
        await push_scheduled(memory)
        assert [c.size for c in kept(folder)] == list(web.notes) == [1]
        guard = memory.committer.rollback_guard
        assert guard is not None
        await guard.check()
        assert {w.source for w in guard.gathered.witnesses if w.outside} == {
            f"the anchor at {folder}", f"the anchor at {web.url}"
        }  # fmt: skip
        web.faults = [500] * 3
        await create(memory, content="y")
        await publish_once(memory)
        with pytest.raises(AnchorUnavailable):
            await push_scheduled(memory)
        assert [c.size for c in kept(folder)] == [1, 2]  # the other one was sent to all the same
        # An anchor of a longer log than this one, at one place alone: no more writes, and nothing is sent over it.
        root, key = memory.trust_root, open_local_signer(data / "keys" / "checkpoint.pem")
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        private: Any = load_pem_private_key((data / "keys" / "checkpoint.pem").read_bytes(), None)
        web.notes[9] = sign_checkpoint(
            root.origin, 9, b"\x22" * 32, public_key_der=key.public_key_der, sign=private.sign
        )
        with pytest.raises(RollbackDetected):
            await push_scheduled(memory)
        await guard.check()
        with pytest.raises(RollbackDetected):
            await create(memory, content="z")
