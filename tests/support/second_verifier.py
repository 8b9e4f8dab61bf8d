"""A second verifier of evidence bundles, written from docs/audit-format.md alone. It stops at the first problem.

``python second_verifier.py BUNDLE TRUST_ROOT [CHECKPOINT...]``. Needs the library cryptography. Says nothing of an anchor's age.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

LONGEST = {"entries.ndjson.gz": 65_535, "payloads.ndjson.gz": 16 << 20, "seals.ndjson": 65_535, "checkpoints.ndjson": 262_144}  # fmt: skip
FILES = (*LONGEST, "trust-root.json", "audit-format.md", "README.txt")
ERRORS = (InvalidSignature, UnsupportedAlgorithm, OSError, RecursionError, TypeError, ValueError, zlib.error)
PURPOSES = ("seal", "checkpoint", "manifest", "approval", "delegate")
WORDS = {  # what a word in capitals stands for in the forms below; WORD? is null or the word in quotes
    "ORIGIN": "[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?/audit/(?:dev|staging|prod)/s0/e[1-9][0-9]{0,8}",
    "HASH": "[0-9a-f]{64}", "BASE64": "[A-Za-z0-9+/]+=*", "INT": "0|[1-9][0-9]{0,14}", "ALG": "[a-z0-9-]+",
    "TIME": "[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9][.][0-9]{6}Z", "NAME": r"[^\s\0-\x1f\x7f-\x9f+]{1,255}",
    "UUID": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "UUID7": "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "T64": r"[ !#-\[\]-~]{1,64}", "T128": r"[ !#-\[\]-~]{1,128}", "T255": r"[ !#-\[\]-~]{1,255}",
    "TYPE": r"memory\.(?:node\.(?:created|updated|deleted|purged)|legal_hold\.(?:set|released)|subject\.erased|access\.sealed"
            r"|artifact\.(?:created|verified|corrupt|deleted))|auth\.denied|ops\.[a-z][a-z0-9_-]{0,47}\.(?:succeeded|failed)"
            r"|audit\.(?:key\.activated|key\.retired|archived|heartbeat|incarnation\.opened)",
}  # fmt: skip
ENTRY = (
    '{"actor":"T128","artifact":UUID?,"auth":"(jwt|api-key|mtls|system)","caller_prev_hash":T128?,"id":"UUID7","log":"ORIGIN",'
    '"manifest_signature_id":T255?,"node":UUID?,"outcome":"(ok|denied)","payload":HASH?,"prev":"HASH","request_id":"T128",'
    '"seq":INT,"state":HASH?,"subject":T128?,"tenant":T128?,"trace_id":T64?,"ts":"TIME","type":"TYPE","v":(1|2),"version":(null|INT)}'
)
SEAL = "memory-layer/audit-seal/v1\nlog ORIGIN\nbatch INT\nrange INT INT\nhead HASH\nprev-seal HASH\ntime TIME\nkey HASH\nalg ALG\n"
NOTE, NOTE_LINE = "ORIGIN\nINT\nBASE64\n\n((?:— NAME BASE64\n){1,64})", "— NAME BASE64"
MANIFEST_SIGNATURE = "memory-layer/audit-manifest/v1\nlog ORIGIN\nsha256 HASH\nkey HASH\nalg ALG\nsignature BASE64\n"


def need(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def fields(form: str, text: Any, what: str) -> tuple[str, ...]:
    """What the words of the form stand for in a text that is wholly of it."""
    pattern = re.sub("([A-Z]+[0-9]*)([?]?)", lambda m: f'(null|"{WORDS[m[1]]}")' if m[2] else f"({WORDS[m[1]]})", form)
    match = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{what}: not of its form")
    return match.groups()


def values(item: Any, names: str) -> list[Any]:
    """The values of an object with exactly these members."""
    need(isinstance(item, dict) and set(item) == set(names.split()), f"an object's members are not: {names}")
    return [item[name] for name in names.split()]


def integer(value: Any) -> int:
    need(type(value) is int and value >= 0, f"{value} is not an integer from 0")
    return int(value)


def moment(text: Any) -> dt.datetime:
    return dt.datetime.fromisoformat(fields("TIME", text, "time")[0])  # refuses a day that does not exist


def unbase64(text: str, length: int | None = None) -> bytes:
    raw = base64.b64decode(text, validate=True)
    need(base64.b64encode(raw).decode() == text and length in (None, len(raw)), "base64 of another form or length")
    return raw


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """RFC 8785, where numbers are integers. Refuses a lone surrogate."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def strict_json(data: bytes, *, one_form: bool = False) -> Any:
    def number(text: str) -> float:
        whole, zero = text.lstrip("-").isdigit(), re.match("-?0([.]0+)?([eE]|$)", text)
        need(zero or 1e-300 <= abs(float(text)) < 2**53, f"the number {text[:40]}")
        need(whole or not one_form, f"a fraction: {text[:40]}")
        return int(text) if whole else float(text)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key is repeated")
        return dict(pairs)

    text = data.decode()
    value = json.loads(text, object_pairs_hook=once, parse_int=number, parse_float=number, parse_constant=number)
    if text.count("[") + text.count("{") > 64:  # within strings too
        outside = re.sub(r'"(\\.|[^"\\])*"', "", text)
        need(max(accumulate((c in "[{") - (c in "]}") for c in outside), default=0) <= 64, "more than 64 levels")
    need(r"\u0000" not in text.replace(r"\\", ""), "U+0000")
    need(canonical(value) == data or not one_form, "JSON that is not in the form of RFC 8785")
    return value


