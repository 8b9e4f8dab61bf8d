"""The golden vectors: made again they are the same, and both verifiers accept them."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

from memory_layer.audit import trust_root
from memory_layer.audit.archive import local_segments, verify_archive
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.offline import verify_bundle
from memory_layer.audit.proof import parse_proof, verify_proof
from memory_layer.audit.segment import Sealed, decrypt_payload
from tests.golden import generate, states
from tests.support import second_archive, second_verifier

HERE = Path(__file__).parent


def expanded(path: Path) -> bytes:
    return zlib.decompress(path.read_bytes(), 31)


def test_made_again_they_are_the_same(tmp_path: Path) -> None:
    generate.write(tmp_path)
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(HERE) for path in HERE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    kept.discard(Path("states.json"))  # of states.py
    assert set(made) == kept
    packed = [name for name in kept if name.suffix == ".gz"]
    assert len(packed) == 6
    for name in packed:
        assert expanded(made[name]) == expanded(HERE / name)
    # Deflate leaves its encoder free: another zlib may pack otherwise, and then the manifest names other bytes.
    same = all(made[name].read_bytes() == (HERE / name).read_bytes() for name in packed)
    for name in kept - set(packed):
        if same or "manifest" not in name.name:
            assert made[name].read_bytes() == (HERE / name).read_bytes(), name


def test_both_verifiers_accept_them() -> None:
    root, note = (HERE / "bundle" / "trust-root.json").read_bytes(), (HERE / "checkpoint.txt").read_bytes()
    verdict = verify_bundle(HERE / "bundle", trust_root.load(root), pinned=True, anchors=[parse_checkpoint(note)])
    assert (verdict.findings, verdict.exit_code, verdict.counts.delegated_keys) == ((), 0, 1)
    assert not any("manifest" in line for line in verdict.not_checked)
    assert second_verifier.verify(HERE / "bundle", root, [note]) is None
    assert verify_proof(parse_proof((HERE / "proof.txt").read_bytes()), trust_root.load(root)) is None


def test_both_verifiers_accept_the_archive_and_read_its_payloads() -> None:
    root, note = (HERE / "bundle" / "trust-root.json").read_bytes(), (HERE / "checkpoint.txt").read_bytes()
    vectors = json.loads((HERE / "vectors.json").read_text())
    keys = {handle: bytes.fromhex(key) for handle, key in vectors["dataKeys"].items()}

    def opened(commitment: str, sealed: Sealed) -> tuple[bytes, bytes] | None:
        return decrypt_payload(generate.ORIGIN, commitment, sealed, [keys[str(handle)] for handle in sealed.keys])

    held = local_segments(HERE / "archive", generate.ORIGIN)
    known = trust_root.load(root)
    verdict = verify_archive(held, known, pinned=True, anchors=[parse_checkpoint(note)], opened=opened)
    assert (verdict.findings, verdict.exit_code, verdict.counts.delegated_keys) == ((), 0, 1)
    assert (verdict.counts.entries, verdict.counts.payloads_matched, verdict.counts.root) == (12, 10, vectors["root"])
    assert second_archive.verify(HERE / "archive" / "segments", root, keys, last=11) is None


def test_the_vectors_are_of_the_bundle() -> None:
    vectors = json.loads((HERE / "vectors.json").read_text())
    lines = expanded(HERE / "bundle" / "entries.ndjson.gz").decode().splitlines()
    assert [item["entry"] for item in vectors["entries"]] == lines
    assert vectors["root"] == parse_checkpoint((HERE / "checkpoint.txt").read_bytes()).root.hex()


def test_states_of_both_versions_stay_what_they_are() -> None:
    stored = json.loads(states.FILE.read_text("utf-8"))
    assert stored == states.vectors()
    for vector in stored:  # by the format page alone
        salt, prefix = bytes.fromhex(vector["salt"]), f"memory-layer/audit/state/v{vector['v']}\0".encode()
        assert vector["hash"] == hashlib.sha256(prefix + salt + vector["state"].encode()).hexdigest()
        assert ("null" in vector["state"].replace("[1,null,true]", "")) == (vector["v"] == 1)
