"""A second verifier of evidence bundles, written from docs/audit-format.md alone. It stops at the first problem.

``python second_verifier.py BUNDLE TRUST_ROOT [CHECKPOINT...]``. Needs the library cryptography. Says nothing of an anchor's age.
"""

import base64
import datetime as dt
import hashlib
import json
import re
import sys
import zlib
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

HEX, INT, TIME = r"[0-9a-f]{64}", r"0|[1-9][0-9]{0,14}", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
TEXT, UUID = r"[ !#-\[\]-~]{1,%d}", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TYPES = ("memory.node.created memory.node.updated memory.node.deleted memory.node.purged memory.legal_hold.set memory.legal_hold.released "
         "memory.artifact.created memory.artifact.verified memory.artifact.corrupt memory.artifact.deleted memory.subject.erased "
         "memory.access.sealed auth.denied audit.key.activated audit.key.retired audit.archived audit.heartbeat audit.incarnation.opened")  # fmt: skip
MEMBERS = {"actor": TEXT % 128, "artifact?": UUID, "auth": "jwt|api-key|mtls|system", "caller_prev_hash?": TEXT % 128,
           "id": r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", "log": TEXT % 255, "manifest_signature_id?": TEXT % 255,
           "node?": UUID, "outcome": "ok|denied", "payload?": HEX, "prev": HEX, "request_id": TEXT % 128, "seq": INT, "state?": HEX,
           "subject?": TEXT % 128, "tenant?": TEXT % 128, "trace_id?": TEXT % 64, "ts": TIME,
           "type": TYPES.replace(".", r"\.").replace(" ", "|") + r"|ops\.[a-z][a-z0-9_-]{0,47}\.(?:succeeded|failed)", "v": "1", "version?": INT}  # fmt: skip
FILES = [
    "audit-format.md",
    "checkpoints.ndjson",
    "entries.ndjson.gz",
    "payloads.ndjson.gz",
    "README.txt",
    "seals.ndjson",
    "trust-root.json",
]
P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SMALL = {0, 1, 2**255 - 20, 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826}
SMALL |= {2**255 - 19 - 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826}


class Wrong(Exception):
    pass


def need(truth, what):
    if not truth:
        raise Wrong(what)


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


def unbase64(text):
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text, "base64 in another spelling")
    return data


def strict(data):
    """Strict JSON, as the page defines it."""

    def pairs(items):
        need(len(dict(items)) == len(items), "a repeated key")
        return dict(items)

    def number(text):
        need(abs(float(text)) <= 2**53 - 1, "a number that is too large")
        need(
            abs(float(text)) >= 1e-300 or not re.search("[1-9]", re.split("[eE]", text)[0]),
            "a number that is too small",
        )
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def walk(value, depth):
        need(depth <= 64 or not isinstance(value, dict | list), "more than 64 levels")
        if isinstance(value, str):
            need("\0" not in value and value.encode(), "U+0000")
        for inner in value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []:
            walk(inner, depth + 1)

    value = json.loads(
        data.decode(),
        object_pairs_hook=pairs,
        parse_float=number,
        parse_int=number,
        parse_constant=lambda _: need(0, "NaN"),
    )
    walk(value, 1)
    return value


def canonical(line):
    """A line of plain strings, integers, null and objects in RFC 8785."""
    value = strict(line)
    need(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() == line, "not canonical")
    return value


def signed(alg, der, text, signature):
    key = load_der_public_key(der)
    need(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == der, "a key in another encoding")
    if alg == "ed25519":
        for point in (key.public_bytes_raw(), signature[:32]):
            y = int.from_bytes(point, "little") & 2**255 - 1
            need(y < 2**255 - 19 and y not in SMALL, "a point of small order")
        need(int.from_bytes(signature[32:], "little") < 2**252 + 27742317777372353535851937790883648493, "S too large")
        key.verify(signature, text)
    elif alg == "ecdsa-p256-sha256":
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        need(len(signature) == 64 and 0 < r < P256 and 0 < s <= P256 // 2, "r or s out of bounds")
        key.verify(utils.encode_dss_signature(r, s), text, ec.ECDSA(SHA256()))
    else:
        need(alg == "rsa-pss-sha256" and 2048 <= key.key_size <= 8192, "an algorithm that is not allowed")
        key.verify(signature, text, padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32), SHA256())