class Key(NamedTuple):
    id: str
    alg: str
    public: Any
    purpose: str
    first: int
    last: int
    expiry: str = "9999-12-31T23:59:59.999999Z"

    def may(self, purpose: str, first: int, last: int) -> bool:
        return self.purpose == purpose and self.first <= first and last <= self.last

    def check(self, raw: bytes, text: str) -> None:
        """Raises where the signature is none, or is one that a verifier must refuse."""
        if self.alg == "ed25519":
            order = 2**252 + 27742317777372353535851937790883648493
            s = int.from_bytes(raw[32:], "little")
            need(len(raw) == 64 and s < order and sound_point(raw[:32]), "a signature's R or S")
            self.public.verify(raw, text.encode())
        elif self.alg == "ecdsa-p256-sha256":
            order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
            r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
            need(len(raw) == 64 and 0 < r < order and 0 < s <= order // 2, "a signature's r or s")
            self.public.verify(utils.encode_dss_signature(r, s), text.encode(), ec.ECDSA(hashes.SHA256()))
        else:
            self.public.verify(raw, text.encode(), padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def sound_point(point: bytes) -> bool:
    """Whether y is below p, and not that of a point of small order: those are the roots of this polynomial."""
    p = 2**255 - 19
    y, d = int.from_bytes(point, "little") % 2**255, -121665 * pow(121666, -1, p)
    return y < p and y * (y * y - 1) * (d * y**4 + 2 * y * y - 1) % p != 0


def read_key(key_id: str, alg: str, public: str, purpose: str, first: Any, last: Any = None) -> Key:
    der = unbase64(public)
    key: Any = serialization.load_der_public_key(der)
    again = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fits = {
        "ed25519": isinstance(key, ed25519.Ed25519PublicKey) and sound_point(der[-32:]),
        "ecdsa-p256-sha256": isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1",
        "rsa-pss-sha256": isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 8192,
    }
    need(again == der and sha256(der) == key_id, f"key {key_id}: not in its DER form, or of another id")
    need(fits.get(alg) and purpose in PURPOSES, f"key {key_id}: algorithm or purpose")
    need(alg == "ed25519" or purpose != "checkpoint", f"key {key_id}: checkpoints are signed with ed25519")
    need(last is None or integer(last) >= integer(first), f"key {key_id}: to_seq is before from_seq")
    return Key(key_id, alg, key, purpose, integer(first), 2**53 if last is None else last)


def read_trust_root(data: bytes) -> tuple[str, list[Key]]:
    kind, version, origin, items = values(strict_json(data), "format version origin keys")
    need(kind == "memory-layer/trust-root/v1" and integer(version) > 0, "trust root: format or version")
    keys = [read_key(*values(item, "key_id algorithm public_key purpose from_seq to_seq")) for item in items]
    need(len({(key.id, key.purpose) for key in keys}) == len(keys), "trust root: a key stands twice")
    return fields("ORIGIN", origin, "trust root")[0], keys


def read_note(note: bytes, origin: str, keys: list[Key]) -> tuple[int, bytes]:
    """Size and root of a checkpoint that counts."""
    need(len(note) <= 131_072, "checkpoint: too long")
    log, size, root, signatures, *_ = fields(NOTE, note.decode(), "checkpoint")
    need(log == origin, "checkpoint: of another log")
    last, good = max(int(size) - 1, 0), False
    for line in signatures.splitlines():
        name, signature = fields(NOTE_LINE, line, "checkpoint")
        raw = unbase64(signature)
        need(5 <= len(raw) <= 7_680, "checkpoint: the length of a signature")
        for key in keys if name == origin else []:
            if key.alg == "ed25519":
                known = hashlib.sha256(origin.encode() + b"\n\x01" + key.public.public_bytes_raw()).digest()
                if raw[:4] == known[:4]:
                    key.check(raw[4:], f"{origin}\n{size}\n{root}\n")
                    good |= key.may("checkpoint", last, last)
    need(good, "checkpoint: by no key that may sign it")
    return int(size), unbase64(root, 32)


def inflated(file: BinaryIO) -> Iterator[bytes]:
    header, inflate = file.read(10), zlib.decompressobj(31)
    need(header == bytes.fromhex("1f8b08000000000000ff"), "gzip: another header")
    yield inflate.decompress(header)
    while not inflate.eof:
        packed = inflate.unconsumed_tail or file.read(1 << 16)
        block = inflate.decompress(packed, 1 << 18)
        need(packed or block, "gzip: cut off")
        yield block
    need(not inflate.unused_data and not file.read(1), "gzip: something follows its end")


def lines(folder: Path, name: str, file: dict[str, int], counts: dict[str, int]) -> Iterator[bytes]:
    """The lines of a file without their ends. Counts them."""
    rest, size, count = b"", 0, 0
    with (folder / name).open("rb") as opened:
        for block in inflated(opened) if name.endswith(".gz") else iter(lambda: opened.read(1 << 18), b""):
            *whole, rest = (rest + block).split(b"\n")
            need(max(map(len, [*whole, rest])) <= LONGEST[name], f"{name}: a line is too long")
            size, count = size + len(block), count + len(whole)
            yield from whole
    need(not rest and file.get("expanded", size) == size, f"{name}: its last line has no end, or its length is another")
    counts[name.partition(".")[0]] = count


def read_manifest(folder: Path, origin: str, keys: list[Key]) -> dict[str, Any]:
    """The manifest, its files and signature being good. What it says of the log is left to the caller."""
    data = (folder / "manifest.json").read_bytes()
    manifest: dict[str, Any] = strict_json(data, one_form=True)
    names = "base counts files format head origin time previous payloads tenant tool"
    time, previous, payloads, tenant, tool = values(manifest, names)[6:]
    need(moment(time) and (previous is None or fields("HASH", previous, "manifest: previous")), "manifest: time")
    need(payloads in ("all", "none") if tenant is None else payloads == "tenant", "manifest: payloads")
    for text in (tool, payloads if tenant is None else tenant):
        need(isinstance(text, str) and 1 <= len(text) <= 16_384, "manifest: tool or tenant")
    for name, file in zip(FILES, values(manifest["files"], " ".join(FILES)), strict=True):
        values(file, "bytes expanded sha256" if name.endswith(".gz") else "bytes sha256")
        with (folder / name).open("rb") as opened:
            need(hashlib.file_digest(opened, "sha256").hexdigest() == file["sha256"], f"{name}: its SHA-256 is another")
            need(opened.tell() == integer(file["bytes"]), f"{name}: its length is another")
    if (folder / "manifest.sig").exists():
        text = (folder / "manifest.sig").read_bytes().decode()
        log, digest, key_id, alg, signature = fields(MANIFEST_SIGNATURE, text, "manifest.sig")
        need((log, digest) == (origin, sha256(data)), "manifest.sig: over another manifest")
        last = manifest["head"]["seq"] if manifest["head"] else 0
        able = [key for key in keys if (key.id, key.alg) == (key_id, alg) and key.may("manifest", last, last)]
        need(able, "manifest.sig: by no key that may sign it")
        able[0].check(unbase64(signature), text.rpartition("signature ")[0])
    return manifest


class Log:
    """The log so far: what the next seal, entry and payload are held to. ``batch`` and ``size`` are those of the next."""

    def __init__(self, origin: str, keys: list[Key]) -> None:
        self.origin, self.keys, self.sealers = origin, keys, [key for key in keys if key.purpose == "seal"]
        self.size, self.prev, self.ts = 0, sha256(f"memory-layer/audit/genesis/v1\n{origin}\n".encode()), ""
        self.batch, self.prev_seal, self.ids = 0, "0" * 64, set[str]()
        self.peaks: list[tuple[int, bytes]] = []  # perfect subtrees, the largest first: leaves and root
        self.sealed, self.retired = dict[str, int](), dict[str, int]()  # by key id: the last entry sealed, to_seq

    def root(self) -> bytes:
        *left, node = [root for _, root in self.peaks] or [hashlib.sha256().digest()]
        for peak in reversed(left):
            node = hashlib.sha256(b"\1" + peak + node).digest()
        return node

    def add_seal(self, text: str, raw: bytes) -> tuple[int, str, str]:
        """Returns the batch's last entry and what the seal says of it: hash and time."""
        what = f"seal {self.batch}"
        log, batch, first, last, head, prev, time, key_id, alg = fields(SEAL, text, what)
        need(log == self.origin and int(batch) == self.batch, f"{what}: of another log, or of batch {batch}")
        need(self.size == int(first) <= int(last), f"{what}: its range does not follow")
        need(prev == self.prev_seal, f"{what}: prev-seal is not the hash of the seal before")
        able = [key for key in self.sealers if (key.id, key.alg) == (key_id, alg) and time <= key.expiry]
        able = [key for key in able if key.may("seal", int(first), int(last))]
        need(able, f"{what}: by no key that may sign it")
        able[0].check(raw, text)
        self.batch, self.prev_seal, self.sealed[key_id] = self.batch + 1, sha256(text.encode()), int(last)
        return int(last), head, time

    def add_entry(self, line: bytes) -> dict[str, Any]:
        what = f"entry {self.size}"
        fields(ENTRY, line.decode(), what)
        entry: dict[str, Any] = json.loads(line)
        need((entry["log"], entry["seq"]) == (self.origin, self.size), f"{what}: says {entry['seq']} of {entry['log']}")
        need(entry["prev"] == self.prev, f"{what}: prev is not the hash of the entry before")
        age = moment(entry["ts"]) - dt.datetime.fromtimestamp(0, dt.UTC)
        made = dt.timedelta(milliseconds=int(entry["id"].replace("-", "")[:12], 16))
        need(abs(age - made) <= dt.timedelta(minutes=5), f"{what}: ts and id are far apart")
        need(entry["ts"] >= self.ts, f"{what}: ts is before the last one")
        need(entry["id"] not in self.ids, f"{what}: its id is used twice")
        self.ids.add(entry["id"])
        peak = 1, hashlib.sha256(b"\0" + line).digest()
        self.size, self.prev, self.ts = self.size + 1, peak[1].hex(), entry["ts"]
        while self.peaks and self.peaks[-1][0] == peak[0]:
            peak = 2 * peak[0], hashlib.sha256(b"\1" + self.peaks.pop()[1] + peak[1]).digest()
        self.peaks.append(peak)
        return entry

    def add_payload(self, entry: dict[str, Any], salt: bytes, payload: bytes) -> None:
        seq, what = entry["seq"], f"payload {entry['seq']}"
        commitment = sha256(b"memory-layer/audit/payload/v1\0" + salt + payload)
        need(commitment == entry["payload"], f"{what}: not what its entry commits to")
        content = strict_json(payload)
        if entry["type"] == "audit.key.retired":
            kind, key_id, purpose, to_seq = values(content, "format key_id purpose to_seq")
            need(kind == "memory-layer/audit-key-retired/v1" and purpose in PURPOSES, f"{what}: format or purpose")
            need(fields("HASH", key_id, what) and integer(to_seq) <= seq, f"{what}: to_seq lies ahead")
            if purpose == "seal":
                self.retired[key_id] = min(to_seq, self.retired.get(key_id, to_seq))
        elif entry["type"] == "audit.key.activated":
            kind, delegation, *parts = values(content, "format delegation key_id algorithm public_key purpose from_seq")
            need(kind == "memory-layer/audit-key-activated/v1", f"{what}: format")
            key = read_key(*parts)
            if delegation is not None:
                by, expiry, signature = values(delegation, "delegate expiry signature")
                able = [one for one in self.keys if one.id == by and one.may("delegate", key.first, key.first)]
                need(able and key.purpose == "seal", f"{what}: by no key that may delegate this")
                need(key.id not in {one.id for one in self.keys}, f"{what}: the trust root has the key")
                need(key.first > seq and moment(expiry) > moment(entry["ts"]), f"{what}: from_seq or expiry")
                text = f"memory-layer/audit-key-delegation/v1\nlog {self.origin}\nkey {key.id}\nalg {key.alg}\nfrom {key.first}\n"
                text += f"expiry {expiry}\ndelegate {by}\ndelegate-alg {able[0].alg}\n"
                able[0].check(unbase64(signature), text)
                self.sealers.append(key._replace(last=able[0].last, expiry=expiry))


def check(folder: Path, trust_root: bytes, notes: Sequence[bytes]) -> None:
    origin, keys = read_trust_root(trust_root)
    manifest, log, counts = read_manifest(folder, origin, keys), Log(origin, keys), dict[str, int]()
    entries, payloads, seals, checkpoints = (lines(folder, name, manifest["files"][name], counts) for name in LONGEST)
    base = {"batch": 0, "prev": log.prev, "prev_seal": log.prev_seal, "seq": 0, "tree": "AAAAAAAAAAA=", "ts": None}
    said = {"base": base, "counts": counts, "format": "memory-layer/evidence-bundle/v1", "head": None, "origin": origin}

    due: dict[int, set[bytes]] = {}  # roots by size
    for size, root in (read_note(note, origin, keys) for note in notes):
        due.setdefault(size, set()).add(root)
    size, signed = -1, any(key.purpose == "checkpoint" for key in keys)
    for line in checkpoints:
        before, (note, text, size) = size, values(strict_json(line, one_form=True), "note root size")
        need(integer(size) > before, f"checkpoint {size}: not in its order")
        root = unbase64(text, 32)
        same = note is None or not signed or read_note(note.encode(), origin, keys) == (size, root)
        need(same, f"checkpoint {size}: its note says otherwise")
        due.setdefault(size, set()).add(root)
    need(due.pop(0, {log.root()}) == {log.root()}, "the root over no entries is not a checkpoint's")

    told = (values(strict_json(line, one_form=True), "seq salt payload") for line in payloads)
    payload = next(told, [None])
    for line in seals:
        signature, text = values(strict_json(line, one_form=True), "signature text")
        last, *stated = log.add_seal(text, unbase64(signature))
        while log.size <= last:
            entry = log.add_entry(next(entries, b""))
            held = manifest["payloads"] == "all" or entry["type"] in ("audit.key.activated", "audit.key.retired")
            if payload[0] == entry["seq"]:
                log.add_payload(entry, unbase64(payload[1], 32), unbase64(payload[2]))
                payload = next(told, [None])
            elif held or (manifest["payloads"] == "tenant" and entry["tenant"] == manifest["tenant"]):
                need(entry["payload"] is None, f"entry {entry['seq']}: its payload is missing")
            if log.size in due:
                need(due.pop(log.size) == {log.root()}, f"the root over {log.size} entries is not a checkpoint's")
        need([log.prev, log.ts] == stated, f"seal {log.batch - 1}: head or time is not the last entry's")
        said["head"] = {"batch": log.batch - 1, "hash": log.prev, "seal": log.prev_seal, "seq": last}

    need(next(entries, None) is None, f"entry {log.size}: no seal covers it")
    need(payload == [None], "payloads: one has no entry, or is not in its order")
    need(not due, f"a checkpoint covers {max(due, default=0)} entries, and there are {log.size}")
    for key_id, to_seq in log.retired.items():
        need(log.sealed.get(key_id, 0) <= to_seq, f"key {key_id}: it sealed beyond {to_seq}, where it was retired")
    for name, value in said.items():
        need(canonical(manifest[name]) == canonical(value), f"manifest: {name} is not what the bundle holds")


def verify(folder: Path, trust_root: bytes, notes: Sequence[bytes] = ()) -> str | None:
    """None where nothing is wrong, else what is."""
    try:
        check(folder, trust_root, notes)
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    bundle, root, *anchors = map(Path, sys.argv[1:])
    sys.exit(verify(bundle, root.read_bytes(), [path.read_bytes() for path in anchors]))
