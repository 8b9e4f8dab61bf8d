"""A second verifier of archives, written from docs/audit-format.md alone, beside that of bundles. It stops at the first problem."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.second_verifier import (
    ERRORS,
    MANIFEST_SIGNATURE,
    Key,
    Log,
    canonical,
    fields,
    integer,
    lines,
    moment,
    need,
    read_note,
    read_trust_root,
    sha256,
    strict_json,
    unbase64,
    values,
)

FILES = ("entries.ndjson.gz", "payloads.ndjson.gz", "seals.ndjson", "checkpoint")
MEMBERS = "base checkpoint counts files format head lock number origin previous signature time tool"


def consistent(first: int, second: int, proof: list[bytes], before: bytes, after: bytes) -> bool:
    """RFC 9162, section 2.1.4.2."""

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\1" + left + right).digest()

    if first == second:
        return not proof and before == after
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, before)
    if not path:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for step in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node(step, fr), node(step, sr)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(sr, step)
        fn, sn = fn >> 1, sn >> 1
    return (fr, sr, sn) == (before, after, 0)


def read_manifest(folder: Path, origin: str, keys: list[Key]) -> tuple[dict[str, Any], str]:
    data = (folder / "manifest.json").read_bytes()
    need(len(data) <= 65_536, "manifest: too long")
    manifest: dict[str, Any] = strict_json(data, one_form=True)
    values(manifest, MEMBERS)
    alg, key_id, value = values(manifest["signature"], "alg key value")
    plain = canonical({name: member for name, member in manifest.items() if name != "signature"})
    text = f"memory-layer/audit-manifest/v1\nlog {origin}\nsha256 {sha256(plain)}\nkey {key_id}\nalg {alg}\n"
    fields(MANIFEST_SIGNATURE, f"{text}signature {value}\n", "manifest's signature")
    last = integer(manifest["head"]["seq"])
    able = [key for key in keys if (key.id, key.alg) == (key_id, alg) and key.may("manifest", last, last)]
    need(able, "manifest: by no key that may sign it")
    able[0].check(unbase64(value), text)
    need(
        (manifest["format"], manifest["origin"]) == ("memory-layer/archive-segment/v1", origin),
        "manifest: format or origin",
    )
    mode, until = values(manifest["lock"], "mode until")
    need(mode == "COMPLIANCE" and moment(until) and moment(manifest["time"]), "manifest: lock or time")
    for name, file in zip(FILES, values(manifest["files"], " ".join(FILES)), strict=True):
        values(file, "bytes expanded key sha256 version" if name.endswith(".gz") else "bytes key sha256 version")
        content = (folder / name).read_bytes()
        need((len(content), sha256(content)) == (file["bytes"], file["sha256"]), f"{name}: other bytes")
    return manifest, sha256(data)


def decrypted(origin: str, entry: dict[str, Any], item: dict[str, Any], data_keys: Mapping[str, bytes]) -> bytes | None:
    """Salt and payload, where all keys are there."""
    handles, ciphertext, seq = values(item, "keys ciphertext seq")
    need(handles and handles == sorted(set(handles)), "a payload's keys")
    need(
        all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", handle) for handle in handles), "a payload's keys"
    )
    if not set(handles) <= set(data_keys):
        return None
    info = b"memory-layer/archive-payload/v1\0" + f"{origin}\0{seq}\0{entry['payload']}".encode()
    key = HKDF(SHA256(), 32, None, info).derive(b"".join(data_keys[handle] for handle in handles))
    return AESGCM(key).decrypt(bytes(12), unbase64(ciphertext), None)


def check(folder: Path, trust_root: bytes, data_keys: Mapping[str, bytes], last: int | None) -> None:
    origin, keys = read_trust_root(trust_root)
    log, previous, seen = Log(origin, keys), None, 0
    heads: dict[int, set[bytes]] = {}
    pending = None
    for place in sorted(path for path in folder.iterdir() if (path / "manifest.json").exists()):
        manifest, digest = read_manifest(place, origin, keys)
        head, base = manifest["head"], manifest["base"]
        need(place.name.partition("-a")[0] == f"{base['seq']:015}-{head['seq']:015}", "a folder of another name")
        need((manifest["previous"], manifest["number"]) == (previous, seen), "it does not follow on")
        tree = log.size.to_bytes(8, "big") + b"".join(root for _, root in log.peaks)
        told = {
            "batch": log.batch, "prev": log.prev, "prev_seal": log.prev_seal, "seq": log.size, "ts": log.ts or None,
            "tree": base64.b64encode(tree).decode(),
        }  # fmt: skip
        need(base == told, "base is not where the segment before ended")
        counts: dict[str, int] = {}
        entries, payloads, seals = (lines(place, name, manifest["files"][name], counts) for name in FILES[:3])
        ahead = next(payloads, None)
        for line in seals:
            text, signature = values(strict_json(line, one_form=True), "text signature")
            end, sealed, time = log.add_seal(text, unbase64(signature))
            for row in itertools.islice(entries, end - log.size + 1):
                entry = log.add_entry(row)
                if ahead is not None and (item := strict_json(ahead, one_form=True))["seq"] == entry["seq"]:
                    ahead = next(payloads, None)
                    about_keys = entry["type"] in ("audit.key.activated", "audit.key.retired")
                    need(("payload" in item) == about_keys, "a payload in clear, or one about keys that is not")
                    plain = unbase64(item["salt"], 32) + unbase64(item["payload"]) if about_keys else None
                    plain = plain if about_keys else decrypted(origin, entry, item, data_keys)
                    if plain is not None:
                        log.add_payload(entry, plain[:32], plain[32:])
            need((log.size - 1, log.prev, log.ts) == (end, sealed, time), "a seal and its entries")
        need(ahead is None and next(entries, None) is None, "more payloads or entries than there should be")
        need(counts == manifest["counts"], "counts")
        need(head == {"batch": log.batch - 1, "hash": log.prev, "seal": log.prev_seal, "seq": log.size - 1}, "head")
        size, root = read_note((place / "checkpoint").read_bytes(), origin, keys)
        need(size == manifest["checkpoint"]["size"], "another checkpoint")
        proof = [unbase64(step, 32) for step in manifest["checkpoint"]["proof"]]
        need(consistent(log.size, size, proof, log.root(), root), "the checkpoint's proof")
        heads.setdefault(size, set()).add(root)
        need(len(heads[size]) == 1, "two roots for one size")
        previous, seen, pending = digest, seen + 1, log.size - 1
    need(seen and (last is None or pending == last), "it ends elsewhere")


def verify(
    folder: Path, trust_root: bytes, data_keys: Mapping[str, bytes] | None = None, last: int | None = None
) -> str | None:
    """What is wrong with the segments in a folder, or None. ``data_keys``: by handle; the payloads that need others are passed over."""
    try:
        check(folder, trust_root, data_keys or {}, last)
    except (*ERRORS, InvalidTag, KeyError, zlib.error) as error:
        return f"{type(error).__name__}: {error}"
    return None