def lines(data, name):
    if name.endswith(".gz"):
        need(data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "another gzip header")
        inflate = zlib.decompressobj(31)
        data = inflate.decompress(data, 1 << 30)
        need(inflate.eof and not inflate.unused_data and not inflate.unconsumed_tail, "not one gzip member")
    need(data.endswith(b"\n") or not data, "a last line without its end")
    return len(data), data.split(b"\n")[:-1]


def root_of(leaves):
    """MTH of RFC 6962, with a stack of perfect subtrees."""
    stack = []
    for leaf in leaves:
        height, value = 0, leaf
        while stack and stack[-1][0] == height:
            height, value = height + 1, hashlib.sha256(b"\1" + stack.pop()[1] + value).digest()
        stack.append((height, value))
    root = stack.pop()[1] if stack else hashlib.sha256(b"").digest()
    while stack:
        root = hashlib.sha256(b"\1" + stack.pop()[1] + root).digest()
    return root


def note_head(note, root):
    """(size, root) of a checkpoint that counts."""
    match = re.fullmatch(
        rf"(([!-~]+)\n({INT})\n([A-Za-z0-9+/]{{43}}=)\n)\n((?:— [^ +\n]+ [A-Za-z0-9+/=]+\n){{1,64}})", note.decode()
    )
    need(match and match[2] == root["origin"], "no checkpoint of this log")
    size, vouched = int(match[3]), False
    for line in match[5].splitlines():
        _, name, blob = line.split(" ")
        blob = unbase64(blob)
        for key in root["keys"]:
            raw = (
                load_der_public_key(unbase64(key["public_key"])).public_bytes_raw()
                if key["algorithm"] == "ed25519"
                else b""
            )
            if raw and name == match[2] and blob[:4] == hashlib.sha256(name.encode() + b"\n\1" + raw).digest()[:4]:
                signed("ed25519", unbase64(key["public_key"]), match[1].encode(), blob[4:])
                vouched |= key["purpose"] == "checkpoint" and in_range(key, max(size - 1, 0), max(size - 1, 0))
    need(vouched, "no line by a key for checkpoints")
    return size, unbase64(match[4])


def in_range(key, first, last):
    return key["from_seq"] <= first and (key["to_seq"] is None or last <= key["to_seq"])


