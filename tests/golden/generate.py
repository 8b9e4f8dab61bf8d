"""Makes the golden vectors beside this file: ``python -m tests.golden.generate`` from the root of the sources.

A log of 12 entries in 6 batches by fixed keys, with a delegated key, a retirement and entries without a payload; as a bundle, with a
checkpoint, a proof, and every hash in ``vectors.json``; and as an archive of two segments, with the data keys of its payloads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer import canonical
from memory_layer.audit import bundle, segment, trust_root
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.bundle import Head, LineWriter, Manifest
from memory_layer.audit.checkpoint import sign_checkpoint
from memory_layer.audit.entry import encode_entry, genesis_prev, leaf_hash, payload_commitment, state_hash
from memory_layer.audit.proof import build_proof
from memory_layer.audit.seal import NO_PREVIOUS, encode_signature, key_id, seal_hash, seal_text
from memory_layer.audit.seal_chain import Base, SealRow
from memory_layer.audit.tree import Frontier, consistency_proof, inclusion_proof
from memory_layer.audit.trust_root import (
    Delegation,
    activation_payload,
    delegation_text,
    retirement_payload,
    trusted_key,
)

HERE = Path(__file__).parent
ORIGIN = "memory.example/audit/prod/s0/e1"
BATCHES = ((0, 0), (1, 3), (4, 4), (5, 8), (9, 10), (11, 11))
DELEGATED_FROM, DELEGATED_TO = 5, 10
TYPES = ("memory.node.created", "memory.node.created", "memory.node.updated", "memory.legal_hold.set", "audit.key.activated",
         "memory.node.deleted", "memory.artifact.created", "audit.heartbeat", "ops.backup.succeeded", "auth.denied", "memory.node.created",
         "audit.key.retired")  # fmt: skip


def key(first: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(first, first + 32)))


def der(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


SEAL, CHECKPOINT, DELEGATE, DELEGATED, MANIFEST = key(0), key(32), key(64), key(96), key(128)
NAMES = {"seal": SEAL, "checkpoint": CHECKPOINT, "delegate": DELEGATE, "delegated": DELEGATED, "manifest": MANIFEST}


def payload_of(seq: int, kind: str) -> bytes | None:
    if kind == "audit.key.activated":
        fresh, delegate = (
            trusted_key("ed25519", der(DELEGATED), from_seq=DELEGATED_FROM),
            trusted_key("ed25519", der(DELEGATE), "delegate"),
        )
        expiry = "2026-01-02T03:14:05.678901Z"
        signature = DELEGATE.sign(delegation_text(ORIGIN, fresh, expiry=expiry, delegate=delegate))
        return activation_payload(fresh, Delegation(delegate.key_id, expiry, signature))
    if kind == "audit.key.retired":
        return retirement_payload(key_id(der(DELEGATED)), DELEGATED_TO)
    if kind in ("audit.heartbeat", "auth.denied"):
        return None
    return canonical.dumps({"content": f"turn {seq}, Zoë said", "metadata": {"n": seq, "score": 0.25}})


def log() -> tuple[list[bytes], list[tuple[int, bytes, bytes]], list[SealRow]]:
    """Entries, payloads, seals."""
    entries, payloads, seals = [], [], []
    prev, before = genesis_prev(ORIGIN), NO_PREVIOUS
    for batch, (first, last) in enumerate(BATCHES):
        ts = f"2026-01-02T03:04:{5 + batch:02}.678901Z"
        for seq in range(first, last + 1):
            kind, salt = TYPES[seq], hashlib.sha256(b"salt %d" % seq).digest()
            payload, node = payload_of(seq, kind), kind.startswith("memory.node.")
            millis = 1767323045678 + 1000 * batch
            entry = encode_entry(
                log=ORIGIN, seq=seq, id=uuid.UUID(int=millis << 80 | 7 << 76 | seq << 64 | 2 << 62 | seq), ts=ts, type=kind,
                tenant=None if kind.startswith("audit.") else f"tenant-{seq % 2}", actor=uuid.UUID(int=1 << 64), auth="system" if kind[0] == "a" else "jwt",
                request_id=f"req-{seq}", prev=prev, outcome="denied" if kind == "auth.denied" else "ok",
                node=uuid.UUID(int=seq + 1) if node else None, version=1 if node else None,
                state=state_hash(salt, b'{"version":1}', 1) if node else None, trace_id="4bf92f3577b34da6a3ce929d0e0e4736" if seq % 2 else None,
                manifest_signature_id="manifest-7" if seq == 6 else None, caller_prev_hash="seen last" if seq == 2 else None,
                payload=None if payload is None else payload_commitment(salt, payload), v=1,
            )  # fmt: skip
            entries.append(entry)
            if payload is not None:
                payloads.append((seq, salt, payload))
            prev = leaf_hash(entry)
        private = DELEGATED if first >= DELEGATED_FROM and last <= DELEGATED_TO else SEAL
        text = seal_text(
            log=ORIGIN,
            batch=batch,
            first=first,
            last=last,
            head=prev,
            prev_seal=before,
            time=ts,
            key=key_id(der(private)),
            alg="ed25519",
        )
        seals.append(SealRow(batch, text, encode_signature(private.sign(text))))
        before = seal_hash(text)
    return entries, payloads, seals


def root_bytes() -> bytes:
    keys = [trusted_key("ed25519", der(SEAL)), trusted_key("ed25519", der(CHECKPOINT), "checkpoint"),
            trusted_key("ed25519", der(DELEGATE), "delegate"), trusted_key("ed25519", der(MANIFEST), "manifest")]  # fmt: skip
    return trust_root.dump(ORIGIN, keys)


def note(entries: list[bytes], size: int) -> tuple[bytes, bytes]:
    """(root, signed note)"""
    tree = Frontier()
    tree.extend([bytes.fromhex(leaf_hash(entry)) for entry in entries[:size]])
    root = tree.root()
    return root, sign_checkpoint(ORIGIN, size, root, public_key_der=der(CHECKPOINT), sign=CHECKPOINT.sign)


def handles_of(seq: int) -> list[uuid.UUID]:
    """Two people in every third payload, one in the others."""
    return [uuid.UUID(int=7 << 76 | 2 << 62 | n) for n in ([1, 2] if seq % 3 == 0 else [2])]


def data_key(handle: uuid.UUID) -> bytes:
    return hashlib.sha256(b"data key " + handle.bytes).digest()


def write_archive(out: Path) -> None:
    """Batches 0 to 3 in one segment, the rest in another; one checkpoint covers both."""
    entries, payloads, seals = log()
    _, point = note(entries, len(entries))
    leaves = b"".join(bytes.fromhex(leaf_hash(entry)) for entry in entries)
    base, previous = Base(prev=genesis_prev(ORIGIN)), None
    for number, (first, last, batches) in enumerate(((0, 8, seals[:4]), (9, 11, seals[4:]))):
        place = out / segment.folder_name(first, last)
        place.mkdir(parents=True)
        mine, lines = [one for one in payloads if first <= one[0] <= last], []
        for seq, salt, payload in mine:
            if TYPES[seq] in segment.CLEAR:
                lines.append(bundle.payload_line(seq, salt, payload))
            else:
                keys = {handle: data_key(handle) for handle in handles_of(seq)}
                lines.append(
                    segment.encrypt_payload(ORIGIN, seq, payload_commitment(salt, payload), keys, salt, payload)
                )
        contents = {
            bundle.ENTRIES: entries[first : last + 1],
            bundle.PAYLOADS: lines,
            bundle.SEALS: [bundle.seal_line(seal) for seal in batches],
        }
        files = {}
        for name, content in contents.items():
            with LineWriter(place, name) as file:
                for line in content:
                    file.write(line)
                files[name] = file.finish()
        files[segment.CHECKPOINT] = bundle.write_file(place, segment.CHECKPOINT, point)
        tree = Frontier.loads(base.tree)
        tree.extend([bytes.fromhex(leaf_hash(entry)) for entry in entries[first : last + 1]])
        head = Head(last, leaf_hash(entries[last]), base.batch + len(batches) - 1, seal_hash(batches[-1].text))
        proof = consistency_proof(last + 1, len(entries), lambda _level, _index, width: leaves[: 32 * width])
        where = f"archive/{ORIGIN}/segments/{place.name}"
        made = segment.Segment(
            number=number,
            origin=ORIGIN,
            base=base,
            head=head,
            counts={name.partition(".")[0]: len(content) for name, content in contents.items()},
            files={n: segment.Stored(f"{where}/{n}", "1", f.bytes, f.sha256, f.expanded) for n, f in files.items()},
            checkpoint=(len(entries), tuple(proof)),
            lock=segment.Locked("COMPLIANCE", "2027-01-03T00:00:00.000000Z"),
            previous=previous,
            time="2026-01-03T00:00:00.000000Z",
            tool="memory-layer golden",
        )
        data = segment.sign_segment(made, key_id(der(MANIFEST)), "ed25519", MANIFEST.sign)
        bundle.write_file(place, segment.MANIFEST, data)
        previous = segment.digest_of(data)
        ts = bundle.time_of(entries[last])
        base = Base(last + 1, head.batch + 1, head.hash, head.seal, ts, tree.dumps())


def write(folder: Path) -> None:
    """Everything, into a folder that does not hold it yet."""
    entries, payloads, seals = log()
    size = len(entries)
    root, newest = note(entries, size)
    out = folder / "bundle"
    out.mkdir(parents=True)
    rows = [CheckpointRow(n, *note(entries, n)) for n in (4, size)]
    lines = {
        bundle.ENTRIES: entries,
        bundle.PAYLOADS: [bundle.payload_line(*payload) for payload in payloads],
        bundle.SEALS: [bundle.seal_line(seal) for seal in seals],
        bundle.CHECKPOINTS: [bundle.checkpoint_line(row) for row in rows],
    }
    files = {}
    for name, content in lines.items():
        with LineWriter(out, name) as file:
            for line in content:
                file.write(line)
            files[name] = file.finish()
    files[bundle.TRUST_ROOT] = bundle.write_file(out, bundle.TRUST_ROOT, root_bytes())
    files[bundle.FORMAT_PAGE] = bundle.write_file(
        out, bundle.FORMAT_PAGE, b"See docs/audit-format.md of the sources.\n"
    )
    files[bundle.README] = bundle.write_file(out, bundle.README, b"Golden vectors: a log of 12 entries.\n")
    manifest = Manifest(
        origin=ORIGIN,
        base=Base(prev=genesis_prev(ORIGIN)),
        head=Head(size - 1, leaf_hash(entries[-1]), len(seals) - 1, seal_hash(seals[-1].text)),
        payloads="all",
        tenant=None,
        counts={name.partition(".")[0]: len(content) for name, content in lines.items()},
        files=files,
        previous=None,
        time="2026-01-03T00:00:00.000000Z",
        tool="memory-layer golden",
    )
    bundle.write_manifest(out, manifest, key=key_id(der(MANIFEST)), sign=MANIFEST.sign)
    write_archive(folder / "archive" / "segments")
    (folder / "checkpoint.txt").write_bytes(newest)
    leaves = b"".join(bytes.fromhex(leaf_hash(entry)) for entry in entries)
    path = inclusion_proof(5, size, lambda _level, _index, width: leaves[: 32 * width])
    (folder / "proof.txt").write_bytes(build_proof(5, path, newest, entry=entries[5]))
    vectors: dict[str, Any] = {
        "privateKeys": {name: private.private_bytes_raw().hex() for name, private in NAMES.items()},
        "keyIds": {name: key_id(der(private)) for name, private in NAMES.items()},
        "dataKeys": {str(handle): data_key(handle).hex() for handle in handles_of(0)},
        "genesis": genesis_prev(ORIGIN),
        "entries": [{"entry": entry.decode(), "hash": leaf_hash(entry)} for entry in entries],
        "seals": [
            {"text": seal.text.decode(), "signature": seal.signature, "hash": seal_hash(seal.text)} for seal in seals
        ],
        "root": root.hex(),
    }
    (folder / "vectors.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    for name in ("bundle", "archive"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    write(HERE)