def check(folder, trust_root, anchors):
    root, raw = strict(trust_root), (folder / "manifest.json").read_bytes()
    origin, manifest, content, texts = root["origin"], canonical(raw), {}, {}
    need(
        sorted(manifest)
        == ["base", "counts", "files", "format", "head", "origin", "payloads", "previous", "tenant", "time", "tool"],
        "members of the manifest",
    )
    need(sorted(manifest["files"]) == sorted(FILES) and manifest["origin"] == origin, "the manifest's files or origin")
    for name, told in manifest["files"].items():
        data = content[name] = (folder / name).read_bytes()
        need((len(data), sha(data)) == (told["bytes"], told["sha256"]), f"{name} is not what the manifest says")
        if "ndjson" in name:
            size, texts[name.partition(".")[0]] = lines(data, name)
            need(
                told.get("expanded", size) == size
                and len(texts[name.partition(".")[0]]) == manifest["counts"][name.partition(".")[0]],
                name,
            )
    if (folder / "manifest.sig").exists():
        text, _, signature = (folder / "manifest.sig").read_bytes().decode().rpartition("signature ")
        words = [line.split(" ")[-1] for line in text.split("\n")]
        form = f"memory-layer/audit-manifest/v1\nlog {origin}\nsha256 {sha(raw)}\nkey {words[3]}\nalg {words[4]}\n"
        need(text == form, "manifest.sig")
        last = (manifest["head"] or {"seq": 0})["seq"]
        keys = [
            k for k in root["keys"] if (k["key_id"], k["purpose"], k["algorithm"]) == (words[3], "manifest", words[4])
        ]
        need(signature.endswith("\n") and keys and in_range(keys[0], last, last), "no key for manifests")
        signed(words[4], unbase64(keys[0]["public_key"]), text.encode(), unbase64(signature[:-1]))
    genesis = sha(b"memory-layer/audit/genesis/v1\n", origin.encode(), b"\n")
    base = {
        "batch": 0,
        "prev": genesis,
        "prev_seal": "0" * 64,
        "seq": 0,
        "tree": base64.b64encode(bytes(8)).decode(),
        "ts": None,
    }
    need(manifest["base"] == base, "not a whole log")
    payloads = {}
    for line in texts["payloads"]:
        item = canonical(line)
        need(
            sorted(item) == ["payload", "salt", "seq"] and (not payloads or item["seq"] > max(payloads)),
            "a payload out of order",
        )
        payloads[item["seq"]] = unbase64(item["salt"]), unbase64(item["payload"])
    quoted = {"seq", "v", "version?"}
    form = [f'"{n.rstrip("?")}":' + f"(?:{'null|' * n.endswith('?')}{'' if n in quoted else chr(34)}({p}){'' if n in quoted else chr(34)})" for n, p in MEMBERS.items()]  # fmt: skip
    entry_form, names = re.compile(r"\{" + ",".join(form) + r"\}"), [n.rstrip("?") for n in MEMBERS]
    hashes, stamps, ids, prev, ts, entries = [], [], set(), genesis, "", []
    for seq, line in enumerate(texts["entries"]):
        match = entry_form.fullmatch(line.decode())
        need(match and len(line) <= 65535, f"entry {seq} is not of the form")
        entry = dict(zip(names, match.groups(), strict=True))
        moment = dt.datetime.fromisoformat(entry["ts"]).timestamp() * 1000
        need(
            (entry["log"], entry["seq"], entry["prev"]) == (origin, str(seq), prev) and entry["ts"] >= ts,
            f"entry {seq} does not follow",
        )
        need(
            abs(int(entry["id"].replace("-", "")[:12], 16) - moment) <= 300_001 and entry["id"] not in ids,
            f"id of entry {seq}",
        )
        ids.add(entry["id"])
        salt, payload = payloads.pop(seq, (None, None))
        needed = manifest["payloads"] == "all" or (
            manifest["payloads"] == "tenant" and entry["tenant"] == manifest["tenant"]
        )
        if payload is not None:
            need(
                len(salt) == 32 and sha(b"memory-layer/audit/payload/v1\0", salt, payload) == entry["payload"],
                f"payload of entry {seq}",
            )
            strict(payload)
        else:
            need(
                entry["payload"] is None or (not needed and not entry["type"].startswith("audit.key.")),
                f"no payload of entry {seq}",
            )
        prev, ts = sha(b"\0", line), entry["ts"]
        hashes.append(prev), stamps.append(ts), entries.append((entry, payload))
    need(not payloads, "payloads without an entry")
    keys = [key | {"expiry": "9"} for key in root["keys"]]
    place, before, batch, sealed, retired = 0, "0" * 64, -1, [], []
    for batch, line in enumerate(texts["seals"]):
        item = canonical(line)
        text, first = item["text"], place
        fields = re.fullmatch(rf"memory-layer/audit-seal/v1\nlog ([!-~]+)\nbatch ({INT})\nrange ({INT}) ({INT})\nhead ({HEX})\nprev-seal ({HEX})\ntime ({TIME})\nkey ({HEX})\nalg (\S+)\n", text)  # fmt: skip
        need(fields and sorted(item) == ["signature", "text"], f"seal {batch} is not of the form")
        last = int(fields[4])
        need(
            (fields[1], fields[2], fields[3], fields[6]) == (origin, str(batch), str(first), before),
            f"seal {batch} does not follow",
        )
        need(
            first <= last < len(hashes) and (fields[5], fields[7]) == (hashes[last], stamps[last]),
            f"seal {batch} is of other entries",
        )
        allowed = [k for k in keys if (k["key_id"], k["purpose"], k["algorithm"]) == (fields[8], "seal", fields[9])]
        allowed = [k for k in allowed if in_range(k, first, last) and stamps[last] <= k["expiry"]]
        need(allowed, f"no key that may make seal {batch}")
        signed(fields[9], unbase64(allowed[0]["public_key"]), text.encode(), unbase64(item["signature"]))
        before, place = sha(text.encode()), last + 1
        sealed.append((fields[8], last))
        for entry, payload in entries[first:place]:
            if entry["type"].startswith("audit.key.") and payload is not None:
                key_entry(strict(payload), entry, root, keys, retired)
    need(place == len(hashes), "entries without a seal")
    need(all(last <= end for key, last in sealed for of, end in retired if of == key), "sealed after retirement")
    head = {"batch": batch, "hash": prev, "seal": before, "seq": len(hashes) - 1} if hashes else None
    need(manifest["head"] == head, "the manifest names another end")
    stored = [canonical(line) for line in texts["checkpoints"]]
    need(all(one["size"] < two["size"] for one, two in pairwise(stored)), "checkpoints out of order")
    heads = [note_head(note, root) for note in anchors]
    for row in stored:
        need(sorted(row) == ["note", "root", "size"], "a checkpoint is not of the form")
        heads.append((row["size"], unbase64(row["root"])))
        need(row["note"] is None or note_head(row["note"].encode(), root) == heads[-1], "a note says another head")
    leaves = [bytes.fromhex(value) for value in hashes]
    for size, value in heads:
        need(
            size <= len(leaves) and root_of(leaves[:size]) == value, f"the entries do not give the root of size {size}"
        )


def key_entry(told, entry, root, keys, retired):
    """What an entry says of a key: a delegation that holds lets it seal, a retirement ends that."""
    if entry["type"] == "audit.key.retired":
        need(
            sorted(told) == ["format", "key_id", "purpose", "to_seq"] and told["to_seq"] <= int(entry["seq"]),
            "a retirement",
        )
        if told["purpose"] == "seal":
            retired.append((told["key_id"], told["to_seq"]))
        return
    need(
        sorted(told) == ["algorithm", "delegation", "format", "from_seq", "key_id", "public_key", "purpose"],
        "an activation",
    )
    need(told["key_id"] == sha(unbase64(told["public_key"])), "a key that is not its id")
    if (by := told["delegation"]) is None:
        return
    pinned = [k for k in root["keys"] if (k["key_id"], k["purpose"]) == (by["delegate"], "delegate")]
    need(
        pinned and told["purpose"] == "seal" and all(k["key_id"] != told["key_id"] for k in root["keys"]),
        "a delegation by no delegate",
    )
    text = (f"memory-layer/audit-key-delegation/v1\nlog {root['origin']}\nkey {told['key_id']}\nalg {told['algorithm']}\nfrom {told['from_seq']}\n"
            f"expiry {by['expiry']}\ndelegate {by['delegate']}\ndelegate-alg {pinned[0]['algorithm']}\n")  # fmt: skip
    signed(pinned[0]["algorithm"], unbase64(pinned[0]["public_key"]), text.encode(), unbase64(by["signature"]))
    need(
        told["from_seq"] > int(entry["seq"]) and in_range(pinned[0], told["from_seq"], told["from_seq"]),
        "a delegation from too early",
    )
    need(by["expiry"] > entry["ts"], "a delegation that is over")
    keys.append(told | {"to_seq": pinned[0]["to_seq"], "expiry": by["expiry"]})


def verify(folder, trust_root, anchors=()):
    """The first problem, or None. ``trust_root``: the auditor's own bytes; ``anchors``: signed notes."""
    try:
        check(Path(folder), trust_root, anchors)
    except Exception as error:  # noqa: BLE001 - whatever a broken file provokes is a problem of the bundle
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return None


if __name__ == "__main__":
    problem = verify(sys.argv[1], Path(sys.argv[2]).read_bytes(), [Path(name).read_bytes() for name in sys.argv[3:]])
    print(problem or "consistent")
    sys.exit(problem is not None)
